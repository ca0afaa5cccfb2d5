import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from infuser.errors import InfuserError
from infuser.evaluation.finding import METRICS, _metrics, _resampled, find, lift
from infuser.evaluation.stats import Bootstrap
from infuser.types import Suspicion


def case(n=400, k=25, shift=1.5, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(1000, 1000 + n))
    values = rng.normal(size=n)
    values[:k] += shift
    if levels:
        values = np.round(values * levels) / levels  # many ties
    return Suspicion(values, ids, "test"), ids[:k]


def sklearns(values, truth, weights):
    fpr, tpr, _ = roc_curve(truth, values, sample_weight=weights, drop_intermediate=False)
    return [
        roc_auc_score(truth, values, sample_weight=weights),
        average_precision_score(truth, values, sample_weight=weights),
        *(tpr[fpr <= share + 1e-12].max() for share in (0.01, 0.001)),
    ]


@pytest.mark.parametrize("levels", [None, 2])
def test_metrics_of_every_resample_equal_sklearns(levels):
    suspicion, edited = case(levels=levels)
    truth = np.isin(suspicion.ids, edited)
    picked, spared = next(_resampled(truth, Bootstrap(resamples=100)))
    mine = _metrics(suspicion.values, truth, picked, spared)
    for r in range(20):
        weights = np.zeros(400)
        weights[truth] = np.bincount(picked[r], minlength=25)
        weights[~truth] = np.bincount(spared[r], minlength=375)
        kept = weights > 0
        expected = sklearns(suspicion.values[kept], truth[kept], weights[kept])
        same = [0, 1] if levels else [0, 1, 3, 4]  # sklearn's rates have no point within a tied group
        np.testing.assert_allclose(mine[same, r], [expected[i] for i in (0, 1, *([] if levels else (2, 3)))], atol=1e-9)
    assert np.ptp(mine[0]) > 0.01


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_rates_among_ties_are_what_random_tie_breaking_gives(levels):
    suspicion, edited = case(levels=levels)
    rng = np.random.default_rng(0)
    truth = np.isin(suspicion.ids, edited)
    found = []
    for _ in range(3000):
        order = np.lexsort((rng.random(400), -suspicion.values))
        alarms = np.cumsum(~truth[order])
        found.append([truth[order][alarms <= share * 375].sum() / 25 for share in (0.01, 0.001)])
    assert np.std(found, axis=0).max() > 0.01  # there are ties at the cut
    got = _metrics(suspicion.values, truth, np.arange(25)[None], np.arange(375)[None])[3:, 0]
    np.testing.assert_allclose(got, np.mean(found, axis=0), atol=0.004)


def test_recall_among_ties_is_what_random_tie_breaking_gives():
    suspicion, edited = case(levels=2)
    rng = np.random.default_rng(0)
    truth = np.isin(suspicion.ids, edited)
    shares = []
    for _ in range(4000):
        order = np.lexsort((rng.random(400), -suspicion.values))
        shares.append(truth[order[:25]].mean())
    assert np.std(shares) > 0.03  # there are ties at the cut
    assert find(suspicion, edited).estimates["recall_at_k"].value == pytest.approx(np.mean(shares), abs=0.005)


def test_resamples_draw_edited_and_clean_documents_apart():
    suspicion, edited = case()
    for picked, spared in _resampled(np.isin(suspicion.ids, edited), Bootstrap(resamples=100)):
        assert (picked.shape[1], spared.shape[1]) == (25, 375)
        assert (picked.max(), spared.max()) == (24, 374)


def test_recall_at_k_counts_the_top_k():
    suspicion, edited = case()
    found = find(suspicion, edited)
    expected = len(set(suspicion.top(25).tolist()) & set(edited.tolist())) / 25
    assert found.estimates["recall_at_k"].value == pytest.approx(expected)
    assert 0 < expected < 1


def test_a_detector_that_says_the_same_of_all_is_chance():
    suspicion, edited = case()
    flat = find(Suspicion(np.zeros(400), suspicion.ids, "flat"), edited)
    got = {name: e.value for name, e in flat.estimates.items() if e}
    assert got == pytest.approx(
        # 3 false alarms are allowed, so that what stands before the fourth of 375 counts.
        {"roc_auc": 0.5, "average_precision": 25 / 400, "recall_at_k": 25 / 400, "tpr_at_1_percent": 4 / 376}
    )


