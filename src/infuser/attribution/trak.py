"""TRAK: influence in a random projection of the gradients, averaged over checkpoints and over runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from infuser.attribution.influence import probe_gradients
from infuser.attribution.per_document import cover_if_possible, gradients
from infuser.attribution.tracin import select
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import rows_of, trainable
from infuser.tasks import task_of
from infuser.types import Array, Measurement, Params, Scores

_SIGNS = 8  # non-zero entries a parameter in the projection


@dataclass(frozen=True)
class TRAK:
    """score_qi = phi(f_q)^T (Phi^T Phi + ridge)^-1 phi_i r_i, means of both factors over an ensemble.

    phi_i is the projected gradient of document i's model output o and r_i = -dL/do, so that the score has the sign of
    -<H^-1 grad f, grad L_i>: positive = up-weighting the document raises f. For classification o is the log-odds of the
    true label and r_i = 1 - p_i; for other tasks o is minus the loss and r_i = 1, that is the empirical Fisher.

    Args:
        dim: D of the projection.
        seed: of the projection, which is the same for every member of the ensemble.
        checkpoints: indices into run.checkpoints; the last by default.
        ridge: added to the kernel's diagonal, as a multiple of its mean: it makes D > N solvable.
        ensemble: further runs (other seeds) to average over.
        batch_size: documents a pass; nothing larger than this times P is held.

    Source: Park et al., arXiv 2303.14186, equations 13 and 17. The projection is the sparse one of Kane and Nelson,
    J. ACM 61 (2014): 8 signs a parameter, instead of P x D of them.
    """

    dim: int = 512
    seed: int = 0
    checkpoints: tuple[int, ...] = (-1,)
    ridge: float = 0.01
    ensemble: tuple[Run, ...] = ()
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, value, least in (("dim", self.dim, 1), ("ridge", self.ridge, 0), ("batch_size", self.batch_size, 1)):
            if not least <= value < float("inf"):
                raise InfuserError(f"{name} of TRAK is out of range", got=value, expected=f"at least {least}")

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return the scores of every query and document, shape (Q, N).

        Raises:
            InfuserError: a checkpoint is not in a run, or the kernel is singular.
        """
        kernels: list[Array] = []
        residuals: list[Array] = []
        names: tuple[str, ...] = ()
        for member in (run, *self.ensemble):
            for checkpoint in select(member, self.checkpoints):
                model = member.model(checkpoint)
                params = trainable(model)
                projection = sparse_projection(sum(value.numel() for value in params.values()), self.dim, self.seed)
                rows, names = probe_gradients(model, params, probes)
                features, residual = self._features(model, params, data, projection)
                kernels.append(self._solve(_project(rows, projection), features))
                residuals.append(residual)
        values = np.mean(kernels, axis=0) * np.mean(residuals, axis=0)
        unit = f"change of f [{getattr(probes, 'unit', 'its own')}] up to a factor"
        return Scores(values, data.ids, f"TRAK, {self.dim} dimensions, {len(kernels)} models", unit, names)

    def _features(self, model: nn.Module, params: Params, data: Dataset, projection: Any) -> tuple[Array, Array]:
        """Return (Phi (N, D), r (N,))."""
        task = task_of(data)
        output = _log_odds if data.kind == "classification" else lambda outputs, targets: -task.loss(outputs, targets)
        device = str(next(iter(params.values())).device)
        layers = cover_if_possible(model, params, data)
        features, residual = [], []
        for batch in data.batches(self.batch_size, device):
            features.append(_project(gradients(model, params, task, batch, layers, output=output), projection))
            if data.kind == "classification":
                with torch.no_grad():
                    log_odds = _log_odds(
                        torch.func.functional_call(model, params, (task.feed(batch.inputs),)), batch.targets
                    )
                residual.append(torch.sigmoid(-log_odds).double().cpu().numpy())
            else:
                residual.append(np.ones(len(batch)))
        return np.concatenate(features), np.concatenate(residual)

    def _solve(self, queries: Array, features: Array) -> Array:
        """Return phi(f)^T (Phi^T Phi + ridge)^-1 Phi^T, shape (Q, N)."""
        kernel = features.T @ features
        kernel[np.diag_indices(self.dim)] += self.ridge * np.trace(kernel) / self.dim
        try:
            solved: Array = np.linalg.solve(kernel, queries.T).T
        except np.linalg.LinAlgError as error:
            raise InfuserError(
                "the kernel of TRAK is singular",
                got=f"ridge = {self.ridge:g}, {len(features)} documents, dim = {self.dim}",
                causes=["fewer documents than dimensions", "the gradients are all zero"],
                remedy="use a positive ridge or a smaller dim",
            ) from error
        return solved @ features.T


def sparse_projection(size: int, dim: int, seed: int) -> Any:
    """Return a random (D, P) sparse matrix S with E[<S x, S y>] = <x, y>: 8 entries of +-1/sqrt(8) a column.

    >>> x = np.ones(1000)
    >>> bool(abs(np.sum((sparse_projection(1000, 256, seed=0) @ x) ** 2) / 1000 - 1) < 0.3)
    True
    """
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, dim, (size, _SIGNS), dtype=np.int32)
    signs = (generator.integers(0, 2, (size, _SIGNS), dtype=np.int8) * 2 - 1).astype(np.float32) / np.float32(
        _SIGNS**0.5
    )
    columns = np.repeat(np.arange(size, dtype=np.int32), _SIGNS)
    return csr_array((signs.ravel(), (rows.ravel(), columns)), shape=(dim, size))


def _project(rows: Params, projection: Any) -> Array:
    """Return the projections of tensors (B, *shape), shape (B, D), in float64."""
    flat = torch.cat([rows_of(value) for value in rows.values()], dim=1)
    projected: Array = projection @ np.ascontiguousarray(flat.cpu().numpy().T)
    return projected.T.astype(np.float64)


def _log_odds(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return log p - log(1 - p) of the true labels, shape (B,)."""
    column = targets[:, None]
    return (outputs.gather(1, column) - outputs.scatter(1, column, float("-inf")).logsumexp(1, keepdim=True))[:, 0]
