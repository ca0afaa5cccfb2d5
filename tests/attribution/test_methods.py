"""The contract that every attributor keeps, and the formula of each method worked out by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from infuser import measure
from infuser.attribution.attribute import attribute
from infuser.attribution.influence import Influence
from infuser.attribution.similarity import GradientSimilarity
from infuser.attribution.tracin import TracIn, learning_rate
from infuser.attribution.trak import TRAK, sparse_projection
from infuser.attribution.unrolled import Unrolled
from infuser.checkpoints import Checkpoint, Run
from infuser.errors import InfuserError
from infuser.measure import Custom, LogProb
from infuser.params import add, flatten, trainable
from infuser.training import scheduled, train
from infuser.types import Damping, Recipe, Scores
from tests.attribution.small import Dense, digits_run, loss_gradients, params_of, products


class Unit:
    """H = 0 as a curvature: with damping c, the solve divides by c."""

    def matvec(self, vectors):
        return {name: 0 * value for name, value in vectors.items()}

    def solve(self, vectors, damping):
        return {name: value / damping.value for name, value in vectors.items()}

    def __eq__(self, other):
        return isinstance(other, Unit)

    def __hash__(self):
        return 0

    def __repr__(self):
        return "Unit()"


METHODS = {
    "influence": Influence(Unit(), Damping(1.0, "absolute")),
    "similarity": GradientSimilarity(),
    "dot": GradientSimilarity(cosine=False),
    "tracin": TracIn(),
    "tracin_cosine": TracIn(checkpoints=(1, -1), cosine=True),
    "trak": TRAK(dim=64, seed=3),
    "unrolled": Unrolled(),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["mlp", "tiny_resnet"])
def test_contract(method, name):
    run, data, probes = digits_run(name)
    state, weights = torch.get_rng_state(), [c.content_hash for c in run.checkpoints]
    scores = attribute(method, run, data, probes)
    assert scores.values.shape == (3, len(data))
    assert np.isfinite(scores.values).all()
    assert scores.values.std(1).min() > 0
    assert scores.ids.tolist() == data.ids.tolist()
    assert scores.queries == probes.queries
    assert scores.method
    assert scores.unit
    assert torch.equal(state, torch.get_rng_state())
    assert weights == [c.content_hash for c in run.checkpoints]
    again = attribute(pickle.loads(pickle.dumps(method)), run, data, probes)  # noqa: S301
    np.testing.assert_array_equal(scores.values, again.values)
    assert eval(repr(method)) == method  # noqa: S307
    with pytest.raises(AttributeError):
        method.anything = 1
    # All methods share one sign: the documents that a step on which raises f are positive.
    assert np.corrcoef(scores.values.ravel(), attribute(METHODS["dot"], run, data, probes).values.ravel())[0, 1] > 0.2


def by_hand(run, data, probes, checkpoint=-1):
    """Return (grad f (Q, P), grad L (N, P)) by autograd, in float64."""
    model = run.model(checkpoint)
    params = trainable(model)
    rows, _ = measure.gradients(probes, model, params)
    return flatten(rows, 1).double().numpy(), flatten(loss_gradients(model, params, data), 1).double().numpy()


def test_similarity_is_minus_the_cosine():
    run, data, probes = digits_run("simple_cnn")
    f, g = by_hand(run, data, probes)
    cosine = -(f @ g.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(attribute(GradientSimilarity(), run, data, probes).values, cosine, atol=2e-5)
    plain = attribute(GradientSimilarity(cosine=False), run, data, probes).values
    np.testing.assert_allclose(plain, -(f @ g.T), rtol=1e-4, atol=1e-4 * np.abs(plain).max())
    assert np.abs(plain - cosine).max() > 0.1


def test_a_step_on_the_document_changes_f_by_the_dot_product():
    run, data, probes = digits_run("mlp")
    model, params = params_of(run)
    rows = loss_gradients(model, params, data)
    lr = 1e-4
    measured = np.empty((3, len(data)))
    exact = {name: value.double() for name, value in params.items()}
    model = model.double()
    double = replace(probes.documents, inputs=probes.documents.inputs / 255.0)
    probes64 = type(probes)(double, probes.labels)
    for i in range(len(data)):
        step = {name: value[i].double() for name, value in rows.items()}
        with torch.no_grad():
            measured[:, i] = (probes64(model, add(exact, step, -lr)) - probes64(model, exact)).numpy() / lr
    scores = attribute(GradientSimilarity(cosine=False), run, data, probes).values
    np.testing.assert_allclose(scores, measured, atol=5e-3 * np.abs(measured).max())
    assert np.abs(scores + measured).max() > np.abs(measured).max()


@pytest.mark.parametrize("cosine", [False, True])
def test_tracin_sums_over_checkpoints_with_the_learning_rates_of_the_recipe(cosine):
    _, data, probes = digits_run("mlp")
    run = train(digits_run("mlp")[0].builder, data, Recipe(epochs=3, batch_size=8, lr=0.05, schedule="cosine", seed=2))
    total = 0
    for index in (1, 2, 3):
        f, g = by_hand(run, data, probes, index)
        if cosine:
            f, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, g))
        total = total - scheduled(run.recipe, 8 * index - 1, 24) * f @ g.T
    got = attribute(TracIn(cosine=cosine), run, data, probes).values
    np.testing.assert_allclose(got, total, rtol=1e-3, atol=1e-4 * np.abs(total).max())
    rates = [learning_rate(run, checkpoint) for checkpoint in run.checkpoints]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    one = attribute(TracIn(checkpoints=(-1,), cosine=cosine), run, data, probes).values
    assert np.abs(one - total).max() > 0.1 * np.abs(total).max()


def test_trak_is_its_formula():
    run, data, probes = digits_run("mlp")
    model, _ = params_of(run)
    f, g = by_hand(run, data, probes)
    with torch.no_grad():
        p = model(torch.from_numpy(data.inputs / np.float32(255))).softmax(1).double().numpy()
    residual = 1 - p[np.arange(len(data)), data.targets]
    # grad L = -(1 - p) grad log-odds
    features = -g / residual[:, None]
    S = sparse_projection(f.shape[1], 64, seed=3).toarray().astype(np.float64)
    phi, phi_f = features @ S.T, f @ S.T
    kernel = phi.T @ phi
    kernel += 0.01 * np.trace(kernel) / 64 * np.eye(64)
    want = phi_f @ np.linalg.inv(kernel) @ phi.T * residual
    got = attribute(TRAK(dim=64, seed=3), run, data, probes).values
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3 * np.abs(want).max())
    assert np.abs(attribute(TRAK(dim=64, seed=4), run, data, probes).values - want).max() > 0.05 * np.abs(want).max()


def test_trak_averages_over_runs_and_keeps_the_inner_products():
    run, data, probes = digits_run("mlp")
    other = train(run.builder, data, run.recipe.with_(seed=5))
    both = attribute(TRAK(dim=32, ensemble=(other,)), run, data, probes).values
    single = [attribute(TRAK(dim=32), r, data, probes).values for r in (run, other)]
    assert both.shape == single[0].shape
    assert np.abs(both - single[0]).max() > 0
    # The residuals differ little between the two runs, so the product of means is near the mean of products.
    assert np.corrcoef(both.ravel(), np.mean(single, axis=0).ravel())[0, 1] > 0.95
    twice = attribute(TRAK(dim=32, checkpoints=(-1, -1)), run, data, probes).values
    np.testing.assert_allclose(twice, single[0], rtol=1e-6)
    f, g = by_hand(run, data, probes)
    S = sparse_projection(f.shape[1], 4096, seed=0)
    size = np.linalg.norm(f, axis=1)[:, None] * np.linalg.norm(g, axis=1)
    assert np.abs((S @ f.T).T @ (S @ g.T) - f @ g.T).max() < 5 / 64 * size.max()


def test_a_scaled_damping_scales_influence():
    run, data, probes = digits_run("mlp")
    _, params = params_of(run)
    rows, _ = measure.gradients(probes, run.model(), params)
    want = -products(rows, loss_gradients(run.model(), params, data)).numpy() / len(data) / 4
    got = attribute(Influence(Unit(), Damping(4.0, "absolute")), run, data, probes).values
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
    assert isinstance(Dense(np.eye(1), {}).matrix, np.ndarray)


class Rows:
    """An attributor that returns what it was given."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, run, data, probes):
        return self.scores


