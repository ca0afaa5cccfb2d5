"""Several detectors as one, by their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.detect import Detector, Observing, detect
from infuser.errors import InfuserError
from infuser.training import Observer
from infuser.types import Array, Measurement, Suspicion

Rule = Literal["mean", "max"]


@dataclass(frozen=True)
class Fused:
    """The mean (or the largest) of the ranks that several detectors give a document, as shares of N.

    Assumes that detectors err apart: `mean` rewards documents that many find odd, `max` those that any one does. Fails
    where most of its members see nothing: their chance ranks drown the one that does, less so under `max`.

    Args:
        detectors: the members.
        rule: mean or max.
    """

    detectors: tuple[Detector, ...]
    rule: Rule = "mean"

    def __post_init__(self) -> None:
        if not self.detectors or self.rule not in ("mean", "max"):
            raise InfuserError(
                "nothing to fuse", got=f"{len(self.detectors)} detectors, {self.rule}", expected="mean or max"
            )

    def observers(self, data: Dataset, measurement: Measurement | None = None) -> tuple[Observer, ...]:
        """Return the observers of all members."""
        members = [member for member in self.detectors if isinstance(member, Observing)]
        return tuple(observer for member in members for observer in member.observers(data, measurement))

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the fused ranks, in (0, 1]."""
        return fuse([detect(member, run, data, measurement) for member in self.detectors], self.rule)


def fuse(suspicions: Sequence[Suspicion], rule: Rule = "mean") -> Suspicion:
    """Return the mean or the largest of the ranks / N over several suspicions of the same documents.

    Ties share their mean rank.

    Raises:
        InfuserError: none is given, or they are of other documents.

    >>> ids = np.arange(3)
    >>> both = [Suspicion(np.array([1.0, 5.0, 3.0]), ids, "a"), Suspicion(np.array([0.0, 0.0, 9.0]), ids, "b")]
    >>> (3 * fuse(both).values).tolist()
    [1.25, 2.25, 2.5]
    """
    if not suspicions or any(not np.array_equal(s.ids, suspicions[0].ids) for s in suspicions):
        raise InfuserError("suspicions of the same documents are fused", got=f"{len(suspicions)} suspicions")
    table = np.stack([ranks(suspicion.values) for suspicion in suspicions])
    values = table.mean(0) if rule == "mean" else table.max(0)
    told = sorted({suspicion.told for suspicion in suspicions})
    named = "; ".join(suspicion.detector for suspicion in suspicions)
    return Suspicion(values, suspicions[0].ids, f"{rule} rank of: {named}", " and ".join(told))


def ranks(values: Array) -> Array:
    """Return rank / N of each value, 1 for the highest; ties share their mean rank."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values) / len(values))
