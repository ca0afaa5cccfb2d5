"""f-INE: which documents matter beyond training randomness, from one training run.

mu is the shift, in units of the spread over trainings, that leaving a document out gives to a test statistic: mu > 0
means that the document lowers the loss (raises f). One run cannot show that spread; both modes read it off the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from infuser.attribution.estimators import Estimator, Mu
from infuser.attribution.f_recorder import Recorder
from infuser.attribution.f_trace import FTrace
from infuser.attribution.null_tests import GroupTest, checked_group, group_test
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.measure import identity
from infuser.types import Array, Measurement, Scores, Suspicion

__all__ = ["FInfluence"]


@dataclass(frozen=True)
class FInfluence:
    """mu of documents, or of groups of them, from gradient similarities V_t(i) = lr_t <g_target, g_i> along one run.

    The target is the document itself (or the mean gradient of a group), or a measurement f, whose negative counts as
    the loss. V_t(i) is how much a step on document i lowers the target's loss, to first order.

    mode `snr` (ours, default): d_t = (|S|/n) (mean of V_t in S - mean of V_t outside S) is what a step gains from S on
    average, s2_t = Var_i V_t(i) / B the variance that drawing the batch gives it, and
    mu = sum_t d_t / sqrt(sum_t s2_t). Memory O(N).

    mode `paper`: O_t is the mean signal of the step's batch with S put into it, O'_t without;
    mu = (B/n) sqrt(T) EST(O', O), T counting all steps. `auc` and `scan` hold two tables of T x N numbers, `gauss`
    needs O(N).

    Gradients are taken in eval mode (dropout off, BatchNorm frozen), on documents without augmentation, and the
    optimiser counts as SGD: momentum is a common factor, Adam's scaling is left out. A document's weight multiplies its
    gradient.

    Args:
        mode: as above.
        estimator: of mode paper; see `estimators`. Mode snr has none.
        every: steps per recorded step; by default as many as leave 130 recorded ones.
        partners: random documents per recorded step that give the variance of a document's signals (mode snr on the
            documents themselves); by default as many, up to 128, as keep a recorded step within three forward passes.
        seed: draws the partners and breaks ties.
        auxiliary: score documents along a training on other ones. Off: it adds noise, or removes the randomness that is
            being measured.

    Source: arXiv 2510.10510 (definition, mode paper in outline); mode snr and the details of paper are our reading.
    """

    mode: Literal["snr", "paper"] = "snr"
    estimator: Estimator = "auc"
    every: int | None = None
    partners: int | None = None
    seed: int = 0
    auxiliary: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("snr", "paper"):
            raise InfuserError("unknown mode", got=self.mode, expected="snr or paper")
        if self.estimator not in ("auc", "gauss", "scan"):
            raise InfuserError("unknown estimator", got=self.estimator, expected="auc, gauss or scan")
        if self.every is not None and self.every < 1:
            raise InfuserError("every is out of range", got=self.every, expected="at least 1")
        if self.partners is not None and self.partners < 3:
            raise InfuserError("partners is out of range", got=self.partners, expected="at least 3, for a variance")

    def observer(
        self,
        data: Dataset,
        measurement: Measurement | None = None,
        groups: Mapping[str, Sequence[int] | Array] | None = None,
    ) -> Recorder:
        """Return what `train(..., observers=[...])` takes; it records every document of `data`.

        Args:
            data: the training documents.
            measurement: f; documents are scored on its queries instead of on themselves.
            groups: name -> ids; groups are scored on themselves instead of documents. A group's influence on a
                measurement needs no group here: see `group_scores`.

        Raises:
            InfuserError: both a measurement and groups, or a group that is empty, all documents, or names one twice.
        """
        if measurement is not None and groups is not None:
            raise InfuserError(
                "groups are recorded on themselves",
                got="a measurement and groups",
                remedy="record the measurement alone; group_scores and group_test give any group's mu from it",
            )
        checked = {name: checked_group(data, ids, f"group {name}") for name, ids in (groups or {}).items()}
        key = self._key(measurement, groups is not None)
        return Recorder(self, key, data, measurement, checked)

    def score(self, run: Run, data: Dataset, probes: Measurement | None = None) -> Scores:
        """Return mu of every document on the probes (Q, N), or without probes on itself (1, N).

        Raises:
            InfuserError: the run has no such trace, or its data are not `data`.
        """
        trace = self.trace(run, data, probes)
        mu = self._mu(trace)
        shape = (len(trace.rows), len(trace.ids))
        reasons = _reasons(mu, trace.ids)
        told = f"f-INE {self}, {trace.recorded} of {trace.steps} steps"
        return Scores(mu.values.reshape(shape), trace.ids, told, "mu", trace.rows, reasons)

    def tracin(self, run: Run, data: Dataset, probes: Measurement | None = None) -> Scores:
        """Return all-step TracIn from the same trace: sum_t lr_t <g_target, g_i>, to be read beside mu."""
        trace = self.trace(run, data, probes)
        values = np.broadcast_to(trace.tracin(), (len(trace.rows), len(trace.ids)))
        unit = "loss lowered by one step at each"
        return Scores(values, trace.ids, f"TracIn over {trace.recorded} steps", unit, trace.rows)

    def group_scores(
        self,
        run: Run,
        data: Dataset,
        groups: Mapping[str, Sequence[int] | Array],
        probes: Measurement | None = None,
    ) -> dict[str, Array]:
        """Return name -> mu of each group on the probes, (Q,), or without probes on itself, (1,).

        Raises:
            InfuserError: nothing was recorded for it. On probes only mode snr holds what a group needs.
        """
        if probes is not None:
            self._require_snr()
            trace = self.trace(run, data, probes)
            return {name: trace.group_snr(data, ids) for name, ids in groups.items()}
        trace = self._find(run, data, self._key(None, groups=True), "groups=groups")
        mu = self._mu(trace)
        missing = [name for name in groups if name not in trace.rows]
        if missing:
            raise InfuserError("groups were not recorded", got=listed(missing), expected=listed(trace.rows))
        return {name: mu.values[[trace.rows.index(name)]] for name in groups}

    def group_test(
        self,
        run: Run,
        data: Dataset,
        ids: Sequence[int] | Array,
        probes: Measurement,
        *,
        groups: int = 999,
        query: int = 0,
    ) -> GroupTest:
        """Return the test of a group's mu on one query against random groups of its size and labels."""
        self._require_snr()
        trace = self.trace(run, data, probes)

        def statistic(chosen: Array) -> float:
            return float(trace.group_snr(data, chosen)[query])

        return group_test(statistic, data, ids, groups=groups, seed=self.seed)

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return mu as suspicion: on the mean over the suspected behaviour's queries, or blind on the document itself.

        A document that the model has to learn by itself (a wrong label, a lone edit) has a high mu on itself.

        Raises:
            InfuserError: no trace, or a mu is not known.
        """
        scores = self.score(run, data, measurement)
        values = scores.values.mean(0)
        if not np.isfinite(values).all():
            reason = next(iter(scores.reasons.values()), "")
            raise InfuserError("mu is not known for all documents", got=reason, remedy="record more steps")
        told = "blind" if measurement is None else f"suspected: {measurement.name}"
        return Suspicion(values, scores.ids, scores.method, told)

    def trace(self, run: Run, data: Dataset, probes: Measurement | None = None) -> FTrace:
        """Return what this method recorded in a run.

        Raises:
            InfuserError: the run has no such trace, or its data are not `data`.
        """
        how = "data, measurement=probes" if probes is not None else "data"
        return self._find(run, data, self._key(probes), how)

    def __str__(self) -> str:
        return self.mode if self.mode == "snr" else f"paper, {self.estimator}"

    def _mu(self, trace: FTrace) -> Mu:
        return trace.snr() if self.mode == "snr" else trace.paper(self.estimator, self.seed)

    def _require_snr(self) -> None:
        if self.mode != "snr":
            raise InfuserError(
                "a group's mu on a measurement needs mode snr", got=self.mode, remedy="record FInfluence(mode='snr')"
            )

    def _key(self, measurement: Measurement | None, groups: bool = False) -> str:
        # All settings are in the key: traces of several methods can stand in one run.
        if groups:
            return f"{self!r}, groups"
        if measurement is None:
            return f"{self!r}, self"
        return f"{self!r}, {measurement.name} {identity(measurement)}"

    def _find(self, run: Run, data: Dataset, key: str, how: str) -> FTrace:
        trace = run.traces.get(key)
        remedy = f"train again with observers=[FInfluence(...).observer({how})] and the same settings"
        if not isinstance(trace, FTrace):
            raise InfuserError(
                "the run holds no such f-INE trace",
                got=listed(sorted(run.traces)) or "no trace",
                expected=key,
                remedy=remedy,
            )
        if trace.data_hash != data.content_hash:
            raise InfuserError(
                "the f-INE trace belongs to other data",
                got=data.content_hash[:8],
                expected=trace.data_hash[:8],
                causes=["the data were edited or subset after training"],
                remedy=f"pass the data that the observer was given, or {remedy}",
            )
        return trace


def _reasons(mu: Mu, ids: Array) -> dict[str, str]:
    if not mu.reasons:
        return {}
    if len(mu.reasons) == len(mu.values) and len(set(mu.reasons.values())) == 1:
        return {"all": next(iter(mu.reasons.values()))}
    return {str(cast(int, ids[k % len(ids)])): reason for k, reason in mu.reasons.items()}
