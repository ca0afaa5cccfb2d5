"""The training data: documents with ids and a content hash, never changed in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from infuser.errors import InfuserError, listed
from infuser.storage import hash_arrays
from infuser.types import Array, Batch, Edit

if TYPE_CHECKING:
    import torch

Kind = Literal["classification", "regression", "causal_lm"]
IGNORED = -100  # the label of a token that carries no loss; torch's own default
_MAX_CLASSES = 2**20  # where a label says how many there are; names and outputs are set aside for each
_COLOURS = (1, 3, 4)  # channels of a picture: grey, RGB, RGBA


@dataclass(frozen=True)
class Dataset:
    """N documents in memory, each under an id that stays with it.

    Attributes:
        inputs: (N, ...) uint8 images (N, C, H, W), int token ids (N, T), or floats.
        targets: (N,) integer labels, (N, T) token labels with -100 where there is no loss, or (N, D) floats.
        kind: what the targets mean.
        n_outputs: classes, vocabulary size or D.
        ids: (N,) int64, unique; 0..N-1 by default.
        weights: (N,) float32 in the training loss, at least 0; ones by default, 0 drops a document.
        classes: names of the classes, for people: one for each output, or none.
        name: for tables.

    Raises:
        InfuserError: lengths differ, ids repeat, a float is not finite, a weight is negative, a label is out of range,
            or the names of the classes repeat or are too few or too many.

    >>> ds = Dataset(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]), "classification", 2)
    >>> len(ds.without([0])), ds[[1]].ids.tolist()
    (1, [1])
    """

    inputs: Array
    targets: Array
    kind: Kind
    n_outputs: int
    ids: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    weights: Array = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    classes: tuple[str, ...] = ()
    name: str = "data"

    def __post_init__(self) -> None:
        n = len(self.inputs)
        if len(self.ids) == 0 and n:
            object.__setattr__(self, "ids", np.arange(n, dtype=np.int64))
        if len(self.weights) == 0 and n:
            object.__setattr__(self, "weights", np.ones(n, dtype=np.float32))
        for label in ("inputs", "targets", "ids", "weights"):
            array = np.ascontiguousarray(getattr(self, label))
            if label == "targets" and self.kind == "classification" and array.dtype.kind in "iu":
                array = array.astype(np.int64, copy=False)  # the only type that torch's losses take everywhere
            if len(array) != n:
                raise InfuserError(f"{label} and inputs differ in length", got=len(array), expected=n)
            if array.flags.writeable:
                # A copy, so that the caller's own array stays writable and yet what was hashed cannot change; held by
                # a view, since only the memory of a writable array can be shared with torch.
                array = array.copy().view()
                array.flags.writeable = False
            object.__setattr__(self, label, array)
        _check_values(self)

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        targets: Any,
        *,
        classes: Sequence[str] = (),
        name: str = "arrays",
    ) -> Dataset:
        """Return a data set of images (N, C, H, W) or (N, H, W) in uint8, or vectors (N, D) in floats, with targets.

        Integer or boolean targets (N,) mean classification, float targets (N,) or (N, D) regression.

        Raises:
            InfuserError: inputs or targets of another type or shape, or as for `Dataset`.
        """
        inputs, targets = _as_array(inputs, "inputs"), _as_array(targets, "targets")
        if inputs.ndim == 3:
            inputs = inputs[:, None]
        if np.issubdtype(inputs.dtype, np.floating):
            inputs = inputs.astype(np.float32, copy=False)
        if inputs.dtype not in (np.uint8, np.float32) or inputs.ndim < 2:
            raise InfuserError(
                "inputs of another type or shape",
                got=f"{inputs.dtype} {inputs.shape}",
                expected="uint8 images (N, C, H, W) or (N, H, W), or floats (N, D)",
                remedy="convert images to uint8, 0 to 255",
            )
        _require_channels_first(inputs)
        if targets.dtype == np.bool_:
            targets = targets.astype(np.int64)
        if np.issubdtype(targets.dtype, np.integer):
            _require_labels(targets)
            n_outputs = max(len(classes), int(targets.max(initial=0)) + 1)
            _require_classes(n_outputs)
            classes = tuple(classes) or tuple(str(c) for c in range(n_outputs))
            return cls(inputs, targets.astype(np.int64), "classification", n_outputs, classes=classes, name=name)
        if classes or not np.issubdtype(targets.dtype, np.floating):
            raise InfuserError(
                "targets of another type",
                got=f"{targets.dtype}{' with names of classes' if classes else ''}",
                expected="integers or booleans of classes, or floats without names of classes",
            )
        targets = targets.astype(np.float32).reshape(len(targets), -1)
        return cls(inputs, targets, "regression", targets.shape[1], name=name)

    @classmethod
    def from_torch(cls, dataset: Any, *, classes: Sequence[str] = (), name: str = "torch") -> Dataset:
        """Return a data set of a torch Dataset of (input, target) pairs, read once from first to last.

        Float images must lie in [0, 1] on the grid of 1/255, since edits are stored in 8 bits. What targets mean is
        told by their type, as in `from_arrays`.

        Raises:
            InfuserError: the data set is empty, its images are not of 8 bits, or as for `from_arrays`.
        """
        if len(dataset) == 0:
            raise InfuserError("the torch data set is empty", expected="at least one (input, target) pair")
        pairs = [dataset[i] for i in range(len(dataset))]
        inputs = _as_array([_channels_first(x) for x, _ in pairs], "inputs")
        if np.issubdtype(inputs.dtype, np.floating) and inputs.ndim == 4:
            inputs = _to_uint8(inputs)
        # Some data sets hold their labels as arrays of one number.
        targets = _as_array([np.asarray(y).squeeze() for _, y in pairs], "targets")
        return cls.from_arrays(inputs, targets, classes=classes, name=name)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, ids: Sequence[int] | Array) -> Dataset:
        """Return the documents of these ids, in the order given."""
        return self._take(self.positions(ids))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one document."""
        return tuple(self.inputs.shape[1:])

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over inputs, targets, ids and weights."""
        arrays = {name: getattr(self, name) for name in ("inputs", "targets", "ids", "weights")}
        return hash_arrays(arrays)

    @cached_property
    def _position_of(self) -> dict[int, int]:
        return {int(i): position for position, i in enumerate(self.ids)}

    def positions(self, ids: Sequence[int] | Array) -> Array:
        """Return where these ids stand.

        Raises:
            InfuserError: an id is not in the data set.
        """
        asked: object = ids
        if isinstance(asked, slice):
            raise InfuserError("documents are named by their ids", got=str(asked), remedy="pass data.ids[a:b]")
        array = np.atleast_1d(np.asarray(ids))
        if array.dtype == bool:
            raise InfuserError("a mask is not ids", got=array.shape, remedy="pass data.ids[mask]")
        wanted = array.tolist()
        missing = [i for i in wanted if i not in self._position_of]
        if missing:
            raise InfuserError(
                f"{len(missing)} ids are not in {self.name}",
                got=listed(missing),
                expected=f"ids of its {len(self)} documents",
                causes=["positions were given: data.ids says which ids stand there", "the ids are of other data"],
            )
        return np.array([self._position_of[i] for i in wanted], dtype=np.int64)

    def without(self, ids: Sequence[int] | Array) -> Dataset:
        """Return the data set without these documents; the training order of the others stays."""
        keep = np.ones(len(self), dtype=bool)
        keep[self.positions(ids)] = False
        return self._take(np.flatnonzero(keep))

    def with_weights(self, ids: Sequence[int] | Array, weight: float) -> Dataset:
        """Return the data set with the loss of these documents multiplied by `weight`; batches stay as they are."""
        weights = self.weights.copy()
        weights[self.positions(ids)] = weight
        return replace(self, weights=weights)

    def apply(self, edit: Edit) -> Dataset:
        """Return the data set with the edited documents in place.

        Raises:
            InfuserError: a document's stored value, or its type or shape, is not what the edit was made for.
        """
        where = self.positions(edit.ids)
        for made_for, mine in ((edit.before, self.inputs), (edit.targets_before, self.targets)):
            if made_for.dtype != mine.dtype or made_for.shape[1:] != mine.shape[1:]:
                raise InfuserError(
                    "the edit was made for other documents",
                    got=f"{made_for.dtype} {made_for.shape[1:]}",
                    expected=f"{mine.dtype} {mine.shape[1:]}",
                )
        same = (self.inputs[where] == edit.before).reshape(len(where), -1).all(1)
        same &= (self.targets[where] == edit.targets_before).reshape(len(where), -1).all(1)
        if not same.all():
            raise InfuserError(
                f"{int((~same).sum())} of {len(edit)} documents are not what the edit was made for",
                got=f"ids {listed(edit.ids[~same].tolist())}",
                causes=["the edit was applied already", "the data set was changed since"],
            )
        inputs, targets = self.inputs.copy(), self.targets.copy()
        inputs[where], targets[where] = edit.after, edit.targets_after
        return replace(self, inputs=inputs, targets=targets)

    def batches(self, batch_size: int, device: str = "cpu") -> Iterator[Batch]:
        """Yield all documents in the order in which they are stored."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))), device)

    def batch(self, positions: Array | torch.Tensor, device: str = "cpu") -> Batch:
        """Return the documents at these positions as tensors."""
        inputs, targets, ids, weights = self._tensors
        import torch

        at = torch.as_tensor(positions)
        return Batch(inputs[at].to(device), targets[at].to(device), ids[at].to(device), weights[at].to(device))

    def _take(self, positions: Array) -> Dataset:
        columns = {name: getattr(self, name)[positions] for name in ("inputs", "targets", "ids", "weights")}
        return replace(self, **columns)

    @cached_property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        import torch

        def share(array: Array) -> torch.Tensor:
            # The memory is shared with the read-only array; batches index it, which copies, so it is never written.
            writable = array.view()
            try:
                writable.flags.writeable = True
            except ValueError:
                writable = array.copy()
            return torch.from_numpy(writable)

        columns = (share(getattr(self, name)) for name in ("inputs", "targets", "ids", "weights"))
        return cast("tuple[torch.Tensor, ...]", tuple(columns))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_tensors", "_position_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for array in (self.inputs, self.targets, self.ids, self.weights):
            array.flags.writeable = False  # which pickling forgets

    def __repr__(self) -> str:
        shape = "x".join(str(s) for s in self.input_shape)
        return f"Dataset({self.name}: {len(self)} documents of {shape} {self.inputs.dtype}, {self.kind})"


