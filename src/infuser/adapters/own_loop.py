"""Observers in a training loop of one's own: one call between backward() and the optimiser's step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import nn

from infuser.checkpoints import Run, with_traces
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, require
from infuser.tasks import task_of
from infuser.training import Moment, Observer, _untouched
from infuser.types import Array, Recipe


class Watch:
    """Shows every step of a training loop to observers; weights are the same bit for bit with and without it.

        finder = inf.FInfluence()
        watch = inf.adapters.Watch(model, data, [finder.observer(data)], steps=500)
        ...
        loss.backward()
        watch(ids, lr=0.1)  # ids of the batch's documents; the model is as backward() left it
        optimizer.step()
        ...
        mu = finder.score(watch.run(), data)  # of every document on itself

    Args:
        model: that is trained; it takes what `data` feeds (images in [0, 1], token ids) and returns logits.
        data: the N training documents.
        observers: of methods, for instance `FInfluence().observer(data)`.
        steps: that the whole training will take.
    """

    def __init__(self, model: nn.Module, data: Dataset, observers: Sequence[Observer], steps: int) -> None:
        if steps < 1:
            raise InfuserError("steps is out of range", got=steps, expected="at least 1")
        kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype != torch.float32}
        if kinds:
            raise InfuserError(
                "observers compute in float32", got=f"parameters of {', '.join(sorted(kinds))}",
                remedy="watch the float32 model: train it under torch.autocast, or keep a float32 copy of the weights",
            )  # fmt: skip
        self._model, self._data, self._observers, self._steps = model, data, tuple(observers), steps
        self._task, self._done, self._batch_size = task_of(data), 0, 1

    def __call__(self, ids: Sequence[int] | Array | torch.Tensor, lr: float) -> None:
        """Show this step.

        Args:
            ids: (B,) of the documents of the batch.
            lr: the learning rate of the step that follows.

        Raises:
            InfuserError: more steps than were announced, an empty batch, unknown ids, or a rate that is none.
        """
        if self._done >= self._steps:
            remedy = "pass the number of optimiser steps of the whole training"
            raise InfuserError(
                "training goes on beyond the announced steps", got=self._done + 1, expected=self._steps, remedy=remedy
            )
        chosen = ids.tolist() if isinstance(ids, torch.Tensor) else [int(i) for i in ids]
        require("lr", lr, isfinite(lr) and lr >= 0, "at least 0")
        require("ids", chosen, bool(chosen), "the documents of the batch")
        device = next(self._model.parameters()).device
        batch = self._data.batch(self._data.positions(chosen), str(device))
        self._batch_size = max(self._batch_size, len(chosen))
        # No observer reads the losses of the batch: they would cost a pass that the loop has made already.
        unknown = torch.full((len(chosen),), float("nan"), device=device)
        epoch = self._done * self._batch_size // len(self._data)
        moment = Moment(self._model, self._task, self._data, batch, unknown, lr, epoch, self._done, self._steps)
        for observer in self._observers:
            with _untouched(self._model, observer):
                observer.step(moment)
        self._done += 1

    def run(self) -> Run:
        """Return the run of the model as it is now, with what the observers recorded.

        Warns where training ended before the announced steps: which of them are recorded was spread over all.
        """
        if self._done < self._steps:
            text = f"training was announced to take {self._steps} steps and took {self._done}: the rest is not recorded"
            warnings.warn(text, stacklevel=2)
        builder = Copy(deepcopy(self._model).cpu())
        weights = {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}
        run = Run.from_weights(builder, weights, self._data, recipe=Recipe(batch_size=self._batch_size))
        return with_traces(run, {observer.name: observer.trace() for observer in self._observers})


@dataclass(frozen=True)
class Copy:
    """A builder that returns copies of a model."""

    model: nn.Module

    def __call__(self, input_shape: tuple[int, ...], n_outputs: int) -> Any:
        """Return a copy; it fits the documents that the model was trained on."""
        return deepcopy(self.model)
