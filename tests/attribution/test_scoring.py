"""Every way to inner products agrees with vmap(grad) written out in the tests."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from infuser.attribution.influence import Influence, self_influence
from infuser.attribution.scoring import by_layer, central_step, inner_products, plan, squared_norms
from infuser.curvature import fit_ekfac
from infuser.curvature.identity import identity
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.models.gpt import tiny_gpt
from infuser.params import trainable
from infuser.tasks import plain_attention
from tests.attribution.small import MODELS, digits_run, loss_gradients, params_of, products, random_vectors


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("via", ["captured", "jvp", "vmap", "auto"])
def test_exact_ways_agree_with_autograd(name, via):
    run, data, _ = digits_run(name)
    model, params = params_of(run)
    vectors = random_vectors(params, 3)
    want = products(vectors, loss_gradients(model, params, data))
    got = inner_products(model, params, data, vectors, via)
    assert got.shape == (3, len(data))
    assert relative(got, want) < 2e-5


class Encoder(nn.Module):
    """Rows of an image as tokens of torch's own encoder layer, whose fast path has no derivative."""

    def __init__(self, input_shape, n_outputs):
        super().__init__()
        self.embed = nn.Linear(input_shape[-1], 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, n_outputs)

    def forward(self, x):
        return self.head(self.layer(self.embed(x[:, 0])).mean(1))


