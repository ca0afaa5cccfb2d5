import math

import numpy as np
import pytest
import torch
from scipy import stats

from infuser.errors import InfuserError
from infuser.evaluation.stats import Bootstrap
from infuser.evaluation.truth import (
    Subsets,
    Truth,
    agreement,
    lds,
    lds_per_query,
    leave_some_out,
    predicted,
    random_subsets,
)
from infuser.measure import LogProb
from infuser.models import mlp
from infuser.params import trainable
from infuser.training import train
from infuser.types import Recipe, Scores
from tests.evaluation.small import RECIPE, data, small_mlp, trained


def additive(q=10, s=40, noise=0.0, seed=0, shared=0.0):
    """Truth in which f is exactly a sum over documents (and noise, a part of which all queries share)."""
    rng = np.random.default_rng(seed)
    subsets = random_subsets(data()[0], s, seed=seed)
    w = rng.normal(size=(q, len(data()[0])))
    f = subsets.keep @ w.T
    own = math.sqrt(1 - shared**2)
    drawn = [own * rng.normal(size=f.shape) + shared * rng.normal(size=(s, 1)) for _ in range(2)]
    values = np.stack([f + noise * each for each in drawn], axis=1)
    return w, Truth(subsets, values, tuple(f"q{i}" for i in range(q)), (0, 1), "f", "scratch")


def scores_of(w, ids=None):
    return Scores(w, data()[0].ids if ids is None else ids, "made up", "f")


def test_random_subsets_keep_half_and_follow_their_seed():
    subsets = random_subsets(data()[0], 50)
    assert (subsets.keep.sum(1) == 120).all()
    assert 0.3 < subsets.keep.mean(0).min() < subsets.keep.mean(0).max() < 0.75
    np.testing.assert_array_equal(subsets.keep, random_subsets(data()[0], 50).keep)
    assert (subsets.keep != random_subsets(data()[0], 50, seed=1).keep).any()


def test_the_score_is_one_for_the_true_weights_and_minus_one_for_their_negative():
    w, truth = additive()
    assert lds(scores_of(w), truth).value == pytest.approx(1)
    assert lds(scores_of(-w), truth).value == pytest.approx(-1)
    random = lds(scores_of(np.random.default_rng(9).normal(size=w.shape)), truth)
    assert random.interval[0] < 0 < random.interval[1]
    assert (random.n, random.unit_of_n) == (10, "queries")


def test_scores_in_another_order_of_documents_are_matched_by_id():
    w, truth = additive()
    order = np.random.default_rng(0).permutation(w.shape[1])
    assert lds(scores_of(w[:, order], data()[0].ids[order]), truth).value == pytest.approx(1)
    assert lds(scores_of(w[:, order]), truth).value < 0.5  # without the ids it would not be
    with pytest.raises(InfuserError, match="3 documents have no score"):
        predicted(scores_of(w[:, 3:], data()[0].ids[3:]), truth.subsets)


def test_it_is_spearmans_correlation_averaged():
    w, truth = additive(noise=8.0)
    estimate = lds(scores_of(w), truth)
    expected = [stats.spearmanr(truth.subsets.keep @ w[q], truth.values.mean(1)[:, q]).statistic for q in range(10)]
    np.testing.assert_allclose(lds_per_query(scores_of(w), truth), expected)
    assert estimate.value == pytest.approx(np.mean(expected))
    assert 0.3 < estimate.value < 0.95
    assert estimate.interval[0] < estimate.value < estimate.interval[1]


@pytest.mark.parametrize("by", ["removal", "weight"])
def test_each_value_is_that_of_a_model_trained_on_the_subset(by):
    subsets = random_subsets(data()[0], 2, by=by)
    test = data()[1]
    measure = LogProb(test[test.ids[:3]])
    truth = leave_some_out(trained(), data()[0], measure, subsets, seeds=(0, 4))
    assert truth.values.shape == (2, 2, 3)
    assert truth.queries == measure.queries
    for s, row in enumerate(subsets.keep):
        out = data()[0].ids[~row]
        kept = data()[0].without(out) if by == "removal" else data()[0].with_weights(out, 0.0)
        for r, seed in enumerate((0, 4)):
            model = train(small_mlp, kept, RECIPE.with_(seed=seed)).model()
            np.testing.assert_array_equal(truth.values[s, r], measure(model, trainable(model)).double().numpy())
    assert len({*truth.values[:, :, 0].ravel().tolist()}) == 4


