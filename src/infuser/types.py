"""The nouns of infuser: the values that its verbs take and return.

Everything here is a frozen record that can be held, printed and saved. Axis letters: B batch, N documents, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from infuser.errors import InfuserError, listed, require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from infuser.data.dataset import Dataset

Params: TypeAlias = "dict[str, Tensor]"
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Builder: TypeAlias = "Callable[[tuple[int, ...], int], nn.Module]"


@dataclass(frozen=True)
class Batch:
    """Documents on their way through a model.

    Attributes:
        inputs: (B, ...) as the data set stores them (uint8 pixels, token ids, floats).
        targets: (B,) labels, (B, T) token labels or (B, D) regression targets.
        ids: (B,) int64; they always travel with the data.
        weights: (B,) float32; 0 removes a document's loss and keeps its place in the batch.
    """

    inputs: Tensor
    targets: Tensor
    ids: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | Any) -> Batch:
        """Return the batch on `device`."""
        return Batch(*(getattr(self, name).to(device) for name in ("inputs", "targets", "ids", "weights")))


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the weights besides the builder and the data.

    Attributes:
        epochs: passes over the data.
        batch_size: documents a step; a last batch that is smaller is used, not dropped.
        lr: learning rate at the start.
        optimizer: plain SGD with `momentum`, or AdamW.
        momentum: of SGD.
        weight_decay: of the optimiser (decoupled for AdamW).
        schedule: constant, cosine to zero, or linear to zero over all steps.
        seed: fixes initialisation, data order, dropout and augmentation.
        order: a new permutation for every epoch, or one for all of them.
        augmentation: none; flip (left-right, p = 1/2); flip_crop (and a shifted crop after 4 pixels of reflection).
        threads: CPU threads used for training, recorded since sums depend on it; None keeps torch's setting.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    seed: int = 0
    order: Literal["reshuffle", "fixed"] = "reshuffle"
    augmentation: Literal["none", "flip", "flip_crop"] = "none"
    threads: int | None = None

    def __post_init__(self) -> None:
        require("epochs", self.epochs, self.epochs >= 1, "at least 1")
        require("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        require("lr", self.lr, np.isfinite(self.lr) and self.lr > 0, "a positive number")
        require("momentum", self.momentum, 0 <= self.momentum < 1, "0 <= momentum < 1")
        require("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        # Where threads cannot be started, libraries fail on import and say something else.
        require("threads", self.threads, self.threads is None or 1 <= self.threads <= 1024, "1 to 1024, or null")
        require("seed", self.seed, 0 <= self.seed < 2**63, "0 <= seed < 2**63")
        require("optimizer", self.optimizer, self.optimizer in ("sgd", "adamw"), "sgd or adamw")
        require("schedule", self.schedule, self.schedule in ("constant", "cosine", "linear"), "a known schedule")
        require("order", self.order, self.order in ("reshuffle", "fixed"), "reshuffle or fixed")
        known = self.augmentation in ("none", "flip", "flip_crop")
        require("augmentation", self.augmentation, known, "none, flip or flip_crop")

    def with_(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


class Measurement(Protocol):
    """f(theta): what is to be raised. One differentiable value per query."""

    @property
    def name(self) -> str:
        """A short name for tables."""
        ...

    @property
    def unit(self) -> str:
        """The unit of the values: nats, probability, ..."""
        ...

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return f, shape (Q,), at `params` of `model`, un-reduced."""
        ...


class Curvature(Protocol):
    """A symmetric positive semi-definite matrix H over parameters, as an operator."""

    def matvec(self, vectors: Params) -> Params:
        """Return H v for `vectors` whose tensors carry a leading query dimension (Q, *shape)."""
        ...

    def solve(self, vectors: Params, damping: Damping) -> Params:
        """Return (H + damping)^-1 v for `vectors` with a leading query dimension (Q, *shape)."""
        ...


@dataclass(frozen=True)
class Damping:
    """What is added to the eigenvalues before they are inverted.

    Attributes:
        value: the constant c.
        kind: `relative` adds c x mean(eigenvalues) per layer, `absolute` adds c.
    """

    value: float = 0.1
    kind: Literal["relative", "absolute"] = "relative"

    def __post_init__(self) -> None:
        require("damping", self.value, np.isfinite(self.value) and self.value >= 0, "a number of at least 0")
        require("damping kind", self.kind, self.kind in ("relative", "absolute"), "relative or absolute")

    def __str__(self) -> str:
        return f"{self.value:g} {self.kind}"


