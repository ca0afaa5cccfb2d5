"""Influence against closed forms and against retrained optima, each with a wrong version that the oracle rejects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from infuser.attribution.attribute import attribute
from infuser.attribution.influence import Influence, self_influence
from infuser.checkpoints import Run
from infuser.curvature import fit_ekfac
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.measure import Correct, Custom, LogProb, Losses
from infuser.params import trainable
from infuser.training import train
from infuser.types import Damping, Recipe
from tests.attribution.small import Dense, digits_run, loss_gradients, params_of

RIDGE = 0.3  # of the objective (1/N) sum L_i + RIDGE/2 |theta|^2


def linear(input_shape, n_outputs):
    return nn.Linear(input_shape[0], n_outputs, bias=False).double()


@pytest.fixture(scope="module")
def ridge():
    """A ridge regression at its optimum: (run, data, X, y, probe x, Dense curvature)."""
    rng = np.random.default_rng(0)
    X, probe = rng.normal(size=(40, 5)), rng.normal(size=(2, 5))
    y = X @ rng.normal(size=5) + rng.normal(size=40)
    data = Dataset(X, y[:, None], "regression", 1)
    run = Run.from_weights(linear, {"weight": torch.from_numpy(optimum(X, y))[None]}, data)
    return run, data, X, y, probe, Dense(X.T @ X / 40, trainable(run.model()))


def optimum(X, y, weights=1.0):
    n = len(X)
    weighted = X * np.broadcast_to(weights, n)[:, None]
    return np.linalg.solve(weighted.T @ X / n + RIDGE * np.eye(X.shape[1]), weighted.T @ y / n)


def outputs(probe):
    x = torch.from_numpy(probe)
    return Custom(lambda model, params: torch.func.functional_call(model, params, (x,))[:, 0], "output", n=len(probe))


def test_ridge_regression_has_its_closed_form_and_the_derivative_of_the_optimum(ridge):
    run, data, X, y, probe, dense = ridge
    scores = attribute(Influence(dense, Damping(RIDGE, "absolute")), run, data, outputs(probe))
    theta = optimum(X, y)
    residual = X @ theta - y
    closed = -(probe @ np.linalg.solve(X.T @ X / 40 + RIDGE * np.eye(5), (X * residual[:, None]).T)) / 40
    np.testing.assert_allclose(scores.values, closed, rtol=1e-6, atol=1e-12)

    step = 1e-5
    measured = np.empty_like(closed)
    for i in range(40):
        up, down = (optimum(X, y, 1 + sign * step * (np.arange(40) == i)) for sign in (1, -1))
        measured[:, i] = probe @ (up - down) / (2 * step)
    np.testing.assert_allclose(scores.values, measured, rtol=1e-5, atol=1e-9)


def test_a_part_of_the_training_set_keeps_the_scores_that_it_has_in_the_whole(ridge):
    run, data, _, _, probe, dense = ridge
    influence = Influence(dense, Damping(RIDGE, "absolute"))
    whole = influence.score(run, data, outputs(probe)).values
    part = influence.score(run, data[data.ids[5:15]], outputs(probe)).values
    np.testing.assert_allclose(part, whole[:, 5:15], rtol=1e-9)
    assert (
        np.abs(4 * part - whole[:, 5:15]).max() > np.abs(part).max()
    )  # what dividing by the part's own size would give


@pytest.mark.parametrize("wrong", ["damping", "sign", "no curvature"])
def test_the_ridge_oracle_rejects_wrong_versions(ridge, wrong):
    run, data, _, _, probe, dense = ridge
    right = Influence(dense, Damping(RIDGE, "absolute")).score(run, data, outputs(probe)).values
    if wrong == "damping":
        other = Influence(dense, Damping(1.1 * RIDGE, "absolute")).score(run, data, outputs(probe)).values
    elif wrong == "sign":
        other = -right
    else:
        blank = Dense(np.zeros((5, 5)), dense.like)
        other = Influence(blank, Damping(1, "absolute")).score(run, data, outputs(probe)).values
    assert np.abs(other - right).max() > 0.03 * np.abs(right).max()


def test_self_influence_of_ridge_regression(ridge):
    run, data, X, y, _, dense = ridge
    residual = X @ optimum(X, y) - y
    inverse = np.linalg.inv(X.T @ X / 40 + RIDGE * np.eye(5))
    want = residual**2 * np.einsum("ni,ij,nj->n", X, inverse, X)
    got = self_influence(dense, Damping(RIDGE, "absolute"), run, data)
    np.testing.assert_allclose(got.values[0], want, rtol=1e-6)
    # The diagonal of the influence of every document on minus its own loss, up to 1/N.
    own = Influence(dense, Damping(RIDGE, "absolute")).score(run, data, Losses(data)).values.diagonal()
    np.testing.assert_allclose(got.values[0] / 40, own, rtol=1e-6)


@pytest.fixture(scope="module")
def logistic():
    """Three-class logistic regression with weight decay at its optimum, and what leaving each document out does."""
    rng = np.random.default_rng(1)
    X, probe = rng.normal(size=(60, 4)), rng.normal(size=(3, 4))
    y = (X @ rng.normal(size=(4, 3)) + rng.gumbel(size=(60, 3))).argmax(1)
    data = Dataset(X, y, "classification", 3)
    probes = Dataset(probe, np.array([0, 1, 2]), "classification", 3)
    decay = 0.01
    theta = fit(X, y, np.ones(60), decay)
    run = Run.from_weights(linear, {"weight": torch.from_numpy(theta)}, data)
    p = softmax(X @ theta.T)
    hessian = np.zeros((12, 12))
    for x, q in zip(X, p, strict=True):
        hessian += np.kron(np.diag(q) - np.outer(q, q), np.outer(x, x)) / 60
    removed = [fit(X, y, np.arange(60) != i, decay) for i in range(60)]
    effect = np.stack([log_prob(t, probe) - log_prob(theta, probe) for t in removed], axis=1)
    return run, data, LogProb(probes), Dense(hessian, trainable(run.model())), decay, effect


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def log_prob(theta, probe):
    return np.log(softmax(probe @ theta.T)[np.arange(3), np.arange(3)])


def fit(X, y, weights, decay):
    """Minimise (1/N) sum w_i L_i + decay/2 |theta|^2 by scipy, to a gradient of 1e-10."""
    from scipy.optimize import minimize

    truth = np.eye(3)[y]

    def objective(flat):
        theta = flat.reshape(3, 4)
        p = softmax(X @ theta.T)
        loss = -(weights * np.log(p[np.arange(len(y)), y])).sum() / len(y) + decay / 2 * (flat @ flat)
        return loss, (((p - truth) * np.asarray(weights)[:, None]).T @ X / len(y) + decay * theta).ravel()

    found = minimize(objective, np.zeros(12), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    assert np.abs(found.jac).max() < 1e-6
    return found.x.reshape(3, 4)


def agreement(scores, effect):
    """Mean over queries of Spearman's rank correlation; removing a document does the opposite of doubling it."""
    return float(np.mean([spearmanr(-s, e).statistic for s, e in zip(scores, effect, strict=True)]))


