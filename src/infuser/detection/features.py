"""What activation detectors look at: inputs of the last Linear layer, and the groups that are compared within."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.tasks import task_of
from infuser.types import Array

_CHUNK = 256  # documents a forward pass, results do not depend on it beyond rounding
_CHUNK_TEXTS = 16  # the same of texts, whose outputs are as wide as the vocabulary


def penultimate(run: Run, data: Dataset, checkpoint: int = -1) -> Array:
    """Return the inputs of the last Linear layer, (N, D) in float64.

    "Last" is the Linear that ran last, whatever the order of definition. Documents of tokens are averaged over their
    real positions.

    Raises:
        InfuserError: the model has no Linear layer, or an activation is not finite.
    """
    return _read(run, data, checkpoint, keep=False)[0]


def penultimate_and_outputs(run: Run, data: Dataset, checkpoint: int = -1) -> tuple[Array, Array]:
    """Return (inputs of the last Linear layer (N, D), outputs of the model (N, C)) in float64; see `penultimate`."""
    return _read(run, data, checkpoint, keep=True)


def _read(run: Run, data: Dataset, checkpoint: int, *, keep: bool) -> tuple[Array, Array]:
    model = run.model(checkpoint)
    task = task_of(data)
    layer = _last_linear(model, task.feed(data.batch(np.arange(1), run.device).inputs))
    caught: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    features: list[Tensor] = []
    outputs: list[Tensor] = []
    chunk = _CHUNK_TEXTS if data.kind == "causal_lm" else _CHUNK
    try:
        with torch.no_grad():
            for batch in data.batches(chunk, run.device):
                caught.clear()
                out = model(task.feed(batch.inputs))
                mask = task.mask(batch)
                features.append(_per_document(caught[-1], mask, len(batch)))
                if keep:
                    outputs.append(_per_document(out, mask, len(batch)))
    finally:
        handle.remove()
    found = torch.cat(features).double().cpu().numpy()
    if not np.isfinite(found).all():
        raise InfuserError("the activations are not finite", causes=["the model diverged"])
    return found, torch.cat(outputs).double().cpu().numpy() if keep else np.zeros(0)


def groups_of(data: Dataset) -> list[Array]:
    """Return positions of the documents that are compared with each other: of each label, or all where none are."""
    if data.kind != "classification":
        return [np.arange(len(data))]
    return [np.flatnonzero(data.targets == c) for c in np.unique(data.targets)]


def _last_linear(model: nn.Module, inputs: Tensor) -> nn.Linear:
    order: list[nn.Linear] = []

    def note(module: Any, _: Any) -> None:
        order.append(module)

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise InfuserError(
            "the model has no Linear layer whose inputs could serve as features",
            got=type(model).__name__,
            remedy="use a detector that reads losses or gradients",
        )
    return order[-1]


def _per_document(values: Tensor, mask: Tensor | None, documents: int) -> Tensor:
    if len(values) != documents:  # a model may fold the positions of its documents into the batch
        if values.ndim != 2 or len(values) % documents:
            raise InfuserError(
                "the inputs of the last Linear layer do not tell which document they are of",
                got=tuple(values.shape),
                expected=f"{documents} documents first",
                remedy="keep documents on the first axis, or use a detector that reads losses or gradients",
            )
        values = values.unflatten(0, (documents, -1))
    if values.ndim == 2:
        return values
    if mask is None or mask.shape != values.shape[:2]:
        return values.flatten(1, -2).mean(1)
    weights = mask.to(values)[..., None]
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)
