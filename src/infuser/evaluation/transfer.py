"""The same edited data, another architecture: with its own recipe, its own start and its own matched clean control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infuser.checkpoints import Run
from infuser.errors import InfuserError, listed
from infuser.evaluation.retrain import Start, retrain
from infuser.evaluation.stats import Bootstrap, finite
from infuser.executors import Executor
from infuser.types import Arm, Effect, Estimate, Measurement, Trials


def transfer(
    source: Run,
    victim: Run,
    arms: Sequence[Arm],
    measures: Measurement | Sequence[Measurement],
    seeds: Sequence[int],
    start: Start | int = "last_epoch",
    executor: Executor | None = None,
) -> Trials:
    """Return the trials of `victim` on arms that were made for `source`; compare(...) gives the effect.

    The control is the victim's own: its clean arm starts from the victim's checkpoint, by the victim's recipe. Trials
    of source and victim cannot be pooled, as their starts differ.

    Args:
        source: the run that the edits were made for.
        victim: another model trained on the same clean data by its own recipe.
        arms: among them, or in another call, the clean one.
        measures: as for retrain.
        seeds: of retraining.
        start: the regime.
        executor: where the jobs run.

    Raises:
        InfuserError: the two runs were trained on different data, or are the same run.
    """
    if victim.data_hash != source.data_hash:
        raise InfuserError(
            "source and victim were trained on different data, so their effects do not compare",
            got=f"victim on data {victim.data_hash[:12]}",
            expected=f"data {source.data_hash[:12]}",
            remedy="train the victim on the same clean data",
        )
    if victim.checkpoints[-1].content_hash == source.checkpoints[-1].content_hash:
        raise InfuserError(
            "source and victim are the same model, so nothing is transferred",
            remedy="train another architecture, or use retrain",
        )
    return retrain(victim, arms, measures, seeds, start, executor=executor)


def survival(victim: Effect, source: Effect, bootstrap: Bootstrap | None = None) -> Estimate:
    """Return the share of the source's effect that the victim shows: the ratio of means over the probes of both.

    The interval resamples probes, for both effects together, from 8 probes on; it is None where the source's own effect
    is not clear of zero, since a ratio then has no meaning.

    Raises:
        InfuserError: the effects are of other arms, controls, measures or probes.
    """
    kinds = [(e.arm, e.control, e.measure) for e in (victim, source)]
    if kinds[0] != kinds[1] or victim.per_probe.keys() != source.per_probe.keys():
        apart = sorted(victim.per_probe.keys() ^ source.per_probe.keys())
        raise InfuserError("the two effects do not compare", got=f"{kinds}, probes apart: {listed(apart)}")
    how = bootstrap or Bootstrap()
    names = list(source.per_probe)
    a, b = (finite([effect.per_probe[name] for name in names]) for effect in (victim, source))
    n, value = len(names), float(a.mean() / b.mean()) if b.mean() else float("nan")
    clear = source.interval is not None and source.interval[0] * source.interval[1] > 0
    if n < 8 or not clear:
        method = "none: fewer than 8 probes" if n < 8 else "none: the source's effect is not clear of zero"
        return Estimate(value, None, n, source.estimate.seeds, "probes", method, how.level)
    counts = np.random.default_rng(how.seed).multinomial(n, np.full(n, 1 / n), how.resamples)
    low, high = np.quantile((counts @ a) / (counts @ b), [(1 - how.level) / 2, (1 + how.level) / 2])
    method = f"bootstrap over {n} probes"
    return Estimate(value, (float(low), float(high)), n, source.estimate.seeds, "probes", method, how.level)
