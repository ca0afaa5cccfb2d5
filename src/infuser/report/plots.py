"""Figures as Plotly's plain dictionaries. Values are drawn as they came; colours are names that the page fills in."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infuser.html import number
from infuser.report.blocks import Cell, Figure, Row, Table, value_cell
from infuser.report.material import Detection, PredictedMeasured, TradeOff
from infuser.types import Effect, Estimate

ACCENT, INK, MUTED, RULE, PAPER = "@accent", "@ink", "@muted", "@rule", "@paper"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_GOLDEN = 0.6180339887498949  # multiples of it modulo 1 spread evenly: jitter without randomness
_ROW = 46  # pixels a row of a forest plot

# What a measure is called on an axis, and where it stands: log-odds first, since probabilities saturate.
MEASURES = {
    "log_odds": "change of log-odds of the target",
    "log_prob": "change of log p of the target, nats",
    "contrastive": "change of log p(target) − log p(other), nats",
    "probability": "change of probability of the target",
}


def measure_name(measure: str) -> str:
    """Return a measure's name for an axis.

    >>> measure_name("log_odds")
    'change of log-odds of the target'
    """
    return MEASURES.get(measure.replace("-", "_"), f"change of {measure}")


def arm_name(arm: str) -> str:
    """Return an arm's name for people.

    >>> arm_name("no_curvature")
    'no curvature'
    """
    return arm.replace("_", " ")


def interval_text(estimate: Estimate) -> str:
    """Return the value and its interval with as many decimals as the interval's width has to tell.

    >>> interval_text(Estimate(0.8634, (-0.0211, 1.2), 20))
    '+0.9 [−0.0, 1.2]'
    """
    if estimate.interval is None:
        return number(estimate.value, signed=True)
    width = abs(estimate.interval[1] - estimate.interval[0])
    decimals = min(max(1 - math.floor(math.log10(width)), 0), 4) if width > 0 else 2
    low, high = (f"{x:.{decimals}f}" for x in estimate.interval)
    return f"{estimate.value:+.{decimals}f} [{low}, {high}]".replace("-", "−")


def estimate_text(estimate: Estimate) -> str:
    """Return a statistic with what it rests on.

    >>> estimate_text(Estimate(0.51, (0.42, 0.6), 20, (1, 2)))
    '0.51 [0.42, 0.60] (n = 20 probes, 2 seeds)'
    """
    size = f"n = {estimate.n:,} {estimate.unit_of_n}" + (f", {len(estimate.seeds)} seeds" if estimate.seeds else "")
    return f"{interval_text(estimate).removeprefix('+')} ({size})"


def interval_only(estimate: Estimate) -> str:
    """Return the interval in words, or a dash.

    >>> interval_only(Estimate(0.8634, (0.7411, 0.9812), 20))
    '0.74 to 0.98'
    """
    return interval_text(estimate).partition("[")[2].rstrip("]").replace(", ", " to ") or "–"


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
        **_layout(measure_name(effects[0].measure), "", r=16 + 7 * width),
        "yaxis": {
            "tickvals": [-i for i in range(n)], "ticktext": [_safe(label) for label in labels],
            "range": [-n + 0.4, 0.6], "automargin": True, "fixedrange": True, "ticks": "", "zeroline": False,
            "ticklabelstandoff": 8, "gridcolor": RULE,
        },
        "shapes": [_line(0, 0, -n + 0.4, 0.6)],
        "annotations": annotations,
    }  # fmt: skip
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


def predicted_measured(part: PredictedMeasured) -> Figure:
    """Return measured against predicted change, one point a probe, with the line of equality."""
    pairs = list(zip(part.names, part.predicted.tolist(), part.measured.tolist(), strict=True))
    values = [x for _, p, m in pairs for x in (p, m)] + [0.0]
    ends = [min(values), max(values)]
    equal = {"x": ends, "y": ends, "mode": "lines", "line": {"color": MUTED, "width": 1, "dash": "dash"}}
    points = {
        "x": [p for _, p, _ in pairs], "y": [m for _, _, m in pairs], "mode": "markers",
        "marker": {"color": ACCENT, "size": 9, "opacity": 0.75, "line": {"color": PAPER, "width": 1}},
        "text": [_safe(name) for name, _, _ in pairs],
        "hovertemplate": "%{text}<br>predicted %{x:+.3g}<br>measured %{y:+.3g}<extra></extra>",
    }  # fmt: skip
    layout = _layout(f"predicted change of f, {part.unit}", f"measured change of f, {part.unit}")
    said = "; ".join(f"{m.name} {estimate_text(m.estimate)}" for m in part.statistics)
    said = said and f"{said}."
    rows = tuple((Cell(name), value_cell(p, signed=True), value_cell(m, signed=True)) for name, p, m in pairs)
    table = Table("Predicted and measured change", ("probe", "predicted", "measured"), rows)
    caption = f"One point a probe, n = {len(pairs)}; the dashed line is equality. {said[:1].upper()}{said[1:]}".strip()
    data = [{**equal, "hoverinfo": "skip", "showlegend": False}, {**points, "showlegend": False}]
    return Figure({"data": data, "layout": layout}, caption, f"Scatter plot of {len(pairs)} probes. {said}", 380, table)


def roc(part: Detection) -> Figure:
    """Return ROC curves on a logarithmic axis of the false-positive rate, since a useful detector has a small one."""
    # Rates of zero have no place on a logarithmic axis: they are drawn at half the smallest rate that n can show.
    floor = 0.5 / max(part.n_clean, 1) if part.n_clean else 1e-4
    data = []
    for i, curve in enumerate(part.curves):
        pairs = sorted(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True))
        start = max(j for j, (x, _) in enumerate(pairs) if x <= floor or j == 0)
        pairs = pairs[start:]
        data.append(
            {
                "x": [max(x, floor) for x, _ in pairs], "y": [y for _, y in pairs], "mode": "lines",
                "name": _safe(curve.name), "line": _stroke(i) | {"shape": "hv"},
                "hovertemplate": "FPR %{x:.2g}, TPR %{y:.2f}<extra>" + _safe(curve.name) + "</extra>",
            }
        )  # fmt: skip
    grid = [floor * (1 / floor) ** (i / 60) for i in range(61)]
    chance = {"x": grid, "y": grid, "mode": "lines", "name": "chance", "hoverinfo": "skip"}
    data.append(chance | {"line": {"color": MUTED, "width": 1}})
    layout = _layout("false-positive rate", "true-positive rate", legend=True)
    ticks = {1e-4: "0.01 %", 1e-3: "0.1 %", 1e-2: "1 %", 1e-1: "10 %", 1.0: "100 %"}
    layout["xaxis"] |= {
        "type": "log", "range": [math.log10(floor), 0.02], "tickvals": list(ticks), "ticktext": list(ticks.values()),
    }  # fmt: skip
    layout["yaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".1f"}
    caption = f"{part.n_edited:,} edited documents among {part.n_edited + part.n_clean:,}; logarithmic axis."
    names = ", ".join(curve.name for curve in part.curves)
    return Figure({"data": data, "layout": layout}, caption, f"ROC curves of {names}.", 380, title="ROC")


def detector_bars(part: Detection, metric: str) -> Figure:
    """Return bars of one metric by detector: what a defender gets, and what the edit itself added."""
    chosen = [r for r in part.results if r.metric == metric]
    names = [_safe(r.name) for r in chosen]
    kinds: tuple[tuple[str, Any, list[Estimate | None]], ...] = (
        ("after", ACCENT, [r.after for r in chosen]),
        ("lift", "@soft", [r.lift for r in chosen]),
    )
    data = []
    for name, colour, values in kinds:
        bars = {
            "type": "bar", "orientation": "h", "name": name, "y": names,
            "x": [None if v is None else v.value for v in values],
            "marker": {"color": colour}, "error_x": _whiskers(values),
            "hovertemplate": "%{y}: " + name + " %{x:.3f}<extra></extra>",
        }  # fmt: skip
        if any(v is not None for v in values):
            data.append(bars)
    layout = _layout(metric, "", legend=True) | {"barmode": "group", "bargap": 0.35, "bargroupgap": 0.08}
    layout["yaxis"] = {
        "autorange": "reversed",
        "automargin": True,
        "fixedrange": True,
        "ticklabelstandoff": 8,
        "zeroline": False,
    }
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": MUTED}
    said = "; ".join(
        f"{r.name} {estimate_text(r.after)}" + ("" if r.lift is None else f", lift {estimate_text(r.lift)}")
        for r in chosen
    )
    caption = "After: on the edited data, as a defender has them. Lift: after minus the same documents before the edit."
    return Figure({"data": data, "layout": layout}, caption, f"{metric}: {said}.", 96 + 52 * len(chosen), title=metric)


def trade_offs(parts: Sequence[TradeOff]) -> Figure:
    """Return type II against type I error; the diagonal is chance, curves below it can be told apart."""
    data: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        name = part.name if part.mu is None else f"{part.name}, μ = {part.mu.value:.2f}"
        curve = {
            "x": part.alpha.tolist(),
            "y": part.beta.tolist(),
            "mode": "lines",
            "name": _safe(name),
            "line": _stroke(i),
        }
        data.append(curve | {"hovertemplate": "α %{x:.2f}, β %{y:.2f}<extra>" + _safe(part.name) + "</extra>"})
    chance = {"x": [0, 1], "y": [1, 0], "mode": "lines", "name": "chance", "hoverinfo": "skip"}
    data.append(chance | {"line": {"color": MUTED, "width": 1}})
    layout = _layout("type I error α", "type II error β", legend=True)
    said = "; ".join(f"{p.name}: μ {estimate_text(p.mu)}" for p in parts if p.mu is not None)
    return Figure({"data": data, "layout": layout}, said and f"{said}. ", f"Trade-off curves. {said}", 380)


def ranked(values: Sequence[float], ids: Sequence[int], edited: Sequence[int], unit: str) -> Figure:
    """Return scores in descending order, with the edited documents marked."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    marked = set(edited)
    kept = [(r, i) for r, i in enumerate(order) if ids[i] in marked]
    # Neighbours in a sorted curve of many documents lie on the same pixel: every other few are enough.
    step = max(1, len(order) // 800)
    shown = [(r, i) for r, i in enumerate(order) if r % step == 0 or r < 20 or r >= len(order) - 20]
    hover = "document %{text}<br>rank %{x}, score %{y:+.3g}<extra></extra>"
    curve = {
        "x": [r + 1 for r, _ in shown], "y": [values[i] for _, i in shown], "text": [ids[i] for _, i in shown],
        "mode": "lines", "line": {"color": INK, "width": 1.5}, "name": "all documents", "hovertemplate": hover,
    }  # fmt: skip
    points = {
        "x": [r + 1 for r, _ in kept], "y": [values[i] for _, i in kept], "text": [ids[i] for _, i in kept],
        "mode": "markers", "marker": {"color": ACCENT, "size": 8, "opacity": 0.8, "line": {"color": PAPER, "width": 1}},
        "name": "edited", "hovertemplate": hover,
    }  # fmt: skip
    layout = _layout("rank of the document", f"score, {unit}", legend=bool(kept))
    layout["shapes"] = [{**_line(0, 0, 0, 0), "xref": "paper", "x0": 0, "x1": 1, "yref": "y"}]
    said = f"{len(values):,} documents from the strongest proponent to the strongest opponent"
    caption = f"{said}; {len(kept)} edited ones are marked." if kept else f"{said}."
    return Figure({"data": [curve, *([points] if kept else [])], "layout": layout}, caption, caption, 300)


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
            text.append(f"{_safe(arm_name(effect.arm))}, {_safe(name)}")
            colour.append(ACCENT if emphasised[i] else INK)
    return {
        "x": x, "y": y, "text": text, "mode": "markers", "showlegend": False,
        "marker": {"color": colour, "size": 6, "opacity": 0.3}, "hovertemplate": "%{text}<br>%{x:+.3f}<extra></extra>",
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
        size = f"n = {e.estimate.n} {_safe(e.estimate.unit_of_n)}, {len(e.estimate.seeds)} seeds{p}"
        text.append(f"{_safe(arm_name(e.arm))} − {_safe(arm_name(e.control))}<br>{interval_text(e.estimate)}<br>{size}")
    return {
        "x": [float(effects[i].value) for i in rows], "y": [-i for i in rows], "text": text, "mode": "markers",
        "marker": {"color": PAPER, "size": 11, "symbol": "diamond", "line": {"color": colour, "width": 2.5}},
        "hovertemplate": "%{text}<extra></extra>", "showlegend": False,
    }  # fmt: skip


def _whiskers(values: Sequence[Estimate | None]) -> dict[str, Any]:
    ends = [(v.value, *v.interval) if v is not None and v.interval is not None else None for v in values]
    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "color": INK,
        "array": [0 if e is None else e[2] - e[0] for e in ends],
        "arrayminus": [0 if e is None else e[0] - e[1] for e in ends],
    }  # fmt: skip


def _stroke(i: int) -> dict[str, Any]:
    # Dashes beside colours: a reader who sees no colour still tells the curves apart.
    return {"color": ACCENT if i == 0 else INK, "width": 2 if i == 0 else 1.6, "dash": _DASHES[i % len(_DASHES)]}


def _line(x0: float, x1: float, y0: float, y1: float) -> dict[str, Any]:
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": line, "layer": "below"}


def _layout(x: str, y: str, *, r: int = 16, legend: bool = False) -> dict[str, Any]:
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


def _safe(text: object) -> str:
    # Plotly reads a few tags in its texts; names from data are not to be read that way.
    return html.escape(str(text))


def by_measure(effects: Sequence[Effect]) -> Mapping[str, list[Effect]]:
    """Return effects grouped by what was measured, log-odds before probabilities."""
    rank = {name: i for i, name in enumerate(MEASURES)}
    names = dict.fromkeys(e.measure for e in effects)
    ordered = sorted(names, key=lambda m: rank.get(m.replace("-", "_"), len(rank)))
    return {name: [e for e in effects if e.measure == name] for name in ordered}


def library() -> str:
    """Return Plotly's script, fit to stand inside a script element."""
    from plotly.offline import get_plotlyjs

    # A closing tag inside a string of the library would end the element.
    text = str(get_plotlyjs()).replace("</script", r"<\/script").replace("<!--", r"<\!--")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as a parser reads it, or its hash would differ
