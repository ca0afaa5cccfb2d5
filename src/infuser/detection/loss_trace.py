"""Mean training loss: the plain baseline that every other detector has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from infuser.attribution.loss_trace import LossTrace
from infuser.checkpoints import Run
from infuser.data.dataset import IGNORED, Dataset
from infuser.training import Observer
from infuser.types import Measurement, Suspicion


@dataclass(frozen=True)
class TrainingLoss:
    """The loss of each document averaged over training (or minus its margin, `aum`); of texts, that of a token. Blind.

    Assumes that bad documents are learnt late. That holds for wrong labels, where nothing here does better; it fails
    for edits that keep the label and make a document easier to learn, or that are as easy as any other: inserted copies
    of one document teach each other. Of texts, very short ones rank high: first tokens are hard to foretell.

    Reads the trace of any loss or f-INE observer of these data.

    Args:
        statistic: mean, final (of the last checkpoint; needs no trace) or aum; see attribution.loss_trace.
        every: steps per recorded step of its own observer; by default as many as leave 130.
    """

    statistic: Literal["mean", "final", "aum"] = "mean"
    every: int | None = None

    def observers(self, data: Dataset, measurement: Measurement | None = None) -> tuple[Observer, ...]:
        """Return the observer of losses; none where the final loss is read."""
        return () if self.statistic == "final" else (LossTrace(self.statistic, self.every).observer(data),)

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the statistic of every document.

        Raises:
            InfuserError: the run holds no trace of losses on `data`.
        """
        found = LossTrace(self.statistic, self.every).suspicion(run, data)
        if data.kind != "causal_lm":
            return found
        tokens = (data.targets[:, 1:] != IGNORED).sum(1).clip(min=1)  # else long texts were the suspicious ones
        return replace(found, values=found.values / tokens, detector=f"{found.detector}, of a token")
