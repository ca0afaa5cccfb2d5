"""What results.json says, in the words and records that every kind of run shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infuser.html import number
from infuser.report.material import Caveat, Metric, PredictedMeasured, Regime, Summary
from infuser.report.wording import MEASURED, arm_name, interval_text
from infuser.types import Effect, Estimate

Results = Mapping[str, Any]
STARTS = {"last_epoch": "over the last epoch", "half": "from half-way", "scratch": "from scratch"}
PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Reading:
    """The results of one run, ready to be shown.

    Attributes:
        summary: what was asked and found.
        settings: what tells the run from others.
        regimes: effects of arms for each way to retrain.
        metrics: statistics that compare runs which have no arms.
        parts: everything else.
    """

    summary: Summary
    settings: Mapping[str, float | str | None]
    regimes: tuple[Regime, ...] = ()
    metrics: tuple[Metric, ...] = ()
    parts: tuple[object, ...] = field(default=())


def effect(
    arm: str,
    control: str,
    measure: str,
    block: Mapping[str, Any],
    seeds: Sequence[int],
    points: Mapping[str, float] | None = None,
    unit: str = "probes",
) -> Effect:
    """Return an effect of its block: mean, ci95, p, n_probes."""
    estimate = Estimate(block["mean"], interval_of(block), block["n_probes"], tuple(seeds), unit)
    return Effect(arm, control, measure, estimate, block.get("p"), dict(points or {}))


def interval_of(block: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the interval of a block's ci95, None where there is none."""
    ends = block["ci95"]
    return None if ends is None else (ends[0], ends[1])


def main_effect(regime: Regime) -> Effect | None:
    """Return the effect of the edit on the first measure against the regime's control."""
    chosen = [e for e in regime.effects if e.arm == "edit" and e.control == regime.control]
    return chosen[0] if chosen else None


def sentence(found: Effect, regime: str) -> str:
    """Return an effect as a sentence with its n, seeds, control and interval."""
    p = "" if found.p is None else f", p = {number(found.p, 2)}"
    size = f"n = {found.estimate.n} {found.estimate.unit_of_n}, {len(found.estimate.seeds)} seeds"
    model, _, start = regime.rpartition(":")
    how = f"Retrained {STARTS.get(start, start)}" + (f" ({model})" if model else "")
    scale = MEASURED.get(found.measure, f"the {found.measure.replace('_', '-')} of the target")
    moved = f"the edit moved {scale} by {interval_text(found.estimate)}"
    return f"{how}, {moved} against {arm_name(found.control)} ({size}{p})."


def controls(regime: Regime, main: Effect) -> Iterator[str]:
    """Yield the other arms on the scale of the main effect, in a sentence."""
    others = [
        e for e in regime.effects if e.control == main.control and e.measure == main.measure and e.arm != main.arm
    ]
    if others:
        yield f"On the same scale: {'; '.join(f'{arm_name(e.arm)} {interval_text(e.estimate)}' for e in others)}."


def predicted(results: Results, unit: str, noun: str = "probes") -> tuple[PredictedMeasured, ...]:
    """Return predicted against measured changes of every regime that has them."""
    found = []
    for regime, block in results.get("predicted", {}).items():
        names = tuple(block["per_probe"])
        said, measured = (np.array([block[key][name] for name in names]) for key in ("per_probe", "measured"))
        statistics = tuple(
            Metric(f"{label} ({regime.replace('_', ' ')})", _estimate(stat, noun))
            for label, key in (("slope", "slope"), ("rank correlation", "rank_correlation"))
            if (stat := block[key]) is not None and stat["value"] == stat["value"]
        )
        found.append(PredictedMeasured(names, said, measured, unit, statistics))
    return tuple(found)


def caveats(results: Results) -> tuple[Caveat, ...]:
    """Return what the automatic checks found."""
    return tuple(
        Caveat(str(c.get("code", "")), str(c.get("text", ""))) if isinstance(c, Mapping) else Caveat("", str(c))
        for c in results.get("caveats", ())
    )


def share_of(part: float, whole: float) -> str:
    """Return a part in percent of the whole.

    >>> share_of(28, 1437) == f"1.9{PERCENT}"
    True
    """
    return f"{100 * part / whole:.2g}{PERCENT}"


def _estimate(block: Mapping[str, Any], noun: str) -> Estimate:
    return Estimate(block["value"], interval_of(block), block["n"], unit_of_n=noun)
