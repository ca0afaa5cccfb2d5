"""Influence functions: what happens to f when a document counts twice, to first order at the trained weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from infuser import measure
from infuser.attribution.per_document import cover_if_possible, gradients
from infuser.attribution.scoring import Via, inner_products
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.tasks import task_of
from infuser.types import Array, Curvature, Damping, Direction, Measurement, Params, Scores


@dataclass(frozen=True)
class Influence:
    """score_i = -(1/N) <v, grad L_i> with v = (H + damping)^-1 grad f, at the last checkpoint.

    At a converged convex optimum this is the change of f, in its own unit, when document i counts twice; removing it
    gives minus that. Elsewhere scores rank.

    Args:
        curvature: H, fitted on the run's training data.
        damping: what is added to the eigenvalues of H; a number is relative to their mean per layer.
        via: how the inner products are computed; auto chooses by cost (see scoring.plan).

    Source: Koh and Liang, arXiv 1703.04730, equation 2 (there for an infinitesimal weight, with the sign of a loss).
    """

    curvature: Curvature
    damping: Damping | float = 0.1
    via: Via = "auto"

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
        """Return -(1/N) <v_q, grad L_i>, shape (Q, N)."""
        return self.score_direction(run, data, self.direction(run, probes), getattr(probes, "unit", "its own"))

    def score_direction(self, run: Run, data: Dataset, direction: Direction, unit: str = "its own") -> Scores:
        """Return the scores of a direction that is already at hand (its mean, or one loaded from disk)."""
        model = run.model()
        products = inner_products(model, trainable(model), data, direction.params, self.via)
        return Scores(
            (products / -len(data)).cpu().numpy(),
            data.ids,
            f"influence with {direction.made_by}",
            f"change of f [{unit}] when the document counts twice",
            direction.names,
        )


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
    model, task = run.model(), task_of(data)
    params = trainable(model)
    layers = cover_if_possible(model, params, data)
    values = []
    for batch in data.batches(batch_size, run.device):
        rows = gradients(model, params, task, batch, layers)
        solved = curvature.solve(rows, _damping(damping))
        # Over the names that the curvature gave back: it names what it does not cover in its own warning.
        values.append(sum((rows[name] * value).flatten(1).sum(1) for name, value in solved.items()))
    return Scores(
        torch.cat(cast("list[torch.Tensor]", values)).cpu().numpy()[None],
        data.ids,
        f"self-influence with {_named(curvature)}, damping {_damping(damping)}",
        "N times the fall of the document's own loss when it counts twice",
        ("itself",),
    )


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
    if not probes(model, leaves).requires_grad:
        raise constant
    rows, values = measure.gradients(probes, model, params)
    names = measure.query_names(probes, len(values))
    size = torch.stack([value.flatten(1).abs().amax(1) for value in rows.values()]).amax(0)
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


def _damping(damping: Damping | float) -> Damping:
    return damping if isinstance(damping, Damping) else Damping(float(damping))


def _named(curvature: Curvature) -> str:
    return str(getattr(curvature, "name", type(curvature).__name__))


def as_array(values: torch.Tensor) -> Array:
    """Return a tensor as an array on the CPU."""
    return cast(Array, values.detach().cpu().numpy())
