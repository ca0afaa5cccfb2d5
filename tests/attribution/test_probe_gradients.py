"""Gradients of many queries at once against autograd's, one query at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from infuser import measure
from infuser.attribution import influence
from infuser.attribution.influence import probe_gradients
from infuser.attribution.scoring import contract, inner_products, squared_norms
from infuser.attribution.similarity import GradientSimilarity
from infuser.attribution.trak import TRAK
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.models.gpt import tiny_gpt
from infuser.params import flatten, trainable
from tests.attribution.small import MODELS, digits_run, params_of

MEASUREMENTS = (measure.LogProb, measure.Probability, measure.Margin, measure.Contrastive, measure.Losses)


def queries(kind: type, documents: Dataset) -> measure.PerDocument:
    if kind is measure.Losses:
        return measure.Losses(documents)
    return kind(documents, labels=(documents.targets + 1) % 10)


def differ(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    return max(float((got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-6)) for name in want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_together_they_are_what_autograd_gives_one_by_one(
    name: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data, _ = digits_run(name)
    model, params = params_of(run)
    probes = queries(kind, data[data.ids[:21]])  # a full batch and a part of one
    got, names = probe_gradients(model, params, probes)
    assert names == probes.queries
    monkeypatch.setattr(influence, "_MANY", 10**6)
    want, _ = probe_gradients(model, params, probes)
    assert differ(got, want) < 1e-4
    # The negative: the order of the queries counts.
    assert differ({key: value.flip(0) for key, value in got.items()}, want) > 0.1


def test_they_are_taken_together_and_not_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    passes = []
    model.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    probe_gradients(model, params, measure.Margin(data[data.ids[:40]]))
    # One document for whether there is a gradient, two and two for the layers' check, then batches.
    assert passes == [1, 2, 2, 16, 16, 8]


def test_sequences_with_padding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 11, (6, 9))
    inputs[2, 5:] = -1
    data = Dataset(inputs, np.where(inputs < 0, -100, inputs), "causal_lm", 11)
    model = tiny_gpt((9,), 11, depth=1, heads=2, width=8).eval()
    got, _ = probe_gradients(model, trainable(model), measure.Losses(data))
    monkeypatch.setattr(influence, "_MANY", 10**6)
    assert differ(got, probe_gradients(model, trainable(model), measure.Losses(data))[0]) < 1e-4


class _Scaled(nn.Module):
    """A network with a parameter that no layer covers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale * x.flatten(1))


def test_parameters_outside_all_layers_go_one_by_one() -> None:
    _, data, _ = digits_run("mlp")
    torch.manual_seed(0)
    model = _Scaled().eval()
    probes = measure.LogProb(data[data.ids[:9]])
    got, _ = probe_gradients(model, trainable(model), probes)
    want, _ = measure.gradients(probes, model, trainable(model))
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert got["scale"].abs().min() > 0


def test_a_parameter_that_is_a_single_number_counts_everywhere() -> None:
    _, data, _ = digits_run("mlp")
    few = data[data.ids[:6]]
    torch.manual_seed(0)
    model = _Scaled().eval()
    params = trainable(model)
    want, _ = measure.gradients(measure.Losses(few), model, params)  # minus the gradients of the losses
    vectors = {name: torch.randn(3, *value.shape) for name, value in params.items()}
    by_hand = -torch.stack(
        [sum((vectors[n][q] * want[n]).flatten(0).reshape(6, -1).sum(1) for n in params) for q in range(3)]
    )
    for via in ("auto", "captured", "jvp", "vmap"):
        torch.testing.assert_close(inner_products(model, params, few, vectors, via), by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(contract(vectors, want), -by_hand, rtol=1e-4, atol=1e-5)
    norms = flatten(want, 1).square().sum(1)
    torch.testing.assert_close(squared_norms(model, params, few), norms, rtol=1e-4, atol=1e-5)
    assert float((norms - flatten({"head.weight": want["head.weight"]}, 1).square().sum(1)).min()) > 0
    run = Run.from_weights(lambda shape, n: _Scaled(), dict(params), few)
    for method in (TRAK(dim=8), GradientSimilarity()):
        assert np.isfinite(method.score(run, few, measure.LogProb(few)).values).all()


def test_a_slice_of_a_measurement_is_the_measurement_of_its_documents() -> None:
    run, data, _ = digits_run("mlp")
    model, params = params_of(run)
    for kind in MEASUREMENTS:
        probes = queries(kind, data[data.ids[:7]])
        torch.testing.assert_close(probes[2:5](model, params), probes(model, params)[2:5])
        assert probes[2:5].queries == probes.queries[2:5]
        assert [q.queries for q in probes] == [(name,) for name in probes.queries]
