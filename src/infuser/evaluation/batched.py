"""Many small models trained at once: their weights are stacked, so that a step is a few large products, not many small.

Each model ends where training it alone would end, up to the order of sums (batched training is exempt from equality bit
for bit). It pays for small models, whose steps cost more in overhead than in arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from infuser.checkpoints import Checkpoint, build
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.tasks import Task, task_of
from infuser.training import epoch_order, scheduled, steps_per_epoch, train
from infuser.types import Array, Builder, Params, Recipe

_NUMBERS = 2**19  # weights trained at once: more fall out of a processor's cache, fewer leave overhead
_MOST = 64


def train_together(
    builder: Builder,
    data: Dataset,
    recipe: Recipe,
    weights: Array,
    *,
    init_seed: int | None = None,
    models: int | None = None,
) -> Params:
    """Return the final parameters of M models that differ in their documents' weights alone, tensors (M, *shape).

    Args:
        builder: (input_shape, n_outputs) -> nn.Module.
        data: the documents; their own weights are replaced.
        recipe: shared by all, its seed too: all see the same batches in the same order.
        weights: (M, N) of the documents' losses; 0 leaves a document out and keeps its place in the batch.
        init_seed: of the initialisation, where it is not recipe.seed.
        models: how many at once; by default as many as fit a cache.

    Raises:
        InfuserError: a model's loss is not finite, or `weights` does not fit.
    """
    weights = np.atleast_2d(np.asarray(weights, dtype=np.float32))
    if weights.shape[1] != len(data):
        raise InfuserError("one weight per document is needed", got=weights.shape, expected=("M", len(data)))
    model = build(builder, data.input_shape, data.n_outputs, recipe.seed if init_seed is None else init_seed)
    if not can_be_stacked(model, recipe):
        parts = [_alone(model, builder, data, recipe, row) for row in weights]
    else:
        size = sum(value.numel() for value in trainable(model).values())
        models = models or max(1, min(_MOST, _NUMBERS // size))
        parts = [_stacked(model, data, recipe, weights[i : i + models]) for i in range(0, len(weights), models)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def can_be_stacked(model: nn.Module, recipe: Recipe) -> bool:
    """Return whether training this model is a function of its parameters alone: no dropout, buffers or augmentation."""
    random = any("dropout" in type(module).__name__.lower() and getattr(module, "p", 1) for module in model.modules())
    return not random and not list(model.buffers()) and recipe.augmentation == "none"


def stacked_forward(model: nn.Module) -> Callable[[Params, Tensor], Tensor]:
    """Return the function (parameters (M, *shape), inputs (B, ...)) -> outputs (M, B, ...) of a model."""
    names, layers = zip(*model.named_children(), strict=True) if list(model.children()) else ((), ())
    kinds = [nn.Flatten, *([nn.Linear, nn.ReLU] * len(layers))][: len(layers)]
    biased = all(layer.bias is not None for layer in layers if isinstance(layer, nn.Linear))
    is_mlp = type(model) is nn.Sequential and len(layers) > 1 and [type(layer) for layer in layers] == kinds
    trained = all(p.requires_grad for p in model.parameters())
    if is_mlp and biased and trained and type(layers[-1]) is nn.Linear:
        return lambda params, inputs: _mlp(names[1::2], params, inputs.flatten(1))

    def one(params: Params, inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, params, (inputs,))
        return outputs

    return vmap(one, in_dims=(0, None))


def _mlp(layers: Sequence[str], params: Params, x: Tensor) -> Tensor:
    """Linear, ReLU, ..., Linear; the first layer is one product, since all models see the same inputs."""
    first = params[f"{layers[0]}.weight"]
    z = F.linear(x, first.flatten(0, 1)).view(len(x), *first.shape[:2]).transpose(0, 1)
    z = z + params[f"{layers[0]}.bias"][:, None]
    for name in layers[1:]:
        z = torch.baddbmm(params[f"{name}.bias"][:, None], z.relu(), params[f"{name}.weight"].transpose(1, 2))
    return z


def _stacked(model: nn.Module, data: Dataset, recipe: Recipe, weights: Array) -> Params:
    count = len(weights)
    task = task_of(data)
    forward = stacked_forward(model)
    params = {name: value.repeat(count, *[1] * value.ndim).requires_grad_() for name, value in trainable(model).items()}
    optimizer = _optimizer(list(params.values()), recipe)
    masks = torch.from_numpy(weights)
    per_epoch = steps_per_epoch(data, recipe)
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(epoch_order(data.ids, recipe, epoch))
        for i, positions in enumerate(torch.split(order, recipe.batch_size)):
            step = epoch * per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = scheduled(recipe, step, per_epoch * recipe.epochs)
            objective = _objective(forward, task, params, data, positions, masks[:, positions])
            if not torch.isfinite(objective).all():
                bad = torch.nonzero(~torch.isfinite(objective)).flatten().tolist()
                raise InfuserError(f"the training loss is not finite at step {step}", got=f"models {listed(bad)}")
            optimizer.zero_grad(set_to_none=True)
            # The models share no parameter: the gradient of the sum holds each model's own.
            objective.sum().backward()
            optimizer.step()
    return {name: value.detach() for name, value in params.items()}


def _objective(
    forward: Callable[[Params, Tensor], Tensor],
    task: Task,
    params: Params,
    data: Dataset,
    positions: Tensor,
    masks: Tensor,
) -> Tensor:
    """Return each model's objective at a batch, shape (M,)."""
    batch = data.batch(positions)
    outputs = forward(params, task.feed(batch.inputs))
    targets = batch.targets.repeat(len(masks), *[1] * (batch.targets.ndim - 1))
    losses = task.loss(outputs.flatten(0, 1), targets).view(masks.shape)
    each = zip(losses, masks, strict=True)
    return torch.stack([task.objective(row, replace(batch, weights=mask)) for row, mask in each])


def _alone(model: nn.Module, builder: Builder, data: Dataset, recipe: Recipe, weights: Array) -> Params:
    start = Checkpoint(0, 0, {name: value.detach().clone() for name, value in model.state_dict().items()})
    run = train(builder, replace(data, weights=weights), recipe, start=start)
    state = run.checkpoints[-1].weights
    return {name: value[None] for name, value in state.items()}


def _optimizer(params: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(params, recipe.lr, weight_decay=recipe.weight_decay)