def test_attribute_refuses_what_does_not_fit():
    run, data, probes = digits_run("mlp")
    dot = GradientSimilarity(cosine=False)
    with pytest.raises(InfuserError, match="do not fit the run's model"):
        attribute(dot, run, replace(data, inputs=data.inputs[:, :, :4]), probes)
    with pytest.raises(InfuserError, match="another kind"):
        attribute(dot, run, replace(data, kind="regression", targets=np.zeros((60, 10), np.float32)), probes)
    values = np.zeros((3, 60))
    with pytest.raises(InfuserError, match="in their order"):
        attribute(Rows(Scores(values, data.ids[::-1], "m", "u")), run, data, probes)
    with pytest.raises(InfuserError, match="one row per query"):
        attribute(Rows(Scores(values[:2], data.ids, "m", "u")), run, data, probes)
    with pytest.raises(InfuserError, match="does not have these checkpoints"):
        attribute(TracIn(checkpoints=(7,)), run, data, probes)
    with pytest.raises(InfuserError, match="has no gradient"):
        attribute(dot, run, data, measure.Correct(probes.documents))
    with pytest.raises(InfuserError, match="dim of TRAK"):
        TRAK(dim=0)


def test_weights_that_are_not_finite_are_named():
    run, data, probes = digits_run("mlp")
    last = run.checkpoints[-1]
    broken = {**last.weights, "1.weight": torch.full_like(last.weights["1.weight"], float("nan"))}
    bad: Run = replace(run, checkpoints=(*run.checkpoints[:-1], Checkpoint(last.epoch, last.step, broken)))
    with pytest.raises(InfuserError, match=r"1 weights of the last checkpoint are not finite.*1\.weight"):
        attribute(GradientSimilarity(), bad, data, probes)


def test_any_function_can_be_the_measurement():
    run, data, probes = digits_run("mlp")
    wanted = LogProb(probes.documents, labels=probes.labels)
    same = Custom(wanted, n=3)
    got = attribute(TracIn(), run, data, same)
    expected = attribute(TracIn(), run, data, wanted).values
    # What cannot be indexed is evaluated in one batch, so that sums round differently, in proportion to the largest.
    np.testing.assert_allclose(got.values, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    assert got.queries == ("custom 0", "custom 1", "custom 2")


def test_a_document_that_was_not_trained_on_did_nothing():
    run, few, probes = digits_run("mlp")
    idle = few.with_weights(few.ids[:1], 0).with_weights(few.ids[1:2], 2)
    plain, weighted = (TracIn().score(run, d, probes).values for d in (few, idle))
    assert (weighted[:, 0] == 0).all()
    np.testing.assert_allclose(weighted[:, 1], 2 * plain[:, 1], rtol=1e-6)
    np.testing.assert_allclose(weighted[:, 2:], plain[:, 2:], rtol=1e-6)
