"""What sections ask of the parts of a report, and how they word it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from infuser.report.blocks import Cell
from infuser.report.material import EditView
from infuser.report.wording import interval_only, interval_text
from infuser.types import Edit, Effect, Estimate

T = TypeVar("T")


def of(parts: Sequence[object], kind: type[T]) -> list[T]:
    """Return the parts of one kind, in their order."""
    return [part for part in parts if isinstance(part, kind)]


def edited_ids(parts: Sequence[object]) -> set[int]:
    """Return the ids that some edit among the parts changes."""
    edits = [p.edit if isinstance(p, EditView) else p for p in parts if isinstance(p, (Edit, EditView))]
    return {int(i) for edit in edits for i in edit.ids}


def estimate_cells(estimate: Estimate | None) -> tuple[Cell, Cell]:
    """Return the cells of a value and of its interval."""
    if estimate is None:
        return Cell("–"), Cell("–")
    shown = interval_text(estimate).partition(" [")[0].removeprefix("+")
    return Cell(shown, float(estimate.value)), Cell(interval_only(estimate).replace("+", ""))


def title_of(regime: str) -> str:
    """Return the heading of a regime."""
    model, _, start = regime.rpartition(":")
    name = {"last_epoch": "Retrained over the last epoch", "half": "Retrained from half-way", "scratch": "From scratch"}
    return (f"{model}: " if model else "") + name.get(start, start.replace("_", " "))


def sizes(effects: Sequence[Effect]) -> str:
    """Return what effects rest on, in a sentence."""
    sizes = dict.fromkeys(
        f"n = {e.estimate.n:,} {e.estimate.unit_of_n}, {len(e.estimate.seeds)} seeds" for e in effects
    )
    return "; ".join(sizes) + "." if sizes else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one, keys joined by a dot.

    >>> flat({"packages": {"torch": "2.13"}})
    {'packages.torch': '2.13'}
    """
    result: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