def _channels_first(document: Any) -> Array:
    array = np.asarray(document)
    # A PIL image (told without importing PIL) is (H, W, C); tensors and arrays are taken to be (C, H, W).
    return array.transpose(2, 0, 1) if hasattr(document, "getbands") and array.ndim == 3 else array


def _require_channels_first(inputs: Array) -> None:
    """Raise for images whose last dimension can be colours and whose others are too long for that."""
    if inputs.ndim == 4 and inputs.shape[3] in _COLOURS and min(inputs.shape[1:3]) > max(_COLOURS):
        raise InfuserError(
            "the images seem to have their channels last",
            got=f"shape {inputs.shape}",
            expected="(N, C, H, W)",
            remedy="pass inputs.transpose(0, 3, 1, 2)",
        )


def _as_array(values: Any, what: str) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:
        shapes = sorted({np.shape(value) for value in values})
        raise InfuserError(f"{what} differ in shape", got=listed(shapes), expected="one shape") from error
    return array


def _check_values(ds: Dataset) -> None:
    if ds.kind not in get_args(Kind):
        raise InfuserError("unknown kind of data", got=repr(ds.kind), expected=", ".join(get_args(Kind)))
    if len(ds) == 0:
        raise InfuserError(f"{ds.name} is empty", expected="at least one document")
    for label, kinds, expected in (("ids", "iu", "integers of shape (N,)"), ("weights", "f", "floats of shape (N,)")):
        array = getattr(ds, label)
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise InfuserError(
                f"{label} of the wrong shape or type", got=f"{array.dtype} {array.shape}", expected=expected
            )
    if len(np.unique(ds.ids)) != len(ds):
        raise InfuserError(f"{ds.name} has repeated ids", got=f"{len(np.unique(ds.ids))} distinct of {len(ds)}")
    for label in ("inputs", "targets", "weights"):
        array = getattr(ds, label)
        if np.issubdtype(array.dtype, np.floating):
            bad = ~np.isfinite(array.reshape(len(ds), -1)).all(axis=1)
            if bad.any():
                raise InfuserError(
                    f"{ds.name} holds {label} that are NaN or infinite",
                    got=f"documents {listed(ds.ids[bad].tolist())}",
                    expected="finite numbers",
                    remedy="remove these documents with without(ids) or mend their source",
                )
    if (ds.weights < 0).any():
        raise InfuserError(
            f"{ds.name} holds weights below 0",
            got=f"documents {listed(ds.ids[ds.weights < 0].tolist())}",
            expected="0, which drops a document, or more",
        )
    if ds.kind == "classification":
        _require_labels(ds.targets, ds.n_outputs, ds.ids)
        _require_classes(ds.n_outputs)
        _require_names(ds.classes, ds.n_outputs)