def test_slices_join_to_the_whole():
    subsets = random_subsets(data()[0], 3)
    measure = LogProb(data()[1][data()[1].ids[:2]])
    whole = leave_some_out(trained(), data()[0], measure, subsets, seeds=(0,))
    parts = [leave_some_out(trained(), data()[0], measure, subsets[rows], (0,)) for rows in (slice(0, 1), slice(1, 3))]
    np.testing.assert_array_equal(Truth.concat(parts).values, whole.values)
    other = leave_some_out(trained(), data()[0], measure, subsets[:1], (1,))
    with pytest.raises(InfuserError, match="only slices of one truth"):
        Truth.concat([parts[0], other])


def test_influence_of_a_convex_model_predicts_retraining_and_random_scores_do_not():
    """Logistic regression with its dense Hessian, written out here; 40 subsets of 90 %."""
    documents = data()[0]
    test = data()[1][data()[1].ids[:8]]
    recipe = Recipe(epochs=30, batch_size=240, lr=0.5, momentum=0.9, weight_decay=0.03, threads=1)
    run = train(_linear, documents, recipe)
    subsets = random_subsets(documents, 40, share=0.9)
    truth = leave_some_out(run, documents, LogProb(test), subsets, seeds=(0,))

    model = run.model()
    x = torch.tensor(documents.inputs).double().flatten(1) / 255
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    z = torch.tensor(test.inputs).double().flatten(1) / 255
    z = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    theta = torch.cat([model[1].weight.detach(), model[1].bias.detach()[:, None]], 1).double()
    eye = torch.eye(10, dtype=torch.float64)

    def residual(a, labels):
        p = (a @ theta.T).softmax(1)
        return p - eye[torch.tensor(labels)], p

    r, p = residual(x, documents.targets)
    gradients = torch.einsum("nc,ni->nci", r, x).flatten(1)
    curvature = torch.einsum("nc,ncd,ni,nj->cidj", p, eye - p[:, None, :].expand(-1, 10, -1), x, x)
    hessian = curvature.reshape(gradients.shape[1], -1) / len(x) + 0.03 * torch.eye(gradients.shape[1])
    wanted = -torch.einsum("nc,ni->nci", residual(z, test.targets)[0], z).flatten(1)
    influence = -(wanted @ torch.linalg.solve(hessian, gradients.T)) / len(x)
    exact = lds(scores_of(influence.numpy()), truth)
    random = lds(scores_of(np.random.default_rng(0).normal(size=influence.shape)), truth)
    assert exact.value > 0.9
    assert abs(random.value) < 0.35
    assert random.interval[1] < exact.interval[0]


def _linear(input_shape, n_outputs):
    return mlp(input_shape, n_outputs, hidden=())


def test_its_interval_covers_the_score_over_draws_of_subsets_and_queries():
    """Worlds drawn anew: the interval holds the score of very many subsets and queries in about 95 % of them."""
    rng, held, alone = np.random.default_rng(3), [], []
    noise, draws = 14.0, 60
    target = lds_per_query_of(additive(s=4000, q=60, noise=noise, seed=999)).mean()
    for seed in range(draws):
        w, truth = additive(s=30, q=12, noise=noise, seed=int(rng.integers(10**6)), shared=0.9)
        low, high = lds(scores_of(w), truth, bootstrap=Bootstrap(resamples=200, seed=seed)).interval
        held.append(low <= target <= high)
        each = lds_per_query(scores_of(w), truth)
        half = 2.2 * each.std(ddof=1) / np.sqrt(len(each))
        alone.append(abs(each.mean() - target) <= half)
    assert np.mean(held) >= 0.85
    # The negative: what all queries share, the subsets, is not seen by resampling queries alone.
    assert np.mean(alone) < np.mean(held) - 0.1


def lds_per_query_of(made):
    return lds_per_query(scores_of(made[0]), made[1])


def test_a_query_that_only_one_subset_moves_leaves_an_interval():
    w, truth = additive(noise=8.0)
    values = truth.values.copy()
    values[:, :, 0] = 0.0
    values[3, :, 0] = 1.0  # constant on every resample without this subset
    estimate = lds(scores_of(w), Truth(truth.subsets, values, truth.queries, (0, 1), "f", "scratch"))
    assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_a_difference_is_taken_on_the_same_resamples():
    w, truth = additive(s=40, noise=8.0)
    worse = scores_of(w + 0.5 * np.random.default_rng(1).normal(size=w.shape))
    one, other, difference = lds(scores_of(w), truth), lds(worse, truth), lds(scores_of(w), truth, worse)
    assert difference.value == pytest.approx(one.value - other.value)
    wide, narrow = (e.interval[1] - e.interval[0] for e in (one, difference))
    assert narrow < wide
    same = lds(scores_of(w), truth, scores_of(w))
    assert same.interval == (0.0, 0.0)
    few = Truth(truth.subsets[:7], truth.values[:7], truth.queries, (0, 1), "f", "scratch")
    assert lds(scores_of(w), few).interval is None