def instance_norm(input_shape, n_outputs):
    middle = nn.Conv2d(input_shape[0], 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU()
    return nn.Sequential(*middle, nn.Flatten(), nn.LazyLinear(n_outputs))


@pytest.mark.parametrize("builder", [Encoder, instance_norm])
@pytest.mark.parametrize("via", ["jvp", "vmap", "auto"])
@pytest.mark.parametrize("queries", [2, 5])
def test_layers_of_torch_with_ways_of_their_own_agree_with_autograd(builder, via, queries):
    _, data, _ = digits_run("mlp")
    torch.manual_seed(0)
    model = builder(data.input_shape, data.n_outputs).eval()
    model(torch.zeros(1, *data.input_shape))
    params = trainable(model)
    vectors = random_vectors(params, queries)
    with plain_attention():
        want = products(vectors, loss_gradients(model, params, data))
    got = inner_products(model, params, data, vectors, via)
    assert not got.requires_grad
    assert relative(got, want) < 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_central_differences_are_within_the_error_that_they_state(name):
    run, data, _ = digits_run(name)
    model, params = params_of(run)
    vectors = random_vectors(params, 1)
    want = products(vectors, loss_gradients(model, params, data))
    _, error = central_step(model, params, data, vectors)
    assert error < 0.01
    got = inner_products(model, params, data, vectors, "central")
    # A document on a kink (a tie in a max-pool) has no derivative there: the 3 worst of 60 are looked at apart.
    smooth = (got - want)[0].abs().argsort()[:-3]
    assert relative(got[:, smooth], want[:, smooth]) < max(3 * error, 0.01)
    assert relative(got, want) < 0.03


def test_the_comparison_would_notice_a_sign_a_factor_and_an_order():
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    vectors = random_vectors(params, 3)
    want = products(vectors, loss_gradients(model, params, data))
    got = inner_products(model, params, data, vectors, "jvp")
    for wrong in (-got, 1.01 * got, got.flip(1), got.flip(0)):
        assert relative(wrong, want) > 5e-3


def test_parameters_without_a_vector_count_as_zero():
    run, data, _ = digits_run("tiny_resnet")
    model, params = params_of(run)
    vectors = random_vectors(params, 2)
    some = {name: value for name, value in vectors.items() if "conv" in name}
    want = products(some, loss_gradients(model, params, data))
    for via in ("captured", "jvp", "vmap", "auto"):
        assert relative(inner_products(model, params, data, some, via), want) < 2e-5
    assert relative(inner_products(model, params, data, vectors, "jvp"), want) > 0.1


def test_a_zero_vector_gives_zeros_and_not_nan():
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    zero = {name: torch.zeros(1, *value.shape) for name, value in params.items()}
    assert inner_products(model, params, data, zero).abs().max() == 0


def test_a_rough_loss_is_refused_by_central_and_handled_by_auto():
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    # Weights so large that the losses' rounding drowns the difference.
    steep = {name: 30000 * value for name, value in params.items()}
    vectors = random_vectors(params, 1)
    want = products(vectors, loss_gradients(model, steep, data))
    assert central_step(model, steep, data, vectors)[1] > 0.01
    with pytest.raises(InfuserError, match="central difference is not accurate enough"):
        inner_products(model, steep, data, vectors, "central")
    assert relative(inner_products(model, steep, data, vectors, "auto"), want) < 2e-5


def test_squared_norms():
    run, data, _ = digits_run("tiny_resnet")
    model, params = params_of(run)
    rows = loss_gradients(model, params, data)
    want = sum(value.flatten(1).square().sum(1) for value in rows.values())
    assert relative(squared_norms(model, params, data), want) < 1e-5


def test_batches_and_order_do_not_matter():
    run, data, _ = digits_run("simple_cnn")
    model, params = params_of(run)
    vectors = random_vectors(params, 2)
    whole = inner_products(model, params, data, vectors)
    part = inner_products(model, params, data[data.ids[[41, 3, 17]]], vectors)
    assert relative(part, whole[:, [41, 3, 17]]) < 1e-5


def test_the_model_is_left_as_it_was():
    run, data, _ = digits_run("tiny_resnet")
    model = run.model().train()
    model.bn.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    vectors = random_vectors(trainable(model), 1)
    for via in ("auto", "captured", "jvp", "vmap", "central"):
        inner_products(model, trainable(model), data, vectors, via)
    assert model.training
    assert not model.bn.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_the_plan_can_be_printed_and_names_its_reason():
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    one = plan(model, params, data, random_vectors(params, 1))
    assert one.via == "central"
    assert "1 queries x 60 documents via central" in str(one)
    assert plan(model, params, data, random_vectors(params, 1), "jvp").via == "jvp"


def test_vectors_that_do_not_fit_are_named():
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    name = next(iter(params))
    with pytest.raises(InfuserError, match="do not fit"):
        inner_products(model, params, data, params)
    with pytest.raises(InfuserError, match="nonsense"):
        inner_products(model, params, data, {"nonsense": params[name][None]})
    with pytest.raises(InfuserError, match="no vectors"):
        inner_products(model, params, data, {})
    with pytest.raises(InfuserError, match="unknown way"):
        inner_products(model, params, data, random_vectors(params, 1), "guess")


class Scaled(nn.Module):
    """A linear layer and a bare parameter, which no layer covers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.gain = nn.Parameter(torch.full((10,), 1.5))

    def forward(self, x):
        return self.gain * self.linear(x.flatten(1)).tanh()


class Reused(nn.Module):
    """A weight that is also used outside its module, which capturing cannot see."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1)) + (x.flatten(1) @ self.linear.weight.T).sin()


@pytest.mark.parametrize("queries", [2, 5])
def test_parameters_that_no_layer_covers_are_not_ignored(queries):
    _, data, _ = digits_run("mlp")
    model = Scaled()
    params = trainable(model)
    vectors = random_vectors(params, queries)
    want = products(vectors, loss_gradients(model, params, data))
    chosen = plan(model, params, data, vectors, "captured")
    assert chosen.rest == ("gain",)
    assert chosen.rest_via == ("jvp" if queries == 2 else "vmap")
    assert "outside" in str(chosen)
    for via in ("captured", "auto"):
        assert relative(inner_products(model, params, data, vectors, via), want) < 1e-5
    assert relative(squared_norms(model, params, data), loss_norms(model, params, data)) < 1e-5
    bare = {"gain": vectors["gain"]}
    assert "no layer" in plan(model, params, data, bare).reason
    with pytest.raises(InfuserError, match="no layer"):
        inner_products(model, params, data, bare, "captured")


def test_a_weight_used_outside_its_module_is_noticed():
    _, data, _ = digits_run("mlp")
    model = Reused()
    params = trainable(model)
    vectors = random_vectors(params, 4)
    with pytest.raises(InfuserError, match="differ from autograd"):
        inner_products(model, params, data, vectors, "captured")
    want = products(vectors, loss_gradients(model, params, data))
    assert relative(inner_products(model, params, data, vectors), want) < 1e-5
    assert relative(squared_norms(model, params, data), loss_norms(model, params, data)) < 1e-5


def loss_norms(model, params, data):
    return sum(value.flatten(1).square().sum(1) for value in loss_gradients(model, params, data).values())


def test_layers_sum_to_the_whole():
    run, data, _ = digits_run("tiny_resnet")
    model, params = params_of(run)
    vectors = random_vectors(params, 3)
    del vectors["head.bias"]
    split = by_layer(model, params, data, vectors)
    assert relative(sum(split.values()), inner_products(model, params, data, vectors, "jvp")) < 2e-5
    rows = loss_gradients(model, params, data)
    alone = {"head.weight": vectors["head.weight"]}
    assert relative(split[("head.weight",)], products(alone, rows)) < 1e-5
    assert {name for names in split for name in names} == set(vectors)


def test_language_models_agree_as_well_with_padding():
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 11, (6, 9))
    inputs[2, 5:] = -1
    targets = np.where(inputs < 0, -100, inputs)
    data = Dataset(inputs, targets, "causal_lm", 11)
    model = tiny_gpt((9,), 11, depth=1, heads=2, width=8).eval()
    params = trainable(model)
    vectors = random_vectors(params, 3)
    exact = inner_products(model, params, data, vectors, "jvp")
    for via in ("captured", "vmap", "auto"):
        assert relative(inner_products(model, params, data, vectors, via), exact) < 2e-5
    one = {name: value[:1] for name, value in vectors.items()}
    assert relative(inner_products(model, params, data, one, "central"), exact[:1]) < 0.01
    shorter = replace(data, inputs=inputs[:, :8], targets=targets[:, :8])
    assert relative(inner_products(model, params, shorter, vectors, "jvp"), exact) > 1e-3