def _require_names(classes: Sequence[str], n_outputs: int) -> None:
    if classes and len(classes) != n_outputs:
        raise InfuserError(
            "there is not one class name for each class", got=f"{len(classes)} names", expected=f"{n_outputs} names"
        )
    if len(set(classes)) != len(classes):
        raise InfuserError(
            "two classes have one name",
            got=listed(sorted({name for name in classes if classes.count(name) > 1})),
            expected="distinct names",
        )


def _require_classes(n_outputs: int) -> None:
    if n_outputs > _MAX_CLASSES:
        raise InfuserError(
            "too many classes: one output, and one name, would be set aside for each",
            got=n_outputs,
            expected=f"at most {_MAX_CLASSES}",
            causes=["a label is not the number of a class", "the file is damaged"],
            remedy="number the classes from 0",
        )


def _require_labels(targets: Array, n_outputs: int | None = None, ids: Array | None = None) -> None:
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise InfuserError(
            "labels of the wrong shape or type",
            got=f"{targets.dtype} {targets.shape}",
            expected="integers of shape (N,)",
        )
    bad = targets < 0
    if n_outputs is not None:
        bad |= targets >= n_outputs
    if bad.any():
        where = np.flatnonzero(bad) if ids is None else ids[bad]
        raise InfuserError(
            f"{int(bad.sum())} labels are out of range",
            got=f"{listed(sorted(set(targets[bad].tolist())))} at documents {listed(where.tolist())}",
            expected="0 or more" if n_outputs is None else f"0 to {n_outputs - 1}",
        )


def _to_uint8(images: Array) -> Array:
    steps = images.astype(np.float64) * 255
    rounded = np.rint(steps)
    if images.min() < 0 or images.max() > 1 or np.abs(steps - rounded).max() > 1e-3:
        raise InfuserError(
            "float images are not 8-bit images divided by 255",
            got=f"values from {images.min():.4g} to {images.max():.4g}",
            expected="multiples of 1/255 in [0, 1]",
            causes=["a normalising transform is on", "random augmentation is on"],
            remedy="pass the images before normalisation and put the normalisation into the model",
        )
    return rounded.astype(np.uint8)
