"""Truth for scores: what retraining on subsets of the data really gives, and how scores compare with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import numpy as np
from scipy import stats

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.evaluation.retrain import Job, Setting, Start, begin, perform
from infuser.evaluation.stats import Bootstrap, rounding, spearman
from infuser.executors import Executor, Local
from infuser.types import Arm, Array, Estimate, Measurement, Scores


@dataclass(frozen=True)
class Subsets:
    """Which documents each retraining keeps.

    Attributes:
        keep: (S, N) bool.
        ids: (N,) documents.
        by: `removal` trains on the kept documents alone, as published linear datamodeling scores do (fewer steps);
            `weight` gives the others weight 0, so that batches, order and number of steps stay.
    """

    keep: Array
    ids: Array
    by: Literal["removal", "weight"] = "removal"

    def __post_init__(self) -> None:
        if self.keep.dtype != np.bool_ or self.keep.ndim != 2 or self.keep.shape[1] != len(self.ids):
            expected = f"bool (S, {len(self.ids)})"
            raise InfuserError("not subsets", got=f"{self.keep.dtype} {self.keep.shape}", expected=expected)
        if self.by not in ("removal", "weight"):
            raise InfuserError("unknown way to leave documents out", got=self.by, expected="removal or weight")
        if not self.keep.any(1).all():
            raise InfuserError("a subset is empty", got=listed(np.flatnonzero(~self.keep.any(1)).tolist()))

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, rows: slice) -> Subsets:
        """Return some of the subsets, for work in slices (see Truth.concat)."""
        return replace(self, keep=self.keep[rows])

    def of(self, data: Dataset) -> Iterator[Dataset]:
        """Yield the training data of each subset."""
        for row in self.keep:
            out = self.ids[~row]
            if not len(out):
                yield data
            else:
                yield data.without(out) if self.by == "removal" else data.with_weights(out, 0.0)


def random_subsets(
    data: Dataset, count: int = 60, share: float = 0.5, seed: int = 0, by: Literal["removal", "weight"] = "removal"
) -> Subsets:
    """Return `count` random subsets that keep round(share x N) documents each."""
    size = round(share * len(data))
    if count < 1 or not 0 < size < len(data):
        raise InfuserError(
            "not subsets", got=f"{count} of {size} documents", expected=f"1 to {len(data) - 1} documents"
        )
    rng = np.random.default_rng(seed)
    keep = np.zeros((count, len(data)), dtype=bool)
    for row in keep:
        row[rng.choice(len(data), size, replace=False)] = True
    return Subsets(keep, data.ids, by)


@dataclass(frozen=True)
class Truth:
    """Measured f after retraining on each subset.

    Attributes:
        subsets: which documents each kept.
        values: (S, R, Q) f, one column of seeds and one of queries.
        queries: (Q,) names.
        seeds: (R,) of retraining.
        measure: name of f.
        start: the regime.
    """

    subsets: Subsets
    values: Array
    queries: tuple[str, ...]
    seeds: tuple[int, ...]
    measure: str
    start: str

    def __post_init__(self) -> None:
        expected = (len(self.subsets), len(self.seeds), len(self.queries))
        if self.values.shape != expected:
            raise InfuserError("truth of the wrong shape", got=self.values.shape, expected=expected)

    @property
    def mean(self) -> Array:
        """F averaged over seeds, (S, Q)."""
        return cast(Array, self.values.mean(1))

    @classmethod
    def concat(cls, parts: Sequence[Truth]) -> Truth:
        """Return the truth of all subsets of several slices.

        Raises:
            InfuserError: the slices differ in documents, seeds, queries, measure or regime.
        """
        kinds = [(p.queries, p.seeds, p.measure, p.start, p.subsets.by, p.subsets.ids.tolist()) for p in parts]
        if not kinds or any(kind != kinds[0] for kind in kinds):
            raise InfuserError("only slices of one truth can be joined", got=f"{len(parts)} parts that differ")
        subsets = replace(parts[0].subsets, keep=np.concatenate([p.subsets.keep for p in parts]))
        return replace(parts[0], subsets=subsets, values=np.concatenate([p.values for p in parts]))


def leave_some_out(
    run: Run,
    data: Dataset,
    measure: Measurement,
    subsets: Subsets,
    seeds: Sequence[int] = (0, 1, 2),
    start: Start = "scratch",
    executor: Executor | None = None,
) -> Truth:
    """Return f of models retrained by the run's recipe on each subset, under each seed.

    Raises:
        InfuserError: the subsets are of other data, or training diverged (subset and seed are named).
    """
    if not np.array_equal(subsets.ids, data.ids):
        raise InfuserError("the subsets are of other documents", got=f"{len(subsets.ids)} ids", expected=data)
    setting = Setting(run.builder, run.recipe, begin(run, start), (measure,), None, run.device)
    arms = (Arm(f"subset {s}", kept, "") for s, kept in enumerate(subsets.of(data)))
    jobs = (Job(arm, int(seed)) for arm in arms for seed in seeds)
    outcomes = list((executor or Local()).map(partial(perform, setting), jobs))
    values = np.array([[row[4] for row in outcome.rows] for outcome in outcomes])
    queries = tuple(row[2] for row in outcomes[0].rows)
    shaped = values.reshape(len(subsets), len(seeds), len(queries))
    return Truth(subsets, shaped, queries, tuple(int(s) for s in seeds), measure.name, start)


def predicted(scores: Scores, subsets: Subsets) -> Array:
    """Return sum of the scores of the kept documents, (S, Q): f of each subset up to a constant.

    Raises:
        InfuserError: a document of the subsets has no score.
    """
    position = {int(i): p for p, i in enumerate(scores.ids)}
    missing = [i for i in subsets.ids.tolist() if i not in position]
    if missing:
        raise InfuserError(f"{len(missing)} documents have no score", got=listed(missing))
    values = scores.values[:, [position[i] for i in subsets.ids.tolist()]]
    return subsets.keep.astype(np.float64) @ values.T.astype(np.float64)


def lds(scores: Scores, truth: Truth, against: Scores | None = None, bootstrap: Bootstrap | None = None) -> Estimate:
    """Return the linear datamodeling score: Spearman of predicted and measured f over subsets, averaged over queries.

    The interval is value +- z times the standard error of a bootstrap that resamples subsets and queries, from 8 of
    each on: all queries share the subsets, so that resampling queries alone would be too sure. Seeds are averaged
    before, and the scores are those of the one run that they were made for.

    Args:
        scores: of every query.
        truth: of the same queries.
        against: further scores; then the difference from theirs is returned, on the same resamples.
        bootstrap: 1,000 resamples by default.

    Source: Park et al., TRAK, 2023, definition 2.4 (there with subsets of half the documents).

    Raises:
        InfuserError: other queries, fewer than 3 subsets, or predictions without ranks (constant or NaN scores).
    """
    how, unit = bootstrap or Bootstrap(resamples=1000), "queries"
    value, both = float(lds_per_query(scores, truth).mean()), [scores]
    if against is not None:
        value, both = value - float(lds_per_query(against, truth).mean()), [scores, against]
    s, q = len(truth.subsets), len(truth.queries)
    if min(s, q) < 8:
        return Estimate(value, None, q, truth.seeds, unit, "none: fewer than 8 subsets or queries", how.level)
    forecasts, measured = [predicted(one, truth.subsets) for one in both], truth.mean
    rng, drawn = np.random.default_rng(how.seed), np.empty((how.resamples, len(both)))
    for r in range(how.resamples):
        rows, columns = rng.integers(s, size=s), rng.integers(q, size=q)
        at = np.ix_(rows, columns)
        # A query that is constant on the subsets drawn has no ranks there.
        drawn[r] = [np.nanmean(_rank_correlations(one[at], measured[at])) for one in forecasts]
    error = float((drawn[:, 0] - (drawn[:, 1] if against is not None else 0.0)).std(ddof=1))
    half = float(stats.norm.ppf((1 + how.level) / 2)) * error
    method = f"standard error of a bootstrap over {s} subsets and {q} queries"
    return Estimate(value, (value - half, value + half), q, truth.seeds, unit, method, how.level)


def _rank_correlations(x: Array, y: Array) -> Array:
    """Return Spearman's correlation of the columns of two tables, ties at their mean rank."""
    a, b = (ranks - ranks.mean(0) for ranks in (stats.rankdata(x, axis=0), stats.rankdata(y, axis=0)))
    with np.errstate(invalid="ignore"):
        return cast(Array, (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))