class _Ships:
    """Runs jobs here, each from what a worker would have been sent, and counts them."""

    def __init__(self):
        self.jobs = 0

    def map(self, fn, jobs):
        for job in jobs:
            self.jobs += 1
            yield pickle.loads(pickle.dumps(fn))(job)  # noqa: S301 - our own bytes


def test_autocast_holds_for_the_passes_over_documents_and_for_nothing_else():
    run, data, probes = digits_run("simple_cnn")
    influence = Influence(fit_ekfac(run, data), 0.1)
    direction, scores, own = influence.direction(run, probes), influence.score(run, data, probes), self_influence
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fitted = Influence(fit_ekfac(run, data), 0.1)
        half = influence.score(run, data, probes)
        again = fitted.direction(run, probes)
        itself = own(influence.curvature, 0.1, run, data).values
        one = influence.score(run, data, probes[:1])
        slow = inner_products(*params_of(run), data, direction.params, "vmap")
    for name, value in direction.params.items():
        assert torch.equal(again.params[name], value)
    assert np.array_equal(itself, own(influence.curvature, 0.1, run, data).values)
    assert half.values.dtype == one.values.dtype == np.float32
    assert slow.dtype == torch.float32
    assert not np.array_equal(half.values, scores.values)
    assert np.corrcoef(half.values.ravel(), scores.values.ravel())[0, 1] > 0.99
    assert np.corrcoef(one.values.ravel(), scores.values[0])[0, 1] > 0.99


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_for_the_passes_alone(name):
    run, data, _ = digits_run(name)
    model, params = params_of(run)
    vectors = random_vectors(params, 3)
    want = inner_products(model, params, data, vectors, "captured")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = inner_products(model, params, data, vectors, "captured")
    assert got.dtype == torch.float32
    # bfloat16 has 8 bits: far from the exact values, and their order stays.
    assert 1e-5 < relative(got, want) < 0.1
    assert np.corrcoef(got.flatten(), want.flatten())[0, 1] > 0.99


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("via", "queries"), [("captured", 3), ("vmap", 2), ("central", 1), ("auto", 2)])
def test_shards_change_no_bit(name, via, queries):
    run, data, _ = digits_run(name)
    model, params = params_of(run)
    vectors = random_vectors(params, queries)
    want = inner_products(model, params, data, vectors, via)
    for shards in (1, 2, 1000):
        ships = _Ships()
        got = inner_products(model, params, data, vectors, via, executor=ships, shards=shards)
        assert torch.equal(got, want)
        # One shard needs no executor; there are at most as many as batches.
        assert ships.jobs == (
            0 if shards == 1 else min(shards, -(-len(data) // plan(model, params, data, vectors, via).batch_size))
        )


def test_influence_reads_its_shards_on_the_executor():
    run, data, probes = digits_run("mlp")
    ships = _Ships()
    whole = Influence(identity(run)).score(run, data, probes)
    sharded = Influence(identity(run), executor=ships, shards=2).score(run, data, probes)
    assert ships.jobs == 2
    assert np.array_equal(whole.values, sharded.values)