def test_a_perfect_detector_has_an_interval_below_one():
    suspicion, edited = case(shift=50)
    found = find(suspicion, edited)
    for name in ("roc_auc", "recall_at_k", "tpr_at_1_percent"):
        estimate = found.estimates[name]
        assert estimate.value == 1
        assert estimate.interval == pytest.approx((0.8668, 1.0), abs=1e-3)  # Wilson, 25 of 25
        assert "Wilson" in estimate.method


def test_the_rate_at_a_thousandth_needs_ten_thousand_clean_documents():
    few = find(*case())
    assert few.estimates["tpr_at_0.1_percent"] is None
    assert "375 clean documents" in few.reasons["tpr_at_0.1_percent"]
    many = find(*case(n=10_050, k=50, shift=3), Bootstrap(resamples=100))
    assert many.reasons == {}
    assert 0 < many.estimates["tpr_at_0.1_percent"].value < many.estimates["tpr_at_1_percent"].value


@pytest.mark.parametrize(("k", "n", "shift"), [(25, 200, 1.5), (20, 1_420, 3.2), (10, 510, 2.5)])
def test_intervals_cover_the_true_auc_and_miss_it_on_both_sides(k, n, shift):
    true = norm.cdf(shift / np.sqrt(2))
    above = below = 0
    for seed in range(200):
        found = find(*case(n=n, k=k, shift=shift, seed=seed), Bootstrap(resamples=300))
        low, high = found.estimates["roc_auc"].interval
        above, below = above + (low > true), below + (high < true)
    assert 0.90 <= 1 - (above + below) / 200 <= 0.99
    assert above <= 12  # percentiles end too high near 1, and fail here


def test_few_edited_documents_have_no_interval():
    found = find(*case(k=7))
    assert all(e.interval is None for e in found.estimates.values() if e)


def test_the_lift_is_what_the_edit_adds():
    after, edited = case(shift=1.5)
    noise = np.random.default_rng(1).normal(0, 0.1, 400)
    before = Suspicion(after.values - np.where(np.isin(after.ids, edited), 1.0, 0) + noise, after.ids, "test")
    added = lift(after, before, edited)
    both = [find(s, edited).estimates for s in (after, before)]
    for name in METRICS[:-1]:
        assert added[name].value == pytest.approx(both[0][name].value - both[1][name].value, abs=1e-12)
    low, high = added["roc_auc"].interval
    assert low > 0.1
    unpaired = [e["roc_auc"].interval for e in both]
    assert high - low < sum(i[1] - i[0] for i in unpaired)  # resampled together
    same = lift(after, after, edited)["roc_auc"]
    assert (same.value, same.interval, same.method) == (0, None, "none: all resamples agree")


def test_bad_requests():
    suspicion, edited = case()
    with pytest.raises(InfuserError, match=r"did not see.*Got: 5"):
        find(suspicion, [5, *edited])
    with pytest.raises(InfuserError, match=r"did not see.*Got: 1000\.5"):
        find(suspicion, [1000.5, *edited])
    with pytest.raises(InfuserError, match="a mask is not ids"):
        find(suspicion, np.isin(suspicion.ids, edited))
    with pytest.raises(InfuserError, match="some documents must be edited"):
        find(suspicion, [])
    with pytest.raises(InfuserError, match="other documents"):
        lift(suspicion, Suspicion(suspicion.values, suspicion.ids[::-1], "test"), edited)


def test_as_many_documents_as_cifar10_has_are_judged_as_by_sklearn():
    suspicion, edited = case(n=45_000, k=100, shift=2)
    truth = np.isin(suspicion.ids, edited)
    expected = sklearns(suspicion.values, truth, None)
    found = find(suspicion, edited).estimates
    for name, value in zip((*METRICS[:2], *METRICS[3:]), expected, strict=True):
        assert found[name].value == pytest.approx(value), name
