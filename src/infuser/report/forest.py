"""Forest plots: arms in rows, intervals as bars, every probe as a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infuser.html import number
from infuser.report.axes import ACCENT, INK, MUTED, PAPER, RULE, layout_of, padded, rule, safe
from infuser.report.blocks import Cell, Figure, Row, Table, value_cell
from infuser.report.wording import arm_name, interval_only, interval_text, measure_name
from infuser.types import Effect

_GOLDEN = 0.6180339887498949  # multiples of it modulo 1 spread evenly: jitter without randomness
_ROW = 46  # pixels a row of a forest plot


def forest(effects: Sequence[Effect], labels: Sequence[str], emphasised: Sequence[bool], title: str = "") -> Figure:
    """Return a forest plot: a row an effect, its interval as a bar, its mean as a mark, every probe as a point.

    Args:
        effects: of one measure, the first on top.
        labels: of the rows.
        emphasised: rows in the accent colour.
        title: above the plot.
    """
    data = [_points(effects, emphasised)]
    for wanted, colour in ((False, INK), (True, ACCENT)):
        rows = [i for i, flag in enumerate(emphasised) if bool(flag) is wanted]
        data += [_intervals(effects, rows, colour), _means(effects, rows, colour)]
    n = len(effects)
    control = " or ".join(dict.fromkeys(arm_name(e.control) for e in effects))
    annotations = [
        {
            "xref": "paper", "x": 1.015, "xanchor": "left", "y": -i, "text": interval_text(effect.estimate),
            "showarrow": False, "font": {"color": ACCENT if emphasised[i] else INK, "size": 12}, "name": "wide",
        }
        for i, effect in enumerate(effects)
    ]  # fmt: skip
    heading = {
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "text": "mean [95 %]",
        "font": {"color": MUTED, "size": 11},
    }
    annotations.append(annotations[0] | heading)
    width = max(len(interval_text(effect.estimate)) for effect in effects)
    layout = {
        **layout_of(measure_name(effects[0].measure), "", r=16 + 7 * width),
        "yaxis": {
            "tickvals": [-i for i in range(n)], "ticktext": [safe(label) for label in labels],
            "range": [-n + 0.4, 0.6], "automargin": True, "fixedrange": True, "ticks": "", "zeroline": False,
            "ticklabelstandoff": 8, "gridcolor": RULE,
        },
        "shapes": [rule(0, 0, -n + 0.4, 0.6)],
        "annotations": annotations,
    }  # fmt: skip
    layout["xaxis"]["range"] = padded(
        [x for e in effects for x in (0.0, e.value, *(e.interval or ()), *e.per_probe.values())]
    )
    best = "; ".join(f"{label} {interval_text(e.estimate)}" for label, e in zip(labels, effects, strict=True))
    return Figure(
        {"data": data, "layout": layout},
        "",
        f"Forest plot of the {measure_name(effects[0].measure)} against {control}: {best}.",
        84 + _ROW * n,
        title=title,
    )


def effects_table(effects: Sequence[Effect], caption: str, tool: bool = False) -> Table:
    """Return effects as rows with n, seeds, control, interval and p."""
    columns = ("arm", "control", "measure", "mean", "95 % interval", "p", "n", "seeds")
    rows = []
    for e in effects:
        interval = interval_only(e.estimate)
        size = Cell(f"{e.estimate.n:,} {e.estimate.unit_of_n}", float(e.estimate.n))
        rows.append(
            (
                Cell(arm_name(e.arm)), Cell(arm_name(e.control)), Cell(e.measure.replace("_", "-")),
                value_cell(float(e.value), signed=True),
                Cell(interval, None if e.interval is None else float(e.interval[0])), value_cell(e.p, 2), size,
                value_cell(len(e.estimate.seeds)),
            )
        )  # fmt: skip
    return Table(caption, columns, tuple(rows), tool)


def captioned(row: Row, caption: str, table: Table) -> Row:
    """Return a row with its caption; the last figure carries the numbers of all."""
    return replace(row, caption=caption, figures=(*row.figures[:-1], replace(row.figures[-1], table=table)))


def shared(figures: Sequence[Figure]) -> Row:
    """Return forest plots of the same rows side by side; only the first names the rows where there is room."""
    rest = []
    for figure in figures[1:]:
        spec = {**figure.spec, "layout": {**figure.spec["layout"], "meta": "beside"}}
        rest.append(replace(figure, spec=spec, title=""))
    return Row((figures[0], *rest), layout="forest")


def _points(effects: Sequence[Effect], emphasised: Sequence[bool]) -> dict[str, Any]:
    x, y, text, colour = [], [], [], []
    for i, effect in enumerate(effects):
        for j, (name, value) in enumerate(effect.per_probe.items()):
            x.append(value)
            y.append(-i + 0.5 * ((j * _GOLDEN) % 1 - 0.5))
            text.append(f"{safe(arm_name(effect.arm))}, {safe(name)}")
            colour.append(ACCENT if emphasised[i] else INK)
    return {
        "x": x, "y": y, "text": text, "mode": "markers", "showlegend": False,
        "marker": {"color": colour, "size": 6, "opacity": 0.3 if len(x) > 8 * len(effects) else 0.6},
        "hovertemplate": "%{text}<br>%{x:+.3f}<extra></extra>",
    }  # fmt: skip


def _intervals(effects: Sequence[Effect], rows: Sequence[int], colour: str) -> dict[str, Any]:
    x: list[float | None] = []
    y: list[float | None] = []
    for i in rows:
        interval = effects[i].interval
        if interval is not None:
            x += [*map(float, interval), None]
            y += [-i, -i, None]
    line = {"color": colour, "width": 3.5}
    return {"x": x, "y": y, "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False}


def _means(effects: Sequence[Effect], rows: Sequence[int], colour: str) -> dict[str, Any]:
    text = []
    for i in rows:
        e = effects[i]
        p = "" if e.p is None else f", p = {number(e.p, 2)}"
        size = f"n = {e.estimate.n} {safe(e.estimate.unit_of_n)}, {len(e.estimate.seeds)} seeds{p}"
        text.append(f"{safe(arm_name(e.arm))} − {safe(arm_name(e.control))}<br>{interval_text(e.estimate)}<br>{size}")
    return {
        "x": [float(effects[i].value) for i in rows], "y": [-i for i in rows], "text": text, "mode": "markers",
        "marker": {"color": PAPER, "size": 11, "symbol": "diamond", "line": {"color": colour, "width": 2.5}},
        "hovertemplate": "%{text}<extra></extra>", "showlegend": False,
    }  # fmt: skip
