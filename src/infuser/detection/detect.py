"""The verb of detection: how suspicious is each training document?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from infuser.attribution.f_recorder import together
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.training import Observer
from infuser.types import Measurement, Suspicion


@runtime_checkable
class Detector(Protocol):
    """Gives every training document one number, higher = more suspicious."""

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return one finite number per document in the order of data.ids.

        Args:
            run: trained on `data`, which may hold edited documents: the defender has nothing else.
            data: the N training documents.
            measurement: the suspected behaviour f, None for a blind search. Blind detectors ignore it.
        """
        ...


@runtime_checkable
class Observing(Protocol):
    """A detector that reads what was recorded during training."""

    def observers(self, data: Dataset, measurement: Measurement | None = None) -> tuple[Observer, ...]:
        """Return what train(..., observers=...) has to be given for it."""
        ...


def detect(detector: Detector, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
    """Return how suspicious every document of `data` is.

    Args:
        detector: how to look; its fields are its settings.
        run: trained on `data`, with the traces that the detector reads.
        data: the N training documents.
        measurement: the suspected behaviour, positive = suspected; None for a blind search.

    Raises:
        InfuserError: the run was trained on other data, a trace or a measurement that the detector needs is missing, or
            it returned something else than one number per document.
    """
    if run.data_hash != data.content_hash:
        raise InfuserError(
            "the run was trained on other data than these",
            got=f"{data.name}, hash {data.content_hash[:8]}",
            expected=f"hash {run.data_hash[:8]}",
            causes=["the data were edited or subset after training"],
            remedy="train on the data that are to be searched, with the detector's observers, and pass that run",
        )
    found = detector.suspicion(run, data, measurement)
    if not np.array_equal(found.ids, data.ids):
        raise InfuserError(
            f"{type(detector).__name__} did not return the documents in their order",
            got=f"{len(found.ids)} ids",
            expected=f"the {len(data)} ids of {data.name}",
            remedy="return a Suspicion whose ids are data.ids",
        )
    return found


def observers_of(
    detectors: Sequence[Detector], data: Dataset, measurement: Measurement | None = None
) -> tuple[Observer, ...]:
    """Return the observers that some detectors need for one training, each once by its name.

    Those of f-INE share their passes over the documents.
    """
    needed: dict[str, Observer] = {}
    for detector in detectors:
        if isinstance(detector, Observing):
            for observer in detector.observers(data, measurement):
                needed.setdefault(observer.name, observer)
    together(list(needed.values()))
    return tuple(needed.values())


def required(measurement: Measurement | None, who: str) -> Measurement:
    """Return the measurement, which a detector cannot do without.

    Raises:
        InfuserError: it is None.
    """
    if measurement is None:
        raise InfuserError(
            f"{who} looks for the causes of a behaviour, and none was named",
            expected="a measurement of the suspected behaviour",
            remedy="pass measurement=measure.Margin(documents, suspected_labels), or take a blind detector",
        )
    return measurement
