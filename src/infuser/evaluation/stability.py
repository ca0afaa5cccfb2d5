"""Do two trainings agree on which documents matter? Agreement of scores over runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import cast

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from infuser.errors import InfuserError
from infuser.types import Array, Estimate, Scores

_RUNS_FOR_AN_INTERVAL = 4


@dataclass(frozen=True)
class Stability:
    """Agreement between runs that differ in their randomness only.

    Attributes:
        jaccard: share of documents at the top -> mean over pairs of runs of |both| / |either|.
        spearman: mean over pairs of runs of the rank correlation over all documents.
        variation: median over documents of the standard deviation over runs over the absolute mean.
    """

    jaccard: Mapping[float, Estimate]
    spearman: Estimate
    variation: Estimate


def stability(
    scores: Sequence[Scores], shares: Sequence[float] = (0.05, 0.1, 0.2), *, seeds: Sequence[int] = (), query: int = 0
) -> Stability:
    """Return how far the scores of several runs agree.

    Pairs of runs share runs, so intervals are jackknife intervals over runs, none below four runs.

    Args:
        scores: one per run, of the same documents.
        shares: of the documents that count as the top.
        seeds: of the runs, for the record.
        query: which row of the scores.

    Raises:
        InfuserError: there are fewer than two runs, or their documents differ.
    """
    if len(scores) < 2 or any(not np.array_equal(s.ids, scores[0].ids) for s in scores):
        raise InfuserError("stability needs two or more runs over the same documents", got=f"{len(scores)} runs")
    values = np.stack([s.values[query] for s in scores]).astype(np.float64)
    named = tuple(int(seed) for seed in seeds)

    def over_runs(statistic: Callable[[Array], float]) -> Estimate:
        return _jackknife(values, statistic, named)

    return Stability(
        {share: over_runs(partial(_pairs, statistic=partial(jaccard, share=share))) for share in shares},
        over_runs(partial(_pairs, statistic=_rank_correlation)),
        over_runs(_variation),
    )


def jaccard(a: Array, b: Array, share: float) -> float:
    """Return |both| / |either| of the top `share` of the documents by two score vectors (N,).

    >>> jaccard(np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 0.0, 2.0, 1.0]), 0.5)
    0.3333333333333333
    """
    k = max(1, round(share * len(a)))
    one, two = (set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (a, b))
    return len(one & two) / len(one | two)


def _pairs(values: Array, statistic: Callable[[Array, Array], float]) -> float:
    return float(np.mean([statistic(values[i], values[j]) for i, j in combinations(range(len(values)), 2)]))


def _rank_correlation(a: Array, b: Array) -> float:
    return float(spearmanr(a, b, nan_policy="omit").statistic)


def _variation(values: Array) -> float:
    means = np.abs(values.mean(0))
    usable = means > 0
    return float(np.nanmedian(values.std(0, ddof=1)[usable] / means[usable])) if usable.any() else float("nan")


def _jackknife(values: Array, statistic: Callable[[Array], float], seeds: tuple[int, ...]) -> Estimate:
    runs = len(values)
    value = statistic(values)
    if runs < _RUNS_FOR_AN_INTERVAL:
        return Estimate(value, None, runs, seeds, "runs", "no interval below 4 runs")
    left_out = np.array([statistic(np.delete(values, i, axis=0)) for i in range(runs)])
    error = float(np.sqrt((runs - 1) / runs * ((left_out - left_out.mean()) ** 2).sum()))
    reach = float(cast(float, student.ppf(0.975, runs - 1))) * error
    return Estimate(value, (value - reach, value + reach), runs, seeds, "runs", "jackknife over runs")
