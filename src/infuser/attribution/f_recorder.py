"""The observer of f-INE: running sums of signals at the recorded steps, and tables of them only where needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from infuser import measure
from infuser.attribution import signals
from infuser.attribution.f_trace import FTrace, Kind
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.measure import query_names
from infuser.params import trainable
from infuser.training import Moment, Observer
from infuser.types import Array, Batch, Measurement, Params

if TYPE_CHECKING:
    from infuser.attribution.f_ine import FInfluence

RECORDED = 130  # recorded steps by default: fewer make the ranks of documents noisier


class Recorder:
    """Follows the Observer protocol of training; made by `FInfluence.observer`."""

    def __init__(
        self,
        method: FInfluence,
        name: str,
        data: Dataset,
        measurement: Measurement | None,
        groups: Mapping[str, Array],
    ) -> None:
        self.name = name
        self._method, self._data = method, data
        self._targets = _Targets(data, measurement, groups)
        self._positions = [data.positions(ids) for ids in groups.values()]
        self._sums = _Sums()
        self._layers: Any = None
        self._reading = _Reading((self,))
        self._last = -1
        self._every = self._partners = self._recorded = self._batch_size = self._steps = 0

    @property
    def needs_batch(self) -> bool:
        """Whether it reads which documents are in the batch, not only how many."""
        return self._method.mode == "paper"

    def step(self, moment: Moment) -> None:
        """Record this step if its turn has come; parameters, modes and gradients stay as they are."""
        if moment.step <= self._last:
            remedy = "make a new one with method.observer(data) for every training"
            raise InfuserError("this observer has seen a training already", got=f"step {moment.step}", remedy=remedy)
        self._last = moment.step
        self.begin(moment)
        self._batch_size = max(self._batch_size, len(moment.batch))
        if moment.step % self._every != self._every // 2:
            return
        params = trainable(moment.model)
        wanted, seen = self._reading.at(moment, params)[self]
        if wanted.partners is not None:
            self._on_themselves(moment, wanted.partners, seen)
        else:
            self._on_targets(moment, params, wanted.vectors, seen)
        self._sums.add("losses", _numpy(seen.read.losses))
        if seen.read.margins is not None:
            self._sums.add("margins", _numpy(seen.read.margins))
        self._recorded += 1

    def wants(self, moment: Moment, params: Params) -> Wanted:
        """Return what this step's pass over the documents has to give."""
        if self._targets.kind == "self":
            return Wanted(partners=self._drawn(moment, params))
        return Wanted(vectors=self._targets.gradients(moment, params))

    def read(self, moment: Moment, params: Params, wanted: Wanted) -> signals.Signals:
        """Return it, from one pass."""
        return signals.read_signals(
            moment.model,
            params,
            moment.task,
            self._data,
            self._layers,
            partners=wanted.partners,
            vectors=wanted.vectors,
        )

    @property
    def shareable(self) -> tuple[Any, ...]:
        """What recorders have in common that can be read in one pass: documents and steps."""
        return self._data.content_hash, self._method.every, self._method.auxiliary

    @property
    def on_itself(self) -> bool:
        """Whether documents are recorded on themselves."""
        return self._targets.kind == "self"

    def read_with(self, reading: _Reading) -> None:
        """Take what a pass for several recorders gives."""
        self._reading = reading

    def trace(self) -> FTrace:
        """Return the sums.

        Raises:
            InfuserError: no step was recorded.
        """
        if not self._recorded:
            raise InfuserError("no step was recorded", got=f"every = {self._method.every}", remedy="lower every")
        scale, sums, method = self._every, self._sums, self._method
        tables = None
        if sums.tables:
            tables = (np.stack(sums.tables["without"]), np.stack(sums.tables["with"]))
        return FTrace(
            self._targets.kind,
            self._targets.rows(),
            self._data.ids,
            self._data.content_hash,
            np.array([len(at) for at in self._positions]),
            self._steps,
            self._recorded,
            self._batch_size,
            self._every,
            scale * sums["inside"],
            scale * sums["outside"] if "outside" in sums.values else np.zeros(0),
            scale * sums["noise"] if "noise" in sums.values else np.zeros(0),
            sums["losses"],
            sums.values.get("margins"),
            self._partners,
            tables,
            sums.moments() if method.mode == "paper" and method.estimator == "gauss" else None,
        )

    def begin(self, moment: Moment) -> None:
        """Look at the model and the data, at the first step."""
        if self._every:
            return
        if not self._method.auxiliary and moment.data.content_hash != self._data.content_hash:
            raise InfuserError(
                "the observer was made for other data than the training's",
                got=f"{len(moment.data)} documents, hash {moment.data.content_hash[:8]}",
                expected=f"{len(self._data)} documents, hash {self._data.content_hash[:8]}",
                remedy="make it with method.observer(data) of the training data, or set auxiliary=True",
            )
        if self._method.mode == "paper" and len(moment.batch) < 2:
            raise InfuserError("mode paper needs batches of two documents or more", got=len(moment.batch))
        params = trainable(moment.model)
        self._steps = moment.steps - moment.first
        self._every = self._method.every or max(1, self._steps // RECORDED)
        self._layers = signals.supported_layers(moment.model, params, self._data)
        if self._method.mode == "snr" and self._targets.kind == "self":
            chosen = self._method.partners
            self._partners = min(
                len(self._data),
                chosen or signals.affordable_partners(moment.model, params, moment.task, self._data, self._layers),
            )
        else:
            self._partners = len(self._data)

    def _drawn(self, moment: Moment, params: Params) -> Batch:
        if self._method.mode == "paper":
            return moment.batch
        rng = np.random.default_rng([self._method.seed, moment.step])
        n = len(self._data)
        drawn = rng.choice(n, self._partners, replace=False) if self._partners < n else None
        at = np.arange(n) if drawn is None else np.sort(drawn)
        return self._data.batch(at, str(next(iter(params.values())).device))

    def _on_themselves(self, moment: Moment, partners: Batch, seen: signals.Signals) -> None:
        data = self._data
        assert seen.own is not None, "asked for"
        assert seen.cross is not None, "asked for"
        signals.require_finite(seen.own, data, moment.step, "gradients")
        own = moment.lr * _numpy(seen.own) * data.weights
        cross = moment.lr * _numpy(seen.cross) * _numpy(partners.weights)
        # A document that is its own partner counts as S, not as one of the others.
        others = _numpy(partners.ids)[None] != data.ids[:, None]
        count = others.sum(1)
        total = np.where(others, cross, 0.0).sum(1)
        self._sums.add("inside", own[None])
        if self._method.mode == "paper":
            without, with_s = total / np.maximum(count, 1), (total + own) / (count + 1)
            self._keep(np.where(count > 0, without, np.nan)[None], with_s[None])
        else:
            mean = total / count
            self._sums.add("outside", mean[None])
            self._sums.add("noise", _variance(own, cross, others, mean, len(data))[None] / len(moment.batch))

    def _on_targets(self, moment: Moment, params: Params, vectors: Params | None, seen: signals.Signals) -> None:
        data = self._data
        assert vectors is not None, "asked for"
        assert seen.along is not None, "asked for"
        signals.require_finite(seen.along, data, moment.step, "signals")
        v = moment.lr * _numpy(seen.along) * data.weights
        noise = v.var(1) / len(moment.batch)
        if self._targets.kind == "groups":
            inside = np.stack([row[at].mean() for row, at in zip(v, self._positions, strict=True)])
            totals = zip(v, self._positions, strict=True)
            outside = np.stack([(row.sum() - row[at].sum()) / (len(row) - len(at)) for row, at in totals])
            self._sums.add("inside", inside)
            self._sums.add("outside", outside)
        else:
            self._sums.add("inside", v)
        self._sums.add("noise", noise)
        if self._method.mode == "paper":
            self._batches(moment, params, vectors, v)

    def _batches(self, moment: Moment, params: Params, vectors: Params, v: Array) -> None:
        """Keep O' and O of the step's batch for every document, or every group."""
        ids = _numpy(moment.batch.ids)
        if self._method.auxiliary:
            seen = signals.read_signals(
                moment.model, params, moment.task, moment.data[ids], self._layers, vectors=vectors
            )
            assert seen.along is not None, "asked for"
            in_batch = moment.lr * _numpy(seen.along) * _numpy(moment.batch.weights)
        else:
            in_batch = v[:, self._data.positions(ids)]
        if self._targets.kind == "groups":
            without, with_s = [], []
            for row, batch_row, at in zip(v, in_batch, self._positions, strict=True):
                rest = ~np.isin(ids, self._data.ids[at])
                total, left = batch_row[rest].sum(), int(rest.sum())
                without.append(total / left if left else np.nan)
                with_s.append((total + row[at].sum()) / (left + len(at)))
            self._keep(np.array(without), np.array(with_s))
            return
        present = np.isin(self._data.ids, ids)
        total = in_batch.sum(1, keepdims=True) - np.where(present, v, 0.0)
        count = len(ids) - present.astype(np.int64)
        self._keep(np.where(count > 0, total / np.maximum(count, 1), np.nan), (total + v) / (count + 1))

    def _keep(self, without: Array, with_s: Array) -> None:
        """Keep O' and O; O' is NaN where the batch holds nobody else, and such a step says nothing."""
        if self._method.estimator == "gauss":
            self._sums.spread(without, with_s)
        else:
            self._sums.tables.setdefault("without", []).append(without.astype(np.float32))
            self._sums.tables.setdefault("with", []).append(with_s.astype(np.float32))


@dataclass(frozen=True)
class Wanted:
    """What a recorder needs of a step: products with partners, or with vectors that have a leading query axis."""

    partners: Batch | None = None
    vectors: Params | None = None


class _Reading:
    """A pass over the documents at each recorded step, for all recorders that can share it."""

    def __init__(self, members: Sequence[Recorder]) -> None:
        self._members = members
        self._step = -1
        self._found: dict[Recorder, tuple[Wanted, signals.Signals]] = {}

    def at(self, moment: Moment, params: Params) -> Mapping[Recorder, tuple[Wanted, signals.Signals]]:
        """Return what every member wanted of this step, and got."""
        if self._step != moment.step:
            self._step, self._found = moment.step, self._read(moment, params)
        return self._found

    def _read(self, moment: Moment, params: Params) -> dict[Recorder, tuple[Wanted, signals.Signals]]:
        for member in self._members:
            member.begin(moment)
        wanted = {member: member.wants(moment, params) for member in self._members}
        # At most one of them has partners: see `together`.
        partners = next((each.partners for each in wanted.values() if each.partners is not None), None)
        asked = [each.vectors for each in wanted.values() if each.vectors is not None]
        joined = {name: torch.cat([vectors[name] for vectors in asked]) for name in params} if asked else None
        seen = self._members[0].read(moment, params, Wanted(partners, joined))
        found, begin = {}, 0
        for member, each in wanted.items():
            if each.vectors is None:
                found[member] = each, replace(seen, along=None)
                continue
            assert seen.along is not None, "asked for"
            end = begin + len(next(iter(each.vectors.values())))
            found[member] = each, replace(seen, own=None, cross=None, along=seen.along[begin:end])
            begin = end
        return found


def together(observers: Sequence[Observer]) -> None:
    """Let f-INE's recorders of the same documents and steps share one pass over them; what they record stays the same.

    Of several that record documents on themselves, the first shares.
    """
    groups: dict[tuple[Any, ...], list[Recorder]] = {}
    for observer in observers:
        if isinstance(observer, Recorder):
            members = groups.setdefault(observer.shareable, [])
            if not observer.on_itself or not any(member.on_itself for member in members):
                members.append(observer)
    for members in groups.values():
        shared = _Reading(members)
        for member in members:
            member.read_with(shared)


class _Targets:
    """Whose gradient the documents' gradients are compared with."""

    def __init__(self, data: Dataset, measurement: Measurement | None, groups: Mapping[str, Array]) -> None:
        self.kind: Kind = "groups" if groups else "self" if measurement is None else "measurement"
        self._measurement = measurement
        self._groups = {name: measure.MeanLoss(data[ids]) for name, ids in groups.items()}
        self._count = 0

    def rows(self) -> tuple[str, ...]:
        if self.kind == "self":
            return ("self",)
        return tuple(self._groups) if self._groups else query_names(self._measurement, self._count)

    def gradients(self, moment: Moment, params: Params) -> Params:
        """Return the gradient of each target's loss (-grad f), tensors (Q, *shape)."""
        targets = list(self._groups.values()) if self._groups else [self._measurement]
        parts = [measure.gradients(target, moment.model, params)[0] for target in targets]
        joined = {name: -torch.cat([part[name] for part in parts]) for name in params}
        self._count = len(next(iter(joined.values())))
        return joined


class _Sums:
    """Float64 sums by name, and Welford's moments of O' and O."""

    def __init__(self) -> None:
        self.values: dict[str, Array] = {}
        self.tables: dict[str, list[Array]] = {}
        self._means: list[Array] = []
        self._squares: Array = np.zeros(0)
        self._counts: Array = np.zeros(0)

    def __getitem__(self, name: str) -> Array:
        return self.values[name]

    def add(self, name: str, value: Array) -> None:
        value = value.astype(np.float64)
        self.values[name] = self.values[name] + value if name in self.values else value

    def spread(self, without: Array, with_s: Array) -> None:
        if not self._means:
            self._means = [np.zeros_like(without), np.zeros_like(with_s)]
            self._squares, self._counts = np.zeros_like(without), np.zeros(without.shape, dtype=np.int64)
        known = np.isfinite(without) & np.isfinite(with_s)
        self._counts = self._counts + known
        for i, value in enumerate((without, with_s)):
            gap = np.where(known, value - self._means[i], 0.0)
            self._means[i] = self._means[i] + gap / np.maximum(self._counts, 1)
            self._squares = self._squares + gap * np.where(known, value - self._means[i], 0.0)

    def moments(self) -> dict[str, Array]:
        return {"without": self._means[0], "with": self._means[1], "squares": self._squares, "counts": self._counts}


def _variance(own: Array, cross: Array, others: Array, mean: Array, n: int) -> Array:
    """Return Var over all n documents of V(j), for every target i, (N,): exact if all others are partners.

    The own signal is in it with weight 1/n and is known; the others' variance is estimated without bias from the
    partners (drawn without replacement). The law of total variance puts the two together.
    """
    gaps = np.where(others, cross - mean[:, None], 0.0)
    count = others.sum(1)
    sample = (gaps**2).sum(1) / np.maximum(count - 1, 1)
    population = sample * (n - 2) / max(n - 1, 1)
    return cast(Array, (n - 1) / n * population + (n - 1) / n**2 * (own - mean) ** 2)


def _numpy(values: Tensor) -> Array:
    array = values.detach().cpu().numpy()
    return cast(Array, array.astype(np.float64) if array.dtype == np.float32 else array)