@dataclass(frozen=True)
class Direction:
    """v = (H + damping)^-1 grad f, one per query.

    Attributes:
        params: tensors (Q, *shape) by parameter name.
        names: (Q,) the queries that the rows belong to.
        made_by: the curvature and the damping, in words.
    """

    params: Params
    names: tuple[str, ...]
    made_by: str

    def __post_init__(self) -> None:
        rows = {len(value) for value in self.params.values()}
        if rows != {len(self.names)}:
            raise InfuserError("direction rows and query names differ", got=sorted(rows), expected=len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, q: int) -> Direction:
        return Direction({k: v[q : q + 1 or None] for k, v in self.params.items()}, (self.names[q],), self.made_by)

    def mean(self) -> Direction:
        """Return the direction of the mean measurement over all queries (the solve is linear)."""
        averaged = {name: value.mean(0, keepdim=True) for name, value in self.params.items()}
        return Direction(averaged, (f"mean of {len(self)}" if len(self) > 1 else self.names[0],), self.made_by)

    def single(self) -> Params:
        """Return the tensors of the only query, without the query dimension."""
        if len(self) != 1:
            raise InfuserError("one direction is needed", got=f"{len(self)} queries", remedy="take v[q] or v.mean()")
        return {name: value[0] for name, value in self.params.items()}


@dataclass(frozen=True)
class Scores:
    """One number per query and document. Positive = up-weighting the document raises f.

    Attributes:
        values: (Q, N) float.
        ids: (N,) document ids.
        method: what computed them, in words.
        unit: of the values ("f per document counted twice", "mu", "cosine").
        queries: (Q,) names.
        reasons: why a value is NaN, by document id or "all".
    """

    values: Array
    ids: Array
    method: str
    unit: str
    queries: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.atleast_2d(np.asarray(self.values)))
        object.__setattr__(self, "ids", np.asarray(self.ids))
        if self.values.ndim != 2 or self.values.shape[1] != len(self.ids):
            raise InfuserError("scores and ids differ in length", got=self.values.shape, expected=("Q", len(self.ids)))
        if not self.queries:
            object.__setattr__(self, "queries", tuple(f"query {q}" for q in range(len(self.values))))
        if len(self.queries) != len(self.values):
            raise InfuserError("scores and query names differ", got=len(self.queries), expected=len(self.values))
        if not self.reasons and not np.isfinite(self.values).all():
            bad = self.ids[~np.isfinite(self.values).all(axis=0)]
            raise InfuserError(
                f"{self.method} gave scores that are not finite",
                got=f"documents {listed(bad.tolist())}",
                causes=["the model diverged", "damping 0 with a singular curvature"],
                remedy="raise the damping or check the checkpoint's loss",
            )

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        return f"Scores of {len(self.ids)} documents for {len(self)} queries: {self.method} [{self.unit}]"

    def __getitem__(self, q: int) -> Scores:
        return replace(self, values=self.values[q : q + 1 or None], queries=(self.queries[q],))

    def mean(self) -> Scores:
        """Return the scores of the mean measurement over all queries."""
        return replace(self, values=self.values.mean(0, keepdims=True), queries=(f"mean of {len(self)}",))

    def top(self, k: int, q: int = 0) -> Array:
        """Return the ids of the k most positive documents of query q (proponents), best first.

        Raises:
            InfuserError: there is no such query, or k is not between 0 and the number of documents.
        """
        return _lowest(self.ids, -self._of(q), k)

    def bottom(self, k: int, q: int = 0) -> Array:
        """Return the ids of the k most negative documents of query q (opponents), lowest first; see `top`."""
        return _lowest(self.ids, self._of(q), k)

    def _of(self, q: int) -> Array:
        if not -len(self.values) <= q < len(self.values):
            raise InfuserError("there is no such query", got=q, expected=f"0 to {len(self.values) - 1}")
        return cast(Array, self.values[q])

    def _repr_html_(self) -> str:
        from infuser.html import scores_html

        return scores_html(self)

    def to_parquet(self, path: str | Path) -> None:
        """Write the columns id and one per query, atomically; method and unit go into the schema's metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from infuser.storage import atomic_path

        columns = {"id": self.ids, **{f"{i}: {name}": self.values[i] for i, name in enumerate(self.queries)}}
        table = pa.table(columns).replace_schema_metadata({"method": self.method, "unit": self.unit})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Scores:
        """Return the scores that `to_parquet` wrote.

        Raises:
            InfuserError: the file is missing, damaged or holds something else.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise InfuserError(f"cannot read the scores in {Path(path).name}", got=str(error)) from error
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if "id" not in table.column_names or not {"method", "unit"} <= metadata.keys():
            raise InfuserError(f"{Path(path).name} does not hold scores", got=table.column_names)
        names = [name for name in table.column_names if name != "id"]
        values = np.stack([table[name].to_numpy() for name in names])
        queries = tuple(name.split(": ", 1)[1] for name in names)
        reasons = {} if np.isfinite(values).all() else {"all": "stored as NaN"}
        return cls(values, table["id"].to_numpy(), metadata["method"], metadata["unit"], queries, reasons)