def test_what_cannot_be_ranked_is_refused():
    w, truth = additive()
    with pytest.raises(InfuserError, match=r"values that differ.*q3"):
        lds(scores_of(np.where(np.arange(10)[:, None] == 3, 0.0, w)), truth)
    with pytest.raises(InfuserError, match="other queries"):
        lds(scores_of(w[:4]), truth)
    short = Truth(truth.subsets[:2], truth.values[:2], truth.queries, (0, 1), "f", "scratch")
    with pytest.raises(InfuserError, match="too few subsets"):
        lds(scores_of(w), short)
    lost = Scores(np.full_like(w, np.nan), data()[0].ids, "x", "f", reasons={"all": "test"})
    with pytest.raises(InfuserError, match="values that differ and are finite"):
        lds(lost, truth)


def test_subsets_are_checked():
    keep = np.ones((2, 240), dtype=bool)
    with pytest.raises(InfuserError, match="not subsets"):
        Subsets(keep.astype(int), data()[0].ids)
    with pytest.raises(InfuserError, match="a subset is empty"):
        Subsets(keep & np.array([[True], [False]]), data()[0].ids)
    with pytest.raises(InfuserError, match="unknown way"):
        Subsets(keep, data()[0].ids, "wish")
    with pytest.raises(InfuserError, match="not subsets"):
        random_subsets(data()[0], share=1.0)
    with pytest.raises(InfuserError, match="other documents"):
        leave_some_out(
            trained(), data()[0], LogProb(data()[1]), random_subsets(data()[0].without(data()[0].ids[:1]), 2), (0,)
        )
    with pytest.raises(InfuserError, match="wrong shape"):
        Truth(Subsets(keep, data()[0].ids), np.zeros((2, 1, 1)), ("q",), (0, 1), "f", "scratch")


@pytest.mark.parametrize(("grows", "least"), [(False, 0.92), (True, 0.83)])
def test_agreement_covers_the_slope_even_where_errors_grow_with_the_prediction(grows, least):
    rng = np.random.default_rng(0)
    hits, naive = 0, 0
    for _ in range(500):
        x = np.abs(rng.normal(size=12)) ** 1.5 + 0.1
        y = 0.4 * x + 0.1 + 0.3 * (x if grows else 1) * rng.normal(size=12)
        low, high = agreement(x, y).slope.interval
        hits += low <= 0.4 <= high
        line = stats.linregress(x, y)
        naive += abs(line.slope - 0.4) <= stats.t.ppf(0.975, 10) * line.stderr
    assert least <= hits / 500 <= 0.98
    assert (naive / 500 < 0.75) == grows  # what equal errors would have given


def test_the_error_of_the_slope_is_that_of_leaving_pairs_out():
    """The variance of HC3 is the sum of squared changes of the slope when each pair is left out."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=9)
    y = x + rng.normal(size=9)
    found = agreement(x, y).slope
    left_out = np.array([stats.linregress(np.delete(x, i), np.delete(y, i)).slope for i in range(9)])
    error = np.sqrt(((left_out - found.value) ** 2).sum())
    assert found.interval[1] - found.value == pytest.approx(stats.t.ppf(0.975, 7) * error)


def test_agreement_of_exact_lines_has_a_slope_and_no_interval():
    x = np.arange(9.0)
    exact = agreement(x, 3 * x - 1)
    assert exact.slope.value == pytest.approx(3)
    assert exact.slope.interval is None
    for level in (1, 0.1, 1e6 + 0.1):
        assert agreement(x, np.full(9, level)).slope.interval is None
    assert agreement(x, 0.1 * x + 0.7).slope.interval is None
    assert agreement(x, 0.1 * x + 1e-9 * np.random.default_rng(0).normal(size=9)).slope.interval is not None
    assert agreement([0, 0, 0, 1.0], [1, 2, 3, 5.0]).slope.interval is None  # one pair alone makes the slope
    assert exact.rank.value == pytest.approx(1)
    assert math.isnan(agreement(np.ones(5), np.arange(5.0)).slope.value)
