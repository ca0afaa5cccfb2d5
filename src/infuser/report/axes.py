"""What all figures share: colours by name, axes, and texts that Plotly cannot read as anything else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

ACCENT, INK, MUTED, RULE, PAPER = "@accent", "@ink", "@muted", "@rule", "@paper"


def padded(values: Sequence[float]) -> list[float]:
    """Return the range of the values with some room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 1.0
    return [low - room, high + room]


def rule(x0: float, x1: float, y0: float, y1: float) -> dict[str, Any]:
    """Return a dotted line below the data."""
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": line, "layer": "below"}


def layout_of(x: str, y: str, *, r: int = 16, legend: bool = False) -> dict[str, Any]:
    """Return a layout with axis titles; `r` is the right margin in pixels."""
    axis = {"gridcolor": RULE, "zeroline": False, "fixedrange": True, "linecolor": MUTED, "automargin": True}
    return {
        "margin": {"l": 8, "r": r, "t": 18, "b": 48},
        "xaxis": {**axis, "title": {"text": x, "standoff": 10, "font": {"size": 12}}},
        "yaxis": {**axis, "title": {"text": y, "standoff": 10, "font": {"size": 12}}},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        "hovermode": "closest",
        "dragmode": False,
    }


def safe(text: object) -> str:
    """Return a text as Plotly shows it: it reads a few tags, and names from data are not to be read that way."""
    return html.escape(str(text))
