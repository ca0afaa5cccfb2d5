"""Small trained runs and plain oracles that the tests of attribution share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from infuser import data, models
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.measure import Margin
from infuser.params import flatten, trainable, unflatten
from infuser.tasks import task_of
from infuser.training import train
from infuser.types import Damping, Params, Recipe

MODELS = {
    "mlp": partial(models.mlp, hidden=(12,)),
    "simple_cnn": partial(models.simple_cnn, width=4),
    "tiny_resnet": partial(models.tiny_resnet, width=4),
}


@dataclass(frozen=True)
class Dense:
    """A (P, P) matrix as a curvature: solves by numpy in float64, nothing shared with the code under test."""

    matrix: np.ndarray
    like: Params

    def matvec(self, vectors: Params) -> Params:
        return self._apply(vectors, self.matrix)

    def solve(self, vectors: Params, damping: Damping) -> Params:
        assert damping.kind == "absolute", "a dense matrix has no layers to be relative to"
        return self._apply(vectors, np.linalg.inv(self.matrix + damping.value * np.eye(len(self.matrix))))

    def _apply(self, vectors: Params, matrix: np.ndarray) -> Params:
        flat = flatten({name: vectors[name] for name in self.like}, batch_dims=1)
        return unflatten(torch.from_numpy(flat.double().numpy() @ matrix).to(flat.dtype), self.like)


@cache
def digits_run(name: str, documents: int = 60, epochs: int = 2) -> tuple[Run, Dataset, Margin]:
    """Return (run, its training data, three probes towards a wrong label)."""
    train_set, test_set = data.digits()
    few = train_set[train_set.ids[:documents]]
    probes = test_set[test_set.ids[:3]]
    run = train(MODELS[name], few, Recipe(epochs=epochs, batch_size=8, lr=0.05, seed=1))
    return run, few, Margin(probes, labels=(probes.targets + 1) % 10)


def loss_gradients(model: nn.Module, params: Params, documents: Dataset) -> Params:
    """Return every document's gradient by vmap(grad) of a loss written out here, tensors (N, *shape)."""
    task = task_of(documents)
    batch = documents.batch(np.arange(len(documents)))

    def one(p: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(model, p, (x[None],))
        if documents.kind == "classification":
            return -outputs.log_softmax(1)[0].gather(0, y[None])[0]
        return ((outputs[0] - y) ** 2).sum() / 2

    return vmap(grad(one), in_dims=(None, 0, 0))(params, task.feed(batch.inputs), batch.targets)


def random_vectors(params: Params, queries: int, seed: int = 0) -> Params:
    """Return vectors (Q, *shape) of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(queries, *value.shape, generator=generator, dtype=value.dtype)
        for name, value in params.items()
    }


def products(vectors: Params, rows: Params) -> torch.Tensor:
    """Return <v_q, g_i> in float64, shape (Q, N)."""
    return flatten(vectors, 1).double() @ flatten({name: rows[name] for name in vectors}, 1).double().T


def params_of(run: Run) -> tuple[nn.Module, Params]:
    model = run.model()
    return model, trainable(model)
