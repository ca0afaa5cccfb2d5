"""mu estimators against samples whose mu is known, and the rules that keep them finite."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from infuser.attribution.estimators import (
    auc,
    compose,
    estimate,
    gauss,
    gaussian_trade_off,
    scan,
    trade_off,
)
from infuser.errors import InfuserError

N, REPEATS = 200, 4000


def normal_pair(mu, n=N, repeats=REPEATS, seed=0):
    rng = np.random.default_rng([seed, round(mu * 1000)])
    return rng.normal(size=(n, repeats)), rng.normal(mu, 1, size=(n, repeats))


@pytest.mark.parametrize("estimator", [auc, gauss])
@pytest.mark.parametrize("mu", [0.0, 0.1, 0.5, 1.0, 2.0, 3.0])
def test_auc_and_gauss_are_unbiased_on_normals(estimator, mu):
    values = estimator(*normal_pair(mu))
    error_of_the_mean = values.std() / np.sqrt(REPEATS)
    assert abs(values.mean() - mu) + 2 * error_of_the_mean <= 0.05
    # At mu = 3 two hundred values a side hold the area under the curve to 0.14 in mu, as the prototype found.
    assert values.std() <= 0.2
    mirrored = estimator(*normal_pair(mu)[::-1])
    np.testing.assert_allclose(mirrored, -values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0, 3.0])
def test_scan_with_the_count_rule_is_finite_and_biased_upwards_only_a_little(mu):
    values = scan(*normal_pair(mu, repeats=400))
    assert np.isfinite(values).all()
    assert -0.05 <= values.mean() - mu <= 0.25


def test_without_the_count_rule_the_maximum_over_thresholds_is_useless():
    # The published estimator as it reads, with the same smoothing of counts: what the rule is for.
    a, b = normal_pair(1.0, repeats=50)
    worst = []
    for x, y in zip(a.T, b.T, strict=True):
        curve = trade_off(x, y)
        with np.errstate(invalid="ignore"):
            mus = norm.ppf(1 - curve.alpha) - norm.ppf(curve.beta)
        worst.append(np.nanmax(mus))
    assert np.isinf(worst).all()
    assert np.abs(scan(a, b) - 1).max() < 1


def test_auc_counts_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 25).astype(float), rng.integers(1, 7, 30).astype(float)
    pairs = (b[:, None] > a[None]).mean() + (b[:, None] == a[None]).mean() / 2
    assert auc(a, b)[0] == pytest.approx(np.sqrt(2) * norm.ppf(pairs), abs=1e-12)
    strictly = (b[:, None] > a[None]).mean()
    assert abs(auc(a, b)[0] - np.sqrt(2) * norm.ppf(strictly)) > 0.1  # the oracle notices how ties are counted


def test_auc_ignores_the_scale_and_gauss_does_not():
    a, b = normal_pair(1.0, repeats=3)
    np.testing.assert_allclose(auc(np.exp(a), np.exp(b)), auc(a, b))
    assert np.abs(gauss(np.exp(a), np.exp(b)) - gauss(a, b)).min() > 0.05


def test_auc_gives_way_to_gauss_where_it_saturates():
    a, b = normal_pair(8.0, repeats=5)
    np.testing.assert_allclose(auc(a, b), gauss(a, b), rtol=1e-12)
    assert auc(a, b) == pytest.approx(8, abs=1.2)


def test_columns_are_independent_of_one_another():
    a, b = normal_pair(0.7, repeats=6)
    for name in ("auc", "gauss", "scan"):
        together = estimate(a, b, name).values
        alone = [estimate(a[:, k], b[:, k], name).values[0] for k in range(6)]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_bad_samples_give_nan_with_a_reason():
    few = estimate(np.zeros((19, 2)), np.ones((300, 2)))
    assert np.isnan(few.values).all()
    assert few.reasons[1] == "19 values a side, at least 20 are needed"
    a, b = normal_pair(1.0, n=30, repeats=3)
    a[:, 1], b[:, 1] = 4.0, 4.0
    b[3, 2] = np.inf
    mixed = estimate(a, b)
    assert np.isfinite(mixed.values[0])
    assert np.isnan(mixed.values[1:]).all()
    assert mixed.reasons == {1: "the variance is 0", 2: "a value is not finite"}


def test_ties_in_scan_are_broken_by_the_seed():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 3, 100).astype(float), rng.integers(0, 3, 100) + 0.0
    assert scan(a, b, seed=1) == scan(a, b, seed=1)
    assert len({scan(a, b, seed=s)[0] for s in range(5)}) > 1


def test_bad_requests_are_refused():
    with pytest.raises(InfuserError, match="different columns"):
        estimate(np.zeros((30, 2)), np.zeros((30, 3)))
    with pytest.raises(InfuserError, match="unknown estimator"):
        estimate(np.zeros((30, 2)), np.ones((30, 2)) + np.arange(30)[:, None], "median")  # type: ignore[arg-type]


def test_trade_off_of_normals_is_the_gaussian_one():
    rng = np.random.default_rng(0)
    curve = trade_off(rng.normal(size=20_000), rng.normal(1.5, 1, size=20_000))
    inner = (curve.alpha > 0) & (curve.alpha < 1)
    gap = np.abs(curve.beta - gaussian_trade_off(1.5, np.clip(curve.alpha, 1e-12, 1 - 1e-12)))[inner].max()
    assert gap < 0.02
    other = np.abs(curve.beta - gaussian_trade_off(1.2, np.clip(curve.alpha, 1e-12, 1 - 1e-12)))[inner].max()
    assert other > 0.08
    assert (np.diff(curve.alpha) >= 0).all()
    assert (np.diff(curve.beta) <= 0).all()


def test_composition_over_steps_is_reached_by_the_sum_and_by_nothing_better():
    rng = np.random.default_rng(5)
    steps, mu = 25, 0.3
    a, b = rng.normal(size=(steps, 40_000)), rng.normal(mu, 1, size=(steps, 40_000))
    bound = float(compose(mu, steps))
    assert bound == pytest.approx(1.5)
    noise = 0.03
    assert abs(auc(a.sum(0), b.sum(0))[0] - bound) < noise
    for statistic in (lambda x: x[0], lambda x: x.max(0), lambda x: np.tanh(x).sum(0), lambda x: x[:20].sum(0)):
        assert auc(statistic(a), statistic(b))[0] < bound + noise
    # The inequality is no tautology: steps that share their noise compose to less, unequal ones to another value.
    shared = rng.normal(size=40_000)
    assert auc(np.tile(shared, (steps, 1)).sum(0), (np.tile(shared[::-1], (steps, 1)) + mu).sum(0))[0] < 0.5 * bound


def test_composition_over_sets_is_at_most_additive():
    rng = np.random.default_rng(6)
    base, n = rng.normal(size=40_000), 40_000
    one, two = 0.8, 0.5
    with_both = rng.normal(one + two, 1, n)
    assert auc(base, with_both)[0] < one + two + 0.03
    # Effects through independent parts of the test statistic add in squares, so that they stay below the sum.
    pair = rng.normal(size=(2, n)), rng.normal(size=(2, n)) + np.array([[one], [two]])
    best = np.array([one, two]) / np.hypot(one, two)
    reached = auc(best @ pair[0], best @ pair[1])[0]
    assert reached == pytest.approx(np.hypot(one, two), abs=0.03)
    assert reached < one + two - 0.2


def test_a_step_that_is_joined_rarely_counts_in_proportion():
    # A step's mean moves by mu with probability p: over many steps the sum moves by p mu a step.
    rng = np.random.default_rng(7)
    steps, share, mu = 400, 0.1, 0.3
    joined = rng.random((steps, 10_000)) < share
    a, b = rng.normal(size=(steps, 10_000)), rng.normal(size=(steps, 10_000)) + mu * joined
    assert auc(a.sum(0), b.sum(0))[0] == pytest.approx(float(compose(mu, steps, share)), abs=0.06)
