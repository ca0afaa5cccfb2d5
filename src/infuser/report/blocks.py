"""The blocks that a page is made of: tables, figures, cards. The template knows these and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infuser.html import data_uri, number
from infuser.types import Array


@dataclass(frozen=True)
class Picture:
    """An image with what it shows in words."""

    uri: str
    alt: str
    label: str = ""


@dataclass(frozen=True)
class Cell:
    """One table cell.

    Attributes:
        text: what is read.
        sort: what is sorted by, where it is not the text.
        picture: shown before the text.
        mark: draws attention to the cell.
    """

    text: str
    sort: float | None = None
    picture: Picture | None = None
    mark: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a caption; a tool is a sortable and filterable one."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    tool: bool = False
    kind: str = "table"

    @property
    def numeric(self) -> tuple[bool, ...]:
        """(columns,) which of them hold numbers."""
        return tuple(
            any(row[i].sort is not None for row in self.rows)
            and all(_is_number(row[i]) and row[i].picture is None for row in self.rows)
            for i in range(len(self.columns))
        )


@dataclass(frozen=True)
class Figure:
    """A Plotly figure, its caption, and the same numbers as a table for those who cannot see it.

    Attributes:
        spec: {"data", "layout"}; colours are names of the page's own, "@accent".
        caption: what is drawn, with n and seeds.
        alt: what is to be seen, in a sentence.
        height: in CSS pixels.
        table: the numbers.
        title: above the figure.
    """

    spec: Mapping[str, Any]
    caption: str
    alt: str
    height: int
    table: Table | None = None
    title: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Row:
    """Figures under one caption.

    Attributes:
        figures: in reading order.
        caption: what is drawn, with n and seeds.
        layout: "stack"; where there is room, "half" puts figures side by side, and "forest" puts figures side by side
            that share their rows.
    """

    figures: tuple[Figure, ...]
    caption: str = ""
    layout: str = "stack"
    kind: str = "row"


@dataclass(frozen=True)
class Bar:
    """One class of a small chart: probabilities before and after, in percent of the height."""

    label: str
    before: float
    after: float
    role: str = ""


@dataclass(frozen=True)
class Card:
    """One document: its title, pictures or text, values to sort by, and a small chart.

    Attributes:
        title: id and label.
        pictures: side by side.
        text: of a text document.
        tokens: (space, before, after, gain) of each token; before equals after where it was kept.
        facts: name -> cell.
        bars: a small chart.
        legend: names of before and after in the chart.
        alt: the chart in words.
    """

    title: str
    pictures: tuple[Picture, ...] = ()
    text: str = ""
    tokens: tuple[tuple[str, str, str, str], ...] = ()
    facts: Mapping[str, Cell] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    legend: tuple[str, str] = ("", "")
    alt: str = ""


@dataclass(frozen=True)
class Cards:
    """Small multiples that can be sorted by their facts and filtered by their text."""

    title: str
    caption: str
    cards: tuple[Card, ...]
    folded: bool = False
    first: int = 12
    wide: bool = False
    kind: str = "cards"

    @property
    def keys(self) -> tuple[str, ...]:
        """The facts that can be sorted by."""
        return tuple(dict.fromkeys(k for card in self.cards for k, c in card.facts.items() if c.sort is not None))


@dataclass(frozen=True)
class Prose:
    """Sentences, or preformatted text."""

    paragraphs: tuple[str, ...] = ()
    code: str = ""
    title: str = ""
    kind: str = "prose"


@dataclass(frozen=True)
class Notes:
    """A list of caveats: (code, text)."""

    items: tuple[tuple[str, str], ...]
    kind: str = "notes"


Block = Table | Figure | Row | Cards | Prose | Notes


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


def value_cell(value: object, digits: int = 3, signed: bool = False) -> Cell:
    """Return a cell of a number, or of anything's text."""
    if isinstance(value, str):
        # "93 %" and "3 of 57" are sorted by their number.
        match = re.fullmatch(r"([+-]?[\d.]+)([ \xa0]%| of \d+)", value)
        return Cell(value, float(match[1]) if match else None)
    if isinstance(value, bool) or value is None:
        return Cell("–" if value is None else str(value))
    if isinstance(value, (int, float)) or hasattr(value, "item"):
        plain = float(value)  # type: ignore[arg-type]
        shown = f"{value:,}" if isinstance(value, int) else number(plain, digits, signed)
        return Cell(shown, plain if plain == plain else None)
    return Cell(str(value))


def column(values: Sequence[object], signed: bool = True) -> list[Cell]:
    """Return the cells of a column; numbers that are not whole get as many decimals as the largest needs."""
    floats = [abs(v) for v in values if isinstance(v, float) and v == v]
    largest = max(floats, default=0.0)
    decimals = min(max(2 - math.floor(math.log10(largest)), 3 if largest < 10 else 2), 6) if largest > 0 else 2
    decimals = 0 if largest >= 10_000 else decimals
    cells = []
    for value in values:
        if isinstance(value, float) and value == value:
            cells.append(Cell(format(value, f"{'+' if signed else ''}z,.{decimals}f").replace("-", "−"), value))
        else:
            cells.append(value_cell(value))
    return cells


def picture(pixels: Array, alt: str, label: str = "") -> Picture:
    """Return an image as a data address."""
    return Picture(data_uri(pixels), alt, label)


def _is_number(cell: Cell) -> bool:
    return cell.sort is not None or cell.text == "–"
