"""Per-document gradients of a batch, a chunk at a time: the gradients of all N documents are never held together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from infuser.tasks import Task
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

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        rows = vmap(grad(one), in_dims=(None, 0, 0), randomness="error")(params, task.feed(batch.inputs), batch.targets)
    return {name: value.detach() for name, value in rows.items()}


def gradients(model: nn.Module, params: Params, task: Task, batch: Batch, *, output: Output | None = None) -> Params:
    """Return the gradient of each document's loss (or of `output`) by every parameter, tensors (B, *shape)."""
    return by_vmap(model, params, task, batch, output=output)
