"""Training losses as scores: the plain baselines that every influence method has to be read beside."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from infuser.attribution.f_trace import FTrace
from infuser.attribution.signals import Losses, read_losses, require_finite
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.tasks import task_of
from infuser.training import Moment
from infuser.types import Array, Measurement, Scores, Suspicion

_RECORDED = 130  # recorded steps by default, as f-INE's


@dataclass(frozen=True)
class LossSums:
    """Sums over the recorded steps.

    Attributes:
        ids: (N,) documents.
        data_hash: of the documents.
        losses: (N,) sum of losses.
        margins: (N,) sum of margins, None but for classification.
        recorded: steps.
    """

    ids: Array
    data_hash: str
    losses: Array
    margins: Array | None
    recorded: int


@dataclass(frozen=True)
class LossTrace:
    """How hard a document was to learn: the same number for every query.

    `mean`: its loss averaged over training, in nats; at finding wrong labels nothing here beats it. `final`: its loss
    at the end, which tells little once labels are memorised. `aum`: minus its margin (label's logit less the largest
    other) averaged over training, so that higher is more suspicious as for the others.

    Losses are taken in eval mode, before the steps' updates. A run that f-INE has observed needs no observer of this.

    Args:
        statistic: as above; `final` needs no observer at all.
        every: steps per recorded step; by default as many as leave 130 recorded ones.

    Source: area under the margin, Pleiss et al., arXiv 2001.10528.
    """

    statistic: Literal["mean", "final", "aum"] = "mean"
    every: int | None = None

    def __post_init__(self) -> None:
        if self.statistic not in ("mean", "final", "aum"):
            raise InfuserError("unknown statistic", got=self.statistic, expected="mean, final or aum")
        if self.every is not None and self.every < 1:
            raise InfuserError("every is out of range", got=self.every, expected="at least 1")

    def observer(self, data: Dataset) -> LossRecorder:
        """Return what `train(..., observers=[...])` takes; a recorded step costs one forward pass over `data`."""
        return LossRecorder(data, self.every)

    def score(self, run: Run, data: Dataset, probes: Measurement | None = None) -> Scores:
        """Return the statistic of every document, once for every query of `probes` (once without).

        Raises:
            InfuserError: the run holds no trace of losses on `data`, or margins are asked for without single labels.
        """
        values = self._values(run, data)
        count = len(cast(Sized, probes)) if hasattr(probes, "__len__") else 1
        unit = "logit margin, negated" if self.statistic == "aum" else "nats"
        return Scores(np.repeat(values[None], count, axis=0), data.ids, f"training loss, {self.statistic}", unit)

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the statistic as suspicion; it is blind whatever is suspected."""
        return Suspicion(self._values(run, data), data.ids, f"training loss, {self.statistic}")

    def _values(self, run: Run, data: Dataset) -> Array:
        if self.statistic == "final":
            model = run.model()
            read = read_losses(model, trainable(model), task_of(data), data)
            return np.asarray(read.losses.double().cpu().numpy())
        # Its own trace first; one of f-INE serves where it recorded the steps that are asked for.
        kept: list[LossSums | FTrace] = [
            *(t for t in run.traces.values() if isinstance(t, LossSums) and t.data_hash == data.content_hash),
            *(
                t
                for t in run.traces.values()
                if isinstance(t, FTrace) and t.data_hash == data.content_hash and self.every in (None, t.every)
            ),
        ]
        if not kept:
            raise InfuserError(
                "the run holds no training losses of these data",
                got=listed(sorted(run.traces)) or "no trace",
                causes=["it was trained without an observer", "the data were edited or subset after training"],
                remedy="train again with observers=[LossTrace().observer(data)]",
            )
        trace = kept[0]
        if self.statistic == "mean":
            return np.asarray(trace.losses / trace.recorded)
        if trace.margins is None:
            raise InfuserError("margins need one label per document", got=data.kind, remedy="use statistic='mean'")
        return np.asarray(-trace.margins / trace.recorded)


class LossRecorder:
    """Follows the Observer protocol of training; made by `LossTrace.observer`."""

    name = "training losses"
    needs_batch = False

    def __init__(self, data: Dataset, every: int | None) -> None:
        self._data, self._every, self._recorded, self._last = data, every, 0, -1
        self._losses: Array = np.zeros(len(data))
        self._margins: Array | None = np.zeros(len(data))

    def step(self, moment: Moment) -> None:
        """Add every document's loss, if this step's turn has come."""
        if moment.step <= self._last:
            raise InfuserError("this observer has seen a training already", remedy="make a new one for every training")
        self._last = moment.step
        every = self._every or max(1, (moment.steps - moment.first) // _RECORDED)
        if moment.step % every != every // 2:
            return
        read: Losses = read_losses(moment.model, trainable(moment.model), moment.task, self._data)
        require_finite(read.losses, self._data, moment.step, "losses")
        self._losses = self._losses + read.losses.double().cpu().numpy()
        if read.margins is None:
            self._margins = None
        elif self._margins is not None:
            self._margins = self._margins + read.margins.double().cpu().numpy()
        self._recorded += 1

    def trace(self) -> LossSums:
        """Return the sums.

        Raises:
            InfuserError: no step was recorded.
        """
        if not self._recorded:
            raise InfuserError("no step was recorded", got=f"every = {self._every}", remedy="lower every")
        return LossSums(self._data.ids, self._data.content_hash, self._losses, self._margins, self._recorded)
