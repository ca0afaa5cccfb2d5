"""Progress on a terminal: rate and time left on anything over two seconds; silence elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Sized
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, total: int | None = None, note: Callable[[int], str] | None = None
) -> Generator[T]:
    """Yield the items; on a terminal, show a bar of `total` (their number if known) once two seconds have gone by.

    `note` says more about the state after so many items.

    >>> list(track([1, 2], "doubling"))
    [1, 2]
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))

    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=len(items) if total is None and isinstance(items, Sized) else total, rate="")
    started = False
    try:
        for done, item in enumerate(items):
            yield item
            gone = time.monotonic() - begun
            if not started and gone > 2:
                bar.start()
                started = True
            if started:
                said = f"{note(done + 1)}, " if note else ""
                bar.update(task, completed=done + 1, rate=f"{said}{(done + 1) / gone:.3g}/s")
    finally:
        if started:
            bar.stop()
