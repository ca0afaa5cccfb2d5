"""The whole Gauss-Newton matrix, without approximating its structure: for small models, and to judge the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from infuser.checkpoints import Run
from infuser.curvature.collect import full_precision
from infuser.curvature.ekfac import origin_of
from infuser.curvature.factors import Pass
from infuser.curvature.operator import Origin, eigenbasis, require_regular
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import flatten, trainable, unflatten
from infuser.tasks import Labels, Task, plain_attention, task_of
from infuser.types import Batch, Damping, Params

_LARGEST = 20_000  # parameters: 3 GB for the matrix in float64


@dataclass(frozen=True, eq=False)
class Dense:
    """H = Q diag(lambda) Q^T over all trainable parameters together.

    Attributes:
        vectors: (P, P) eigenvectors in columns, in the order of params.flatten.
        eigenvalues: (P,).
        shapes: of the parameters, by name.
        origin: what it was made from.
        precision: of the gradients that H was summed from.
    """

    vectors: Tensor = field(repr=False)
    eigenvalues: Tensor = field(repr=False)
    shapes: dict[str, tuple[int, ...]]
    origin: Origin
    precision: torch.dtype = torch.float64

    def matvec(self, vectors: Params) -> Params:
        """Return H v for tensors (Q, *shape)."""
        return self._apply(vectors, self.eigenvalues)

    def solve(self, vectors: Params, damping: Damping) -> Params:
        """Return (H + damping)^-1 v; relative damping is c times the mean eigenvalue of the whole matrix.

        Raises:
            InfuserError: the damped matrix is singular.
        """
        return next(self.sweep(vectors, [damping]))

    def sweep(self, vectors: Params, dampings: Sequence[Damping]) -> Iterator[Params]:
        """Yield solve(vectors, damping) for each damping."""
        for damping in dampings:
            added = damping.value * (self.eigenvalues.mean() if damping.kind == "relative" else 1.0)
            total = self.eigenvalues + added
            require_regular("all parameters", total, damping, self.precision)
            yield self._apply(vectors, 1 / total)

    def matrix(self) -> Tensor:
        """Return H, (P, P)."""
        return (self.vectors * self.eigenvalues) @ self.vectors.T

    def _apply(self, vectors: Params, factors: Tensor) -> Params:
        if {name: tuple(v.shape[1:]) for name, v in vectors.items()} != self.shapes:
            got = {name: tuple(v.shape) for name, v in vectors.items()}
            raise InfuserError("vectors do not fit the dense curvature", got=got, expected=self.shapes)
        ordered = {name: vectors[name] for name in self.shapes}
        rotated = flatten(ordered, batch_dims=1).to(self.vectors) @ self.vectors
        result = (rotated * factors) @ self.vectors.T
        like = {name: value[0] for name, value in ordered.items()}
        return {name: value.to(vectors[name]) for name, value in unflatten(result, like).items()}

    def __str__(self) -> str:
        return str(self.origin)


@full_precision()
def fit_dense(run: Run, data: Dataset, *, labels: Labels = "exact", seed: int = 0, batch_size: int = 64) -> Dense:
    """Return (1/N) sum_n sum_c J_n^T c c^T J_n over documents and the output gradients c that `labels` names.

    With `exact` labels this is the Gauss-Newton matrix, which equals the Fisher matrix of these losses.

    Raises:
        InfuserError: the model has more than 20,000 trainable parameters, or a row is not finite.
    """
    model, task = run.model(), task_of(data)
    params = trainable(model)
    size = sum(p.numel() for p in params.values())
    if size > _LARGEST:
        raise InfuserError(
            "the model is too large for a dense curvature",
            got=f"{size} trainable parameters",
            expected=f"at most {_LARGEST}",
            remedy="use fit_ekfac",
        )
    how = Pass(labels, seed, batch_size)
    total = torch.zeros(size, size, dtype=torch.float64)
    for batch in data.batches(batch_size, run.device):
        for rows in _rows(model, params, task, batch, how):
            total += (rows.double().T @ rows.double()).cpu()
    eigenvalues, vectors = eigenbasis("all", (total / len(data)).unsqueeze(0))
    assert vectors is not None, "a square matrix has eigenvectors"
    shapes = {name: tuple(p.shape) for name, p in params.items()}
    origin = origin_of("dense", run, data, how, len(data))
    precision = next(iter(params.values())).dtype
    return Dense(vectors[0].to(run.device), eigenvalues[0].to(run.device), shapes, origin, precision)


def _rows(model: nn.Module, params: Params, task: Task, batch: Batch, how: Pass) -> Iterator[Tensor]:
    """Yield c^T J of every document, (B, P), for each set of output gradients c."""
    fed = task.feed(batch.inputs)
    with torch.no_grad():
        outputs = functional_call(model, params, (fed,))

    def one(x: Tensor, c: Tensor) -> Params:
        back = vjp(lambda p: functional_call(model, p, (x[None],))[0], params)[1]
        gradient: Params = back(c)[0]
        return gradient

    for cotangent in how.cotangents(task, batch)(outputs):
        with plain_attention():
            rows = flatten(vmap(one)(fed, cotangent), batch_dims=1)
        yield rows
