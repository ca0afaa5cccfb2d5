"""The verb of attribution: how much does each training document move a measurement?"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Protocol

import torch
from torch import Tensor

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.types import Measurement, Scores


class Attributor(Protocol):
    """Gives every training document a score for every query."""

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return scores (Q, N) in the order of data.ids; positive = up-weighting the document raises f."""
        ...


def attribute(method: Attributor, run: Run, data: Dataset, probes: Measurement) -> Scores:
    """Return how much every document of `data` moves every query of `probes`, shape (Q, N).

    Args:
        method: how to attribute; its fields are its settings.
        run: the trained model, with the checkpoints that the method needs.
        data: the training documents, or a part of them: N, which scores are divided by, is the run's.
        probes: f, the measurement to be raised, with Q queries.

    Returns:
        Scores with one sign for all methods: positive = up-weighting the document raises f.

    Raises:
        InfuserError: the data do not fit the run, the weights or the measurement are not finite, or the method returned
            something else than one row per query and one column per document.
    """
    _check_fit(run, data)
    _check_weights(run.checkpoints[-1].weights)
    scores = method.score(run, data, probes)
    if scores.ids.tolist() != data.ids.tolist():
        raise InfuserError(
            f"{type(method).__name__} did not return the documents in their order",
            got=f"{len(scores.ids)} ids",
            expected=f"the {len(data)} ids of {data.name}",
            remedy="return Scores whose ids are data.ids",
        )
    expected = len(probes) if isinstance(probes, Sized) else len(scores)
    if len(scores) != expected:
        raise InfuserError(
            f"{type(method).__name__} did not return one row per query", got=len(scores), expected=f"{expected} queries"
        )
    return scores


def _check_fit(run: Run, data: Dataset) -> None:
    if data.kind != run.kind:
        raise InfuserError(
            "the data are of another kind than the run was trained on",
            got=data.kind,
            expected=run.kind,
            remedy="pass the training data of this run",
        )
    # The context of a language model may be shorter than it was in training; an image may not change its size.
    same = (
        len(data.input_shape) == len(run.input_shape)
        if run.kind == "causal_lm"
        else data.input_shape == run.input_shape
    )
    if not same or data.n_outputs != run.n_outputs:
        raise InfuserError(
            "the documents do not fit the run's model",
            got=f"documents of shape {data.input_shape}, {data.n_outputs} outputs",
            expected=f"documents of shape {run.input_shape}, {run.n_outputs} outputs",
            remedy="pass the training data of this run",
        )


def _check_weights(weights: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise InfuserError(
            f"{len(bad)} weights of the last checkpoint are not finite",
            got=listed(bad),
            causes=["training diverged", "the weights were damaged on their way here"],
            remedy="lower the learning rate and train again, or take an earlier checkpoint",
        )