def test_dense_influence_predicts_leaving_documents_out(logistic):
    run, data, probes, dense, decay, effect = logistic
    scores = Influence(dense, Damping(decay, "absolute")).score(run, data, probes).values
    flat = Influence(Dense(np.zeros((12, 12)), dense.like), Damping(1, "absolute")).score(run, data, probes).values
    rho, plain = agreement(scores, effect), agreement(flat, effect)
    print(f"Spearman with 60 leave-one-out optima: dense {rho:.4f}, gradient dot {plain:.4f}")
    assert rho > 0.99
    assert plain < 0.95
    # Not the ranks alone: the values as well, to first order.
    slope = (scores * -effect).sum() / (scores * scores).sum()
    assert 0.85 < slope < 1.25
    # The wrong sign and the wrong damping would be seen.
    assert agreement(-scores, effect) < -0.99
    heavy = Influence(dense, Damping(100 * decay, "absolute")).score(run, data, probes).values
    assert agreement(heavy, effect) < 0.99


@pytest.mark.parametrize("via", ["jvp", "vmap", "central"])
def test_scores_do_not_depend_on_the_way(logistic, via):
    run, data, probes, dense, decay, _ = logistic
    want = Influence(dense, Damping(decay, "absolute"), "jvp").score(run, data, probes).values
    got = Influence(dense, Damping(decay, "absolute"), via).score(run, data, probes).values
    np.testing.assert_allclose(got, want, rtol=1e-4 if via == "central" else 1e-9, atol=1e-6 * np.abs(want).max())


