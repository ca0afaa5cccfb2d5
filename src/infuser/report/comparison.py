"""The section that compares runs: what differs between them, and arms by runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infuser.report import forest
from infuser.report.blocks import Block, Cell, Prose, Row, Section, Table, value_cell
from infuser.report.material import ComparedRun
from infuser.report.parts import of, sizes, title_of
from infuser.report.wording import arm_name, by_measure, interval_text, measure_name
from infuser.types import Effect


def compared(parts: Sequence[object]) -> Section | None:
    """Return the section, or None where no runs are compared."""
    runs = of(parts, ComparedRun)
    if not runs:
        return None
    blocks: list[Block] = [_settings(runs)] if len(runs) > 1 else []
    for regime in dict.fromkeys(r.name for run in runs for r in run.regimes):
        own = {run.name: [e for r in run.regimes if r.name == regime for e in r.effects] for run in runs}
        for measure in by_measure([e for effects in own.values() for e in effects]):
            chosen = {name: [e for e in effects if e.measure == measure] for name, effects in own.items()}
            blocks += _arms_by_runs({name: effects for name, effects in chosen.items() if effects}, regime)
    blocks += _metrics(runs)
    blocks += _alike(runs)
    return Section("runs", "Runs compared", blocks)


def _settings(runs: Sequence[ComparedRun]) -> Block:
    columns = tuple(dict.fromkeys(key for run in runs for key in run.settings))
    differ = [c for c in columns if len({str(run.settings.get(c)) for run in runs}) > 1]
    if not differ:
        return Prose(("The runs have the same settings.",))
    rows = tuple((Cell(run.name), *(_setting(run.settings.get(c)) for c in differ)) for run in runs)
    return Table("Settings that differ", ("run", *differ), rows, tool=True)


def _alike(runs: Sequence[ComparedRun]) -> Iterator[Block]:
    shared = {
        key: value
        for key, value in runs[0].settings.items()
        if all(key in run.settings and str(run.settings[key]) == str(value) for run in runs)
    }
    if shared:
        title = "Alike in all runs" if len(runs) > 1 else "Settings"
        yield Prose(code="\n".join(f"{key}: {value}" for key, value in shared.items()), title=title)


def _setting(value: float | str | None) -> Cell:
    return Cell(str(value), float(value)) if isinstance(value, (int, float)) else value_cell(value)


def _arms_by_runs(effects: dict[str, list[Effect]], regime: str) -> Iterator[Block]:
    """Yield the main effect of each run, then a table of all comparisons by run, on one measure."""
    main = [(name, e) for name, own in effects.items() for e in own if (e.arm, e.control) == ("edit", "clean")]
    measure = next(e.measure for own in effects.values() for e in own)
    pairs = list(dict.fromkeys((e.arm, e.control) for own in effects.values() for e in own))
    pairs.sort(key=lambda pair: (pair[0] != "edit", pair[1] != "clean"))
    heads = [arm_name(a) if c == "clean" else f"{arm_name(a)} − {arm_name(c)}" for a, c in pairs]
    rows = []
    for name, own in effects.items():
        found = {(e.arm, e.control): e for e in own}
        cells = (
            Cell(interval_text(e.estimate), float(e.value)) if (e := found.get(pair)) is not None else Cell("–")
            for pair in pairs
        )
        rows.append((Cell(name), *cells))
    caption = f"{title_of(regime)}: {measure_name(measure)}; against clean where no other control is named"
    if main:
        found_main = [e for _, e in main]
        figure = forest.forest(found_main, [name for name, _ in main], [True] * len(main), title_of(regime))
        yield Row((figure,), f"The edit of each run against its own clean retraining. {sizes(found_main)}")
    yield Table(caption, ("run", *heads), tuple(rows), tool=True)


def _metrics(runs: Sequence[ComparedRun]) -> Iterator[Block]:
    found = {run.name: {m.name: m.estimate for m in run.metrics} for run in runs if run.metrics}
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    if names:
        rows = tuple(
            (
                Cell(name),
                *(
                    Cell(interval_text(e).removeprefix("+"), float(e.value)) if (e := own.get(name)) else Cell("–")
                    for own in found.values()
                ),
            )
            for name in names
        )
        yield Table("Statistics with their 95 % intervals", ("statistic", *found), rows, tool=True)
