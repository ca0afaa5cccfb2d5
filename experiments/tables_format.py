"""How numbers stand in a page: what every table is written with."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = Mapping[str, Any]


def results(name: str) -> Any:
    """Return what experiments/results holds under a name."""
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def row_of(row: Row | None, value: str = "value") -> Row | None:
    """Return a value and its interval under the names that `share` reads, or None for none."""
    return None if row is None else {"value": row[value], "interval": row["ci95"]}


def wrapped(*parts: str) -> str:
    """Return sentences as a paragraph."""
    return textwrap.fill(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(row: Row) -> str:
    """Return a mean with its interval, where it has one."""
    return f"{row['mean']:+.2f}{ends_of(row['ci95'], 2)}"


def lowest_to_highest(row: Row) -> str:
    """Return the forward passes of a benchmark, median and ends."""
    return f"{row['forward_passes']:.1f} [{row['lowest']:.1f}, {row['highest']:.1f}]"


def three_places(value: float) -> str:
    """Return .123."""
    return _short(f"{value:.3f}")


def share(row: Row | None) -> str:
    """Return a number below one with its interval, where it has one, or a dash for none."""
    if row is None:
        return "–"
    ends = "" if row["interval"] is None else f" [{', '.join(map(two_places, row['interval']))}]"
    return f"{two_places(row['value'])}{ends}"


def percent(row: Row) -> str:
    """Return a share in per cent with its interval."""
    ends = row.get("interval") if isinstance(row.get("interval"), list) else row.get("ci95")
    # An interval of a share, not of what a share cannot be.
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    return f"{100 * row['value']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def two_places(value: float | None) -> str:
    """Return .12, or a dash for what is not defined."""
    return "–" if value is None else _short(f"{value:.2f}")


def p_value(p: float) -> str:
    """Return .0029: two digits that count, since a p-value is never 0."""
    return _short(f"{p:.2g}")


def _short(number: str) -> str:
    """Return 0.5 as .5 and -0.5 as -.5."""
    return re.sub(r"^(-?)0\.", r"\1.", number)


def ends_of(interval: Sequence[float] | None, places: int = 3) -> str:
    """Return an interval, or nothing for none."""
    return "" if interval is None else f" [{interval[0]:+.{places}f}, {interval[1]:+.{places}f}]"


def clipped_ends(ends: Sequence[float] | None) -> str:
    """Return an interval of a share: inside [0, 1]."""
    return "" if ends is None else f" [{two_places(max(0.0, ends[0]))}, {two_places(min(1.0, ends[1]))}]"
