"""The section on detection: curves, bars, and the documents that a person should look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from infuser.report import forest, plots
from infuser.report.blocks import Block, Cell, Prose, Row, Section, Table, column, value_cell
from infuser.report.lookup import Lookup
from infuser.report.material import Detection, Documents, EditView, Regime
from infuser.report.parts import edited_ids, estimate_cells, of
from infuser.types import Edit, Effect, Suspicion

_SUSPECTS = 60


def detection(parts: Sequence[object]) -> Section | None:
    """Return the section, or None where nothing was searched."""
    suspicions = of(parts, Suspicion)
    blocks: list[Block] = [_suspects(suspicions, parts)] if suspicions else []
    for part in of(parts, Detection):
        if part.title:
            blocks.append(Prose(title=part.title))
        figures = [plots.roc(part)] if part.curves else []
        metrics = dict.fromkeys(r.metric for r in part.results if r.metric in part.drawn or not part.drawn)
        bars = [plots.detector_bars(part, m) for m in metrics]
        if figures and bars:  # the curves stand beside one or two rows of bars
            beside = sum(bar.height + 40 for bar in bars[:2]) - 40
            figures = [replace(figures[0], height=min(640, max(380, beside)))]
        figures += bars
        rows = tuple(
            (Cell(r.name), Cell(r.metric), *estimate_cells(r.after), *estimate_cells(r.lift), value_cell(r.after.n))
            for r in part.results
        )
        columns = ("detector", "metric", "after", "95 % interval", "lift", "95 % interval ", "n")
        caption = f"{part.n_edited:,} edited documents among {part.n_edited + part.n_clean:,}. " + (
            "After: on the edited data, as a defender has them. Lift: after minus the same documents before the edit."
        )
        if figures:
            table = Table("Detectors", columns, rows, tool=True)
            blocks.append(forest.captioned(Row(tuple(figures), layout="half"), caption, table))
    attacked = any(isinstance(part, (Edit, EditView, Effect, Regime)) for part in parts)
    title = "Would it be noticed?" if attacked else "What looks suspicious"
    return Section("detection", title, blocks) if blocks else None


def _suspects(suspicions: Sequence[Suspicion], parts: Sequence[object]) -> Table:
    look = Lookup(of(parts, Documents))
    edited = edited_ids(parts) | look.edited
    columns: dict[str, Mapping[int, float]] = {}
    for s in suspicions:
        name = s.detector if s.told == "blind" else f"{s.detector} (told {s.told})"
        columns[name] = dict(zip(s.ids.tolist(), s.values.tolist(), strict=True))
    each = max(10, _SUSPECTS // len(suspicions))
    ids = dict.fromkeys(int(i) for s in suspicions for i in s.top(min(each, len(s))))
    rows = []
    values = [column([by_id.get(i) for i in ids], signed=False) for by_id in columns.values()]
    for rank, i in enumerate(ids):
        status = [Cell("edited", mark=True) if i in edited else Cell("clean")] if edited else []
        cells = (each_column[rank] for each_column in values)
        label = [Cell(look.label(i))] if look.labelled else []
        facts = (value_cell(look.fact(name, i)) for name in look.facts)
        rows.append((value_cell(rank + 1), look.cell(i), *label, *facts, *status, *cells))
    labels, truth = ["label"] * look.labelled, ["truth"] * bool(edited)
    head = ("rank", "document", *labels, *look.facts, *truth, *columns)
    caption = f"The {each} most suspicious documents of each detector"
    return Table(caption, head, tuple(rows), tool=True)