def test_direction_rows_are_queries_and_its_mean_is_the_direction_of_the_mean(logistic):
    run, data, probes, dense, decay, _ = logistic
    method = Influence(dense, Damping(decay, "absolute"))
    direction = method.direction(run, probes)
    assert direction.names == probes.queries
    mean = method.score_direction(run, data, direction.mean(), probes.unit)
    np.testing.assert_allclose(mean.values, method.score(run, data, probes).mean().values, rtol=1e-4, atol=1e-8)
    assert "0.01 absolute" in direction.made_by
    assert "change of f [nats] when the document counts twice" in mean.unit


def test_a_measurement_without_a_gradient_is_refused():
    run, _, probes = digits_run("mlp")
    _, params = params_of(run)
    blank = Influence(Dense(np.zeros((1, 1)), params), Damping(1, "absolute"))
    with pytest.raises(InfuserError, match="has no gradient"):
        blank.direction(run, Correct(probes.documents))
    with pytest.raises(InfuserError, match="not finite for 1 of 1 queries"):
        blank.direction(run, Custom(lambda model, p: (0 * p["1.bias"]).sum().log().reshape(1)))


def test_ekfac_ranks_left_out_documents_nearly_as_well(logistic):
    run, data, probes, dense, decay, effect = logistic
    level = Damping(decay, "absolute")
    ekfac = agreement(Influence(fit_ekfac(run, data, labels="exact"), level).score(run, data, probes).values, effect)
    full = agreement(Influence(dense, level).score(run, data, probes).values, effect)
    blank = Dense(np.zeros((12, 12)), dense.like)
    plain = agreement(Influence(blank, Damping(1, "absolute")).score(run, data, probes).values, effect)
    print(f"Spearman with 60 leave-one-out optima: dense {full:.4f}, EK-FAC {ekfac:.4f}, gradient dot {plain:.4f}")
    assert ekfac >= 0.85
    assert ekfac > plain


class Plain:
    """A Kronecker curvature behind the bare protocol, so that self-influence takes its general way."""

    def __init__(self, inner):
        self.inner = inner

    def matvec(self, vectors):
        return self.inner.matvec(vectors)

    def solve(self, vectors, damping):
        return self.inner.solve(vectors, damping)


@pytest.mark.parametrize("name", ["mlp", "tiny_resnet"])
def test_self_influence_in_the_eigenbasis_is_that_by_solving(name):
    run, data, _ = digits_run(name)
    curvature = fit_ekfac(run, data)
    fast = self_influence(curvature, 0.1, run, data).values
    slow = self_influence(Plain(curvature), 0.1, run, data).values
    np.testing.assert_allclose(fast, slow, rtol=2e-3)
    assert fast.min() >= 0
    assert np.abs(self_influence(curvature, 0.2, run, data).values / slow - 1).min() > 0.01
    own = Influence(curvature, 0.1, "captured").score(run, data, Losses(data)).values.diagonal()
    np.testing.assert_allclose(fast[0] / len(data), own, rtol=2e-3)


def test_self_influence_finds_wrong_labels():
    run, data, _ = digits_run("mlp", 400)
    labels = data.targets.copy()
    labels[:20] = (labels[:20] + 1) % 10
    wrong = replace(data, targets=labels)
    run = train(run.builder, wrong, run.recipe.with_(epochs=8))
    values = self_influence(fit_ekfac(run, wrong), 0.1, run, wrong)
    found = set(values.top(40).tolist()) & set(data.ids[:20].tolist())
    print(f"{len(found)} of 20 wrong labels among the 40 highest of 400; 2 by chance")
    assert len(found) >= 15
    assert len(set(values.bottom(40).tolist()) & set(data.ids[:20].tolist())) <= 2


def test_self_influence_reads_the_statistics_of_the_model_at_hand():
    def builder(shape, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))

    few = digits_run("mlp")[1]
    run = train(builder, few, Recipe(epochs=3, batch_size=8, lr=0.1))
    fitted = fit_ekfac(run, few)
    early = replace(run, checkpoints=run.checkpoints[:2])
    got = self_influence(fitted, 0.1, early, few).values[0]
    rows = loss_gradients(early.model(), trainable(early.model()), few)
    solved = fitted.solve(rows, Damping(0.1))
    want = sum((rows[name] * value).flatten(1).sum(1) for name, value in solved.items())
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-3)
