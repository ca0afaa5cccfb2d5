"""What f-INE recorded along a training run, and the mu that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from infuser.attribution.estimators import MIN_SAMPLES, Estimator, Mu, compose, estimate
from infuser.attribution.null_tests import checked_group
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.types import Array

Kind = Literal["self", "measurement", "groups"]
_SMALLEST = 1e-12  # of the largest summed variance, added to all: mu does not depend on the unit of the signals


@dataclass(frozen=True)
class FTrace:
    """Sums over the recorded steps; memory is O(N), and O(T N) where a table was asked for.

    V_t(i) = lr_t <g_target, g_i> at theta_t. Sums of V count a recorded step `every` times: as often as it stands for.

    Attributes:
        kind: documents on themselves, all documents on a measurement's queries, or groups on themselves.
        rows: names: ("self",), the Q queries or the K groups.
        ids: (N,) of the scored documents.
        data_hash: of the documents scored.
        sizes: (K,) of the groups, else empty.
        steps: of the whole run.
        recorded: steps recorded.
        batch_size: B of the run.
        every: steps per recorded step.
        inside: self: (1, N) sum of V_t(i) on itself. measurement: (Q, N) sum of V_t(i). groups: (K,) sum of the mean
            over S.
        outside: self and groups: sum of the mean of V_t over the documents not in S; unused for a measurement.
        noise: sum of Var_i V_t(i) / B: (1, N), (Q,) or (K,).
        tables: paper mode: (O', O), each (T, rows, N) or (T, K), or their moments where a table is not needed.
        losses: (N,) sum over the recorded steps of each document's loss.
        margins: (N,) the same of its margin, None but for classification.
        partners: how many a recorded step took; N where exact.
    """

    kind: Kind
    rows: tuple[str, ...]
    ids: Array
    data_hash: str
    sizes: Array
    steps: int
    recorded: int
    batch_size: int
    every: int
    inside: Array
    outside: Array
    noise: Array
    losses: Array
    margins: Array | None
    partners: int
    tables: tuple[Array, Array] | None = field(default=None, repr=False)
    moments: Mapping[str, Any] | None = field(default=None, repr=False)

    def snr(self) -> Mu:
        """Return mu = sum_t d_t / sqrt(sum_t s2_t), flat over rows and documents (rows x N), or (K,) for groups.

        d_t = (|S| / n) (mean of V_t in S - mean of V_t outside); s2_t = Var_i V_t(i) / B.
        """
        n = len(self.ids)
        if self.kind == "groups":
            return self._snr(self.sizes / n * (self.inside - self.outside), self.noise)
        if self.kind == "self":
            return self._snr((self.inside - self.outside).ravel() / n, self.noise.ravel())
        rest = (self.inside.sum(1, keepdims=True) - self.inside) / max(n - 1, 1)
        return self._snr((self.inside - rest).ravel() / n, np.repeat(self.noise, n))

    def group_snr(self, data: Dataset, ids: Sequence[int] | Array) -> Array:
        """Return mu of any group on each recorded query, (Q,): sums over documents are all that a group needs.

        Raises:
            InfuserError: no measurement was recorded, or the group is empty, all documents, or names one twice.
        """
        if self.kind != "measurement":
            raise InfuserError(
                "a group's influence on a measurement was not recorded",
                got=f"a trace of {self.kind}",
                remedy="train again with observers=[method.observer(data, measurement=probes)]",
            )
        # Sorted, so that equal groups have equal sums whatever order they are named in.
        at = np.sort(data.positions(checked_group(data, ids)))
        n, k = len(self.ids), len(at)
        total = self.inside.sum(1)
        within = self.inside[:, at].sum(1)
        drift = k / n * (within / k - (total - within) / (n - k))
        return self._snr(drift, self.noise).values

    def paper(self, estimator: Estimator, seed: int) -> Mu:
        """Return mu = (B / n) sqrt(T) EST(O', O), flat as `snr`.

        O is the mean signal of a batch with S put into it, O' of the same batch without S. T counts all steps.
        """
        if estimator == "gauss" and self.moments is not None:
            step = _gauss_of_moments(self.moments, self.recorded)
        elif self.tables is not None:
            without, with_s = (table.reshape(len(table), -1) for table in self.tables)
            step = _estimated(without, with_s, estimator, seed)
        else:
            raise InfuserError(
                f"the estimator {estimator} needs the signals of every step, which were not recorded",
                remedy="train again with mode='paper' and this estimator",
            )
        values = compose(step.values, self.steps, self.batch_size / len(self.ids))
        return Mu(np.asarray(values), step.reasons)

    def tracin(self) -> Array:
        """Return all-step TracIn, (rows, N) or (K,): sum_t lr_t <g_target, g_i>."""
        return self.inside

    def mean_losses(self) -> Array:
        """Return each document's loss averaged over the recorded steps, (N,)."""
        return cast(Array, self.losses / self.recorded)

    def _snr(self, drift: Array, noise: Array) -> Mu:
        if self.recorded < MIN_SAMPLES:
            reason = f"{self.recorded} recorded steps, at least {MIN_SAMPLES} are needed"
            return Mu(np.full(len(drift), np.nan), dict.fromkeys(range(len(drift)), reason))
        with np.errstate(invalid="ignore", divide="ignore"):
            values = drift / np.sqrt(noise + _SMALLEST * np.nanmax(noise, initial=0.0))
        return _with_reasons(values, noise)


def _estimated(without: Array, with_s: Array, estimator: Estimator, seed: int) -> Mu:
    """Return mu by column; a step at which a column has no O' is left out of that column."""
    step = estimate(without, with_s, estimator, seed)
    known = np.isfinite(without) & np.isfinite(with_s)
    values, reasons = step.values.copy(), dict(step.reasons)
    for k in np.flatnonzero(~known.all(0)).tolist():
        own = estimate(without[known[:, k], k], with_s[known[:, k], k], estimator, seed)
        values[k] = own.values[0]
        reasons.pop(k, None)
        if own.reasons:
            reasons[k] = own.reasons[0]
    return Mu(values, reasons)


def _gauss_of_moments(moments: Mapping[str, Any], count: int) -> Mu:
    """Return (mean O - mean O') / pooled sd from means and sums of squared deviations."""
    without, with_s, squares = (np.asarray(moments[key]).ravel() for key in ("without", "with", "squares"))
    if count < MIN_SAMPLES:
        reason = f"{count} recorded steps, at least {MIN_SAMPLES} are needed"
        return Mu(np.full(len(without), np.nan), dict.fromkeys(range(len(without)), reason))
    counts = np.asarray(moments["counts"]).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = squares / (2 * (counts - 1))
        values = (with_s - without) / np.sqrt(pooled)
    few = {int(i): f"{counts[i]} steps whose batch holds others" for i in np.flatnonzero(counts < MIN_SAMPLES)}
    found = _with_reasons(np.where(counts < MIN_SAMPLES, np.nan, values), pooled)
    return Mu(found.values, {**found.reasons, **few})


def _with_reasons(values: Array, variance: Array) -> Mu:
    """Return the values with NaN, and why, where the variance is 0 or something is not finite."""
    values = np.where(variance > 0, values, np.nan)
    flat = {int(i): "the variance is 0" for i in np.flatnonzero(variance == 0)}
    lost = np.flatnonzero(~np.isfinite(values))
    return Mu(values, {int(i): "a value is not finite" for i in lost} | flat)
