"""Training: a plain loop whose result is a function of (builder, data, recipe), with one seam for observers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infuser.checkpoints import Checkpoint, Run, build, load_run, load_weights, save_checkpoint
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.executors import torch_threads
from infuser.params import trainable
from infuser.progress import track
from infuser.storage import read_json, write_json
from infuser.tasks import Task, task_of
from infuser.types import Array, Batch, Builder, Recipe


@dataclass(frozen=True)
class Moment:
    """What an observer sees at one step, after the backward pass and before the update: the model is at theta_t.

    Attributes:
        model: in training mode; to be left as it is found.
        task: of the data.
        data: all training documents.
        batch: those of this step.
        losses: (B,) of the batch, detached.
        lr: of this step.
        epoch: epochs done before this step.
        step: steps done before this step, over the whole run.
        steps: of the whole run.
        first: steps that were done before this training began: not 0 where it goes on from a checkpoint.
    """

    model: nn.Module
    task: Task
    data: Dataset
    batch: Batch
    losses: Tensor
    lr: float
    epoch: int
    step: int
    steps: int
    first: int = 0


class Observer(Protocol):
    """Watches training and changes nothing: weights with and without observers are equal bit for bit."""

    @property
    def name(self) -> str:
        """The key of its trace in Run.traces."""
        ...

    def step(self, moment: Moment) -> None:
        """Record what this step shows."""
        ...

    def trace(self) -> Any:
        """Return what was recorded."""
        ...


def epoch_order(ids: Array, recipe: Recipe, epoch: int) -> Array:
    """Return the positions of `ids` in the order of an epoch (counted from 0).

    Every document draws a key from (seed, epoch, id) and the keys are sorted, so that removing documents keeps the
    order of the others.

    >>> ids = np.arange(5)
    >>> full = ids[epoch_order(ids, Recipe(seed=1), 0)]
    >>> part = ids[ids != 3][epoch_order(ids[ids != 3], Recipe(seed=1), 0)]
    >>> [i for i in full.tolist() if i != 3] == part.tolist()
    True
    """
    counted = 0 if recipe.order == "fixed" else epoch
    salt = np.random.SeedSequence([recipe.seed, counted]).generate_state(2, np.uint64)
    keys = _mix(_mix(ids.astype(np.uint64) ^ salt[0]) ^ salt[1])
    # lexsort by id second makes ties, improbable as they are, independent of where a document is stored.
    return np.lexsort((ids, keys))


def epoch_seed(recipe: Recipe, epoch: int) -> int:
    """Return the seed of dropout and augmentation of an epoch (counted from 0)."""
    return int(_mix(np.uint64(recipe.seed) ^ _mix(np.uint64(epoch + 1)))) % 2**63


def _mix(x: Any) -> Any:
    """The splitmix64 finaliser (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def train(
    builder: Builder,
    data: Dataset,
    recipe: Recipe,
    *,
    observers: Sequence[Observer] = (),
    start: Checkpoint | None = None,
    folder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Run:
    """Return the run of `recipe` on `data`: a checkpoint of the start and one after every epoch.

    A step descends sum_i w_i L_i / B over its batch (token mean for language models). Initialisation, order, dropout
    and augmentation are functions of recipe.seed, so the same call gives the same bits on the same machine.

    Args:
        builder: (input_shape, n_outputs) -> nn.Module.
        data: documents; their weights multiply their losses.
        recipe: everything else that changes the weights.
        observers: called at every step; no observers are called for epochs loaded from `folder`.
        start: a checkpoint to go on from instead of the initialisation (weights, optimiser state, position).
        folder: where checkpoints are written after each epoch; epochs found there whole are not trained again, so
            that the same call resumes an interrupted run, bit for bit.
        device: where to train.

    Raises:
        InfuserError: the model does not fit the documents (outputs, dtype), a loss is not finite (step and documents
            are named; checkpoints in `folder` are kept), or `folder` holds those of another model, recipe or data set.
    """
    names = [observer.name for observer in observers]
    if len(set(names)) != len(names):
        raise InfuserError("two observers share a name, and would share a trace", got=listed(names))
    kept: list[Checkpoint] = []
    if folder is not None:
        if start is not None:
            raise InfuserError("start and folder exclude each other", remedy="pass one of them")
        done = load_run(builder, data, recipe, folder, device, mend=True)
        kept = list(done.checkpoints) if done else []
        if kept and observers and kept[-1].epoch > 0:
            raise InfuserError(
                "observers would miss the epochs that are already trained",
                got=f"{kept[-1].epoch} epochs in {folder}",
                remedy="choose an empty folder, or train without observers",
            )
        kept = kept[: recipe.epochs + 1]
    model = build(builder, data.input_shape, data.n_outputs, recipe.seed).to(device)
    initial = first_outputs(model, data)
    if folder is not None:
        _recognise(initial, described(model), Path(folder))
    begin = kept[-1] if kept else start
    if begin is not None:
        load_weights(model, begin.weights)
    optimizer = _optimizer(model, recipe)
    if begin is not None and begin.optimizer:
        _resume(optimizer, begin)

    def keep(epoch: int, step: int) -> None:
        kept.append(_snapshot(model, optimizer, epoch, step))
        if folder is not None:
            save_checkpoint(kept[-1], folder, recipe=asdict(recipe), data=data.content_hash)

    per_epoch = steps_per_epoch(data, recipe)
    if not kept:
        # In steps of these data: a checkpoint of more documents took more steps to the same place in the schedule.
        keep(begin.epoch if begin else 0, begin.epoch * per_epoch if begin else 0)
    todo = range(kept[-1].epoch, recipe.epochs)
    # One bar for the whole run: each step takes one item.
    bar = track(range(len(todo) * per_epoch), f"training {len(todo)} epochs")
    with torch_threads(recipe.threads), closing(bar):
        for epoch in todo:
            step = _epoch(model, optimizer, data, recipe, kept[-1], observers, bar, kept[0].step)
            keep(epoch + 1, step)
    traces = {observer.name: observer.trace() for observer in observers}
    return Run.of(builder, data, recipe, kept, traces, device)


def first_outputs(model: nn.Module, data: Dataset) -> list[float]:
    """Return what a model, put in eval mode, makes of four documents.

    Raises:
        InfuserError: it cannot read them, or its outputs are nothing to train on.
    """
    batch = data.batch(np.arange(min(4, len(data))), str(next(model.parameters()).device))
    inputs = task_of(data).feed(batch.inputs)
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InfuserError(
            "the model cannot read the documents",
            got=f"inputs {inputs.dtype} {tuple(inputs.shape)}: {error}",
            causes=["it was built for another input shape", "its weights have another dtype than its inputs"],
        ) from error
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise InfuserError(
            "the model must return its outputs as one tensor of floats",
            got=type(outputs).__name__,
            remedy="wrap it in a module that returns the logits alone",
        )
    if data.kind == "classification" and outputs.shape != (len(batch), data.n_outputs):
        raise InfuserError(
            "the model's outputs do not fit the classes",
            got=tuple(outputs.shape),
            expected=(len(batch), data.n_outputs),
            remedy="build as many outputs as the second argument of the builder says",
        )
    return cast("list[float]", outputs.flatten()[:64].tolist())


def described(model: nn.Module) -> str:
    """Return a digest of what a model prints and trains: dropout rates and frozen parameters, which weights hide."""
    printed = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    return hashlib.sha256(json.dumps([printed, list(trainable(model))]).encode()).hexdigest()[:16]


def _recognise(outputs: list[float], described: str, folder: Path) -> None:
    """Check that checkpoints in `folder` are those of this model: names and shapes cannot tell ReLU from Tanh.

    A model is known by what its initialisation makes of four documents, to the precision that threads leave alone, and
    by its description.
    """
    path = folder / "model.json"
    if not path.exists():
        write_json(path, {"initial_outputs": outputs, "described": described})
        return
    held = read_json(path)
    stored = held.get("initial_outputs", [])
    alike = len(stored) == len(outputs) and np.allclose(stored, outputs, rtol=1e-3, atol=1e-4)
    if not alike or held.get("described", described) != described:
        raise InfuserError(
            "the checkpoints in this folder are those of another model",
            got=f"{described}, initial outputs {listed([round(x, 4) for x in outputs], 4)}",
            expected=f"{held.get('described', '')}, {listed([round(float(x), 4) for x in stored], 4)}",
            causes=["the model's code or options were changed since, or other parameters are frozen"],
            remedy="choose an empty folder, or start over (--overwrite)",
        )


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    recipe: Recipe,
    begin: Checkpoint,
    observers: Sequence[Observer],
    bar: Iterator[int],
    first: int,
) -> int:
    """Train one epoch in place and return the number of steps done so far."""
    task = task_of(data)
    device = str(next(model.parameters()).device)
    order = torch.from_numpy(epoch_order(data.ids, recipe, begin.epoch))
    steps = steps_per_epoch(data, recipe) * recipe.epochs
    step = begin.step
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(epoch_seed(recipe, begin.epoch))
        for batch, inputs in _batches(task, data.batch, order, recipe.batch_size, device):
            lr = scheduled(recipe, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses = task.loss(model(augmented(inputs, recipe)), batch.targets)
            objective = task.objective(losses, batch)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            if not math.isfinite(objective.item()):
                bad = batch.ids[~torch.isfinite(losses.detach())]
                raise _diverged("loss is", bad, begin.epoch, step)
            for observer in observers:
                moment = Moment(model, task, data, batch, losses.detach(), lr, begin.epoch, step, steps, first)
                with _untouched(model, observer):
                    observer.step(moment)
            optimizer.step()
            step += 1
            next(bar, None)
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        # Of the last step: a step from weights that are not finite has no finite loss.
        raise _diverged("weights are", batch.ids, begin.epoch, step - 1)
    return step


def _batches(
    task: Task, gather: Callable[[Tensor, str], Batch], order: Tensor, batch_size: int, device: str
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield (batch, its inputs in the network's units) in `order`.

    Many batches are gathered and converted at once and then cut: for small models that is most of a step's overhead.
    """
    for positions in order.split(batch_size * max(1, 1024 // batch_size)):
        many = gather(positions, device)
        columns = (many.inputs, many.targets, many.ids, many.weights, task.feed(many.inputs))
        for parts in zip(*(column.split(batch_size) for column in columns), strict=True):
            yield Batch(*parts[:4]), parts[4]


def steps_per_epoch(data: Dataset, recipe: Recipe) -> int:
    """Return how many batches an epoch has; the last may be smaller."""
    return -(-len(data) // recipe.batch_size)


def _diverged(what: str, ids: Tensor, epoch: int, step: int) -> InfuserError:
    return InfuserError(
        f"the training {what} not finite at step {step} (epoch {epoch + 1}); checkpoints up to epoch {epoch} are kept",
        got=f"documents {listed(ids.tolist())}" if len(ids) else "the sum over the batch overflows",
        causes=["the learning rate is too high", "the documents hold extreme values"],
        remedy="lower lr, or look at these documents",
    )


def scheduled(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step (counted from 0) out of `steps`.

    >>> [round(scheduled(Recipe(lr=1.0, schedule="linear"), t, 4), 2) for t in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if recipe.schedule == "constant":
        return recipe.lr
    done = step / steps
    return float(recipe.lr * (1 - done if recipe.schedule == "linear" else (1 + np.cos(np.pi * done)) / 2))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    params = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(params, recipe.lr, weight_decay=recipe.weight_decay)


def _resume(optimizer: torch.optim.Optimizer, begin: Checkpoint) -> None:
    """Put a checkpoint's moments in; what the recipe says of momentum and decay stays.

    Raises:
        InfuserError: they are those of another optimiser, or of other parameters.
    """
    fresh, stored = optimizer.state_dict(), dict(begin.optimizer)
    [own], held = fresh["param_groups"], stored["param_groups"]
    if len(held) != 1 or ("betas" in own) != ("betas" in held[0]) or len(own["params"]) != len(held[0]["params"]):
        raise InfuserError(
            "the checkpoint's optimiser is not the recipe's",
            got=f"{len(held)} groups of {', '.join(key for key in held[0] if key != 'params')}",
            expected=f"{type(optimizer).__name__} of {len(own['params'])} tensors",
            causes=["the recipe names another optimizer than the run's", "other parameters are frozen"],
            remedy="go on with the run's own optimizer, or start from the weights alone (Run.from_weights)",
        )
    # Copied: the optimiser would otherwise go on in the checkpoint's own tensors, and spoil it for the next run.
    optimizer.load_state_dict({"state": deepcopy(stored["state"]), "param_groups": fresh["param_groups"]})


def augmented(inputs: Tensor, recipe: Recipe) -> Tensor:
    """Return inputs (B, C, H, W) flipped and shifted as the recipe says, by torch's random state."""
    if recipe.augmentation == "none":
        return inputs
    if inputs.ndim != 4:
        raise InfuserError("augmentation needs images", got=tuple(inputs.shape[1:]), expected="(C, H, W)")
    flipped = torch.rand(len(inputs)) < 0.5
    inputs = torch.where(flipped.to(inputs.device)[:, None, None, None], inputs.flip(-1), inputs)
    if recipe.augmentation == "flip":
        return inputs
    height, width = inputs.shape[-2:]
    padded = F.pad(inputs, (4, 4, 4, 4), mode="reflect")
    down, right = torch.randint(0, 9, (2, len(inputs))).tolist()
    return torch.stack([x[:, d : d + height, r : r + width] for x, d, r in zip(padded, down, right, strict=True)])


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> Checkpoint:
    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    copied = {key: {k: _copied(v) for k, v in slot.items()} for key, slot in state["state"].items()}
    return Checkpoint(epoch, step, weights, {**state, "state": copied})


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


@contextmanager
def _untouched(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Give an observer the model in eval mode, and put modes, gradients, buffers and torch's random state back.

    Raises:
        InfuserError: the observer wrote into a parameter.
    """
    modes = {module: module.training for module in model.modules()}
    params = {name: (p, p.requires_grad, p._version) for name, p in model.named_parameters()}
    # Copies, since backward() adds to gradients, and BatchNorm to buffers, in place.
    grads = [None if p.grad is None else (p.grad, p.grad.clone()) for p, _, _ in params.values()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for (p, requires_grad, _), grad in zip(params.values(), grads, strict=True):
                    p.requires_grad_(requires_grad)
                    p.grad = None if grad is None else grad[0].copy_(grad[1])
                for buffer, value in buffers:
                    buffer.copy_(value)
    written = [name for name, (p, _, version) in params.items() if p._version != version]
    if written:
        raise InfuserError(
            f"observer {observer.name} changed the weights that it watches",
            got=listed(written),
            remedy="let it compute on copies, for instance with torch.func.functional_call",
        )


def without_traces(run: Run) -> Run:
    """Return the run without what its observers recorded."""
    return replace(run, traces={})
