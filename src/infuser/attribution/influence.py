"""Influence functions: what happens to f when a document counts twice, to first order at the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from infuser import measure
from infuser.attribution.per_document import cover_if_possible, covered, evaluating, gradients
from infuser.attribution.scoring import Via, inner_products
from infuser.checkpoints import Run
from infuser.curvature.collect import Captured, collect, full_precision
from infuser.curvature.find import find_layers
from infuser.curvature.forms import MatrixForm
from infuser.curvature.layers import MatrixLayer
from infuser.curvature.operator import Block, KroneckerEigen
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.executors import Executor
from infuser.params import rows_of, trainable
from infuser.tasks import task_of
from infuser.types import Curvature, Damping, Direction, Measurement, Params, Scores

_MANY = 4  # queries from which on their gradients are taken together
_TOGETHER = 16  # of them at a time


@dataclass(frozen=True)
class Influence:
    """score_i = -(1/N) <v, grad L_i> with v = (H + damping)^-1 grad f, at the last checkpoint.

    At a converged convex optimum this is the change of f, in its own unit, when document i counts twice; removing it
    gives minus that. Elsewhere scores rank.

    Args:
        curvature: H, fitted on the run's training data.
        damping: what is added to the eigenvalues of H; a number is relative to their mean per layer.
        via: how the inner products are computed; auto chooses by cost (see scoring.plan).
        executor: where the shards of the documents are read.
        shards: parts that the documents are cut into, each a job; scores do not depend on it, not in one bit.

    Source: Koh and Liang, arXiv 1703.04730, equation 2 (there for an infinitesimal weight, with the sign of a loss).
    """

    curvature: Curvature
    damping: Damping | float = 0.1
    via: Via = "auto"
    executor: Executor | None = field(default=None, repr=False)
    shards: int = field(default=1, repr=False)

    @full_precision()
    def direction(self, run: Run, probes: Measurement) -> Direction:
        """Return v = (H + damping)^-1 grad f at the last checkpoint, one row per query.

        Raises:
            InfuserError: f or its gradient is not finite, or f does not depend on the trained parameters.
        """
        model = run.model()
        rows, names = probe_gradients(model, trainable(model), probes)
        solved = self.curvature.solve(rows, _damping(self.damping))
        return Direction(solved, names, f"{_named(self.curvature)}, damping {_damping(self.damping)}")

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return -(1/N) <v_q, grad L_i> of each document; N is the training set's, of which `data` may be a part."""
        return self.score_direction(run, data, self.direction(run, probes), getattr(probes, "unit", "its own"))

    def score_direction(self, run: Run, data: Dataset, direction: Direction, unit: str = "its own") -> Scores:
        """Return the scores of a direction that is already at hand (its mean, or one loaded from disk)."""
        model = run.model()
        products = inner_products(
            model, trainable(model), data, direction.params, self.via, executor=self.executor, shards=self.shards
        )
        return Scores(
            (products / -(run.n_documents or len(data))).cpu().numpy(),
            data.ids,
            f"influence with {direction.made_by}",
            f"change of f [{unit}] when the document counts twice",
            direction.names,
        )


@full_precision()
def self_influence(
    curvature: Curvature, damping: Damping | float, run: Run, data: Dataset, *, batch_size: int = 32
) -> Scores:
    """Return g_i^T (H + damping)^-1 g_i with g_i = grad L_i, shape (1, N).

    Always at least 0. By Influence's formula with f = -L_i (so that raising f lowers the document's own loss) the score
    of document i on itself is this value over N; the sign is that of `measure.Losses`. High values are documents that
    the model could fit only by knowing them: mislabelled and rare ones.

    Documents are read once; at any time `batch_size` gradients are held.

    Raises:
        InfuserError: the data do not fit the run.
    """
    from infuser.attribution.attribute import _check_fit, _check_weights

    _check_fit(run, data)
    _check_weights(run.checkpoints[-1].weights)
    model = run.model()
    params = trainable(model)
    rows: Any = _in_eigenbasis if isinstance(curvature, KroneckerEigen) else _by_solving
    values = rows(curvature, _damping(damping), model, params, data, batch_size)
    return Scores(
        torch.cat(list(values)).cpu().numpy()[None],
        data.ids,
        f"self-influence with {_named(curvature)}, damping {_damping(damping)}",
        "N times the fall of the document's own loss when it counts twice",
        ("itself",),
    )


