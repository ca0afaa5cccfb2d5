"""What one point of training shows of every document: inner products of gradients, and losses, from one pass.

The gradients of all documents are never held: layers give their products from inputs and output gradients (ghost
products), and parameters that no layer covers make all of them go by vmap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infuser.attribution.per_document import by_vmap, cover_if_possible, covered
from infuser.curvature.collect import Captured, collect
from infuser.curvature.forms import MatrixForm
from infuser.curvature.layers import Layer
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import flatten
from infuser.tasks import Task, losses
from infuser.types import Array, Batch, Params

_CHUNK, _NUMBERS = 1024, 2**26  # documents a pass, and numbers held by a pass; results do not depend on them
_FORWARDS = 3.0  # what a recorded step may cost, in forward passes over the documents
_FEWEST, _MOST = 4, 128  # partners that are chosen by cost


@dataclass(frozen=True)
class Losses:
    """Losses of all documents at one point of training, which every pass over them gives for nothing.

    Attributes:
        losses: (N,) in nats (half squared units).
        margins: (N,) label's logit less the largest other; None but for classification.
    """

    losses: Tensor
    margins: Tensor | None


@dataclass(frozen=True)
class Signals:
    """Gradient products of documents at one point of training; None where they were not asked for.

    Attributes:
        read: the losses.
        own: (N,) <g_i, g_i>.
        cross: (N, R) <g_i, g_j> for the partners j.
        along: (Q, N) <v_q, g_i>.
    """

    read: Losses
    own: Tensor | None = None
    cross: Tensor | None = None
    along: Tensor | None = None


def supported_layers(model: nn.Module, params: Params, data: Dataset) -> tuple[Layer, ...] | None:
    """Return the layers if they cover every trainable parameter and agree with autograd, None where vmap is used."""
    layers = cover_if_possible(model, params, data)
    return layers if covered(layers) == params.keys() else None


def read_signals(
    model: nn.Module,
    params: Params,
    task: Task,
    data: Dataset,
    layers: Sequence[Layer] | None,
    *,
    partners: Batch | None = None,
    vectors: Params | None = None,
) -> Signals:
    """Return what is asked for of every document's gradient, in one pass over the documents.

    Args:
        model: in eval mode.
        params: theta.
        task: of the data.
        data: N documents.
        layers: of `supported_layers`.
        partners: R documents; then products of every gradient with itself and with theirs.
        vectors: v with a leading query axis; then products with them.
    """
    other = None if partners is None else _Point(model, params, task, partners, layers)
    matrices = None if layers is None or vectors is None else [layer.to_matrix(vectors) for layer in layers]
    read: list[Losses] = []
    own: list[Tensor] = []
    cross: list[Tensor] = []
    along: list[Tensor] = []
    for batch in data.batches(_per_pass(params), _device(params)):
        here = _Point(model, params, task, batch, layers)
        if other is not None:
            own.append(here.squared())
            cross.append(here.products(other))
        if vectors is not None:
            along.append(here.along(vectors, matrices))
        read.append(here.read())
    return Signals(
        _joined(read),
        torch.cat(own) if own else None,
        torch.cat(cross) if cross else None,
        torch.cat(along, 1) if along else None,
    )


def read_losses(model: nn.Module, params: Params, task: Task, data: Dataset) -> Losses:
    """Return losses and margins of all documents; one forward pass."""
    with torch.no_grad():
        parts = []
        for batch in data.batches(_per_pass(params), _device(params)):
            outputs = torch.func.functional_call(model, params, (task.feed(batch.inputs),))
            parts.append(Losses(task.loss(outputs, batch.targets), margins(outputs, batch, data.kind)))
    return _joined(parts)


def affordable_partners(
    model: nn.Module, params: Params, task: Task, data: Dataset, layers: Sequence[Layer] | None
) -> int:
    """Return how many partners keep a recorded step within three forward passes, by counted multiplications (4 to 128).

    More partners and more recorded steps do the same for the noise of a document: what counts is their product.
    """
    few = data.ids[: min(len(data), 32)]
    sample = data[few]
    one = sample.batch(np.arange(min(4, len(sample))), _device(params))

    def cost(partners: int) -> int:
        with FlopCounterMode(display=False) as counter:
            here = _Point(model, params, task, sample.batch(np.arange(len(sample)), _device(params)), layers)
            here.squared()
            if partners:
                _ = here.products(_Point(model, params, task, one, layers))
        return int(counter.get_total_flops())

    with FlopCounterMode(display=False) as counter:
        read_losses(model, params, task, sample)
    forward = counter.get_total_flops()
    base, some = cost(0), cost(len(one))
    with FlopCounterMode(display=False) as counter:
        _Point(model, params, task, one, layers)
    # The partners' own pass is paid once for all documents.
    each = max(1.0, (some - base - counter.get_total_flops()) / len(one))
    affordable = int((_FORWARDS * forward - base) / each)
    return min(max(affordable, _FEWEST), _MOST, len(data))


def margins(outputs: Tensor, batch: Batch, kind: str) -> Tensor | None:
    """Return the label's logit less the largest other one, (B,); None where there is no single label."""
    if kind != "classification":
        return None
    column = batch.targets[:, None]
    others = outputs.scatter(1, column, float("-inf")).amax(1)
    return outputs.gather(1, column)[:, 0] - others


