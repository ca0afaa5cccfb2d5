"""A callback for the Trainer of Hugging Face transformers that shows its steps to observers, such as those of f-INE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from infuser.adapters.own_loop import Watch
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.models.huggingface import CausalModule
from infuser.training import Observer


def trainer_callback(data: Dataset, observers: Sequence[Observer]) -> Any:
    """Return a `transformers.TrainerCallback` that shows every optimiser step to observers.

        callback = inf.adapters.trainer_callback(data, [finder.observer(data)])
        Trainer(..., callbacks=[callback]).train()
        mu = finder.score(callback.run(), data)  # of every document on itself

    It acts between the backward pass (and gradient clipping) and the optimiser's step; the trained weights are the same
    bit for bit with and without it. The Trainer does not tell a callback which documents are in the batch: methods that
    need them (f-INE in mode paper) are refused, mode snr needs the batch's size alone. With gradient accumulation a
    step's batch is the sum of its parts. Dropout is off while observers look.

    Args:
        data: the training documents of tokens, as `data.text_dataset` makes them; see `trainer_rows`.
        observers: made for `data`; new ones for every training. One of your own says by `needs_batch = False` that it
            reads of a batch how many documents it has, and no more.

    Raises:
        InfuserError: the documents are not tokens, or an observer needs to know the batch.
    """
    from transformers import TrainerCallback

    if data.kind != "causal_lm":
        raise InfuserError("the Trainer's callback watches language models", got=data.kind, expected="causal_lm")
    blind = [o.name for o in observers if getattr(o, "needs_batch", True)]
    if blind:
        raise InfuserError(
            "the Trainer does not tell which documents are in a batch",
            got=blind,
            causes=["f-INE in mode paper", "an observer of one's own that does not say needs_batch = False"],
            remedy="use mode snr, or say so where an observer reads neither the batch's documents nor its losses",
        )

    class Callback(TrainerCallback):
        """Watches; `run()` gives what was recorded."""

        watch: Watch | None = None

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Show the step that comes."""
            model = _inner(kwargs["model"])
            if self.watch is None:
                self.watch = Watch(_logits(model), data, observers, int(state.max_steps))
            size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.watch(data.ids[: min(size, len(data))], float(kwargs["optimizer"].param_groups[0]["lr"]))

        def run(self) -> Run:
            """Return the run of the model as it is now, with what the observers recorded.

            Raises:
                InfuserError: the Trainer has made no step.
            """
            if self.watch is None:
                raise InfuserError("the Trainer has made no step yet", remedy="call train() first")
            return self.watch.run()

    return Callback()


def _inner(model: nn.Module) -> nn.Module:
    """Return the model without wrappers of several devices."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


def _logits(model: nn.Module) -> nn.Module:
    """Return the model as one that gives logits; its modules and parameters are the same objects."""
    return CausalModule(model)


def trainer_rows(data: Dataset) -> list[dict[str, list[int]]]:
    """Return documents as the Trainer takes them: rows of input_ids and labels of one length, padding without a loss.

    Rows and labels are not shifted: the model does that. Labels are -100 where a document carries no loss; padding is
    on the right, where a causal model cannot see it, and its ids are 0.
    """
    inputs = np.where(data.inputs < 0, 0, data.inputs)
    pairs = zip(inputs.tolist(), data.targets.tolist(), strict=True)
    return [{"input_ids": row, "labels": labels} for row, labels in pairs]
