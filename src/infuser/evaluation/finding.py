"""How well suspicion finds the edited documents: ranking metrics with intervals.

AUC flatters where few documents are edited, hence recall at k and the rate at a small share of false alarms beside it.
Ties are broken at random in expectation, but for average precision, which counts tied documents together, as
scikit-learn does: a detector that gives every document the same number has recall k / N and a ROC-AUC of one half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import special, stats

from infuser.errors import InfuserError, listed
from infuser.evaluation.stats import Bootstrap, wilson_of_share
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

    Intervals: bootstrap over documents, edited and clean apart, from 8 edited documents on, widened as in
    stats.two_way_interval: percentiles, but for ROC-AUC, where they end too high near 1 and the basic interval of its
    log-odds is taken; where all resamples agree (nothing or everything is found) Wilson's over edited documents.

    Raises:
        InfuserError: an edited id is not among the documents, or none or all are edited.

    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2 (basic, transformed).
    """
    how = bootstrap or Bootstrap(resamples=1000)
    truth = _truth(suspicion, edited)
    k, n = int(truth.sum()), len(truth)
    names = list(METRICS) if n - k >= ENOUGH_CLEAN else list(METRICS[:-1])
    point = _metrics(suspicion.values, truth, *_everything(truth))[:, 0]
    draws = None
    if k >= 8:
        parts = [_metrics(suspicion.values, truth, *sample) for sample in _resampled(truth, how)]
        draws = np.concatenate(parts, axis=1)
    estimates: dict[str, Estimate | None] = dict.fromkeys(METRICS)
    for i, name in enumerate(METRICS):
        if name in names:
            drawn = None if draws is None else draws[i]
            smallest = 0.5 / (k * (n - k)) if name == "roc_auc" else None  # half a pair of an edited and a clean one
            estimates[name] = _estimate(float(point[i]), drawn, k, how, smallest)
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

    def difference(sample: tuple[Array, Array]) -> Array:
        return cast(Array, _metrics(after.values, truth, *sample) - _metrics(before.values, truth, *sample))

    point = difference(_everything(truth))[:, 0]
    draws = np.concatenate([difference(c) for c in _resampled(truth, how)], axis=1) if k >= 8 else None
    found = {}
    for i, name in enumerate(METRICS[:-1] if len(truth) - k < ENOUGH_CLEAN else METRICS):
        ends, method = None, "none: fewer than 8 edited documents"
        if draws is not None:
            agree = np.ptp(draws[i]) == 0
            ends = None if agree else _quantiles(draws[i], k, how.level)
            method = "none: all resamples agree" if agree else "bootstrap over documents, paired"
        found[name] = Estimate(float(point[i]), ends, k, (), "edited documents", method, how.level)
    return found


def _truth(suspicion: Suspicion, edited: Sequence[int] | Array) -> Array:
    given = np.asarray(edited)
    if given.dtype == bool:
        raise InfuserError("a mask is not ids", got=given.shape, remedy="pass data.ids[mask]")
    wanted = np.unique(given)
    missing = np.setdiff1d(wanted, suspicion.ids)
    if len(missing):
        raise InfuserError("edited documents that the detector did not see", got=listed(missing.tolist()))
    if not 0 < len(wanted) < len(suspicion):
        raise InfuserError("some documents must be edited and some not", got=f"{len(wanted)} of {len(suspicion)}")
    return np.isin(suspicion.ids, wanted)


def _metrics(values: Array, truth: Array, edited: Array, clean: Array) -> Array:
    """Return the five metrics, (5, R), of R samples of documents.

    A metric depends on a clean document only through where it ranks among the edited ones: between two of their G
    distinct values, or tied with one. So a sample is 2 G + 1 counts, however many clean documents there are.

    Args:
        values: (N,) suspicion.
        truth: (N,) True where edited.
        edited: (R, k) which of the edited documents are in each sample, with repetitions.
        clean: (R, n - k) the same of the clean ones.
    """
    steps, group = np.unique(-values[truth], return_inverse=True)  # most suspicious first
    others = -values[~truth]
    place = np.searchsorted(steps, others, "left") + np.searchsorted(steps, others, "right")  # odd where tied
    gained, spread = _counts(group, edited, len(steps)), _counts(place, clean, 2 * len(steps) + 1)
    hits, above = gained.cumsum(1), spread.cumsum(1)
    before, tied, alarms = above[:, :-1:2], spread[:, 1::2], above[:, 1::2]
    k, n = edited.shape[1], clean.shape[1]
    auc = (gained * (n - alarms + tied / 2)).sum(1) / (k * n)
    average = (gained * hits / np.maximum(hits + alarms, 1)).sum(1) / k
    room = (k - before - (hits - gained)) / np.maximum(gained + tied, 1)
    recall = (gained * room.clip(0, 1)).sum(1) / k
    rates = []
    for share in (0.01, 0.001):
        allowed = np.floor(share * n + 1e-9)
        # Of g edited among t tied clean ones, g (a + 1) / (t + 1) are expected before the (a + 1)-th of the clean.
        part = gained * ((allowed - before + 1) / (tied + 1)).clip(0, 1)
        rates.append(np.where(before <= allowed, hits - gained + part, 0).max(1) / k)
    return np.stack([auc, average, recall, *rates])


def _counts(bins: Array, sample: Array, size: int) -> Array:
    """Return how often each of `size` bins occurs in each row of a sample of documents, (R, size)."""
    flat = bins[sample] + size * np.arange(len(sample))[:, None]
    return np.bincount(flat.ravel(), minlength=size * len(sample)).reshape(len(sample), size)


def _everything(truth: Array) -> tuple[Array, Array]:
    return np.arange(truth.sum())[None], np.arange((~truth).sum())[None]


def _resampled(truth: Array, how: Bootstrap) -> Iterator[tuple[Array, Array]]:
    """Yield samples with replacement (rows, k) and (rows, n - k), of edited and of clean documents apart."""
    rng = np.random.default_rng(how.seed)
    k, n = int(truth.sum()), int((~truth).sum())
    for done in range(0, how.resamples, _ROWS):
        rows = min(_ROWS, how.resamples - done)
        yield rng.integers(0, k, (rows, k)), rng.integers(0, n, (rows, n))


def _estimate(value: float, draws: Array | None, k: int, how: Bootstrap, smallest: float | None) -> Estimate:
    unit = "edited documents"
    if draws is None:
        return Estimate(value, None, k, (), unit, f"none: fewer than 8 {unit}", how.level)
    if np.ptp(draws) == 0:
        ends = wilson_of_share(value, k, unit, how.level).interval
        return Estimate(value, ends, k, (), unit, f"Wilson over {unit}: all resamples agree", how.level)
    method = f"bootstrap over documents, {how.resamples} resamples"
    if smallest is None:
        return Estimate(value, _quantiles(draws, k, how.level), k, (), unit, method, how.level)
    centre, *ends = special.logit(np.clip([value, *_quantiles(draws, k, how.level)], smallest, 1 - smallest))
    low, high = (float(special.expit(2 * centre - end)) for end in reversed(ends))
    return Estimate(value, (min(low, value), max(high, value)), k, (), unit, f"{method}, basic of log-odds", how.level)


def _quantiles(draws: Array, k: int, level: float) -> tuple[float, float]:
    """Return the percentile interval, its tails drawn out as for a t-interval of the k edited documents."""
    tail = stats.norm.cdf(-np.sqrt(k / (k - 1)) * stats.t.ppf((1 + level) / 2, k - 1))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