class _Point:
    """A batch's gradients at theta, in whichever form the model allows."""

    def __init__(
        self, model: nn.Module, params: Params, task: Task, batch: Batch, layers: Sequence[Layer] | None
    ) -> None:
        self.batch, self.layers, self.kind = batch, layers, _kind(batch)
        self.captured: Captured | None = None
        self.formed: dict[str, Tensor] = {}
        if layers is not None:
            self.captured = collect(model, params, task, batch, layers)
            return
        self.rows = flatten(by_vmap(model, params, task, batch), 1)
        with torch.no_grad():
            outputs = torch.func.functional_call(model, params, (task.feed(batch.inputs),))
            self._read = Losses(losses(task, model, params, batch), margins(outputs, batch, self.kind))

    def squared(self) -> Tensor:
        if self.captured is None or self.layers is None:
            return self.rows.square().sum(1)
        parts = []
        for layer in self.layers:
            rows = self._form(layer)
            parts.append(layer.self_ghost(*self.captured[layer]) if rows is None else rows.square().sum(1))
        return torch.stack(parts).sum(0)

    def products(self, other: _Point) -> Tensor:
        if self.captured is None or other.captured is None or self.layers is None:
            return self.rows @ other.rows.T
        parts = []
        for layer in self.layers:
            rows, others = self._form(layer), other._form(layer)
            if rows is None or others is None:
                parts.append(layer.ghost(*self.captured[layer], *other.captured[layer]))
            else:
                parts.append(rows @ others.T)
        return torch.stack(parts).sum(0)

    def _form(self, layer: Layer) -> Tensor | None:
        """Return the layer's gradients (B, P_layer), formed once, where Gram matrices over positions cost more."""
        assert self.captured is not None, "called with layers only"
        name = layer.names[0]
        if name not in self.formed:
            a, g = self.captured[layer]
            _, o, i = layer.shape
            t = sum(cast(MatrixForm, call.form).positions(call.x) for call in a) if not layer.diagonal else 0
            if not layer.diagonal and (t <= 1 or t * (o + i) <= o * i):
                return None
            self.formed[name] = layer.matrices(a, g).flatten(1)
        return self.formed[name]

    def along(self, vectors: Params, matrices: list[Tensor] | None) -> Tensor:
        if self.captured is None or self.layers is None or matrices is None:
            return flatten(vectors, 1) @ self.rows.T
        pairs = zip(self.layers, matrices, strict=True)
        return torch.stack([layer.contract(*self.captured[layer], matrix) for layer, matrix in pairs]).sum(0)

    def read(self) -> Losses:
        if self.captured is None:
            return self._read
        return Losses(self.captured.losses, margins(self.captured.outputs, self.batch, self.kind))


def require_finite(values: Tensor, data: Dataset, step: int, what: str) -> None:
    """Raise if a value of (N,) or (..., N) is not finite, naming the step and the documents.

    Raises:
        InfuserError: a value is NaN or infinite.
    """
    bad = ~torch.isfinite(values.reshape(-1, len(data))).all(0)
    if bad.any():
        ids = data.ids[cast(Array, bad.cpu().numpy())]
        raise InfuserError(
            f"{what} are not finite at step {step}",
            got=f"documents {listed(ids.tolist())}",
            causes=["the learning rate is too high", "the documents hold extreme values"],
            remedy="lower lr, or look at these documents",
        )


def _joined(parts: Sequence[Losses]) -> Losses:
    rows: Iterator[Tensor | None] = (part.margins for part in parts)
    known = [row for row in rows if row is not None]
    joined = torch.cat(known) if len(known) == len(parts) else None
    return Losses(torch.cat([part.losses for part in parts]), joined)


def _kind(batch: Batch) -> str:
    one_label = batch.targets.ndim == 1 and not batch.targets.is_floating_point()
    return "classification" if one_label else "other"


def _per_pass(params: Params) -> int:
    return min(_CHUNK, max(16, _NUMBERS // sum(value.numel() for value in params.values())))


def _device(params: Params) -> str:
    return str(next(iter(params.values())).device)
