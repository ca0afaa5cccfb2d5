import itertools
import math

import numpy as np
import pytest
from scipy import stats

from infuser.errors import InfuserError
from infuser.evaluation.compare import compare
from infuser.evaluation.stats import (
    Bootstrap,
    holm,
    mean_estimate,
    median_estimate,
    sign_flip,
    spearman,
    table_estimate,
    two_way_interval,
    wilson,
)
from tests.evaluation.small import table_trials, tables

# --- intervals --------------------------------------------------------------------------------------------------------


def test_below_three_probes_there_is_no_interval_and_no_p():
    effect = compare(table_trials(tables(2, 5)), "edit")
    assert (effect.interval, effect.p) == (None, None)
    assert "fewer than 3" in effect.estimate.method


@pytest.mark.parametrize("n", [3, 5, 7])
def test_below_eight_probes_it_is_the_t_interval_of_probe_means_where_seeds_agree(n):
    made = tables(n, 4)
    made["edit"] -= (made["edit"] - made["clean"]).mean(0)  # no seed is above another
    effect = compare(table_trials(made), "edit")
    means = (made["edit"] - made["clean"]).mean(1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert effect.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert "t-interval" in effect.estimate.method


def test_below_eight_probes_what_seeds_do_to_all_probes_is_in_the_interval():
    """By the sums of squares of a two-way layout, written out."""
    table = np.random.default_rng(5).normal(size=(4, 3)) + np.array([[0.0, 2.0, -2.0]])
    n, s = table.shape
    grand = table.sum() / 12
    of_rows = sum(s * (table[i].sum() / s - grand) ** 2 for i in range(n)) / (n - 1)
    of_columns = sum(n * (table[:, j].sum() / n - grand) ** 2 for j in range(s)) / (s - 1)
    total = sum((table[i, j] - grand) ** 2 for i in range(n) for j in range(s))
    rest = (total - (n - 1) * of_rows - (s - 1) * of_columns) / ((n - 1) * (s - 1))
    combined = of_rows + of_columns - rest
    parts = [(of_rows, n - 1), (of_columns, s - 1), (rest, (n - 1) * (s - 1))]
    df = combined**2 / sum(square**2 / freedom for square, freedom in parts)
    half = stats.t.ppf(0.975, df) * math.sqrt(combined / (n * s))
    estimate = table_estimate(table)
    assert estimate.interval == pytest.approx((grand - half, grand + half), rel=1e-9)
    assert estimate.method == "t-interval over 4 probes and 3 seeds"
    alone = table_estimate(table.mean(1, keepdims=True)).interval
    assert half > 2 * (alone[1] - alone[0]) / 2


@pytest.mark.parametrize("n", [2, 3, 12])
def test_where_nothing_varies_there_is_no_interval(n):
    estimate = table_estimate(np.full((n, 2), 0.5))
    assert (estimate.value, estimate.interval) == (0.5, None)


def test_seeds_are_not_units():
    """200 seeds of 4 probes do not make the interval narrower than its 4 probes allow."""
    rng = np.random.default_rng(0)
    difference = np.repeat(rng.normal(size=(4, 1)), 200, axis=1)
    effect = compare(table_trials({"edit": difference, "clean": np.zeros((4, 200))}), "edit")
    wrong = stats.ttest_1samp(difference.ravel(), 0).confidence_interval(0.95)
    assert (effect.interval[1] - effect.interval[0]) > 5 * (wrong.high - wrong.low)
    assert effect.estimate.n == 4
    assert len(effect.estimate.seeds) == 200


def test_with_one_seed_the_bootstrap_has_the_width_of_the_t_interval():
    values = np.random.default_rng(0).normal(size=(15, 1))
    low, high = two_way_interval(values, Bootstrap(resamples=100_000))
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (high - low) / (expected.high - expected.low) == pytest.approx(1, abs=0.04)
    plain = stats.bootstrap((values[:, 0],), np.mean, n_resamples=20_000, method="percentile", random_state=0)
    assert plain.confidence_interval.high - plain.confidence_interval.low < 0.93 * (expected.high - expected.low)


def test_the_two_way_bootstrap_equals_a_bootstrap_written_as_a_loop():
    table = np.random.default_rng(3).normal(size=(9, 3)) + np.array([[0.0, 0.5, -0.5]])
    n, s = table.shape
    mean, rows, columns = table.mean(), table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    a = math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    b = math.sqrt(s / (s - 1)) * stats.t.ppf(0.975, s - 1) / stats.norm.ppf(0.975)
    wide = mean + a * (rows - mean) + b * (columns - mean) + (table - rows - columns + mean)
    rng = np.random.default_rng(7)
    draws = []
    for _ in range(20_000):
        i, j = rng.integers(0, n, n), rng.integers(0, s, s)
        draws.append(wide[np.ix_(i, j)].mean())
    low, high = two_way_interval(table, Bootstrap(resamples=20_000))
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03 * (high - low))
    one_way = two_way_interval(table.mean(1, keepdims=True), Bootstrap(resamples=20_000))
    assert high - low > 1.1 * (one_way[1] - one_way[0])  # seeds do add uncertainty here


