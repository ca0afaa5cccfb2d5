"""Tests that keep their level: a group against random groups, documents against documents declared clean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.stats import false_discovery_control

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.types import Array, Scores


def permutation_p(observed: Array | float, null: Array) -> Array:
    """Return (1 + number of null values at least as large) / (1 + R): valid at every level for exchangeable values.

    Args:
        observed: (...) statistics; the p-value of NaN is NaN.
        null: (R,) statistics under the null; infinities are values like any other.

    Raises:
        InfuserError: there are no null values, or one is NaN, which is neither larger nor smaller.

    >>> permutation_p(3.0, np.array([0.0, 1.0, 3.0]))
    array(0.5)
    """
    null = np.sort(np.asarray(null, dtype=np.float64).ravel())
    if len(null) == 0 or np.isnan(null).any():
        got = f"{len(null)} values, {int(np.isnan(null).sum())} of them NaN"
        raise InfuserError("the null distribution is empty or not of numbers", got=got)
    at_least = len(null) - np.searchsorted(null, np.asarray(observed, dtype=np.float64), side="left")
    return np.asarray(np.where(np.isnan(observed), np.nan, (1 + at_least) / (1 + len(null))))


@dataclass(frozen=True)
class GroupTest:
    """Is a group more influential on one measurement than random groups of its size and labels?

    Attributes:
        mu: of the group.
        p: one-sided p-value.
        null: (R,) mu of the random groups.
        null_hypothesis: what p refers to, in words.
    """

    mu: float
    p: float
    null: Array
    null_hypothesis: str = "the group was drawn at random from the documents, with these numbers of each label"


def group_test(
    statistic: Callable[[Array], float],
    data: Dataset,
    ids: Sequence[int] | Array,
    *,
    groups: int = 999,
    seed: int = 0,
) -> GroupTest:
    """Return the test of the group `ids` by `statistic` (mu of a group, given its ids) against random groups.

    p = (1 + number of random groups with a statistic at least as large) / (1 + groups). The groups are drawn from all
    of `data`, so that under the null hypothesis the group and the draws are exchangeable and p is valid as it stands.

    Args:
        statistic: ids -> mu, on one fixed measurement.
        data: the documents that groups are drawn from.
        ids: (k,) the group.
        groups: how many random groups; the smallest p is 1 / (1 + groups).
        seed: of the draws.

    Raises:
        InfuserError: the group is empty, all of the data, or names a document twice.
    """
    ids = checked_group(data, ids)
    rng = np.random.default_rng(seed)
    null = np.array([statistic(group) for group in matched_groups(data, ids, groups, rng)])
    mu = float(statistic(ids))
    return GroupTest(mu, float(permutation_p(mu, null)), null)


def matched_groups(data: Dataset, ids: Array, groups: int, rng: np.random.Generator) -> list[Array]:
    """Return `groups` random groups of ids with the size of `ids` and, for classification, its number of each label."""
    if data.kind != "classification":
        return [rng.choice(data.ids, len(ids), replace=False) for _ in range(groups)]
    labels, counts = np.unique(data.targets[data.positions(ids)], return_counts=True)
    pools = [data.ids[data.targets == label] for label in labels]
    return [
        np.concatenate([rng.choice(pool, count, replace=False) for pool, count in zip(pools, counts, strict=True)])
        for _ in range(groups)
    ]


def checked_group(data: Dataset, ids: Sequence[int] | Array, name: str = "the group") -> Array:
    """Return ids as an array.

    Raises:
        InfuserError: the group is empty, all of the data, has an id twice, or one that the data do not have.
    """
    ids = np.atleast_1d(np.asarray(ids, dtype=np.int64))
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InfuserError(f"{name} names a document twice", got=f"ids {listed(values[counts > 1].tolist())}")
    if len(ids) == 0 or len(ids) >= len(data):
        raise InfuserError(
            f"{name} must be some of the documents, not none and not all",
            got=f"{len(ids)} ids",
            expected=f"1 to {len(data) - 1}",
        )
    data.positions(ids)
    return ids


@dataclass(frozen=True)
class Findings:
    """Which documents stand out, and what may be claimed of them.

    Attributes:
        ids: (M,) the documents tested (those that are not in the reference), most influential first.
        values: (M,) their scores.
        p: (M,) conformal p-values; NaN without a reference.
        q: (M,) Benjamini-Hochberg adjusted p-values; NaN without a reference.
        found: (M,) True where q is at most `level`; all False without a reference.
        level: of the false discovery rate.
        claim: in words, for printing beside the list.
    """

    ids: Array
    values: Array
    p: Array
    q: Array
    found: Array
    level: float
    claim: str


def find(
    scores: Scores, reference: Sequence[int] | Array | None = None, *, level: float = 0.1, query: int = 0
) -> Findings:
    """Return the documents whose score is too high for a clean one, at a false discovery rate of `level`.

    A document's conformal p-value is (1 + number of reference documents with at least its score) / (1 + size of the
    reference). Where a score is NaN, a document has none: it gets no p-value and does not count in the reference, and
    the claim says so. Infinite scores count as what they are, at least as large as any or smaller. The p-value is valid
    if a clean document is exchangeable with the reference, which must therefore be a random sample of clean documents,
    trained on with the others, and chosen without looking at the scores. Without a reference the documents are only
    ranked: nothing says how large the scores of clean documents are.

    Args:
        scores: of all documents; higher is more suspicious.
        reference: ids declared clean. At least 1 / level of them are needed for any finding.
        level: expected share of false findings among the findings.
        query: which row of the scores.

    Raises:
        InfuserError: the reference is empty, holds every document or has no scores, or a level is not in (0, 1).

    Source: Bates, Candes, Lei, Romano and Sesia, Testing for outliers with conformal p-values, 2023 (BH holds on them).
    """
    if not 0 < level < 1:
        raise InfuserError("level is out of range", got=level, expected="between 0 and 1")
    values = np.asarray(scores.values[query], dtype=np.float64)
    is_reference = np.zeros(len(values), dtype=bool)
    if reference is not None:
        is_reference = np.isin(scores.ids, np.asarray(reference))
        if not 0 < is_reference.sum() < len(values):
            raise InfuserError("the reference must be some of the scored documents", got=f"{is_reference.sum()} ids")
    order = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
    order = order[~is_reference[order]]
    ids, tested = scores.ids[order], values[order]
    if reference is None:
        nothing = np.full(len(ids), np.nan)
        claim = "ranked only: without documents declared clean, no p-value and no error rate can be given"
        return Findings(ids, tested, nothing, nothing, np.zeros(len(ids), dtype=bool), level, claim)
    clean = values[is_reference]
    scored = clean[~np.isnan(clean)]
    if len(scored) == 0:
        raise InfuserError("no reference document has a score", got=f"{len(clean)} ids", expected="one that is no NaN")
    p = permutation_p(tested, scored)
    q = np.full(len(p), np.nan)
    q[np.isfinite(p)] = benjamini_hochberg(p[np.isfinite(p)])
    found = np.nan_to_num(q, nan=1.0) <= level
    which = f"{len(clean)} reference documents"
    if len(scored) < len(clean):
        which = f"{len(scored)} of {which} that have a score"
    claim = (
        f"{int(found.sum())} of {len(ids)} documents at a false discovery rate of {level:g}, "
        f"if the {which} are a random sample of clean ones"
    )
    return Findings(ids, tested, p, q, found, level, claim)


def benjamini_hochberg(p: Array) -> Array:
    """Return adjusted p-values: rejecting those at most q keeps the false discovery rate at q.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03]))
    array([0.03, 0.04, 0.04])
    """
    return cast(Array, false_discovery_control(np.asarray(p, dtype=np.float64), method="bh"))
