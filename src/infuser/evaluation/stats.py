"""Estimates with intervals whose unit is the probe (or the base model), never the single retraining.

Intervals: a two-way bootstrap over probes and seeds from 8 probes on, a t-interval from 3 to 7 with the variance that
probes and seeds add, none below 3 or where nothing varies. p-values: sign flips of the probe means, given the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from infuser.errors import InfuserError, listed
from infuser.types import Array, Estimate


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: of the bootstrap.
        level: of the interval.
        seed: of the resampling.
    """

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100 or not 0 < self.level < 1:
            raise InfuserError("not a bootstrap", got=self, expected="at least 100 resamples, 0 < level < 1")


def table_estimate(
    table: Array, seeds: Sequence[int] = (), unit: str = "probes", bootstrap: Bootstrap | None = None
) -> Estimate:
    """Return the mean of a table (units, seeds) with its interval.

    Args:
        table: (n, s) values; s = 1 where there are no seeds to resample.
        seeds: the seeds of the columns.
        unit: what a row is.
        bootstrap: how the interval is made; used from 8 rows on.
    """
    how = bootstrap or Bootstrap()
    table = finite(table)
    n, s = table.shape
    value = float(table.mean())
    if n < 3:
        return Estimate(value, None, n, tuple(seeds), unit, f"none: fewer than 3 {unit}", how.level)
    if np.ptp(table) <= rounding(table):  # nothing is known of a spread that did not show
        return Estimate(value, None, n, tuple(seeds), unit, f"none: all {unit} agree", how.level)
    over = f"{n} {unit}" + (f" and {s} seeds" if s > 1 else "")
    if n < 8:
        half = _half_width(table, how.level)
        ends = (float(value - half), float(value + half))
        return Estimate(value, ends, n, tuple(seeds), unit, f"t-interval over {over}", how.level)
    method = f"bootstrap over {over}, {how.resamples} resamples"
    return Estimate(value, two_way_interval(table, how), n, tuple(seeds), unit, method, how.level)


def rounding(values: Array) -> float:
    """Return the spread of equal values that were computed in different ways."""
    return float(8 * np.finfo(np.float64).eps * np.abs(values).max())


def _half_width(table: Array, level: float) -> float:
    """Return half the t-interval of the mean of a table (n, s) of random rows and random columns.

    The variance of the mean is (MS rows + MS columns - MS rest) / n s, with Satterthwaite's degrees of freedom; where
    columns vary no more than the rest does, or there is one, it is that of the row means with n - 1. Row means that
    agree, as those of few counts do, tell of no spread: then MS rest stands for MS rows.

    Source: Satterthwaite, An approximate distribution of estimates of variance components, 1946.
    """
    n, s = table.shape
    mean, rows, columns = table.mean(), table.mean(1), table.mean(0)
    of_rows, df = s * rows.var(ddof=1), float(n - 1)
    total = of_rows
    if s > 1:
        of_columns = n * columns.var(ddof=1)
        rest = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((n - 1) * (s - 1))
        if np.ptp(rows) <= rounding(table):
            total = of_rows = rest
            df = float((n - 1) * (s - 1))
        if of_columns > rest:
            total = of_rows + of_columns - rest
            parts = of_rows**2 / (n - 1) + of_columns**2 / (s - 1) + rest**2 / ((n - 1) * (s - 1))
            df = min(df, float(total**2 / parts))
    return float(stats.t.ppf((1 + level) / 2, max(df, 1.0)) * np.sqrt(total / (n * s)))


def two_way_interval(table: Array, bootstrap: Bootstrap) -> tuple[float, float]:
    """Return the percentile interval of the mean of a table (n, s) under resampling of its rows and of its columns.

    Plain percentile intervals are too narrow for small tables. So row effects are stretched by sqrt(n / (n - 1)) times
    t_{n-1} over z (the width of the t-interval), and column effects likewise by s, before they are resampled. With one
    column the answer is about one seed and no other.

    Source: Owen, The pigeonhole bootstrap, 2007 (resampling of both factors); Hesterberg, What teachers should know
    about the bootstrap, 2015, section 3.3 (expanded percentile interval).
    """
    n, s = table.shape
    tail = (1 + bootstrap.level) / 2
    mean, rows, columns = table.mean(), table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    row_stretch = np.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1) / stats.norm.ppf(tail)
    column_stretch = np.sqrt(s / (s - 1)) * stats.t.ppf(tail, s - 1) / stats.norm.ppf(tail) if s > 1 else 0.0
    residual = table - rows - columns + mean
    stretched = mean + row_stretch * (rows - mean) + column_stretch * (columns - mean) + residual
    rng = np.random.default_rng(bootstrap.seed)
    row_counts = rng.multinomial(n, np.full(n, 1 / n), bootstrap.resamples)
    column_counts = rng.multinomial(s, np.full(s, 1 / s), bootstrap.resamples)
    means = ((row_counts @ stretched) * column_counts).sum(1) / (n * s)
    low, high = np.quantile(means, [1 - tail, tail])
    return float(low), float(high)


