"""How well suspicion finds the edited documents: ranking metrics with intervals.

AUC flatters where few documents are edited, hence recall at k and the rate at a small share of false alarms beside it.
Ties are broken at random in expectation: a detector that gives every document the same number has recall k / N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from infuser.errors import InfuserError, listed
from infuser.evaluation.stats import Bootstrap, wilson
from infuser.types import Array, Estimate, Suspicion

ENOUGH_CLEAN = 10_000  # clean documents that a rate of 0.1 % false alarms takes
_ROWS = 64  # resamples held at once
METRICS = ("roc_auc", "average_precision", "recall_at_k", "tpr_at_1_percent", "tpr_at_0.1_percent")


@dataclass(frozen=True)
class Finding:
    """How well a detector finds `k` edited documents among `n`; n of the estimates counts edited documents.

    Attributes:
        detector: its name and what it was told.
        k: edited documents.
        n: documents in all.
        estimates: metric -> Estimate; None where it cannot be told.
        reasons: metric -> why it is None.
    """

    detector: str
    k: int
    n: int
    estimates: dict[str, Estimate | None]
    reasons: dict[str, str]


def find(suspicion: Suspicion, edited: Sequence[int] | Array, bootstrap: Bootstrap | None = None) -> Finding:
    """Return ROC-AUC, average precision, recall at k = number edited, and TPR at 1 % and 0.1 % FPR.

    Intervals: percentile bootstrap over documents, edited and clean apart, from 8 edited documents on; where all
    resamples agree (nothing or everything is found) Wilson's over the edited documents.

    Raises:
        InfuserError: an edited id is not among the documents, or none or all are edited.
    """
    how = bootstrap or Bootstrap(resamples=1000)
    truth = _truth(suspicion, edited)
    k, n = int(truth.sum()), len(truth)
    names = list(METRICS) if n - k >= ENOUGH_CLEAN else list(METRICS[:-1])
    point = _metrics(suspicion.values, truth, np.ones((1, n), dtype=np.int64))[:, 0]
    draws = None
    if k >= 8:
        parts = [_metrics(suspicion.values, truth, counts) for counts in _resampled(truth, how)]
        draws = np.concatenate(parts, axis=1)
    estimates: dict[str, Estimate | None] = dict.fromkeys(METRICS)
    for i, name in enumerate(METRICS):
        if name in names:
            estimates[name] = _estimate(float(point[i]), None if draws is None else draws[i], k, how)
    reasons = {} if len(names) == len(METRICS) else {METRICS[-1]: f"{n - k} clean documents, {ENOUGH_CLEAN} are needed"}
    return Finding(f"{suspicion.detector} ({suspicion.told})", k, n, estimates, reasons)


def lift(
    after: Suspicion, before: Suspicion, edited: Sequence[int] | Array, bootstrap: Bootstrap | None = None
) -> dict[str, Estimate]:
    """Return metric -> after minus before: what the edit itself adds to what makes these documents stand out.

    `before` is the same detector on the clean data with the same ids; both are resampled together.
    """
    how = bootstrap or Bootstrap(resamples=1000)
    if not np.array_equal(after.ids, before.ids):
        raise InfuserError("before and after are of other documents", remedy="run the detector on the same ids")
    truth = _truth(after, edited)
    k = int(truth.sum())
    ones = np.ones((1, len(truth)), dtype=np.int64)

    def difference(counts: Array) -> Array:
        return cast(Array, _metrics(after.values, truth, counts) - _metrics(before.values, truth, counts))

    point = difference(ones)[:, 0]
    draws = np.concatenate([difference(c) for c in _resampled(truth, how)], axis=1) if k >= 8 else None
    found = {}
    for i, name in enumerate(METRICS[:-1] if len(truth) - k < ENOUGH_CLEAN else METRICS):
        ends = None if draws is None else _quantiles(draws[i], how.level)
        method = "bootstrap over documents, paired" if ends else "none: fewer than 8 edited documents"
        found[name] = Estimate(float(point[i]), ends, k, (), "edited documents", method, how.level)
    return found


def _truth(suspicion: Suspicion, edited: Sequence[int] | Array) -> Array:
    wanted = np.unique(np.asarray(edited, dtype=np.int64))
    missing = np.setdiff1d(wanted, suspicion.ids)
    if len(missing):
        raise InfuserError("edited documents that the detector did not see", got=listed(missing.tolist()))
    if not 0 < len(wanted) < len(suspicion):
        raise InfuserError("some documents must be edited and some not", got=f"{len(wanted)} of {len(suspicion)}")
    return np.isin(suspicion.ids, wanted)


def _metrics(values: Array, truth: Array, counts: Array) -> Array:
    """Return the five metrics, (5, R), under `counts` (R, N): how often each document occurs in each resample."""
    order = np.argsort(-values, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])  # where each group of equal values begins
    hits = np.cumsum(np.add.reduceat(np.where(truth, counts, 0)[:, order], first, axis=1), axis=1)
    alarms = np.cumsum(np.add.reduceat(np.where(truth, 0, counts)[:, order], first, axis=1), axis=1)
    edited, clean = hits[:, -1:], alarms[:, -1:]
    gained, alarmed = np.diff(hits, prepend=0), np.diff(alarms, prepend=0)
    auc = (alarmed * (hits - gained / 2)).sum(1) / (edited * clean)[:, 0]
    precision = hits / np.maximum(hits + alarms, 1)
    average = (gained * precision).sum(1) / edited[:, 0]
    k = int(truth.sum())
    recall = np.array([np.interp(k, np.r_[0, h + a], np.r_[0, h]) for h, a in zip(hits, alarms, strict=True)])
    rates = [np.where(alarms <= share * clean, hits, 0).max(1) / edited[:, 0] for share in (0.01, 0.001)]
    return np.stack([auc, average, recall / edited[:, 0], *rates])


def _resampled(truth: Array, how: Bootstrap) -> Iterator[Array]:
    """Yield counts (rows, N) of bootstrap resamples, drawn among edited and clean documents apart."""
    rng = np.random.default_rng(how.seed)
    groups = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    for done in range(0, how.resamples, _ROWS):
        rows = min(_ROWS, how.resamples - done)
        counts = np.zeros((rows, len(truth)), dtype=np.int64)
        for group in groups:
            for row in counts:
                row[group] = np.bincount(rng.integers(0, len(group), len(group)), minlength=len(group))
        yield counts


def _estimate(value: float, draws: Array | None, k: int, how: Bootstrap) -> Estimate:
    unit = "edited documents"
    if draws is None:
        return Estimate(value, None, k, (), unit, f"none: fewer than 8 {unit}", how.level)
    if np.ptp(draws) == 0:
        ends = wilson(min(k, round(value * k)), k, level=how.level).interval
        return Estimate(value, ends, k, (), unit, f"Wilson over {unit}: all resamples agree", how.level)
    method = f"bootstrap over documents, {how.resamples} resamples"
    return Estimate(value, _quantiles(draws, how.level), k, (), unit, method, how.level)


def _quantiles(draws: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
