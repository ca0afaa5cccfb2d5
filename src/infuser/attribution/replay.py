"""Training as a function: a step maps a state to the next, differentiably; a run is replayed from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from infuser.checkpoints import Checkpoint, Run, build, load_weights
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.tasks import Task, plain_attention, task_of
from infuser.training import augmented, epoch_order, epoch_seed, scheduled, steps_per_epoch
from infuser.types import Batch, Params, Recipe

_BETAS, _EPS = (0.9, 0.999), 1e-8  # torch's own defaults, which Recipe does not change


@dataclass(frozen=True)
class State:
    """Everything that a training step reads and writes.

    Attributes:
        params: trained parameters.
        buffers: running statistics and the like; counters too.
        slots: the optimiser's tensors by kind and parameter name.
        counts: updates that the optimiser has made of each parameter (AdamW corrects its moments by them).
        random: torch's random state before the step.
    """

    params: Params
    buffers: Params
    slots: Mapping[str, Params]
    counts: Mapping[str, int]
    random: Tensor

    def tensors(self) -> Params:
        """Return all that a derivative can pass through, under one flat set of names."""
        flat = {f"params|{name}": value for name, value in self.params.items()}
        flat |= {f"buffers|{name}": value for name, value in self.buffers.items() if value.is_floating_point()}
        for slot, values in self.slots.items():
            flat |= {f"{slot}|{name}": value for name, value in values.items()}
        return flat

    def with_tensors(self, flat: Params) -> State:
        """Return the state with these tensors in place: the inverse of `tensors`."""
        groups: dict[str, Params] = {}
        for key, value in flat.items():
            group, name = key.split("|", 1)
            groups.setdefault(group, {})[name] = value
        buffers = {**self.buffers, **groups.get("buffers", {})}
        return replace(self, params=groups["params"], buffers=buffers, slots={s: groups[s] for s in self.slots})


@dataclass(frozen=True)
class Step:
    """What one step is given: where it stands, its documents and its learning rate."""

    index: int
    epoch: int
    first: bool  # of its epoch, where the random state is set
    positions: Tensor
    lr: float


@dataclass(frozen=True)
class Replay:
    """A segment of training, from a checkpoint (or an initialisation) to the end of the recipe.

    Attributes:
        model: a scratch model, in training mode; nothing is read from its weights.
        data: the documents.
        recipe: of the replay.
        start: the state before the first step.
        steps: in order.
    """

    model: nn.Module
    data: Dataset
    task: Task
    recipe: Recipe
    start: State
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, run: Run, data: Dataset, recipe: Recipe, checkpoint: Checkpoint | None) -> Replay:
        """Return the replay of `recipe` on `data` from a checkpoint, or from the initialisation by recipe.seed."""
        model = build(run.builder, run.input_shape, run.n_outputs, recipe.seed)
        if checkpoint is not None:
            load_weights(model, checkpoint.weights)
        model = model.to(run.device)
        start = _state(model, recipe, checkpoint)
        steps = tuple(_steps(data, recipe, checkpoint.epoch if checkpoint else 0))
        return cls(model.train(), data, task_of(data), recipe, start, steps)

    def advance(self, state: State, step: Step) -> State:
        """Return the state after a step, without a graph."""
        with torch.enable_grad():
            after = self.step(state, step, *self.inputs(step))
        return after.with_tensors({name: value.detach() for name, value in after.tensors().items()})

    def inputs(self, step: Step) -> tuple[Tensor, Batch]:
        """Return (documents in the network's units, their batch)."""
        batch = self.data.batch(step.positions, str(next(iter(self.start.params.values())).device))
        return self.task.feed(batch.inputs), batch

    def step(self, state: State, step: Step, inputs: Tensor, batch: Batch, *, graph: bool = False) -> State:
        """Return the state after a step; with `graph` it is a differentiable function of state, inputs and weights.

        Raises:
            InfuserError: the model writes into a buffer that is not BatchNorm's.
        """
        statistics: Params = {}
        with (
            torch.random.fork_rng(devices=[]),
            plain_attention(graph),
            running_statistics(self.model, state.buffers, statistics),
        ):
            if step.first:
                torch.manual_seed(epoch_seed(self.recipe, step.epoch))
            else:
                torch.set_rng_state(state.random)
            params = state.params if graph else {k: v.detach().requires_grad_() for k, v in state.params.items()}
            # Modules write their buffers in place, without a derivative: they get copies, and `statistics` recomputes.
            held = {name: value.detach().clone() for name, value in state.buffers.items()}
            outputs = functional_call(self.model, {**params, **held}, (augmented(inputs, self.recipe),))
            objective = self.task.objective(self.task.loss(outputs, batch.targets), batch)
            random = torch.get_rng_state()
        names = list(params)
        wanted = [params[name] for name in names]
        slopes: Sequence[Tensor | None] = torch.autograd.grad(objective, wanted, create_graph=graph, allow_unused=True)
        # A parameter that the loss does not depend on is left alone, by torch's optimisers too.
        gradients = {name: slope for name, slope in zip(names, slopes, strict=True) if slope is not None}
        _require_still(state.buffers, held, statistics)
        still = {name: state.buffers[name] if value.is_floating_point() else value for name, value in held.items()}
        updated, slots = _update(self.recipe, step.lr, state, gradients)
        counts = {name: count + (name in gradients) for name, count in state.counts.items()}
        return State({**state.params, **updated}, {**still, **statistics}, slots, counts, random)


def _require_still(before: Params, after: Params, known: Params) -> None:
    """Raise where a floating-point buffer moved of whose movement no derivative is known.

    Raises:
        InfuserError: there is one; all are named.
    """
    floats = [name for name, value in after.items() if value.is_floating_point() and name not in known]
    moved = [name for name in floats if not torch.equal(before[name], after[name])]
    if moved:
        raise InfuserError(
            "training writes into buffers that a replay cannot differentiate",
            got=listed(moved),
            expected="running statistics of BatchNorm alone",
            causes=["InstanceNorm or spectral_norm that tracks statistics", "an average of weights kept as a buffer"],
            remedy="attribute by EK-FAC influence, or use a model without them",
        )


def _update(recipe: Recipe, lr: float, state: State, gradients: Params) -> tuple[Params, dict[str, Params]]:
    """Return (parameters that have a gradient, slots) after SGD or AdamW, by the operations of torch.optim in order."""
    updated: Params = {}
    if recipe.optimizer == "sgd":
        momenta = dict(state.slots.get("momentum_buffer", {}))
        for name, slope in gradients.items():
            p = state.params[name]
            g = slope.add(p, alpha=recipe.weight_decay) if recipe.weight_decay else slope
            if recipe.momentum:
                g = momenta[name] = momenta[name].mul(recipe.momentum).add(g)
            updated[name] = p.add(g, alpha=-lr)
        return updated, {"momentum_buffer": momenta} if recipe.momentum else {}
    first, second = dict(state.slots["exp_avg"]), dict(state.slots["exp_avg_sq"])
    for name, g in gradients.items():
        p, t = state.params[name], state.counts[name] + 1
        first[name] = state.slots["exp_avg"][name].lerp(g, 1 - _BETAS[0])
        second[name] = state.slots["exp_avg_sq"][name].mul(_BETAS[1]).addcmul(g, g, value=1 - _BETAS[1])
        # The root has no slope at 0; there the gradient has been 0 all along, and so is its influence.
        alive = second[name] > 0
        root = torch.where(alive, second[name], torch.ones_like(p)).sqrt() * alive
        denominator = (root / (1 - _BETAS[1] ** t) ** 0.5).add(_EPS)
        decayed = p.mul(1 - lr * recipe.weight_decay)
        updated[name] = decayed.addcdiv(first[name], denominator, value=-lr / (1 - _BETAS[0] ** t))
    return updated, {"exp_avg": first, "exp_avg_sq": second}


def _state(model: nn.Module, recipe: Recipe, checkpoint: Checkpoint | None) -> State:
    params = {name: value.clone() for name, value in trainable(model).items()}
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    kinds = (
        ("exp_avg", "exp_avg_sq") if recipe.optimizer == "adamw" else ("momentum_buffer",) if recipe.momentum else ()
    )
    stored: Mapping[int, Any] = dict(checkpoint.optimizer).get("state", {}) if checkpoint else {}
    slots: dict[str, Params] = {}
    for kind in kinds:
        values = {}
        for i, (name, p) in enumerate(params.items()):
            value = stored.get(i, {}).get(kind)
            values[name] = torch.zeros_like(p) if value is None else value.detach().clone().to(p)
        slots[kind] = values
    counts = {name: int(stored.get(i, {}).get("step", 0)) for i, name in enumerate(params)}
    return State(params, buffers, slots, counts, torch.get_rng_state())


def _steps(data: Dataset, recipe: Recipe, epoch: int) -> Iterator[Step]:
    per_epoch = steps_per_epoch(data, recipe)
    total, step = per_epoch * recipe.epochs, per_epoch * epoch
    for e in range(epoch, recipe.epochs):
        order = torch.from_numpy(epoch_order(data.ids, recipe, e))
        for i, positions in enumerate(order.split(recipe.batch_size)):
            yield Step(step, e, i == 0, positions, scheduled(recipe, step, total))
            step += 1


@contextmanager
def running_statistics(model: nn.Module, before: Params, now: Params) -> Iterator[None]:
    """Put the running statistics of BatchNorm into `now`, as functions of what the layers are given.

    torch updates them in place and without a derivative. `before` holds the buffers before the forward pass.
    """

    def hook(name: str) -> Any:
        def update(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            bn: Any = module
            if not bn.training:  # frozen: its train() keeps it in evaluation mode
                return
            x = args[0]
            over = [d for d in range(x.ndim) if d != 1]
            seen = int(bn.num_batches_tracked) + 1
            rate = 1 / seen if bn.momentum is None else bn.momentum
            for part, value in (("running_mean", x.mean(over)), ("running_var", x.var(over))):
                key = f"{name}.{part}" if name else part
                now[key] = (1 - rate) * now.get(key, before[key]) + rate * value

        return update

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def explicit_normalisation(model: nn.Module, buffers: Params) -> Iterator[None]:
    """Put `buffers` in place, and write BatchNorm in eval mode out: torch's has no derivative by running statistics."""

    def hook(mean: Tensor, var: Tensor) -> Any:
        def normalise(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            bn: Any = module
            shape = (1, -1, *[1] * (args[0].ndim - 2))
            out: Tensor = (args[0] - mean.view(shape)) / (var.view(shape) + bn.eps).sqrt()
            return out * bn.weight.view(shape) + bn.bias.view(shape) if bn.affine else out

        return normalise

    before = {name: value.clone() for name, value in model.named_buffers()}
    handles = []
    try:
        _copy_buffers(model, buffers)
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                prefix = f"{name}." if name else ""
                pair = (buffers[f"{prefix}running_mean"], buffers[f"{prefix}running_var"])
                handles.append(module.register_forward_hook(hook(*pair)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _copy_buffers(model, before)


def _copy_buffers(model: nn.Module, values: Params) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name].detach())