def _lowest(ids: Array, keys: Array, k: int) -> Array:
    """Return the ids of the k lowest keys, lowest first; of equal ones the first stored."""
    if not 0 <= k <= len(ids):
        raise InfuserError("k does not fit the number of documents", got=k, expected=f"0 to {len(ids)}")
    return cast(Array, ids[np.argsort(keys, kind="stable")[:k]])


class Constraint(Protocol):
    """What an edit may change."""

    def distance(self, before: Array, after: Array) -> Array:
        """Return one distance per document, shape (k,), in the unit of the limit."""
        ...

    @property
    def limit(self) -> float:
        """The largest distance allowed."""
        ...


@dataclass(frozen=True)
class Edit:
    """Changed documents, as a file can store them; built only if they keep to their constraint.

    Attributes:
        ids: (k,) the edited documents.
        before: (k, ...) stored values (uint8 pixels, token ids).
        after: (k, ...) the same dtype and shape.
        targets_before: (k, ...) labels.
        targets_after: (k, ...) labels, the same dtype and shape.
        constraint: the ball that every document keeps to; None for a replacement without a ball (insert).
        made_by: method and settings, in words.
        gains: (k,) predicted change of f by each document's edit; NaN where nothing was predicted.

    Raises:
        InfuserError: arrays differ in length, type or shape, a document is named twice, or one leaves the ball.
    """

    ids: Array
    before: Array
    after: Array
    targets_before: Array
    targets_after: Array
    constraint: Constraint | None
    made_by: str
    gains: Array | None = None

    def __post_init__(self) -> None:
        k = len(self.ids)
        sizes = {len(x) for x in (self.before, self.after, self.targets_before, self.targets_after)}
        if sizes != {k}:
            raise InfuserError("an edit's arrays differ in length", got=sorted(sizes), expected=k)
        if len(np.unique(self.ids)) != k:
            raise InfuserError("an edit names a document twice", got=f"{k} ids, {len(np.unique(self.ids))} distinct")
        pairs = {"documents": (self.before, self.after), "targets": (self.targets_before, self.targets_after)}
        for what, (before, after) in pairs.items():
            if before.dtype != after.dtype or before.shape != after.shape:
                raise InfuserError(
                    f"an edit must keep type and shape of its {what}",
                    got=f"{after.dtype} {after.shape}",
                    expected=f"{before.dtype} {before.shape}",
                )
        if self.gains is not None and self.gains.shape != (k,):
            raise InfuserError("an edit has one gain per document", got=self.gains.shape, expected=(k,))
        if self.constraint is not None and k:
            distance = self.constraint.distance(self.before, self.after)
            outside = distance > self.constraint.limit * (1 + 1e-9)
            if outside.any():
                worst = int(np.argmax(distance))
                raise InfuserError(
                    f"edit leaves its ball: {int(outside.sum())} of {k} documents exceed {self.constraint}",
                    got=f"worst id {self.ids[worst]}: {distance[worst]:g}",
                    expected=f"at most {self.constraint.limit:g}",
                )

    def __len__(self) -> int:
        return len(self.ids)

    def _repr_html_(self) -> str:
        from infuser.html import edit_html

        return edit_html(self)

    def __str__(self) -> str:
        return f"Edit of {len(self)} documents within {self.constraint or 'no ball'}: {self.made_by}"

    def undo(self) -> Edit:
        """Return the edit that puts every document back."""
        return replace(
            self,
            before=self.after,
            after=self.before,
            targets_before=self.targets_after,
            targets_after=self.targets_before,
            made_by=f"undo of {self.made_by}",
            gains=None,
        )


@dataclass(frozen=True)
class Arm:
    """One way to prepare the training data: `data` under a `name`, for a `reason` that a reader can check."""

    name: str
    data: Dataset
    reason: str


