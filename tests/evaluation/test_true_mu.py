"""Batched training against training alone, and the true mu against closed forms."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from infuser import models
from infuser.attribution.estimators import gauss
from infuser.checkpoints import Checkpoint, build
from infuser.data import digits
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.evaluation.batched import can_be_stacked, train_together
from infuser.evaluation.true_mu import TrueInfluence, true_influence
from infuser.measure import Margin
from infuser.params import trainable
from infuser.training import train
from infuser.types import Recipe

SMALL = partial(models.mlp, hidden=(8, 6))


def documents(n=40):
    train_set, test_set = digits()
    return train_set[train_set.ids[:n]], test_set[test_set.ids[:3]]


def deep_linear(input_shape, n_outputs):
    """A model that is not a plain multi-layer perceptron, so that vmap is used."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, n_outputs, bias=False))


def with_dropout(input_shape, n_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(0.5), nn.Linear(6, n_outputs))


@pytest.mark.parametrize(
    ("builder", "recipe"),
    [
        (SMALL, Recipe(epochs=3, batch_size=7, lr=0.1, seed=3)),
        (SMALL, Recipe(epochs=2, batch_size=7, lr=0.1, momentum=0.9, weight_decay=0.01, schedule="linear", seed=4)),
        (SMALL, Recipe(epochs=2, batch_size=7, lr=0.01, optimizer="adamw", weight_decay=0.1, schedule="cosine")),
        (partial(models.simple_cnn, width=4), Recipe(epochs=2, batch_size=10, lr=0.1)),
        (deep_linear, Recipe(epochs=2, batch_size=8, lr=0.1, order="fixed")),
        (with_dropout, Recipe(epochs=2, batch_size=8, lr=0.1)),
        (SMALL, Recipe(epochs=1, batch_size=8, lr=0.1, augmentation="flip")),
    ],
)
def test_models_trained_together_equal_models_trained_alone(builder, recipe):
    data, _ = documents()
    weights = np.ones((3, len(data)), np.float32)
    weights[1, 5], weights[2, :4] = 0, 0.5
    together = train_together(builder, data, recipe, weights, models=2)
    finals = []
    for row in weights:
        weighted = Dataset(data.inputs, data.targets, data.kind, data.n_outputs, data.ids, row)
        finals.append(trainable(train(builder, weighted, recipe).model()))
    for name, values in together.items():
        alone = torch.stack([final[name] for final in finals])
        torch.testing.assert_close(values, alone, rtol=2e-4, atol=2e-6)
    # A document's absence is visible well above that tolerance.
    name = next(iter(together))
    assert (together[name][0] - together[name][1]).abs().max() > 1e-4


def test_models_may_share_an_initialisation_and_differ_in_order():
    data, _ = documents()
    recipe = Recipe(epochs=2, batch_size=8, lr=0.1, seed=9)
    ours = train_together(SMALL, data, recipe, np.ones((1, len(data))), init_seed=2)
    start = Checkpoint(0, 0, build(SMALL, data.input_shape, 10, 2).state_dict())
    alone = trainable(train(SMALL, data, recipe, start=start).model())
    other = trainable(train(SMALL, data, recipe).model())
    for name in alone:
        torch.testing.assert_close(ours[name][0], alone[name], rtol=1e-4, atol=1e-6)
    assert max((ours[name][0] - other[name]).abs().max() for name in alone) > 0.05


def test_what_can_be_stacked():
    shape = (1, 8, 8)
    assert can_be_stacked(SMALL(shape, 10), Recipe())
    assert not can_be_stacked(SMALL(shape, 10), Recipe(augmentation="flip"))
    assert not can_be_stacked(with_dropout(shape, 10), Recipe())
    assert not can_be_stacked(models.tiny_resnet(shape, 10, width=4), Recipe())


@pytest.mark.parametrize("randomness", ["order", "init+order"])
def test_statistics_are_those_of_paired_trainings(randomness):
    data, queries = documents()
    recipe = Recipe(epochs=2, batch_size=8, lr=0.1, seed=1)
    subsets = {"one": data.ids[[3]], "three": data.ids[[3, 8, 20]]}
    truth = true_influence(SMALL, data, recipe, subsets, queries, seeds=[5, 6], randomness=randomness)
    assert truth.models == 6
    for r, seed in enumerate((5, 6)):
        init = seed if randomness == "init+order" else recipe.seed
        start = Checkpoint(0, 0, build(SMALL, data.input_shape, 10, init).state_dict())
        for k, ids in enumerate([[], *subsets.values()]):
            masked = data.with_weights(ids, 0.0) if len(ids) else data
            model = train(SMALL, masked, recipe.with_(seed=seed), start=start).model()
            on_queries = -Margin(queries)(model, trainable(model)).numpy()
            got = truth.with_all[r] if k == 0 else truth.without[r, k - 1]
            np.testing.assert_allclose(got, on_queries, atol=2e-4)
            for j, own in enumerate(subsets.values()):
                on_own = float(-Margin(data[own])(model, trainable(model)).mean())
                if k == 0:
                    assert truth.self_with[r, j] == pytest.approx(on_own, abs=2e-4)
                elif k == 1 + j:
                    assert truth.self_without[r, j] == pytest.approx(on_own, abs=2e-4)
    assert (truth.self_without > truth.self_with).all()  # the documents lower their own loss


