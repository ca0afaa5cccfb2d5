"""What the expensive steps cost, in multiplications: counted, so that no machine's speed enters.

The unit is one forward pass of the same model over the same documents, as in docs/performance.md, where times stand.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.params import trainable
from infuser.perturbation.document_gradient import document_gradient
from infuser.tasks import task_of

N = 96


@pytest.fixture(scope="module")
def made():
    """A TinyResNet of width 32 on 32 x 32 pixels: (run, data, multiplications of a forward pass)."""
    rng = np.random.default_rng(0)
    data = inf.Dataset.from_arrays(rng.integers(0, 256, (N, 3, 32, 32), dtype=np.uint8), np.arange(N) % 10)
    torch.manual_seed(0)
    model = inf.models.tiny_resnet(data.input_shape, data.n_outputs)
    run = inf.Run.from_weights(inf.models.tiny_resnet, model.state_dict(), data)
    one = count(lambda: run.model()(torch.zeros(N, 3, 32, 32)))
    return run, data, one


class Counting(TorchDispatchMode):
    """Add up the floating-point operations of convolutions and matrix products, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            given = {name: value for name, value in (kwargs or {}).items() if name != "out"}
            self.total += formula(*args, **given, out_val=out)
        return out


def count(call) -> int:
    with Counting() as counting:
        call()
    return counting.total


def scores(made, queries, documents=N):
    run, data, _ = made
    model = run.model()
    params = trainable(model)
    v = {name: torch.ones(queries, *value.shape) for name, value in params.items()}
    return count(lambda: inner_products(model, params, data[data.ids[:documents]], v, "captured"))


def test_a_forward_pass_is_what_the_literature_says(made):
    # 49 million multiply-adds a document, two operations each.
    assert made[2] / N == pytest.approx(2 * 49e6, rel=0.01)


@pytest.mark.parametrize(("queries", "most"), [(2, 3.2), (64, 3.6)])
def test_scores_read_the_documents_once(made, queries, most):
    """A forward pass, a backward pass to activations, the documents' gradients; a query adds P multiply-adds."""
    assert scores(made, queries) / made[2] < most


def test_a_query_more_costs_its_parameters_alone(made):
    run, _, _ = made
    parameters = sum(p.numel() for p in trainable(run.model()).values())
    extra = (scores(made, 64) - scores(made, 32)) / 32
    assert extra == pytest.approx(2 * parameters * N, rel=0.05)


def test_scores_grow_linearly_with_documents(made):
    fixed = 2 * scores(made, 8, N // 2) - scores(made, 8, N)  # the check against autograd, on a few documents
    assert 0 <= fixed < 17 * made[2] / N


def test_the_fit_reads_rows_of_an_image_together(made):
    run, data, one = made
    assert count(lambda: inf.fit_ekfac(run, data, positions=None)) / one < 11.8
    # Positions are sampled in the input factor alone.
    assert count(lambda: inf.fit_ekfac(run, data)) / one < 9.1


def test_the_fit_costs_in_proportion_to_its_documents(made):
    run, data, _ = made
    half, whole = (count(lambda n=n: inf.fit_ekfac(run, data, documents=n)) for n in (N // 2, N))
    assert half == pytest.approx(whole / 2, rel=0.05)


def test_a_document_gradient_is_two_gradients(made):
    run, data, one = made
    model = run.model()
    params = trainable(model)
    v = {name: torch.ones_like(value) for name, value in params.items()}
    batch = data.batch(range(N))
    cost = count(lambda: document_gradient(model, params, task_of(data), batch, v, n=N))
    assert cost / one == pytest.approx(4, rel=0.02)