def coverage(n, s, sds, repeats=400, resamples=1000, interval=two_way_interval):
    rng = np.random.default_rng(n * 100 + s)
    probe_sd, seed_sd, rest_sd = sds
    hits = 0
    for _ in range(repeats):
        table = (
            probe_sd * rng.normal(size=(n, 1)) + seed_sd * rng.normal(size=(1, s)) + rest_sd * rng.normal(size=(n, s))
        )
        low, high = interval(table, Bootstrap(resamples=resamples))
        hits += low <= 0 <= high
    return hits / repeats


@pytest.mark.parametrize("n", [8, 12, 20])
@pytest.mark.parametrize("sds", [(1, 0, 0.3), (1, 0.1, 0.5), (1, 0.3, 0.5), (1, 1, 0.5), (0.3, 1, 0.3)])
def test_the_interval_covers_as_often_as_it_says(n, sds):
    """3 seeds; standard deviations of probes, of seeds (common to all probes) and of the rest."""
    # With probes and seeds alike it is on the safe side; it must never be below its level by more than chance.
    assert 0.93 <= coverage(n, 3, sds) <= 0.995


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("sds", [(1, 0, 0.3), (1, 0.1, 0.5), (1, 0.3, 0.5), (1, 1, 0.5), (0.3, 1, 0.3)])
def test_the_interval_of_few_probes_covers_as_often_as_it_says(n, sds):
    assert coverage(n, 3, sds, interval=lambda table, how: table_estimate(table, bootstrap=how).interval) >= 0.92


def test_probe_means_alone_would_cover_far_too_seldom_where_seeds_matter():
    def means(table, how):
        return table_estimate(table.mean(1, keepdims=True), bootstrap=how).interval

    assert coverage(5, 3, (0.3, 1, 0.3), interval=means) < 0.6


def test_resampling_cells_instead_would_cover_far_too_seldom():
    def cells(table, how):
        draws = np.random.default_rng(how.seed).choice(table.ravel(), (how.resamples, table.size))
        return np.quantile(draws.mean(1), [0.025, 0.975])

    assert coverage(12, 3, (1, 0.1, 0.3), interval=cells) < 0.85


def test_the_t_interval_of_few_probes_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        estimate = mean_estimate(rng.normal(size=5))
        hits += estimate.interval[0] <= 0 <= estimate.interval[1]
    assert 0.93 <= hits / 1000 <= 0.97


def test_the_same_seed_gives_the_same_interval():
    trials = table_trials(tables())
    first, again, other = (compare(trials, "edit", bootstrap=Bootstrap(seed=seed)).interval for seed in (0, 0, 1))
    assert first == again
    assert first != other


