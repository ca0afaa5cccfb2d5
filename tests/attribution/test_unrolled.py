"""Unrolled attribution against finite differences of actual retraining in float64, and against closed forms."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from infuser.attribution.attribute import attribute
from infuser.attribution.replay import Replay
from infuser.attribution.unrolled import Unrolled
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.measure import Custom, Margin
from infuser.training import train
from infuser.types import Recipe
from tests.attribution.small import digits_run


def smooth(input_shape, n_outputs):
    """A network with BatchNorm and dropout whose training is smooth, in float64.

    No bias stands before BatchNorm: its gradient is rounding alone, which AdamW would scale up to steps of any sign.
    """
    return nn.Sequential(
        nn.Linear(input_shape[0], 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(8, n_outputs),
    ).double()


def linear(input_shape, n_outputs):
    return nn.Linear(input_shape[0], n_outputs, bias=False).double()


RECIPES = {
    "sgd": Recipe(epochs=3, batch_size=7, lr=0.1, seed=4),
    "momentum": Recipe(epochs=3, batch_size=7, lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine", seed=4),
    "adamw": Recipe(epochs=3, batch_size=7, lr=0.02, optimizer="adamw", weight_decay=0.1, schedule="linear", seed=4),
}


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(20, 4)), rng.integers(0, 3, 20), "classification", 3)
    probes = Dataset(rng.normal(size=(2, 4)), np.array([0, 2]), "classification", 3)
    return data, Margin(probes)


def value(builder, data, recipe, start, probes):
    """Return f after actually training."""
    run = train(builder, data, recipe, start=start)
    model = run.model()
    with torch.no_grad():
        return probes(model, dict(model.named_parameters())).numpy()


@pytest.mark.parametrize("start", ["last_epoch", "scratch"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_weights_agree_with_finite_differences_of_retraining(small, recipe, start):
    data, probes = small
    run = train(smooth, data, recipe)
    begin = run.at(recipe.epochs - 1) if start == "last_epoch" else None
    scores = attribute(Unrolled(start), run, data, probes)
    h = 1e-5
    measured = np.empty((2, 3))
    for i in range(3):
        ends = []
        for sign in (1, -1):
            weights = np.ones(20)
            weights[i] += sign * h
            ends.append(value(smooth, replace(data, weights=weights), recipe, begin, probes))
        measured[:, i] = (ends[0] - ends[1]) / (2 * h)
    size = np.abs(measured).max()
    np.testing.assert_allclose(scores.values[:, :3], measured, rtol=1e-5, atol=1e-7 * size)
    # The oracle tells a wrong sign, another document and another segment from the right one.
    assert np.abs(scores.values[:, :3] + measured).max() > size
    assert np.abs(scores.values[:, 1:4] - measured).max() > 0.1 * size
    other = attribute(Unrolled("half"), run, data, probes).values[:, :3]
    assert np.abs(other - measured).max() > 0.01 * size


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_document_gradients_agree_with_finite_differences_of_retraining(small, recipe):
    data, probes = small
    run = train(smooth, data, recipe)
    got = Unrolled("scratch").document_gradient(run, data, probes, [11])
    assert got.shape == (2, 1, 4)
    h = 1e-5
    for k, i in enumerate((11,)):
        ends = []
        for sign in (1, -1):
            inputs = data.inputs.copy()
            inputs[i, 2] += sign * h
            ends.append(value(smooth, replace(data, inputs=inputs), recipe, None, probes))
        np.testing.assert_allclose(got[:, k, 2].numpy(), (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-9)
        assert np.abs(got[:, k, 1].numpy() - (ends[0] - ends[1]) / (2 * h)).max() > 1e-4


def regression():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(30, 4))
    y = X @ rng.normal(size=4) + rng.normal(size=30)
    probe = torch.from_numpy(rng.normal(size=(2, 4)))
    probes = Custom(lambda model, params: torch.func.functional_call(model, params, (probe,))[:, 0], n=2)
    return X, y, probe.numpy(), Dataset(X, y[:, None], "regression", 1), probes


def test_full_batch_descent_has_a_closed_form():
    X, y, probe, data, probes = regression()
    recipe = Recipe(epochs=25, batch_size=30, lr=0.1, weight_decay=0.05, seed=1)
    run = train(linear, data, recipe)
    theta = run.checkpoints[0].weights["weight"][0].numpy()
    hessian = X.T @ X / 30 + 0.05 * np.eye(4)
    sensitivity = np.zeros((4, 30))
    for _ in range(25):
        residual = X @ theta - y
        sensitivity = (np.eye(4) - 0.1 * hessian) @ sensitivity - 0.1 / 30 * (X * residual[:, None]).T
        theta = theta - 0.1 * (X.T @ residual / 30 + 0.05 * theta)
    got = attribute(Unrolled("scratch"), run, data, probes).values
    np.testing.assert_allclose(got, probe @ sensitivity, rtol=1e-10)


def test_training_to_the_optimum_gives_influence():
    X, y, probe, data, probes = regression()
    run = train(linear, data, Recipe(epochs=200, batch_size=30, lr=0.4, weight_decay=0.05, seed=1))
    hessian = X.T @ X / 30 + 0.05 * np.eye(4)
    theta = np.linalg.solve(hessian, X.T @ y / 30)
    influence = -probe @ np.linalg.solve(hessian, (X * (X @ theta - y)[:, None]).T) / 30
    got = attribute(Unrolled("scratch"), run, data, probes).values
    np.testing.assert_allclose(got, influence, rtol=1e-5, atol=1e-8)
    part = attribute(Unrolled(195), run, data, probes).values
    assert np.abs(part - influence).max() > 0.1 * np.abs(influence).max()


class Frozen(nn.BatchNorm1d):
    """BatchNorm that stays in evaluation mode, as in fine-tuning."""

    def train(self, mode=True):
        return super().train(False)


def frozen(input_shape, n_outputs):
    layer = Frozen(input_shape[0])
    layer.running_mean += torch.linspace(-1, 1, input_shape[0])
    return nn.Sequential(layer, nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, n_outputs)).double()


def test_frozen_batch_norm_stays_as_it_is(small):
    data, probes = small
    recipe = Recipe(epochs=3, batch_size=7, lr=0.1, seed=4)
    run = train(frozen, data, recipe)
    for seeds, seed in (((), 4), ((5,), 5)):
        scores = Unrolled("scratch", seeds).score(run, data, probes)
        h, ends = 1e-5, []
        for sign in (1, -1):
            weights = np.ones(20)
            weights[3] += sign * h
            ends.append(value(frozen, replace(data, weights=weights), recipe.with_(seed=seed), None, probes))
        np.testing.assert_allclose(scores.values[:, 3], (ends[0] - ends[1]) / (2 * h), rtol=1e-5)


def test_a_network_with_batch_norm_is_replayed_to_its_stored_weights():
    run, data, probes = digits_run("tiny_resnet")
    replay = Replay.of(run, data, run.recipe, run.at(1))
    state = replay.start
    for step in replay.steps:
        state = replay.advance(state, step)
    for name, value in {**state.params, **state.buffers}.items():
        torch.testing.assert_close(value, run.checkpoints[-1].weights[name], rtol=1e-4, atol=1e-6)
    scores = attribute(Unrolled(), run, data, probes)
    assert scores.values.shape == (3, 60)
    assert np.isfinite(scores.values).all()


def test_other_orders_are_averaged(small):
    data, probes = small
    run = train(smooth, data, RECIPES["sgd"])
    own = attribute(Unrolled("half"), run, data, probes).values
    np.testing.assert_array_equal(attribute(Unrolled("half", seeds=(4,)), run, data, probes).values, own)
    seven = attribute(Unrolled("half", seeds=(7,)), run, data, probes).values
    assert np.abs(seven - own).max() > 0
    both = attribute(Unrolled("half", seeds=(4, 7)), run, data, probes).values
    np.testing.assert_allclose(both, (own + seven) / 2, rtol=1e-12)


def test_no_more_than_two_roots_of_the_states_are_held(small, monkeypatch):
    data, probes = small
    run = train(smooth, data, Recipe(epochs=20, batch_size=5, lr=0.05))
    alive, most = [], []
    plain = Replay.advance

    def counted(self, state, step):
        after = plain(self, state, step)
        alive.append(weakref.ref(after.params["0.weight"]))
        most.append(sum(ref() is not None for ref in alive))
        return after

    monkeypatch.setattr(Replay, "advance", counted)
    attribute(Unrolled("scratch"), run, data, probes)
    assert len(alive) > 80
    assert max(most) <= 2 * 8 + 3  # T = 80 steps


def test_what_cannot_be_replayed_is_refused(small):
    data, probes = small
    run = train(smooth, data, RECIPES["sgd"])
    with pytest.raises(InfuserError, match="unknown start"):
        attribute(Unrolled("beginning"), run, data, probes)
    with pytest.raises(InfuserError, match="no checkpoint after epoch"):
        attribute(Unrolled("half"), replace(run, checkpoints=run.checkpoints[-1:]), data, probes)
    shifted = {name: value + 0.1 for name, value in run.checkpoints[-1].weights.items() if value.is_floating_point()}
    last = replace(run.checkpoints[-1], weights={**run.checkpoints[-1].weights, **shifted})
    with pytest.raises(InfuserError, match="does not arrive"):
        attribute(Unrolled(), replace(run, checkpoints=(*run.checkpoints[:-1], last)), data, probes)


def test_the_random_state_is_left_alone(small):
    data, probes = small
    run = train(smooth, data, RECIPES["sgd"])
    before = torch.get_rng_state()
    one = attribute(Unrolled(), run, data, probes).values
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    np.testing.assert_array_equal(one, attribute(Unrolled(), run, data, probes).values)


class WithIdle(nn.Module):
    """The first parameter is in no gradient, the second in those of long batches alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.rare = nn.Parameter(0.1 * torch.ones(outputs, dtype=torch.float64))
        self.linear = nn.Linear(inputs, outputs).double()

    def forward(self, x):
        out = self.linear(x)
        return out + self.rare if len(x) == 7 else out


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_parameters_without_a_gradient_are_left_alone_as_torch_leaves_them(small, recipe):
    data, probes = small  # 20 documents: batches of 7, 7 and 6

    def builder(input_shape, n_outputs):
        return WithIdle(input_shape[0], n_outputs)

    run = train(builder, data, recipe)
    replay = Replay.of(run, data, recipe, run.at(1))
    state = replay.start
    for step in replay.steps:
        state = replay.advance(state, step)
    stored = run.checkpoints[-1].weights
    for name, held in state.params.items():
        torch.testing.assert_close(held, stored[name], rtol=1e-12, atol=1e-12)
    assert torch.equal(stored["idle"], torch.ones(3, dtype=torch.float64))
    scores = Unrolled("last_epoch").score(run, data, probes).values
    h, i = 2.0**-12, 4  # weights are float32
    moved = [data.with_weights([i], 1 + sign * h) for sign in (1, -1)]
    ends = [value(builder, d, recipe, run.at(recipe.epochs - 1), probes) for d in moved]
    np.testing.assert_allclose(scores[:, i], (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-9)


def test_a_buffer_that_training_moves_without_a_known_derivative_is_refused():
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(12, 2, 5)), rng.integers(0, 2, 12), "classification", 2)

    def builder(input_shape, n_outputs):
        norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
        return nn.Sequential(norm, nn.Flatten(), nn.Linear(10, n_outputs)).double()

    run = train(builder, data, Recipe(epochs=2, batch_size=4, lr=0.1))
    with pytest.raises(InfuserError, match=r"cannot differentiate.*0\.running_mean, 0\.running_var"):
        Unrolled("scratch").score(run, data, Margin(data[data.ids[:2]]))


def test_fewer_documents_are_replayed_at_the_same_place_in_the_schedule(small):
    data, _ = small
    recipe = RECIPES["adamw"]
    run = train(linear, data, recipe)
    few = data[data.ids[:7]]
    replay = Replay.of(run, few, recipe, run.at(2))
    assert [step.lr for step in replay.steps] == pytest.approx([recipe.lr / 3])