@dataclass(frozen=True)
class Trials:
    """Measured rows in long form: what each retrained model gave.

    Attributes:
        arm: (R,) names.
        seed: (R,) retraining seeds.
        probe: (R,) probe names; "" for a value of the whole model.
        measure: (R,) names of measurements.
        value: (R,) float64.
        start: the regime that all rows share.
        starts: arm -> hash of the weights that it started from, by seed; arms that differ are never paired.
    """

    arm: Array
    seed: Array
    probe: Array
    measure: Array
    value: Array
    start: str
    starts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, name)) for name in ("arm", "seed", "probe", "measure", "value")}
        if len(sizes) != 1:
            raise InfuserError("the columns of trials differ in length", got=sorted(sizes))

    def __len__(self) -> int:
        return len(self.value)

    def where(self, arm: str | None = None, measure: str | None = None, probe: str | None = None) -> Trials:
        """Return the rows that match."""
        keep = np.ones(len(self), dtype=bool)
        for column, wanted in ((self.arm, arm), (self.measure, measure), (self.probe, probe)):
            if wanted is not None:
                keep &= column == wanted
        columns = {name: getattr(self, name)[keep] for name in ("arm", "seed", "probe", "measure", "value")}
        return replace(self, **columns)

    @classmethod
    def from_rows(
        cls, rows: Iterable[tuple[str, int, str, str, float]], start: str, starts: Mapping[str, str] | None = None
    ) -> Trials:
        """Return trials of (arm, seed, probe, measure, value) rows, of which there may be none."""
        # Named types, since empty columns have none of their own and would spread theirs where trials are pooled.
        types = {"arm": np.str_, "seed": np.int64, "probe": np.str_, "measure": np.str_, "value": np.float64}
        given = list(zip(*rows, strict=True)) or [()] * len(types)
        columns: dict[str, Array] = {name: np.array(x, dtype=types[name]) for name, x in zip(types, given, strict=True)}
        return cls(**columns, start=start, starts=dict(starts or {}))

    @classmethod
    def concat(cls, parts: Sequence[Trials]) -> Trials:
        """Return the rows of several trials of one regime.

        Raises:
            InfuserError: the parts come from different regimes, or an arm started from different weights.
        """
        if len({part.start for part in parts}) != 1:
            raise InfuserError("trials of different regimes cannot be pooled", got=sorted({p.start for p in parts}))
        starts: dict[str, str] = {}
        for part in parts:
            for key, digest in part.starts.items():
                if starts.setdefault(key, digest) != digest:
                    raise InfuserError("one arm started from different weights", got=key)
        names = ("arm", "seed", "probe", "measure", "value")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns, start=parts[0].start, starts=starts)


@dataclass(frozen=True)
class Suspicion:
    """One number per document; higher = more suspicious.

    Attributes:
        values: (N,) float.
        ids: (N,) document ids.
        detector: its name and settings.
        told: what the detector was told: "blind", or the suspected measurement.
    """

    values: Array
    ids: Array
    detector: str
    told: str = "blind"

    def __post_init__(self) -> None:
        if self.values.shape != self.ids.shape:
            raise InfuserError("suspicion and ids differ in length", got=self.values.shape, expected=self.ids.shape)
        if not np.isfinite(self.values).all():
            bad = self.ids[~np.isfinite(self.values)]
            raise InfuserError(f"{self.detector} gave values that are not finite", got=listed(bad.tolist()))

    def __len__(self) -> int:
        return len(self.ids)

    def _repr_html_(self) -> str:
        from infuser.html import suspicion_html

        return suspicion_html(self)

    def top(self, k: int) -> Array:
        """Return the ids of the k most suspicious documents, most suspicious first.

        Raises:
            InfuserError: k is not between 0 and the number of documents.
        """
        return _lowest(self.ids, -self.values, k)


@dataclass(frozen=True)
class Estimate:
    """A statistic with what it rests on.

    Attributes:
        value: the point estimate.
        interval: (low, high) at `level`, or None where `n` is too small for one.
        n: units of analysis (probes, documents, subsets, models), named by `unit_of_n`.
        seeds: the seeds that were pooled.
        method: how the interval was made.
    """

    value: float
    interval: tuple[float, float] | None
    n: int
    seeds: tuple[int, ...] = ()
    unit_of_n: str = "probes"
    method: str = ""
    level: float = 0.95

    def __str__(self) -> str:
        shown = f"[{self.interval[0]:.3g}, {self.interval[1]:.3g}]" if self.interval else "no interval"
        seeds = f", {len(self.seeds)} seeds" if self.seeds else ""
        return f"{self.value:.3g} {shown} (n = {self.n} {self.unit_of_n}{seeds})"


@dataclass(frozen=True)
class Effect:
    """Arm minus control, paired: the only way to state a result of retraining.

    Attributes:
        arm: the treated arm.
        control: what it is compared with.
        measure: what was measured, with its unit.
        estimate: mean difference with its interval.
        p: two-sided sign-flip p-value over probe means; None below 3 probes.
        per_probe: probe name -> mean difference over seeds.
    """

    arm: str
    control: str
    measure: str
    estimate: Estimate
    p: float | None
    per_probe: Mapping[str, float]

    @property
    def value(self) -> float:
        """The mean difference."""
        return self.estimate.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean difference."""
        return self.estimate.interval

    def _repr_html_(self) -> str:
        from infuser.html import effect_html

        return effect_html(self)

    def __str__(self) -> str:
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{self.measure}: {self.arm} - {self.control} = {self.estimate}{p}"
