"""Progress: on a terminal a bar with rate and time left, elsewhere a line now and then; nothing of what is quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Sized
from typing import TypeVar

T = TypeVar("T")

EVERY = 30.0  # seconds between lines where there is no terminal


def track(
    items: Iterable[T], description: str, total: int | None = None, note: Callable[[int], str] | None = None
) -> Generator[T]:
    """Yield the items and tell how far it is, of `total` (their number if known), on standard error.

    A terminal shows a bar once two seconds have gone by; a file or a pipe gets a line every half minute. `note` says
    more about the state after so many items.

    >>> list(track([1, 2], "doubling"))
    [1, 2]
    """
    known = len(items) if total is None and isinstance(items, Sized) else total
    if not sys.stderr.isatty():
        yield from _told(items, description, known, note)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))

    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=known, rate="")
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


def _told(items: Iterable[T], description: str, total: int | None, note: Callable[[int], str] | None) -> Generator[T]:
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            said = f", {note(done)}" if note else ""
            sys.stderr.write(f"{description}: {done}{f' of {total}' if total else ''}{said}\n")
            sys.stderr.flush()
