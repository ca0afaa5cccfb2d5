"""What a capture leaves behind (nothing), and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infuser.curvature import captures, collect, find_layers, fit_ekfac, verify
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.tasks import losses, task_of
from tests import oracles
from tests.curvature.small import case, dataset, run_of


def state_of(model):
    hooks = [dict(h) for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: (t.detach().clone(), t.requires_grad, t.grad, t._version) for name, t in tensors.items()},
        [m.training for m in model.modules()],
        hooks,
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_same(before, after):
    for name, (value, needs, grad, version) in before[0].items():
        assert torch.equal(value, after[0][name][0])
        assert (needs, grad, version) == after[0][name][1:]
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])
    assert before[4] == after[4]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_on_the_model(training):
    run, data = case("batch norm")
    model = run.model().train(training)
    model[0].eval()
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    task, params, batch = task_of(data), trainable(model), data.batch(range(6))
    with torch.no_grad():
        before = (*before[:4], torch.is_grad_enabled())
        collect(model, params, task, batch, find_layers(model))
        verify(model, params, task, batch, find_layers(model))
        assert_same(before, state_of(model))


def test_nothing_is_left_after_an_error():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            self.linear(x)
            raise RuntimeError("out of cheese")

    model, data = Fails().double().train(), dataset((2,), outputs=2)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="cheese"):
        collect(model, trainable(model), task_of(data), data.batch([0]), find_layers(model))
    assert_same(before, state_of(model))


def test_fitting_leaves_the_random_state():
    run, data = case("mlp")
    state = torch.get_rng_state()
    fit_ekfac(run, data)
    assert torch.equal(state, torch.get_rng_state())


def test_a_given_cotangent_is_followed():
    run, data = case("conv2d grouped")
    model = run.model()
    task, params, batch, found = task_of(data), trainable(model), data.batch(range(6)), find_layers(model)
    cotangent = torch.randn(6, 3, dtype=torch.float64)
    seen = collect(model, params, task, batch, found, cotangent)
    leaves = oracles.leaves(model)
    outputs = torch.func.functional_call(model, leaves, (batch.inputs,))
    for i in range(6):
        wanted = torch.autograd.grad((outputs[i] * cotangent[i]).sum(), list(leaves.values()), retain_graph=True)
        true = dict(zip(leaves, wanted, strict=True))
        for layer in found:
            for name, value in layer.gradients(*seen[layer]).items():
                torch.testing.assert_close(value[i], true[name], rtol=1e-9, atol=1e-12)


def test_losses_and_outputs_come_along():
    run, data = case("mlp")
    model = run.model()
    task, params, batch = task_of(data), trainable(model), data.batch(range(6))
    seen = list(captures(model, params, task, batch, find_layers(model), lambda y: (torch.ones_like(y), None)))
    assert len(seen) == 2
    assert len(seen[0]) == 6
    torch.testing.assert_close(seen[1].losses, losses(task, model, params, batch))
    assert not seen[0].outputs.requires_grad


def test_no_weight_gradient_is_computed():
    """No parameter enters the graph, so that autograd has nothing to compute for it."""
    run, data = case("conv2d plain")
    model = run.model()
    conv = model[0]
    found, seen = find_layers(model), []
    original = conv.forward

    def spy(x):
        seen.append((conv.weight.requires_grad, x.requires_grad))
        return original(x)

    conv.forward = spy
    collect(model, trainable(model), task_of(data), data.batch(range(6)), found)
    assert seen == [(False, False)]


class Functional(nn.Module):
    """Uses a weight outside its module."""

    def __init__(self, call):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.call = call

    def forward(self, x):
        y = F.linear(x, self.linear.weight)
        return self.linear(y) if self.call else y


def test_a_weight_used_behind_its_module_is_refused():
    data = dataset((3,))
    model = run_of(lambda: Functional(True), data).model()
    with pytest.raises(InfuserError, match=r"differ from autograd's.*linear\.weight.*also used outside its module"):
        verify(model, trainable(model), task_of(data), data.batch([0, 1]), find_layers(model))


def test_a_layer_that_is_never_called_is_refused():
    data = dataset((3,))
    run = run_of(lambda: Functional(False), data)
    with pytest.raises(InfuserError, match=r"never called by the model's forward pass.*linear.*names="):
        fit_ekfac(run, data)


class Mixes(nn.Module):
    """Puts tokens first, so that the leading axis does not belong to documents."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.linear(x.transpose(0, 1))).sum(0))


@pytest.mark.parametrize("tokens", [2, 4, 5])
def test_documents_off_the_first_axis_are_refused(tokens):
    data = dataset((tokens, 3))
    model = run_of(Mixes, data).model()
    with pytest.raises(InfuserError, match=r"cannot tell which document|differ from autograd's"):
        verify(model, trainable(model), task_of(data), data.batch([0, 1]), find_layers(model))


class Patches(nn.Module):
    """Learnt rows and columns of a grid: ids that all documents share and that do not count up."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.rows, self.columns = nn.Embedding(3, 3), nn.Embedding(2, 3)

    def forward(self, x):
        place = torch.arange(x.shape[1])
        return self.head(torch.tanh(self.linear(x) + self.rows(place // 2) + self.columns(place % 2)).sum(1))


class Category(nn.Module):
    """A category for each document, beside numbers."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.cat([self.table(x[:, 0].long()), x[:, 1:]], 1))


@pytest.mark.parametrize("documents", [1, 2, 3, 6])
@pytest.mark.parametrize("tokens", [2, 6])
def test_ids_of_positions_belong_to_all_documents_however_many_there_are(tokens, documents):
    data = dataset((tokens, 3))
    model = run_of(Patches, data).model()
    verify(model, trainable(model), task_of(data), data.batch(range(documents)), find_layers(model))


@pytest.mark.parametrize("documents", [1, 2, 3, 6])
@pytest.mark.parametrize("categories", [range(6), (3, 1, 4, 1, 5, 2)])
def test_ids_of_documents_are_theirs_even_where_they_count_up(categories, documents):
    numbers = dataset((3,))
    x = np.column_stack([np.array(categories), numbers.inputs[:, 1:]])
    data = Dataset(x, numbers.targets, "classification", 3)
    model = run_of(Category, data).model()
    verify(model, trainable(model), task_of(data), data.batch(range(documents)), find_layers(model))


@pytest.mark.parametrize("name", ["gpt", "bag"])
def test_as_many_documents_as_tokens_is_no_ambiguity(name):
    run, data = case(name, n=6)
    model = run.model()
    assert data.inputs.shape == (6, 6)
    verify(model, trainable(model), task_of(data), data.batch(range(6)), find_layers(model))