def _by_solving(
    curvature: Curvature, damping: Damping, model: nn.Module, params: Params, data: Dataset, batch_size: int
) -> Iterator[Tensor]:
    """Yield <g, (H + damping)^-1 g> of each batch for any curvature: its gradients are its queries."""
    layers = cover_if_possible(model, params, data)
    for batch in data.batches(batch_size, str(next(iter(params.values())).device)):
        rows = gradients(model, params, task_of(data), batch, layers)
        solved = curvature.solve(rows, damping)
        yield torch.stack([rows_of(rows[name] * value).sum(1) for name, value in solved.items()]).sum(0)


def _in_eigenbasis(
    curvature: KroneckerEigen, damping: Damping, model: nn.Module, params: Params, data: Dataset, batch_size: int
) -> Iterator[Tensor]:
    """Yield sum_ij (Q_S^T G Q_A)_ij^2 / (lambda_ij + damping) of each batch: one rotation, and nothing rotated back."""
    # The model's own layers: those of the fit hold the running statistics of the model that was fitted.
    names = [name for block in curvature.blocks for name in block.layer.names]
    own = {layer.names: layer for layer in find_layers(model, names)}
    blocks = [replace(block, layer=own[block.layer.names]) for block in curvature.blocks]
    inverse = [1 / block.damped(damping) for block in blocks]
    layers = [block.layer for block in blocks]
    for batch in data.batches(batch_size, str(next(iter(params.values())).device)):
        captured = collect(model, params, task_of(data), batch, layers)
        yield torch.stack(
            [_weighted_squares(block, captured, w) for block, w in zip(blocks, inverse, strict=True)]
        ).sum(0)


def _weighted_squares(block: Block, captured: Captured, weights: Tensor) -> Tensor:
    a, g = captured[block.layer]
    if isinstance(block.layer, MatrixLayer) and len(a) == 1:
        left, right = cast(MatrixForm, a[0].form).pair(a[0].x, g[0])
        if right.shape[2] == 1 and isinstance(left, Tensor):
            # Rank one: the square of a product is the product of squares, and the gradient is never formed.
            rows = left if block.left is None else left @ block.left
            columns = right if block.right is None else right @ block.right
            return ((rows.square() @ weights) * columns.square()).flatten(1).sum(1)
    return (block.rotate(block.layer.matrices(a, g)).square() * weights).flatten(1).sum(1)


@full_precision()
def probe_gradients(model: nn.Module, params: Params, probes: Measurement) -> tuple[Params, tuple[str, ...]]:
    """Return (grad f with tensors (Q, *shape), the names of the queries), checked.

    Raises:
        InfuserError: a gradient is not finite, or f does not depend on the parameters at all.
    """
    constant = InfuserError(
        f"the measurement {probes.name} has no gradient by the weights",
        causes=["it is a count (argmax)", "it saturates at every query"],
        remedy="measure log-odds (measure.Margin) or log-probabilities (measure.LogProb)",
    )
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    first = probes[:1] if isinstance(probes, measure.PerDocument) else probes
    if not first(model, leaves).requires_grad:
        raise constant
    rows = _together(model, params, probes) or measure.gradients(probes, model, params)[0]
    names = measure.query_names(probes, len(next(iter(rows.values()))))
    size = torch.stack([rows_of(value).abs().amax(1) for value in rows.values()]).amax(0)
    bad = [name for name, s in zip(names, size.tolist(), strict=True) if not s < float("inf")]
    if bad:
        raise InfuserError(
            f"the gradient of the measurement is not finite for {len(bad)} of {len(names)} queries",
            got=listed(bad),
            causes=["the model diverged", "the measurement takes the logarithm of 0"],
            remedy="look at the measurement's values at these queries",
        )
    if not size.any():
        raise constant
    return rows, names


def _together(model: nn.Module, params: Params, probes: Measurement) -> Params:
    """Return grad f of every query, (Q, *shape), a batch of documents at a time; empty where that is not possible."""
    if not isinstance(probes, measure.PerDocument) or len(probes) < _MANY:
        return {}
    layers = cover_if_possible(model, params, probes.documents)
    if not covered(layers).issuperset(params):
        return {}
    parts = []
    with evaluating(model):
        for start in range(0, len(probes), _TOGETHER):
            some = probes[start : start + _TOGETHER]
            batch = some.documents.batch(np.arange(len(some)), str(next(iter(params.values())).device))
            parts.append(gradients(model, params, task_of(some.documents), batch, layers, output=some.read))
    return {name: torch.cat([part[name] for part in parts]) for name in params}


def _damping(damping: Damping | float) -> Damping:
    return damping if isinstance(damping, Damping) else Damping(float(damping))


def _named(curvature: Curvature) -> str:
    said = str(curvature) if type(curvature).__str__ is not object.__str__ else ""
    return said if 0 < len(said) < 200 and "0x" not in said else type(curvature).__name__
