"""From parts to sections: which block shows what, and in which order a reader meets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infuser.errors import InfuserError
from infuser.report import cards, forest, plots
from infuser.report.blocks import Block, Cell, Notes, Prose, Row, Section, Table, column, value_cell
from infuser.report.comparison import compared
from infuser.report.lookup import Lookup
from infuser.report.material import (
    Caveat,
    ComparedRun,
    Detection,
    Documents,
    EditView,
    Metric,
    PredictedMeasured,
    ProbeView,
    Provenance,
    Regime,
    Sheet,
    Summary,
    TokenDiff,
    TradeOff,
    TransferMatrix,
)
from infuser.report.parts import edited_ids, estimate_cells, flat, of, sizes, title_of
from infuser.report.suspects import detection
from infuser.report.wording import arm_name, by_measure, interval_text
from infuser.types import Edit, Effect, Estimate, Scores, Suspicion, Trials

_MOST_ROWS = 500  # of a table of trials; the rest lies in the run's parquet file
_APART = 3.0  # explicit insertion on an axis of its own when it is so many times larger than everything else
KNOWN = (
    Effect, Scores, Edit, Suspicion, Trials, Estimate, Summary, Caveat, Metric, Regime, ProbeView, EditView, TokenDiff,
    Documents, PredictedMeasured, TransferMatrix, Detection, TradeOff, Provenance, ComparedRun, Sheet,
)  # fmt: skip


def sections(parts: Sequence[object]) -> list[Section]:
    """Return the sections of a page that have something to show.

    Raises:
        InfuserError: a part is of a kind that a report cannot show.
    """
    foreign = [type(part).__name__ for part in parts if not isinstance(part, KNOWN)]
    if foreign:
        expected = ", ".join(kind.__name__ for kind in KNOWN)
        raise InfuserError("a report cannot show this", got=", ".join(foreign), expected=expected)
    builders: tuple[Callable[[Sequence[object]], Section | None], ...] = (
        _caveats, compared, _effects, _transfer, _sheets, _probes, _edits, _texts, _predicted, _scores, detection,
        _trade_offs, _metrics, _trials, _provenance,
    )  # fmt: skip
    return [section for build in builders if (section := build(parts)) is not None]


def _caveats(parts: Sequence[object]) -> Section | None:
    found = of(parts, Caveat)
    if not found:
        return None
    notes = Notes(tuple((c.code.replace("_", " "), c.text) for c in found))
    return Section("caveats", "Read this first", [notes], "Automatic checks found what limits these results.")


def _effects(parts: Sequence[object]) -> Section | None:
    regimes = of(parts, Regime)
    loose = of(parts, Effect)
    for control in dict.fromkeys(effect.control for effect in loose):
        regimes.append(Regime("", tuple(e for e in loose if e.control == control), control=control))
    if not regimes:
        return None
    blocks: list[Block] = []
    for regime in regimes:
        blocks += _regime(regime, named=len(regimes) > 1)
    if len([r for r in regimes if r.name]) > 1:
        blocks.insert(0, _across(regimes))
    lead = (
        "Each row is an arm: training data prepared in one way (placebo: models edited for other probes). The zero "
        "line is the control, the diamond the mean difference, the bar its 95 % interval, each point one probe "
        "averaged over seeds. p takes the seeds as given, the interval does not."
    )
    return Section("effect", "Effect of each arm", blocks, lead)


def _regime(regime: Regime, named: bool) -> Sequence[Block]:
    title = title_of(regime.name) if named and regime.name else ""
    drawn = [e for e in regime.effects if e.control == regime.control] or list(regime.effects)
    blocks = _forests(drawn, title)
    every = forest.effects_table(regime.effects, f"{title or 'Effects'}: every comparison", tool=True)
    if blocks:
        control = arm_name(drawn[0].control)
        caption = f"Difference from {control}, paired by probe and seed. {sizes(drawn)}"
        blocks[-1] = forest.captioned(blocks[-1], caption, every)
    if regime.arms:
        columns = tuple(dict.fromkeys(key for arm in regime.arms for key in arm.cells))
        values = [column([arm.cells.get(c) for arm in regime.arms]) for c in columns]
        names = [Cell(arm_name(arm.arm)) for arm in regime.arms]
        rows = tuple(zip(names, *values, strict=True))
        return [*blocks, Table(f"{title or 'Arms'}: further values of each arm", ("arm", *columns), rows)]
    return blocks


def _forests(effects: Sequence[Effect], title: str) -> list[Row]:
    """Return forest plots, one a measure, two a row; insertion below if it needs its own axis."""
    measures = by_measure(sorted(effects, key=lambda e: e.arm != "edit"))
    first = next(iter(measures.values()), [])
    apart = {e.arm for e in _apart(first)}
    place = {e.arm: i for i, e in reversed(list(enumerate(first)))}  # one order of rows for all measures
    rows = []
    for heading, wanted in ((title, False), ("Explicit insertion of the probe, on its own axis", True)):
        figures, named = [], []
        for group in measures.values():
            chosen = sorted(
                (e for e in group if (e.arm in apart) is wanted), key=lambda e: place.get(e.arm, len(place))
            )
            if chosen:
                labels = [arm_name(e.arm) for e in chosen]
                named.append(labels)
                figures.append(forest.forest(chosen, labels, [e.arm == "edit" for e in chosen], heading))
        # Two measures a row; of an odd number the first stands alone rather than the last.
        for at in range(-(len(figures) % 2), len(figures), 2):
            pair, names = figures[max(at, 0) : at + 2], named[max(at, 0) : at + 2]
            # Only figures of exactly the same rows may leave out their names.
            rows.append(forest.shared(pair) if len(pair) == 2 and names[0] == names[1] else Row(tuple(pair)))
    return rows


def _across(regimes: Sequence[Regime]) -> Row:
    first = next(iter(by_measure(regimes[0].effects)), "")
    pairs = [
        (r.name.replace("_", " "), e)
        for r in regimes
        for e in r.effects
        if e.arm == "edit" and e.control == r.control and e.measure == first
    ]
    effects = [e for _, e in pairs]
    figure = forest.forest(effects, [name for name, _ in pairs], [True] * len(pairs), "The edit in every regime")
    return Row((figure,), f"Edit minus its control for each way to retrain. {sizes(effects)}")


def _apart(effects: Sequence[Effect]) -> list[Effect]:
    """Return insertion arms that would flatten the others on a common axis."""

    def reach(group: Sequence[Effect]) -> float:
        return max((abs(x) for e in group for x in (*(e.interval or ()), e.value)), default=0.0)

    inserted = [e for e in effects if e.arm.startswith("insert")]
    others = [e for e in effects if not e.arm.startswith("insert")]
    return inserted if others and reach(inserted) > _APART * reach(others) else []


def _transfer(parts: Sequence[object]) -> Section | None:
    matrices = of(parts, TransferMatrix)
    blocks: list[Block] = []
    for matrix in matrices:
        made = list(dict.fromkeys(source for source, _ in matrix.effects))
        trained = list(dict.fromkeys(target for _, target in matrix.effects))
        rows = []
        for source in made:
            row = [Cell(arm_name(source))]
            for target in trained:
                effect = matrix.effects.get((source, target))
                row.append(Cell("–") if effect is None else Cell(interval_text(effect.estimate), effect.value))
            rows.append(tuple(row))
        effects = list(matrix.effects.values())
        columns = ("made on", *(f"trained: {arm_name(name)}" for name in trained))
        table = Table("Transfer matrix: rows made on, columns trained", columns, tuple(rows))
        labels = [f"{arm_name(a)} → {arm_name(b)}" for a, b in matrix.effects]
        figure = forest.forest(effects, labels, [a == b for a, b in matrix.effects])
        caption = f"The same edited files, each architecture against its own control. {sizes(effects)}"
        blocks += [forest.captioned(Row((figure,)), caption, forest.effects_table(effects, "Transfer")), table]
    return Section("transfer", "Transfer to other architectures", blocks) if blocks else None


def _sheets(parts: Sequence[object]) -> Section | None:
    blocks: list[Block] = []
    for sheet in of(parts, Sheet):
        columns = tuple(dict.fromkeys(key for cells in sheet.rows.values() for key in cells))
        values = [column([cells.get(c) for cells in sheet.rows.values()], signed=False) for c in columns]
        rows = tuple(zip([Cell(name) for name in sheet.rows], *values, strict=True))
        blocks.append(Table(sheet.title, (sheet.unit, *columns), rows, tool=True))
        if sheet.note:
            blocks.append(Prose((sheet.note,)))
    unit = next((sheet.unit for sheet in of(parts, Sheet)), "")
    return Section("units", f"{unit.capitalize()} by {unit}", blocks) if blocks else None


def _probes(parts: Sequence[object]) -> Section | None:
    views = of(parts, ProbeView)
    return Section("probes", "Probes before and after", [cards.probes(views)]) if views else None


def _edits(parts: Sequence[object]) -> Section | None:
    views = [p if isinstance(p, EditView) else EditView(p) for p in parts if isinstance(p, (Edit, EditView))]
    if not views:
        return None
    lead = "Each document as it was, as it was trained on, and their difference, amplified around mid-grey."
    lead = lead if cards.are_pictures(views) else cards.HOW_TO_READ
    return Section("edits", "Edited documents", list(cards.edits(views)), lead)


def _texts(parts: Sequence[object]) -> Section | None:
    diffs = of(parts, TokenDiff)
    return Section("tokens", "Edited texts", [cards.token_diffs(diffs)]) if diffs else None


def _predicted(parts: Sequence[object]) -> Section | None:
    rows = [
        Row((figure,), figure.caption, "half")
        for part in of(parts, PredictedMeasured)
        for figure in [plots.predicted_measured(part)]
    ]
    return Section("predicted", "Predicted against measured", rows) if rows else None


def _scores(parts: Sequence[object]) -> Section | None:
    found = of(parts, Scores)
    if not found:
        return None
    look = Lookup(of(parts, Documents))
    edited = sorted(edited_ids(parts))
    blocks: list[Block] = []
    for scores in found:
        shown = scores if len(scores) == 1 else scores.mean()
        values, ids = shown.values[0].tolist(), scores.ids.tolist()
        if all(v == v for v in values):
            figure = plots.ranked(values, ids, edited if len(scores) == 1 else [])
            said = f"{scores.method}; {shown.queries[0]}. Score: {scores.unit}. {figure.caption}"
            blocks.append(Row((figure,), said))
        rows = []
        k = min(10, len(ids))
        for q, name in enumerate(scores.queries):
            value = dict(zip(ids, scores.values[q].tolist(), strict=True))
            for kind, chosen in (("proponent", scores.top(k, q)), ("opponent", scores.bottom(k, q))):
                for rank, i in enumerate(chosen.tolist()):
                    label = [Cell(look.label(i))] if look.known else []
                    cells = (Cell(name), Cell(kind), value_cell(rank + 1), look.cell(i), *label)
                    rows.append((*cells, value_cell(value[i], signed=True)))
        columns = ("query", "kind", "rank", "document", *(["label"] if look.known else []), "score")
        caption = f"The {k} strongest proponents and opponents of each query; score: {scores.unit}"
        blocks.append(Table(caption, columns, tuple(rows[:_MOST_ROWS]), tool=True))
    lead = "A positive score: giving the document more weight raises f."
    return Section("scores", "Which documents matter", blocks, lead)


def _trade_offs(parts: Sequence[object]) -> Section | None:
    found = of(parts, TradeOff)
    if not found:
        return None
    figure = plots.trade_offs(found)
    row = Row(
        (figure,), f"{figure.caption}The smallest type II error at each type I error; the diagonal is chance.", "half"
    )
    return Section("trade-off", "Trade-off curves of the true μ", [row])


def _metrics(parts: Sequence[object]) -> Section | None:
    named = [(m.name, m.estimate) for m in of(parts, Metric)]
    named += [(e.method or "estimate", e) for e in of(parts, Estimate)]
    if not named:
        return None
    rows = tuple(
        (
            Cell(name),
            *estimate_cells(e),
            Cell(f"{e.n:,} {e.unit_of_n}", float(e.n)),
            value_cell(len(e.seeds)),
            Cell(e.method),
        )
        for name, e in named
    )
    columns = ("statistic", "value", "95 % interval", "n", "seeds", "interval by")
    return Section("metrics", "Further statistics", [Table("Statistics", columns, rows)])


def _trials(parts: Sequence[object]) -> Section | None:
    blocks: list[Block] = []
    for trials in of(parts, Trials):
        columns = ("arm", "seed", "probe", "measure", "value")
        lists = [getattr(trials, name)[:_MOST_ROWS].tolist() for name in columns]
        rows = tuple(tuple(value_cell(v, 4) for v in row) for row in zip(*lists, strict=True))
        cut = "" if len(trials) <= _MOST_ROWS else f", the first {_MOST_ROWS:,} of {len(trials):,}"
        blocks.append(Table(f"Measured rows, start {trials.start}{cut}", columns, rows, tool=True))
    return Section("trials", "Trials", blocks) if blocks else None


def _provenance(parts: Sequence[object]) -> Section | None:
    blocks: list[Block] = []
    for part in of(parts, Provenance):
        for title, values in (("Seeds", part.seeds), ("Environment", flat(part.environment)), ("Hashes", part.hashes)):
            if values:
                rows = tuple((Cell(str(key)), Cell(_plain(value))) for key, value in values.items())
                blocks.append(Table(title, ("name", "value"), rows))
        if part.config:
            blocks.append(Prose(code=part.config, title="Configuration"))
    return Section("provenance", "How to get the same numbers", blocks) if blocks else None


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
