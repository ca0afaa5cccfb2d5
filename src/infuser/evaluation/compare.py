"""Paired comparison: an effect is an arm minus its control on the same probes and seeds, never a single retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from infuser.errors import InfuserError, listed
from infuser.evaluation.stats import Bootstrap, sign_flip, table_estimate
from infuser.types import Array, Effect, Trials

PRIMARY = "log_odds"  # probabilities saturate, log-odds do not


@dataclass(frozen=True)
class Pairs:
    """Differences of an arm and its control on the same probes and seeds.

    Attributes:
        probes: (n,) names; "" where a value belongs to the whole model.
        seeds: (s,).
        arm: (n, s) values of the arm.
        control: (n, s) values of the control.
        measure: what was measured.
    """

    probes: tuple[str, ...]
    seeds: tuple[int, ...]
    arm: Array
    control: Array
    measure: str

    @property
    def difference(self) -> Array:
        """Arm minus control, (n, s)."""
        return cast(Array, self.arm - self.control)


def compare(
    trials: Trials,
    arm: str,
    control: str = "clean",
    measure: str | None = None,
    *,
    probes: Sequence[str] | None = None,
    clusters: Mapping[str, str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Effect:
    """Return the effect of `arm` minus `control`, paired by probe and seed.

    Args:
        trials: measured rows of both arms.
        arm: name of the treated arm.
        control: name of what it is compared with.
        measure: name of the measurement; by default the only one, or log_odds among several.
        probes: the probes to compare on; by default all of either arm, which then must be the same.
        clusters: probe -> unit of analysis, where probes are not independent (a base model, a class); by default every
            probe is a unit.
        bootstrap: how intervals are made.

    Raises:
        InfuserError: a pair is missing (it is named), `probes` names one twice, or the arms did not start from the same
            weights, optimiser state and documents.
    """
    pairs = paired(trials, arm, control, measure, probes)
    table, unit = pairs.difference, "probes"
    if clusters is not None:
        table, unit = _clustered(pairs, clusters), "clusters"
    estimate = table_estimate(table, pairs.seeds, unit, bootstrap)
    per_probe = dict(zip(pairs.probes, pairs.difference.mean(1).tolist(), strict=True))
    return Effect(arm, control, pairs.measure, estimate, sign_flip(table.mean(1), bootstrap), per_probe)


def pool(effects: Sequence[Effect], bootstrap: Bootstrap | None = None) -> Effect:
    """Return one effect whose unit is the base model: `effects` holds one effect for each of them.

    Raises:
        InfuserError: the effects are of different arms, controls or measures.
    """
    kinds = {(e.arm, e.control, e.measure) for e in effects}
    if len(kinds) != 1:
        raise InfuserError("only effects of one arm, control and measure are pooled", got=sorted(kinds))
    values = np.array([e.value for e in effects])
    seeds = tuple(sorted({seed for e in effects for seed in e.estimate.seeds}))
    estimate = table_estimate(values[:, None], seeds, "base models", bootstrap)
    per_probe = {f"model {i}: {probe}": d for i, e in enumerate(effects) for probe, d in e.per_probe.items()}
    (arm, control, measure) = kinds.pop()
    return Effect(arm, control, measure, estimate, sign_flip(values, bootstrap), per_probe)


def paired(
    trials: Trials, arm: str, control: str, measure: str | None = None, probes: Sequence[str] | None = None
) -> Pairs:
    """Return the values of two arms on the same probes and seeds.

    A control that holds one value for the whole model is paired with every probe of the arm.

    Raises:
        InfuserError: see `compare`.
    """
    measure = measure or _only_measure(trials)
    treated, untreated = (_cells(trials, name, measure) for name in (arm, control))
    if {probe for probe, _ in untreated} == {""}:
        wanted = {probe for probe, _ in treated}
        untreated = {(probe, seed): value for (_, seed), value in untreated.items() for probe in wanted}
    chosen = list(probes) if probes is not None else sorted({p for p, _ in [*treated, *untreated]})
    if twice := sorted({probe for probe in chosen if chosen.count(probe) > 1}):
        raise InfuserError("a probe counts once", got=f"{listed(twice)} more than once", expected="distinct probes")
    seeds = sorted({s for p, s in [*treated, *untreated] if p in chosen})
    grid = [(probe, seed) for probe in chosen for seed in seeds]
    missing = [f"{arm} {key}" for key in grid if key not in treated]
    missing += [f"{control} {key}" for key in grid if key not in untreated]
    if missing or not grid:
        raise InfuserError(
            f"{len(missing)} (probe, seed) pairs are missing, so {arm} and {control} cannot be paired on {measure}",
            got=f"no {listed(missing)}" if missing else "no probes",
            expected=f"every one of {len(chosen)} probes under every one of {len(seeds)} seeds, in both arms",
            causes=["the arms were retrained with different seeds", "retraining was interrupted"],
            remedy="retrain what is missing, or name the probes to compare on with probes=",
        )
    _same_start(trials, arm, control, seeds)
    shape = (len(chosen), len(seeds))
    values = [np.array([cells[key] for key in grid]).reshape(shape) for cells in (treated, untreated)]
    return Pairs(tuple(chosen), tuple(seeds), values[0], values[1], measure)


def _only_measure(trials: Trials) -> str:
    names = list(dict.fromkeys(trials.measure.tolist()))
    if len(names) == 1:
        return str(names[0])
    if PRIMARY in names:
        return PRIMARY
    if not names:
        raise InfuserError("there are no trials to compare", got="no rows")
    raise InfuserError("several things were measured", got=listed(names), remedy="name one with measure=")


def _cells(trials: Trials, arm: str, measure: str) -> dict[tuple[str, int], float]:
    """Return (probe, seed) -> value; a pair that was measured twice must agree, whole-model values are averaged."""
    rows = trials.where(arm=arm, measure=measure)
    if not len(rows):
        known = sorted(set(trials.arm.tolist())), sorted(set(trials.measure.tolist()))
        raise InfuserError(f"there are no trials of arm {arm} on {measure}", expected=f"arms {known[0]} on {known[1]}")
    found: dict[tuple[str, int], list[float]] = {}
    for probe, seed, value in zip(rows.probe.tolist(), rows.seed.tolist(), rows.value.tolist(), strict=True):
        found.setdefault((probe, int(seed)), []).append(value)
    torn = [key for key, values in found.items() if key[0] and len(set(values)) > 1]
    if torn:
        raise InfuserError(
            f"{arm} holds different values of {measure} for one probe and seed",
            got=listed(torn),
            causes=["two probes share their document and label", "trials of two runs were pooled"],
            remedy="compare them apart, then pool the effects",
        )
    return {key: float(np.mean(values)) for key, values in found.items()}


def _same_start(trials: Trials, arm: str, control: str, seeds: Sequence[int]) -> None:
    if not trials.starts:  # rows from elsewhere: nothing is known about their starts
        return
    for seed in seeds:
        a, b = (trials.starts.get(f"{name}/{seed}", "unknown") for name in (arm, control))
        if a != b:
            parts = [x.split("=")[0] for x, y in zip(a.split(), b.split(), strict=False) if x != y]
            raise InfuserError(
                f"{arm} and {control} did not start alike under seed {seed}, so their difference is not an effect",
                got=f"{arm}: {a}; {control}: {b}",
                expected="the same starting weights, optimiser state, documents and recipe",
                causes=[f"they differ in {', '.join(parts)}" if parts else "one start is unknown"],
                remedy="retrain both arms from the same run; data.with_weights(ids, 0) drops documents and keeps N",
            )


def _clustered(pairs: Pairs, clusters: Mapping[str, str]) -> Array:
    """Return differences averaged within clusters, (clusters, s)."""
    missing = [probe for probe in pairs.probes if probe not in clusters]
    if missing:
        raise InfuserError("probes without a cluster", got=listed(missing), remedy="name a cluster for each probe")
    names = list(dict.fromkeys(clusters[probe] for probe in pairs.probes))
    rows = [[p for p, probe in enumerate(pairs.probes) if clusters[probe] == name] for name in names]
    return np.stack([pairs.difference[row].mean(0) for row in rows])
