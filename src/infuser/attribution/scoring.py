"""All inner products <v_q, grad L_i> of Q vectors with N documents' gradients; the training set is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp

from infuser import params as algebra
from infuser.attribution.per_document import by_vmap, cover, cover_if_possible, covered, evaluating
from infuser.checkpoints import Run
from infuser.curvature.collect import collect, full_precision
from infuser.curvature.layers import Layer
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.executors import Executor, Local
from infuser.tasks import Task, losses, plain_attention, task_of
from infuser.types import Batch, Params

Via = Literal["auto", "captured", "jvp", "central", "vmap"]
_WAYS = ("captured", "jvp", "central", "vmap")
_STEP = {torch.float64: 1e-3}  # |h v| of the largest central difference used, in units of the parameters ...
_COARSE = 0.05  # ... and for every other dtype, whose rounding is the larger error
_GOOD = 0.005  # a relative error below which no smaller step is tried
_TOLERANCE = 0.01  # the largest relative error of a central difference that is accepted
_BATCH = 32  # documents a pass: what keeps activations near the cache; results do not depend on it
_CHECKED = 16  # documents that the step is checked on


@dataclass(frozen=True)
class Plan:
    """How inner products will be computed, and why; printable.

    Attributes:
        via: captured (per-document gradients from a layer's inputs and output gradients), jvp (forward mode along v),
            central (losses at theta +- h v) or vmap (per-document gradients by vmap(grad)).
        queries: Q, rows of v that are not zero everywhere.
        documents: N.
        batch_size: documents a pass.
        names: the parameters that `via` covers.
        rest: further parameters with a non-zero v that no layer covers; they go by `rest_via`.
        rest_via: jvp or vmap; "" where there is no rest.
        reason: why this way.
        layers: what captured reads.
    """

    via: str
    queries: int
    documents: int
    batch_size: int
    names: tuple[str, ...]
    rest: tuple[str, ...] = ()
    rest_via: str = ""
    reason: str = ""
    layers: tuple[Layer, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        rest = f", {len(self.rest)} parameters outside them by {self.rest_via}" if self.rest else ""
        return (
            f"{self.queries} queries x {self.documents} documents via {self.via} in batches of {self.batch_size}"
            f" ({len(self.names)} parameters{rest}): {self.reason}"
        )


def plan(model: nn.Module, params: Params, data: Dataset, vectors: Params, via: Via = "auto") -> Plan:
    """Return how `inner_products` will compute the products of `vectors` (Q, *shape).

    Costs in forward passes over the data, by arithmetic: central 2 a query; jvp 5 a query; captured 3 (a forward, a
    backward to activations, a contraction) and little a query; vmap some 6 and little a query. So central is used for
    one query and captured for more; where layers do not cover a parameter, vmap takes it, or jvp up to 2 queries.

    Raises:
        InfuserError: `via` is unknown, a vector's name or shape is not a parameter's, or captured was asked for and no
            layer covers a parameter.
    """
    _check_vectors(params, vectors)
    if via != "auto" and via not in _WAYS:
        raise InfuserError("unknown way to compute inner products", got=via, expected=("auto", *_WAYS))
    queries = len(next(iter(vectors.values())))
    # The first query nearly always answers; reading all Q x P numbers would cost a tenth of a forward pass.
    used = tuple(name for name, value in vectors.items() if value[:1].any() or value.any())
    made = Plan(str(via), queries, len(data), min(len(data), _BATCH), used, reason="asked for")
    if via == "auto" and queries == 1:
        return replace(
            made, via="central", reason="2 forward passes for one query; falls back where its error is large"
        )
    if via not in ("auto", "captured") or not used:
        return made if used else replace(made, via="central", reason="all vectors are zero")
    return _exact(made, model, params, data, strict=via == "captured")


def _exact(made: Plan, model: nn.Module, params: Params, data: Dataset, *, strict: bool = False) -> Plan:
    """Return the plan with captured where layers allow, and vmap or jvp for everything else."""
    other = "jvp" if made.queries <= 2 else "vmap"
    try:
        layers = cover(model, params, data, made.names)
    except InfuserError as error:
        if strict:
            raise
        return replace(made, via=other, reason=f"not captured, as {error.fact}")
    inside = covered(layers)
    rest = tuple(name for name in made.names if name not in inside)
    return replace(
        made,
        via="captured",
        names=tuple(name for name in made.names if name in inside),
        rest=rest,
        rest_via=other if rest else "",
        layers=layers,
        reason="asked for" if strict else "a query costs little once the documents' gradients are formed",
    )


def inner_products(
    run_or_model: Run | nn.Module,
    params: Params,
    data: Dataset,
    vectors: Params,
    via: Via = "auto",
    *,
    executor: Executor | None = None,
    shards: int = 1,
) -> Tensor:
    """Return <v_q, grad L_i> for every query and document, shape (Q, N), on the parameters' device.

    Args:
        run_or_model: the model, or a run, whose last checkpoint is taken. The mode that it is in is put back.
        params: theta, where gradients are taken.
        data: N documents.
        vectors: v, tensors (Q, *shape) by name; a parameter that is missing counts as v = 0.
        via: auto chooses by cost; see `plan`. central raises where its error is too large, auto falls back.
        executor: where the shards are read.
        shards: parts that the documents are cut into, between batches: the products are the same, bit for bit.

    Within `torch.autocast` the passes through the model run in half precision, the products themselves do not; worker
    processes of an executor do not know of it.

    Raises:
        InfuserError: as `plan`; or a central difference disagrees with that of twice its step by more than 1 %.
    """
    model = run_or_model.model() if isinstance(run_or_model, Run) else run_or_model
    chosen = plan(model, params, data, vectors, via)
    step = 0.0
    with evaluating(model):
        if chosen.via == "central":
            step, error = central_step(model, params, data, vectors)
            if error > _TOLERANCE and via == "central":
                raise _rough(step, error)
            if error > _TOLERANCE:
                chosen = _exact(chosen, model, params, data)
        starts = np.arange(0, len(data), chosen.batch_size)
        cuts = [(part[0], part[-1] + chosen.batch_size) for part in np.array_split(starts, shards) if len(part)]
        if len(cuts) == 1:
            return _run(chosen, model, params, data, vectors, step)
        job = partial(_shard, chosen, model, params, data, vectors, step)
        return torch.cat(list((executor or Local()).map(job, cuts)), dim=1).to(_device(params))


def _shard(
    made: Plan, model: nn.Module, params: Params, data: Dataset, vectors: Params, step: float, cut: tuple[int, int]
) -> Tensor:
    """Return the products of the documents at positions from cut[0] to cut[1], on the CPU."""
    part = data[data.ids[cut[0] : cut[1]]]
    with evaluating(model):
        return _run(made, model, params, part, vectors, step).cpu()


def by_layer(
    run_or_model: Run | nn.Module, params: Params, data: Dataset, vectors: Params
) -> dict[tuple[str, ...], Tensor]:
    """Return the inner products split by layer: (Q, N) for the names of each layer's parameters; they sum to the whole.

    Parameters outside all layers come last, under their own names together.

    Raises:
        InfuserError: as `inner_products` with via='captured'.
    """
    model = run_or_model.model() if isinstance(run_or_model, Run) else run_or_model
    chosen = plan(model, params, data, vectors, "captured")
    with evaluating(model):
        matrices = [layer.to_matrix(_filled(vectors, layer, params)) for layer in chosen.layers]
        rows = [
            torch.stack(_by_captured(model, params, batch, data, chosen.layers, matrices))
            for batch in data.batches(chosen.batch_size, _device(params))
        ]
        split = dict(zip([layer.names for layer in chosen.layers], torch.cat(rows, dim=2), strict=True))
        if chosen.rest:
            remainder = {name: vectors[name] for name in chosen.rest}
            split[chosen.rest] = inner_products(model, params, data, remainder, "jvp")
    return split


def squared_norms(run_or_model: Run | nn.Module, params: Params, data: Dataset) -> Tensor:
    """Return |grad L_i|^2 of every document, shape (N,); gradients are not formed where Gram matrices are cheaper."""
    model = run_or_model.model() if isinstance(run_or_model, Run) else run_or_model
    task = task_of(data)
    parts = []
    with evaluating(model):
        layers = cover_if_possible(model, params, data)
        inside = covered(layers)
        rest = {name: value for name, value in params.items() if name not in inside}
        held = {name: value for name, value in params.items() if name in inside}
        for batch in data.batches(_BATCH, _device(params)):
            squares = []
            if layers:
                captured = collect(model, params, task, batch, layers)
                squares += [layer.self_ghost(*captured[layer]) for layer in layers]
            if rest:
                rows = by_vmap(model, rest, task, batch, rest=held)
                squares += [algebra.rows_of(value).square().sum(1) for value in rows.values()]
            parts.append(torch.stack(squares).sum(0))
    return torch.cat(parts)


def _run(chosen: Plan, model: nn.Module, params: Params, data: Dataset, vectors: Params, step: float = 0.0) -> Tensor:
    """Carry out a plan: one loop over the data."""
    task = task_of(data)
    used = {name: vectors[name] for name in (*chosen.names, *chosen.rest)} or vectors
    ways: dict[str, Callable[[Batch, Params], Tensor]] = {
        "jvp": lambda batch, v: by_jvp(model, params, task, batch, v),
        "vmap": lambda batch, v: _by_vmap(model, params, task, batch, v),
        "central": lambda batch, v: central(model, params, task, batch, v, step),
    }
    matrices = [layer.to_matrix(_filled(vectors, layer, params)) for layer in chosen.layers]
    rest = {name: vectors[name] for name in chosen.rest}
    columns = []
    for batch in data.batches(chosen.batch_size, _device(params)):
        if chosen.via != "captured":
            columns.append(ways[chosen.via](batch, used))
            continue
        column = torch.stack(_by_captured(model, params, batch, data, chosen.layers, matrices)).sum(0)
        columns.append(column + ways[chosen.rest_via](batch, rest) if rest else column)
    return torch.cat(columns, dim=1)


def _by_captured(
    model: nn.Module, params: Params, batch: Batch, data: Dataset, layers: Sequence[Layer], matrices: Sequence[Tensor]
) -> list[Tensor]:
    """Return the contribution of each layer, (Q, B)."""
    captured = collect(model, params, task_of(data), batch, layers)
    with full_precision():
        return [layer.contract(*captured[layer], matrix) for layer, matrix in zip(layers, matrices, strict=True)]


def _filled(vectors: Params, layer: Layer, params: Params) -> Params:
    """Return the vectors of a layer's parameters, zero where one was not given."""
    queries, like = next((len(value), value) for value in vectors.values())
    return {name: vectors.get(name, like.new_zeros(queries, *params[name].shape)) for name in layer.names}


def _device(params: Params) -> str:
    return str(next(iter(params.values())).device)


def by_jvp(model: nn.Module, params: Params, task: Task, batch: Batch, vectors: Params) -> Tensor:
    """Return <v_q, grad L_i> by forward-mode differentiation along each v, shape (Q, B): exact, any layer."""

    def fn(p: Params) -> Tensor:
        return losses(task, model, {**params, **p}, batch)

    point = {name: params[name] for name in vectors}
    rows = []
    with torch.no_grad(), plain_attention():
        for q in range(len(next(iter(vectors.values())))):
            tangent = jvp(fn, (point,), ({name: value[q] for name, value in vectors.items()},))[1]
            rows.append(tangent)
    return torch.stack(rows)


def central(model: nn.Module, params: Params, task: Task, batch: Batch, vectors: Params, step: float) -> Tensor:
    """Return (L_i(theta + h v_q) - L_i(theta - h v_q)) / 2 h with h |v_q| = step, shape (Q, B); 2 forwards a query."""
    rows = []
    with torch.no_grad():
        for q in range(len(next(iter(vectors.values())))):
            v = {name: value[q] for name, value in vectors.items()}
            size = float(algebra.norm(v))
            if size == 0:
                rows.append(torch.zeros(len(batch), device=batch.weights.device, dtype=next(iter(v.values())).dtype))
                continue
            h = step / size
            above = losses(task, model, algebra.add(params, v, h), batch)
            below = losses(task, model, algebra.add(params, v, -h), batch)
            rows.append((above - below) / (2 * h))
    return torch.stack(rows)


def central_step(model: nn.Module, params: Params, data: Dataset, vectors: Params) -> tuple[float, float]:
    """Return (step, error): the |h v| to take, and the relative error to expect from it (worst query, Euclidean norm).

    The error is the disagreement of the differences at `step` and at twice of it, on documents spread over the data:
    three times the error of `step` where the loss is smooth, about equal to it where kinks (ReLU) dominate. Rounding
    grows with 1/h, so that of a few steps the best is taken.
    """
    picked = np.unique(np.linspace(0, len(data) - 1, min(_CHECKED, len(data))).astype(np.int64))
    batch = data.batch(picked, _device(params))
    task = task_of(data)
    largest = _STEP.get(next(iter(vectors.values())).dtype, _COARSE)
    best = (largest, float("inf"))
    coarse = central(model, params, task, batch, vectors, 2 * largest)
    for step in (largest, largest / 2, largest / 4, largest / 8):
        fine = central(model, params, task, batch, vectors, step)
        size = fine.norm(dim=1).clamp(min=torch.finfo(fine.dtype).tiny)
        error = float(((coarse - fine).norm(dim=1) / size).max())
        if error < best[1]:
            best = (step, error)
        if error <= _GOOD:
            break
        coarse = fine
    return best


def steady_step(model: nn.Module, params: Params, data: Dataset, vectors: Params, tolerance: float) -> float:
    """Return the |h v| of `central_step`.

    Raises:
        InfuserError: its error is above `tolerance`.
    """
    step, error = central_step(model, params, data, vectors)
    if error > tolerance:
        raise InfuserError(
            "the central difference along v is not accurate enough",
            got=f"relative error {error:.1%} at |h v| = {step:g}",
            expected=f"at most {tolerance:.0%}",
            causes=["v is dominated by a rough direction", "the damping is too low"],
            remedy="raise the damping",
        )
    return step


def _by_vmap(model: nn.Module, params: Params, task: Task, batch: Batch, vectors: Params) -> Tensor:
    rest = {name: value for name, value in params.items() if name not in vectors}
    point = {name: params[name] for name in vectors}
    rows = by_vmap(model, point, task, batch, rest=rest)
    return contract(vectors, rows)


@full_precision()
def contract(vectors: Params, rows: Params) -> Tensor:
    """Return the inner products of (Q, *shape) with (B, *shape) tensors of the same names, shape (Q, B)."""
    return torch.stack([algebra.rows_of(value) @ algebra.rows_of(rows[name]).T for name, value in vectors.items()]).sum(
        0
    )


def _check_vectors(params: Params, vectors: Params) -> None:
    if not vectors:
        raise InfuserError("no vectors were given", expected="tensors (Q, *shape) by parameter name")
    unknown = [name for name in vectors if name not in params]
    wrong = [n for n in vectors if n in params and vectors[n].shape[1:] != params[n].shape]
    if unknown or wrong or len({len(value) for value in vectors.values()}) != 1:
        raise InfuserError(
            "the vectors do not fit the parameters",
            got=listed([f"{name}: {tuple(vectors[name].shape)}" for name in [*unknown, *wrong] or vectors]),
            expected="tensors (Q, *shape of the parameter) by parameter name, one Q for all",
            causes=["the direction was made for another model", "the leading query dimension is missing"],
        )


def _rough(step: float, error: float) -> InfuserError:
    return InfuserError(
        "the central difference is not accurate enough",
        got=f"a disagreement of {error:.2%} between the step |h v| = {step:g} and half of it",
        expected=f"at most {_TOLERANCE:.0%}",
        causes=["the loss is rough along v", "the products are lost in the rounding of the loss"],
        remedy="use via='auto', 'jvp' or 'captured'",
    )
