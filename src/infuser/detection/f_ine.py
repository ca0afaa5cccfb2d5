"""f-INE as a detector: it ranks documents by what attribution recorded, and computes nothing new."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from infuser.attribution.f_ine import FInfluence
from infuser.attribution.f_ine_preconditioned import PreconditionedFInfluence
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.detect import required
from infuser.training import Observer
from infuser.types import Measurement, Suspicion


@dataclass(frozen=True)
class FIne:
    """mu of each document on itself (blind), or on the suspected behaviour.

    mu asks whether a document matters beyond training randomness. On itself it is high for documents that only their
    own gradient teaches: wrong labels, lone edits. It fails for edits that many documents share, and does not beat mean
    training loss at wrong labels. On a behaviour it needs the same behaviour to be recorded during training, or
    `preconditioned`, which needs checkpoints alone; single test points are weak ground (see attribution.f_ine).

    Args:
        finder: how mu is recorded and read.
        target: `itself`, or the `measurement`.
    """

    finder: FInfluence = field(default_factory=FInfluence)
    target: Literal["itself", "measurement"] = "itself"

    def observers(self, data: Dataset, measurement: Measurement | None = None) -> tuple[Observer, ...]:
        """Return the observer that records mu on the target; a recorded step reads all of `data`.

        Raises:
            InfuserError: mu on a measurement is wanted, and none was given.
        """
        if self.target == "itself":
            return (self.finder.observer(data),)
        return (self.finder.observer(data, required(measurement, "f-INE towards a measurement")),)

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return mu of every document.

        Raises:
            InfuserError: the run holds no such trace, or a mu is not known.
        """
        if self.target == "itself":
            return self.finder.suspicion(run, data)
        return self.finder.suspicion(run, data, required(measurement, "f-INE towards a measurement"))


@dataclass(frozen=True)
class FInePreconditioned:
    """mu on the suspected behaviour in the metric of EK-FAC, averaged over checkpoints: no observer is needed.

    Assumes that the behaviour is known and that the run kept checkpoints of the later part of training. Fails as
    InfluenceTowards does, but for the one checkpoint: it also sees what was learnt before the behaviour saturated.

    Args:
        method: how mu is computed.
    """

    method: PreconditionedFInfluence = field(default_factory=PreconditionedFInfluence)

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return mu on the mean over the measurement's queries.

        Raises:
            InfuserError: no measurement was given.
        """
        suspected = required(measurement, "preconditioned f-INE")
        scores = self.method.score(run, data, suspected)
        return Suspicion(np.asarray(scores.values.mean(0)), scores.ids, scores.method, f"suspected: {suspected.name}")
