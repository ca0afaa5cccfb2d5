"""Agreement of runs against counts by hand, and its interval against simulated runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from infuser.errors import InfuserError
from infuser.evaluation.stability import jaccard, stability
from infuser.types import Scores


def scores(values):
    return Scores(np.asarray(values, dtype=float)[None], np.arange(len(values)), "test", "mu")


def test_jaccard_by_hand():
    assert jaccard(np.array([5.0, 4, 3, 2, 1]), np.array([5.0, 4, 1, 2, 3]), 0.4) == 1
    assert jaccard(np.array([5.0, 4, 3, 2, 1]), np.array([5.0, 1, 4, 2, 3]), 0.4) == pytest.approx(1 / 3)
    assert jaccard(np.array([5.0, 4, 3, 2, 1]), np.array([1.0, 2, 3, 4, 5]), 0.4) == 0


def test_statistics_are_means_over_pairs():
    a, b, c = [1.0, 2, 3, 4], [1.0, 2, 4, 3], [4.0, 3, 2, 1]
    result = stability([scores(a), scores(b), scores(c)], shares=(0.25,))
    pairs = [spearmanr(*pair).statistic for pair in ((a, b), (a, c), (b, c))]
    assert result.spearman.value == pytest.approx(np.mean(pairs))
    assert result.jaccard[0.25].value == 0
    assert result.spearman.interval is None
    variation = np.median(np.std([a, b, c], axis=0, ddof=1) / np.mean([a, b, c], axis=0))
    assert result.variation.value == pytest.approx(variation)


def test_the_interval_over_runs_covers_where_one_over_pairs_does_not():
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(0.65, 0.35, size=(2, 100_000)))
    # The rank correlation of normal scores with correlation r is 6 / pi arcsin(r / 2).
    truth = np.mean(6 / np.pi * np.arcsin(1 / np.sqrt((1 + noise**2).prod(0)) / 2))
    covered = covered_by_pairs = 0
    for _ in range(100):
        signal = rng.normal(size=300)
        spread = np.abs(rng.normal(0.65, 0.35, size=5))
        runs = [scores(signal + s * rng.normal(size=300)) for s in spread]
        result = stability(runs, shares=()).spearman
        pairs = [spearmanr(runs[i].values[0], runs[j].values[0]).statistic for i in range(5) for j in range(i)]
        low, high = result.interval
        covered += low <= truth <= high
        covered_by_pairs += abs(result.value - truth) <= 1.96 * np.std(pairs, ddof=1) / np.sqrt(10)
    assert covered >= 85
    assert covered_by_pairs < covered - 10


def test_runs_must_be_comparable():
    with pytest.raises(InfuserError, match="two or more runs"):
        stability([scores([1.0, 2.0])])
    other = Scores(np.zeros((1, 2)), np.array([5, 6]), "test", "mu")
    with pytest.raises(InfuserError, match="same documents"):
        stability([scores([1.0, 2.0]), other])