# --- p-values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 6, 11])
def test_sign_flip_equals_enumeration(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    flips = np.array([np.dot(signs, values) / n for signs in itertools.product([-1, 1], repeat=n)])
    expected = (np.abs(flips) >= abs(values.mean()) - 1e-12).mean()
    assert sign_flip(values) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_of_many_values_never_gives_zero_and_is_near_the_t_test():
    rng = np.random.default_rng(0)
    assert sign_flip(rng.normal(3, 1, 30)) == pytest.approx(2 / (2**14 + 1), rel=1e-6)
    values = rng.normal(0.3, 1, 30)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert sign_flip(values) == sign_flip(values)


def test_the_largest_evidence_of_three_probes_is_a_quarter():
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == 0.25
    assert sign_flip(np.array([1.0, 2.0])) is None


@pytest.mark.parametrize("n", [6, 10])
def test_sign_flip_rejects_a_true_null_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    p = np.array([sign_flip(rng.standard_t(4, n)) for _ in range(300)])
    for level in (0.05, 0.1):
        assert (p <= level).mean() <= 1.5 * level
    shifted = np.array([sign_flip(rng.standard_t(4, n) + 3) for _ in range(100)])
    assert (shifted <= 0.05).mean() > 0.8


def test_row_means_that_agree_leave_the_interval_of_the_rest():
    table = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    found = table_estimate(table, (1, 2))
    rest = ((table - 0.5) ** 2).sum() / 3  # rows and columns agree: 3 degrees of freedom are left of 8 values
    half = stats.t.ppf(0.975, 3) * np.sqrt(rest / 8)
    assert found.interval == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize("n", [3, 9])
def test_values_that_differ_by_rounding_alone_have_no_interval(n):
    assert 0.1 + 0.2 != 0.3
    found = mean_estimate(np.array([0.1 + 0.2] + [0.3] * (n - 1)))
    assert found.interval is None
    assert mean_estimate(np.array([0.3 + 1e-9] + [0.3] * (n - 1))).interval is not None


def test_holm_by_hand():
    p = [0.01, 0.02, 0.03, 0.5]
    np.testing.assert_allclose(holm(p), [0.04, 0.06, 0.06, 0.5])
    with pytest.raises(InfuserError, match="p-values lie"):
        holm([1.2])


# --- other estimates --------------------------------------------------------------------------------------------------


def test_wilson_has_its_closed_form():
    k, n, z = 547, 1800, stats.norm.ppf(0.975)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    estimate = wilson(k, n)
    assert estimate.interval == pytest.approx((centre - half, centre + half), rel=1e-9)
    assert estimate.interval == pytest.approx((0.283, 0.326), abs=1e-3)
    assert wilson(0, 0).interval is None
    with pytest.raises(InfuserError, match="counted among"):
        wilson(3, 2)


def test_spearman_has_scipys_value_and_covers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # of a bivariate normal with correlation 0.6
    hits = 0
    for _ in range(1000):
        a = rng.normal(size=25)
        b = 0.6 * a + 0.8 * rng.normal(size=25)
        low, high = spearman(a, b).interval
        hits += low <= true <= high
    assert 0.92 <= hits / 1000 <= 0.98


def test_spearman_without_ranks_or_with_few_pairs_has_no_interval():
    assert math.isnan(spearman(np.ones(9), np.arange(9)).value)
    few = spearman(np.arange(5), np.arange(5))
    assert (few.value, few.interval) == (pytest.approx(1), None)
    perfect = spearman(np.arange(9), np.arange(9))
    assert perfect.value == pytest.approx(1)
    assert 0.9 < perfect.interval[0] < 0.97
    assert perfect.interval[1] == pytest.approx(1)
    with pytest.raises(InfuserError, match="is of pairs"):
        spearman(np.arange(5), np.arange(6))


def test_median():
    values = np.random.default_rng(0).exponential(size=41)
    estimate = median_estimate(values)
    assert estimate.value == np.median(values)
    ranked = np.sort(values)
    assert ranked[10] < estimate.interval[0] < estimate.value < estimate.interval[1] < ranked[30]
    assert median_estimate(values[:7]).interval is None


def test_a_bootstrap_of_nonsense_is_refused():
    with pytest.raises(InfuserError, match="not a bootstrap"):
        Bootstrap(resamples=10)