def sign_flip(values: Array, bootstrap: Bootstrap | None = None) -> float | None:
    """Return the two-sided p of mean 0 under sign flips of `values` (n,); None below 3 values.

    All 2^n flips are counted where they are at most 2^14; else 2^14 random ones, with 1 added to both counts.
    """
    values = finite(values)
    if len(values) < 3:
        return None
    # Swapping the members of a pair (d, 0) flips the sign of its difference d.
    result = stats.permutation_test(
        (values, np.zeros_like(values)),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=2**14,
        vectorized=True,
        random_state=np.random.default_rng((bootstrap or Bootstrap()).seed),
    )
    return float(result.pvalue)


def mean_estimate(
    values: Array, unit: str = "probes", seeds: Sequence[int] = (), bootstrap: Bootstrap | None = None
) -> Estimate:
    """Return the mean of independent values (n,), with the interval that n allows (see `table_estimate`)."""
    return table_estimate(np.asarray(values, dtype=np.float64)[:, None], seeds, unit, bootstrap)


def median_estimate(
    values: Array, unit: str = "probes", seeds: Sequence[int] = (), bootstrap: Bootstrap | None = None
) -> Estimate:
    """Return the median of independent values (n,), with a bootstrap interval from 8 values on."""
    how = bootstrap or Bootstrap()
    values = finite(values)
    value, n = float(np.median(values)), len(values)
    if n < 8:
        return Estimate(value, None, n, tuple(seeds), unit, f"none: fewer than 8 {unit}", how.level)
    rng = np.random.default_rng(how.seed)
    result = stats.bootstrap(
        (values,),
        np.median,
        n_resamples=how.resamples,
        confidence_level=how.level,
        method="percentile",
        random_state=rng,
    )
    interval = (float(result.confidence_interval.low), float(result.confidence_interval.high))
    return Estimate(value, interval, n, tuple(seeds), unit, f"bootstrap over {n} {unit}", how.level)


def wilson(successes: int, n: int, unit: str = "probes", seeds: Sequence[int] = (), level: float = 0.95) -> Estimate:
    """Return a share with its Wilson interval; no interval where n is 0.

    >>> print(wilson(0, 10))
    0 [0, 0.278] (n = 10 probes)
    """
    if not 0 <= successes <= n:
        raise InfuserError("successes are counted among n", got=f"{successes} of {n}")
    if n == 0:
        return Estimate(float("nan"), None, 0, tuple(seeds), unit, f"none: no {unit}", level)
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    ends = (float(interval.low), float(interval.high))
    return Estimate(successes / n, ends, n, tuple(seeds), unit, "Wilson", level)


def wilson_of_share(share: float, n: int, unit: str, level: float = 0.95) -> Estimate:
    """Return a share of n with its Wilson interval; that of a split tie has the ends of both whole numbers beside it.

    >>> print(wilson_of_share(2.5 / 3, 3, "documents"))
    0.833 [0.208, 1] (n = 3 documents)
    """
    count = share * n
    exact = round(count) if abs(count - round(count)) < 1e-9 * n else None
    low = wilson(math.floor(count) if exact is None else exact, n, unit, level=level)
    high = wilson(math.ceil(count) if exact is None else exact, n, unit, level=level)
    ends = None if low.interval is None or high.interval is None else (low.interval[0], high.interval[1])
    return replace(low, value=share, interval=ends)


def spearman(x: Array, y: Array, unit: str = "probes", level: float = 0.95) -> Estimate:
    """Return Spearman's rank correlation; interval by Fisher's z with variance (1 + r^2 / 2) / (n - 3) from 8 pairs on.

    A constant input has no ranks: the value is NaN without an interval.

    Source: Bonett and Wright, Psychometrika 65, 2000 (the variance).
    """
    x, y = finite(x), finite(y)
    if x.shape != y.shape or x.ndim != 1:
        raise InfuserError("a rank correlation is of pairs", got=f"{x.shape} and {y.shape}")
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(float("nan"), None, n, (), unit, "none: fewer than 3 pairs, or constant values", level)
    r = float(stats.spearmanr(x, y).statistic)
    if n < 8:
        return Estimate(r, None, n, (), unit, f"none: fewer than 8 {unit}", level)
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt((1 + r**2 / 2) / (n - 3))
    # Perfect ranks do not mean certainty: the ends are those of r half a swap of two neighbours away from 1.
    most = 1 - 6 / (n * (n**2 - 1))
    z = np.arctanh(np.clip(r, -most, most))
    interval = (min(r, float(np.tanh(z - half))), max(r, float(np.tanh(z + half))))
    return Estimate(r, interval, n, (), unit, "Fisher z, Bonett-Wright variance", level)


def holm(p: Sequence[float]) -> Array:
    """Return p-values adjusted by Holm: the chance of any false rejection stays below the level.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InfuserError("p-values lie in [0, 1]", got=listed(values.tolist()))
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return adjusted


def finite(values: Any) -> Array:
    """Return `values` as float64, checked to be finite and not empty."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise InfuserError(
            "statistics need finite values",
            got=f"{int((~np.isfinite(array)).sum())} of {array.size} are not",
            causes=["a retrained model diverged", "nothing was measured"],
        )
    return array
