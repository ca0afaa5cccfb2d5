"""How far apart two samples are, as mu: the shift of a unit normal that has the same trade-off between two errors.

A test of H0 (a sample like `a`) against H1 (like `b`) that rejects above a threshold errs with probability alpha under
H0 and beta under H1. For N(0, 1) against N(mu, 1) every threshold gives mu = Phi^-1(1 - alpha) - Phi^-1(beta). All
estimators are positive when `b` is stochastically larger, and work column by column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from infuser.errors import InfuserError
from infuser.types import Array

Estimator = Literal["auc", "gauss", "scan"]
MIN_SAMPLES = 20  # fewer values a side than this say nothing about a tail: NaN with a reason
_SATURATED = 3.5  # |mu| above which the share of pairs P(b > a) is too close to 1 to be read


@dataclass(frozen=True)
class Mu:
    """One mu per column.

    Attributes:
        values: (K,) float64, NaN where it cannot be estimated.
        reasons: why, by column.
    """

    values: Array
    reasons: Mapping[int, str] = field(default_factory=dict)


def estimate(a: Array, b: Array, estimator: Estimator = "auc", seed: int = 0) -> Mu:
    """Return mu of `b` against `a` per column, NaN with a reason where a sample is too small or does not vary.

    Args:
        a: (n,) or (n, K) values under H0.
        b: (m,) or (m, K) values under H1.
        estimator: `auc` reads the share of pairs with b > a, `gauss` the difference of means over the pooled standard
            deviation, `scan` the largest mu over thresholds (the published one, biased upwards).
        seed: breaks ties among values in `scan`.

    Raises:
        InfuserError: the samples have different columns, or the estimator is unknown.

    >>> sample = np.random.default_rng(0).normal(size=4000)
    >>> estimate(sample[:2000], sample[2000:] + 1).values.round(1)
    array([1.])
    """
    a, b = _columns(a), _columns(b)
    if a.shape[1] != b.shape[1]:
        raise InfuserError("the two samples have different columns", got=b.shape[1], expected=a.shape[1])
    columns = a.shape[1]
    short = min(len(a), len(b))
    if short < MIN_SAMPLES:
        reason = f"{short} values a side, at least {MIN_SAMPLES} are needed"
        return Mu(np.full(columns, np.nan), dict.fromkeys(range(columns), reason))
    reasons = {int(k): "a value is not finite" for k in np.flatnonzero(~(_finite(a) & _finite(b)))}
    flat = (a == a[:1]).all(0) & (b == b[:1]).all(0)
    reasons |= {int(k): "the variance is 0" for k in np.flatnonzero(flat) if int(k) not in reasons}
    usable = np.array([k not in reasons for k in range(columns)], dtype=bool)
    values = np.full(columns, np.nan)
    if estimator not in ("auc", "gauss", "scan"):
        raise InfuserError("unknown estimator", got=estimator, expected="auc, gauss or scan")
    if usable.any():
        x, y = a[:, usable], b[:, usable]
        values[usable] = {"auc": auc, "gauss": gauss}[estimator](x, y) if estimator != "scan" else scan(x, y, seed)
    return Mu(values, reasons)


def gauss(a: Array, b: Array) -> Array:
    """Return (mean b - mean a) / sqrt((var a + var b) / 2) per column: mu itself where both are normal, of one width.

    >>> gauss(np.array([0.0, 2.0]), np.array([1.0, 3.0])).round(4)
    array([0.7071])
    """
    a, b = _columns(a), _columns(b)
    pooled = (a.var(0, ddof=1) + b.var(0, ddof=1)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return cast(Array, (b.mean(0) - a.mean(0)) / np.sqrt(pooled))


def auc(a: Array, b: Array) -> Array:
    """Return sqrt(2) Phi^-1(A) per column, with A = P(b > a) + P(b = a) / 2 over all pairs.

    A is kept in [0.5 / nm, 1 - 0.5 / nm]. Where that gives |mu| above 3.5, A rests on too few pairs and `gauss` is
    returned instead. Unchanged by any increasing transformation of the values, but for that.

    >>> auc(np.zeros(4), np.zeros(4))
    array([0.])
    """
    a, b = _columns(a), _columns(b)
    n, m = len(a), len(b)
    ranks = rankdata(np.concatenate([a, b]), axis=0)[n:]
    share = (ranks.sum(0) - m * (m + 1) / 2) / (n * m)
    edge = 0.5 / (n * m)
    values = np.sqrt(2) * ndtri(np.clip(share, edge, 1 - edge))
    saturated = np.abs(values) > _SATURATED
    if saturated.any():
        values[saturated] = gauss(a[:, saturated], b[:, saturated])
    return cast(Array, values)


def scan(a: Array, b: Array, seed: int = 0) -> Array:
    """Return the mu of the threshold at which |mu| is largest, per column: the published estimator, made finite.

    At a threshold alpha = (k_a + 0.5) / (n + 1) with k_a values of `a` above it, and beta = (k_b + 0.5) / (m + 1) with
    k_b values of `b` at or below it. Only thresholds count where both k are between c and the sample size less c,
    c = max(5, ceil(0.05 n)): without this rule the tails decide, and mu is
    infinite as soon as the samples do not overlap at one end. Columns without such
    a threshold get `gauss`. A maximum over thresholds is biased upwards all the same; kept for comparison.

    Source: arXiv 2510.10510, with the count rule and the smoothing added here.
    """
    a, b = _columns(a), _columns(b)
    n, m = len(a), len(b)
    at_least = (max(5, int(np.ceil(0.05 * n))), max(5, int(np.ceil(0.05 * m))))
    values = gauss(a, b)
    # Equal values are put in a random order, so that a threshold can fall between them.
    jitter = np.random.default_rng(seed).random(n + m)
    from_b = np.arange(n + m) >= n
    for column in range(a.shape[1]):
        order = np.lexsort((jitter, np.concatenate([a[:, column], b[:, column]])))
        below_b = np.cumsum(from_b[order])
        above_a = n - np.cumsum(~from_b[order])
        kept = (above_a >= at_least[0]) & (above_a <= n - at_least[0])
        kept &= (below_b >= at_least[1]) & (below_b <= m - at_least[1])
        if kept.any():
            mus = -ndtri((above_a[kept] + 0.5) / (n + 1)) - ndtri((below_b[kept] + 0.5) / (m + 1))
            values[column] = mus[np.argmax(np.abs(mus))]
    return values


@dataclass(frozen=True)
class TradeOff:
    """The errors of all threshold tests of H0 against H1.

    Attributes:
        alpha: (K,) type I error, increasing from 0 to 1.
        beta: (K,) the type II error at it.
    """

    alpha: Array
    beta: Array


def trade_off(a: Array, b: Array, larger: Literal["a", "b"] = "b") -> TradeOff:
    """Return the empirical trade-off of rejecting "drawn like a" for large values (small ones if `larger` is "a").

    >>> curve = trade_off(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    >>> curve.beta[curve.alpha == 0].min()
    np.float64(0.0)
    """
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if larger == "a":
        a, b = -a, -b
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([a, b]))[::-1], [-np.inf]])
    alpha = 1 - np.searchsorted(np.sort(a), thresholds, side="right") / len(a)
    beta = np.searchsorted(np.sort(b), thresholds, side="right") / len(b)
    return TradeOff(alpha, beta)


def gaussian_trade_off(mu: float, alpha: Array) -> Array:
    """Return beta = Phi(Phi^-1(1 - alpha) - mu), the trade-off of N(0, 1) against N(mu, 1).

    >>> gaussian_trade_off(0.0, np.array([0.25])).round(2)
    array([0.75])
    """
    return cast(Array, ndtr(ndtri(1 - np.asarray(alpha, dtype=np.float64)) - mu))


def compose(mu_step: Array | float, steps: int, share: float = 1.0) -> Array:
    """Return share x sqrt(steps) x mu_step: `steps` equal tests, each of which `S` joins with probability `share`.

    k steps of mu each are at most mu sqrt(k) influential (equality for independent normal ones); a step that holds the
    documents only with probability p counts p times, the small-p limit of subsampling.

    Source: arXiv 2510.10510 (composition), after Dong, Roth and Su, Gaussian differential privacy, 2022.

    >>> compose(0.1, 100)
    array(1.)
    """
    return np.asarray(np.asarray(mu_step, dtype=np.float64) * share * np.sqrt(steps))


def _columns(values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _finite(values: Array) -> Array:
    return cast(Array, np.isfinite(values).all(0))
