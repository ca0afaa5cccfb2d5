"""Per-document gradients of a batch, a chunk at a time: the gradients of all N documents are never held together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from infuser.curvature.collect import captures, verify
from infuser.curvature.find import find_layers
from infuser.curvature.layers import Layer
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.tasks import Task, plain_attention, task_of
from infuser.types import Batch, Params

Output = Callable[[Tensor, Tensor], Tensor]  # (outputs (B, ...), targets (B, ...)) -> (B,)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def by_vmap(
    model: nn.Module,
    params: Params,
    task: Task,
    batch: Batch,
    *,
    output: Output | None = None,
    rest: Params | None = None,
) -> Params:
    """Return the gradient of each document's loss by vmap(grad), tensors (B, *shape): any layer, any parameter.

    Args:
        model: in eval mode.
        params: the parameters to differentiate by.
        task: of the batch.
        batch: B documents.
        output: what to differentiate instead of the loss.
        rest: further parameters that are held fixed.
    """
    value = output or task.loss

    def one(p: Params, x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, {**(rest or {}), **p}, (x[None],))
        return value(outputs, y[None])[0]

    with plain_attention():
        rows = vmap(grad(one), in_dims=(None, 0, 0), randomness="error")(params, task.feed(batch.inputs), batch.targets)
    return {name: value.detach() for name, value in rows.items()}


def cover(model: nn.Module, params: Params, data: Dataset, names: Sequence[str] = ()) -> tuple[Layer, ...]:
    """Return the layers that cover parameters of `names` (all by default), verified against autograd on two documents.

    Parameters outside the layers are the caller's to see to: `covered` names those inside.

    Raises:
        InfuserError: nothing is covered, or a layer's gradients differ from autograd's.
    """
    with warnings.catch_warnings():
        # The warning says that uncovered parameters count as constant; here they are computed in another way.
        warnings.simplefilter("ignore", UserWarning)
        layers = find_layers(model, list(names or params))
    batch = data.batch(np.arange(min(2, len(data))), str(next(iter(params.values())).device))
    verify(model, params, task_of(data), batch, layers)
    return layers


def cover_if_possible(model: nn.Module, params: Params, data: Dataset) -> tuple[Layer, ...]:
    """Return the layers of `cover`, or none where there are none that can be trusted."""
    try:
        return cover(model, params, data)
    except InfuserError:
        return ()


def covered(layers: Sequence[Layer]) -> frozenset[str]:
    """Return the names of the parameters that layers cover."""
    return frozenset(name for layer in layers for name in layer.names)


def gradients(
    model: nn.Module,
    params: Params,
    task: Task,
    batch: Batch,
    layers: Sequence[Layer] = (),
    *,
    output: Output | None = None,
) -> Params:
    """Return the gradient of each document's loss (or of `output`) by every parameter, tensors (B, *shape).

    Those of the layers come from one forward and one backward pass to activations, the others from vmap(grad).
    """
    rows: Params = {}
    if layers:

        def cotangents(outputs: Tensor) -> tuple[Tensor | None]:
            return (None if output is None else _cotangent(output, outputs, batch.targets),)

        captured = next(iter(captures(model, params, task, batch, layers, cotangents)))
        for layer in layers:
            rows.update(layer.gradients(*captured[layer]))
    inside = covered(layers)
    rest = {name: value for name, value in params.items() if name not in inside}
    if rest:
        held = {name: value for name, value in params.items() if name in inside}
        rows.update(by_vmap(model, rest, task, batch, output=output, rest=held))
    return {name: rows[name] for name in params}


def _cotangent(output: Output, outputs: Tensor, targets: Tensor) -> Tensor:
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(output(leaf, targets).sum(), leaf)[0]
