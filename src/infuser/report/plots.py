"""Figures as Plotly's plain dictionaries. Values are drawn as they came; colours are names that the page fills in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infuser.report.axes import ACCENT, INK, MUTED, PAPER, layout_of, padded, rule, safe
from infuser.report.blocks import Cell, Figure, Table, value_cell
from infuser.report.material import Detection, PredictedMeasured, TradeOff
from infuser.report.wording import estimate_text
from infuser.types import Estimate

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def predicted_measured(part: PredictedMeasured) -> Figure:
    """Return measured against predicted change, one point a probe, with the line of equality."""
    pairs = list(zip(part.names, part.predicted.tolist(), part.measured.tolist(), strict=True))
    x, y = padded([0.0, *(p for _, p, _ in pairs)]), padded([0.0, *(m for _, _, m in pairs)])
    # Where the prediction is off by a factor of ten the line of equality would flatten the points.
    drawn = 0.1 < (x[1] - x[0]) / (y[1] - y[0]) < 10
    ends = [min(x[0], y[0]), max(x[1], y[1])]
    equal = {"x": ends, "y": ends, "mode": "lines", "line": {"color": MUTED, "width": 1, "dash": "dash"}}
    points = {
        "x": [p for _, p, _ in pairs], "y": [m for _, _, m in pairs], "mode": "markers",
        "marker": {"color": ACCENT, "size": 9, "opacity": 0.75, "line": {"color": PAPER, "width": 1}},
        "text": [safe(name) for name, _, _ in pairs],
        "hovertemplate": "%{text}<br>predicted %{x:+.3g}<br>measured %{y:+.3g}<extra></extra>",
    }  # fmt: skip
    layout = layout_of(f"predicted change of f, {part.unit}", f"measured change of f, {part.unit}")
    layout["xaxis"]["range"], layout["yaxis"]["range"] = x, y
    said = "; ".join(f"{m.name} {estimate_text(m.estimate)}" for m in part.statistics)
    said = said and f"{said}."
    rows = tuple((Cell(name), value_cell(p, signed=True), value_cell(m, signed=True)) for name, p, m in pairs)
    equality = "the dashed line is equality" if drawn else "the axes differ in scale, equality lies outside"
    table = Table("Predicted and measured change", ("probe", "predicted", "measured"), rows)
    caption = f"One point each, n = {len(pairs)}; {equality}. {said[:1].upper()}{said[1:]}".strip()
    data = [{**points, "showlegend": False}]
    if drawn:
        data.insert(0, {**equal, "hoverinfo": "skip", "showlegend": False})
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
                "name": safe(curve.name), "line": _stroke(i) | {"shape": "hv"},
                "hovertemplate": "FPR %{x:.2g}, TPR %{y:.2f}<extra>" + safe(curve.name) + "</extra>",
            }
        )  # fmt: skip
    grid = [floor * (1 / floor) ** (i / 60) for i in range(61)]
    chance = {"x": grid, "y": grid, "mode": "lines", "name": "chance", "hoverinfo": "skip"}
    data.append(chance | {"line": {"color": MUTED, "width": 1}})
    layout = layout_of("false-positive rate", "true-positive rate", legend=True)
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
    names = [safe(r.name) for r in chosen]
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
    layout = layout_of(metric, "", legend=True) | {"barmode": "group", "bargap": 0.35, "bargroupgap": 0.08}
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
    return Figure(
        {"data": data, "layout": layout},
        caption,
        f"{metric}: {said}.",
        96 + (52 if len(chosen) < 6 else 36) * len(chosen),
        title=metric,
    )


def trade_offs(parts: Sequence[TradeOff]) -> Figure:
    """Return type II against type I error; the diagonal is chance, curves below it can be told apart."""
    data: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        name = part.name if part.mu is None else f"{part.name}, μ = {part.mu.value:.2f}"
        curve = {
            "x": part.alpha.tolist(),
            "y": part.beta.tolist(),
            "mode": "lines",
            "name": safe(name),
            "line": _stroke(i),
        }
        data.append(curve | {"hovertemplate": "α %{x:.2f}, β %{y:.2f}<extra>" + safe(part.name) + "</extra>"})
    chance = {"x": [0, 1], "y": [1, 0], "mode": "lines", "name": "chance", "hoverinfo": "skip"}
    data.append(chance | {"line": {"color": MUTED, "width": 1}})
    layout = layout_of("type I error α", "type II error β", legend=True)
    said = "; ".join(f"{p.name}: μ {estimate_text(p.mu)}" for p in parts if p.mu is not None)
    return Figure({"data": data, "layout": layout}, said and f"{said}. ", f"Trade-off curves. {said}", 380)


def ranked(values: Sequence[float], ids: Sequence[int], edited: Sequence[int]) -> Figure:
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
    layout = layout_of("rank of the document", "score", legend=bool(kept))
    layout["shapes"] = [{**rule(0, 0, 0, 0), "xref": "paper", "x0": 0, "x1": 1, "yref": "y"}]
    said = f"{len(values):,} documents from the strongest proponent to the strongest opponent"
    caption = f"{said}; {len(kept)} edited ones are marked." if kept else f"{said}."
    return Figure({"data": [curve, *([points] if kept else [])], "layout": layout}, caption, caption, 300)


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


def library() -> str:
    """Return Plotly's script, fit to stand inside a script element."""
    from plotly.offline import get_plotlyjs

    # A closing tag inside a string of the library would end the element.
    text = str(get_plotlyjs()).replace("</script", r"<\/script").replace("<!--", r"<\!--")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as a parser reads it, or its hash would differ