def synthetic(seeds=400, shift=(0.0, 0.5, 2.0), pairing=0.95):
    """Statistics whose mu is known; seeds are shared between trainings with and without a subset."""
    rng = np.random.default_rng(0)
    shared, rest = np.sqrt(pairing), np.sqrt(1 - pairing)
    base = rng.normal(size=(seeds, 1))
    noisy = lambda: shared * base + rest * rng.normal(size=(seeds, 3))  # noqa: E731
    without = noisy() + np.array(shift)
    names = ("null", "weak", "strong")
    return TrueInfluence(
        names,
        ("q",),
        tuple(range(seeds)),
        noisy()[:, :1],
        without[..., None],
        noisy(),
        without,
        "init+order",
        "made up",
    )


def test_mu_of_statistics_with_a_known_shift():
    truth = synthetic()
    np.testing.assert_allclose(truth.self_mu("gauss"), [0, 0.5, 2], atol=0.12)
    np.testing.assert_allclose(truth.mu("auc")[:, 0], [0, 0.5, 2], atol=0.25)
    assert truth.mu().shape == (3, 1)
    whole, corrected = truth.split_half()
    assert whole == pytest.approx(1)
    assert corrected == pytest.approx(1)
    curve = truth.curve(2)
    assert np.interp(0.5, curve.alpha, curve.beta) < 0.1


def test_pairing_makes_small_mu_visible():
    paired = [synthetic(seeds=250, pairing=0.98).take(np.arange(s, 250, 5)).self_mu()[0] for s in range(5)]
    rng = np.random.default_rng(1)
    unpaired = [float(gauss(rng.normal(size=50), rng.normal(size=50))[0]) for _ in range(200)]
    assert np.sqrt(np.mean(np.square(paired))) < 0.5 * np.std(unpaired)


def test_parts_are_pooled_by_seed():
    truth = synthetic(40)
    halves = [truth.take(np.arange(20)), truth.take(np.arange(20, 40))]
    np.testing.assert_allclose(TrueInfluence.concat(halves).self_mu(), truth.self_mu())
    with pytest.raises(InfuserError, match="measured twice"):
        TrueInfluence.concat([halves[0], halves[0]])


@pytest.mark.parametrize(
    ("subsets", "seeds", "match"),
    [
        ({"s": []}, [0], "subset s must be some of the documents"),
        ({"s": "all"}, [0], "not all"),
        ({"s": "twice"}, [0], "twice"),
        ({}, [0], "no subset"),
        ({"s": "one"}, [0, 0], "each once"),
        ({"s": "one"}, [], "each once"),
    ],
)
def test_impossible_requests_are_refused(subsets, seeds, match):
    data, queries = documents(12)
    named = {"all": data.ids, "twice": data.ids[[0, 0]], "one": data.ids[[0]]}
    subsets = {key: named[value] if isinstance(value, str) else value for key, value in subsets.items()}
    with pytest.raises(InfuserError, match=match):
        true_influence(SMALL, data, Recipe(epochs=1), subsets, queries, seeds)


def test_a_diverging_model_is_named():
    data, queries = documents(12)
    with pytest.raises(InfuserError, match="not finite at step"):
        true_influence(SMALL, data, Recipe(epochs=9, lr=1e30), {"s": data.ids[[0]]}, queries, [0])


class Frozen(nn.Module):
    """Random features that are not trained, beneath a trained layer."""

    def __init__(self, n_outputs):
        super().__init__()
        self.features = nn.Linear(64, 40).requires_grad_(False)
        self.head = nn.Linear(40, n_outputs)

    def forward(self, x):
        return self.head(self.features(x.flatten(1)).relu())


def frozen_sequential(input_shape, n_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40).requires_grad_(False), nn.ReLU(), nn.Linear(40, n_outputs))


@pytest.mark.parametrize("builder", [lambda shape, n: Frozen(n), frozen_sequential], ids=["module", "sequential"])
def test_what_is_drawn_and_not_trained_is_of_the_seed_that_was_trained(builder):
    data, queries = documents()
    recipe = Recipe(epochs=5, batch_size=8, lr=0.1)
    found = true_influence(builder, data, recipe, {"one": data.ids[:1]}, queries, seeds=[0, 1])
    for row, seed in enumerate((0, 1)):
        run = train(builder, data, recipe.with_(seed=seed))
        model = run.model()
        with torch.no_grad():
            margin = -Margin(queries)(model, dict(model.named_parameters())).double().numpy()
        np.testing.assert_allclose(found.with_all[row], margin, rtol=1e-3, atol=1e-3)
    assert np.abs(found.with_all[0] - found.with_all[1]).max() > 0.05