def lds_per_query(scores: Scores, truth: Truth) -> Array:
    """Return Spearman of predicted and measured f over subsets for each query, (Q,)."""
    if len(scores) != len(truth.queries):
        raise InfuserError("scores and truth are of other queries", got=len(scores), expected=len(truth.queries))
    if len(truth.subsets) < 3:
        raise InfuserError("too few subsets for a rank correlation", got=len(truth.subsets), expected="at least 3")
    forecast, measured = predicted(scores, truth.subsets), truth.mean
    flat = [q for q in range(len(scores)) if not np.ptp(forecast[:, q]) > 0 or not np.ptp(measured[:, q]) > 0]
    if flat:
        raise InfuserError(
            "a rank correlation needs values that differ and are finite",
            got=f"queries {listed([truth.queries[q] for q in flat])}",
            causes=["constant or NaN scores", "f does not depend on the subset"],
        )
    return _rank_correlations(forecast, measured)


@dataclass(frozen=True)
class Agreement:
    """How predicted changes of f compare with measured ones.

    Attributes:
        slope: measured per predicted (1 = right in size), by least squares with an intercept. Its t-interval takes the
            standard error HC3, as large predictions miss by more: one that trusts in equal errors would be too short.
        rank: Spearman's correlation.
    """

    slope: Estimate
    rank: Estimate

    def __str__(self) -> str:
        return f"measured / predicted: slope {self.slope}, rank correlation {self.rank}"


def agreement(forecast: Array, measured: Array, unit: str = "probes", level: float = 0.95) -> Agreement:
    """Return slope and rank correlation of measured (n,) on predicted (n,) changes of f.

    Raises:
        InfuserError: the lengths differ, or a value is not finite.

    Source: MacKinnon and White, Journal of Econometrics 29, 1985 (HC3).
    """
    x, y = np.asarray(forecast, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    rank = spearman(x, y, unit, level)
    n = len(x)
    if n < 3 or np.ptp(x) == 0:
        nothing = Estimate(float("nan"), None, n, (), unit, "none: fewer than 3 pairs, or constant values", level)
        return Agreement(nothing, rank)
    line = stats.linregress(x, y)
    slope = float(line.slope)
    centred = x - x.mean()
    missed = y - line.intercept - slope * x
    free = 1 - 1 / n - centred**2 / (centred**2).sum()  # share of its own miss that a pair does not explain away
    if np.abs(missed).max() <= rounding(np.stack([y, slope * x])) or free.min() <= 1e-12:
        return Agreement(Estimate(slope, None, n, (), unit, "none: the line goes through the pairs", level), rank)
    error = float(np.sqrt(((centred * missed / free) ** 2).sum()) / (centred**2).sum())
    half = float(stats.t.ppf((1 + level) / 2, n - 2)) * error
    return Agreement(Estimate(slope, (slope - half, slope + half), n, (), unit, "t-interval, HC3", level), rank)
