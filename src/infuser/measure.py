"""f(theta): what is to be raised. Every measurement returns one value per query, un-reduced, shape (Q,)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.storage import hash_arrays
from infuser.tasks import losses, task_of
from infuser.types import Array, Measurement, Params

if TYPE_CHECKING:
    from infuser.checkpoints import Run

_CHUNK = 512  # documents a forward pass; results do not depend on it


@runtime_checkable
class PerDocument(Protocol):
    """A measurement with one value per document, so that the gradients of many queries are taken together."""

    documents: Dataset

    def read(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return f, shape (Q,), from the model's outputs on all documents and their targets."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, q: int | slice) -> Self: ...


@dataclass(frozen=True)
class _OfLabels(ABC):
    """A value read off the logits of Q classification documents with one wanted label each.

    Args:
        documents: Q probes.
        labels: (Q,) wanted labels; the documents' own by default.
    """

    documents: Dataset
    labels: Array | None = None
    name: ClassVar[str]
    unit: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _checked_labels(self.documents, self.labels))

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per probe, shape (Q,)."""
        return self._read(_outputs(self.documents, model, params))

    def read(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one value per probe, read off the model's outputs on all of them."""
        return self._read(outputs)

    @abstractmethod
    def _read(self, logits: Tensor) -> Tensor:
        """Return one value per row of the logits (Q, C)."""

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, q: int | slice) -> Self:
        rows = _rows(q, len(self))
        labels = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "documents"}
        return replace(self, documents=self.documents[self.documents.ids[rows]], **labels)

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the probes: id->label."""
        pairs = zip(self.documents.ids.tolist(), _array(self.labels).tolist(), strict=True)
        return tuple(f"{i}->{y}" for i, y in pairs)


@final
@dataclass(frozen=True)
class LogProb(_OfLabels):
    """log p(label | document), in nats."""

    name = "log_prob"
    unit = "nats"

    def _read(self, logits: Tensor) -> Tensor:
        return _at(logits.log_softmax(-1), self.labels)


@final
@dataclass(frozen=True)
class Probability(_OfLabels):
    """p(label | document), for reading beside the log-odds."""

    name = "probability"
    unit = "probability"

    def _read(self, logits: Tensor) -> Tensor:
        return _at(logits.softmax(-1), self.labels)


@final
@dataclass(frozen=True)
class Margin(_OfLabels):
    """log p(label) - log(1 - p(label)): the log-odds of the label, which do not saturate as probabilities do."""

    name = "log_odds"
    unit = "log-odds"

    def _read(self, logits: Tensor) -> Tensor:
        column = torch.as_tensor(_array(self.labels), device=logits.device)[:, None]
        return _at(logits, self.labels) - logits.scatter(1, column, float("-inf")).logsumexp(1)


@final
@dataclass(frozen=True)
class Contrastive(_OfLabels):
    """log p(label) - log p(against), in nats: the difference of two logits.

    Args:
        documents: Q probes.
        labels: (Q,) wanted labels.
        against: (Q,) labels to be lowered; the documents' own by default.
    """

    against: Array | None = None
    name = "contrastive"
    unit = "nats"

    def __post_init__(self) -> None:
        _OfLabels.__post_init__(self)
        object.__setattr__(self, "against", _checked_labels(self.documents, self.against))

    def _read(self, logits: Tensor) -> Tensor:
        return _at(logits, self.labels) - _at(logits, self.against)


@final
@dataclass(frozen=True)
class Correct(_OfLabels):
    """1 where the label has the highest logit, else 0: flips and accuracy. It carries no gradient."""

    name = "correct"
    unit = "share"

    def _read(self, logits: Tensor) -> Tensor:
        return (logits.argmax(-1) == torch.as_tensor(_array(self.labels), device=logits.device)).to(logits)


@final
@dataclass(frozen=True)
class Accuracy:
    """The share of documents whose label has the highest logit. It carries no gradient.

    Args:
        documents: a labelled set.
    """

    documents: Dataset
    name = "test_accuracy"
    unit = "share"
    queries = ("",)  # of the whole model, no probe's

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return the share, shape (1,)."""
        return Correct(self.documents)(model, params).mean().reshape(1)

    def __len__(self) -> int:
        return 1


@final
@dataclass(frozen=True)
class Distribution:
    """The probability of every class, for each document, for reading: rows are named "id->label#class".

    Args:
        probes: a measurement of Q documents, whose names the rows carry.
    """

    probes: LogProb | Margin
    name = "class_probability"
    unit = "probability"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return p, shape (Q * C,)."""
        return _outputs(self.probes.documents, model, params).softmax(-1).flatten()

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(f"{name}#{c}" for name in self.probes.queries for c in range(self.probes.documents.n_outputs))


@final
@dataclass(frozen=True)
class MeanLoss:
    """The mean loss over a set, negated so that raising f lowers the loss; in nats (half squared units)."""

    documents: Dataset
    name = "neg_mean_loss"
    unit = "nats"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return -(1/N) sum L_i, shape (1,)."""
        return -_losses(self.documents, model, params).mean().reshape(1)

    def __len__(self) -> int:
        return 1

    @property
    def queries(self) -> tuple[str, ...]:
        """One name."""
        return (f"-mean loss of {self.documents.name}",)


@final
@dataclass(frozen=True)
class Losses:
    """The loss of every document of a set, negated: f_q = -L(z_q); in nats (half squared units)."""

    documents: Dataset
    name = "neg_loss"
    unit = "nats"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return -L_q, shape (Q,)."""
        return -_losses(self.documents, model, params)

    def read(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -L_q, read off the model's outputs on all documents."""
        return -task_of(self.documents).loss(outputs, targets)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, q: int | slice) -> Losses:
        return Losses(self.documents[self.documents.ids[_rows(q, len(self))]])

    @property
    def queries(self) -> tuple[str, ...]:
        """The ids of the documents."""
        return tuple(str(i) for i in self.documents.ids.tolist())


@final
@dataclass(frozen=True)
class Custom:
    """Any function (model, params) -> (Q,) tensor as a measurement.

    >>> Custom(lambda model, params: params["w"].sum().reshape(1), name="sum").queries
    ('sum 0',)
    """

    fn: Callable[[nn.Module, Params], Tensor]
    name: str = "custom"
    unit: str = "its own"
    n: int = 1

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return fn(model, params), checked to have shape (n,)."""
        value = self.fn(model, params)
        if value.shape != (self.n,):
            raise InfuserError(
                f"measurement {self.name} has the wrong shape",
                got=tuple(value.shape),
                expected=f"({self.n},): one value per query",
                remedy="return an un-reduced tensor, and pass n= the number of queries",
            )
        return value

    def __len__(self) -> int:
        return self.n

    @property
    def queries(self) -> tuple[str, ...]:
        """Numbered names."""
        return tuple(f"{self.name} {q}" for q in range(self.n))


def identity(measurement: Measurement) -> str:
    """Return a digest that tells two measurements apart: their name, queries, documents, labels and settings.

    What is no dataclass, and a function inside, counts by its type or name alone: such measurements are told apart by
    their own names and queries.
    """
    named = (measurement.name, *getattr(measurement, "queries", ()))
    return hashlib.sha256("\n".join([*named, *_parts(measurement)]).encode()).hexdigest()[:16]


def _parts(value: Any) -> Iterator[str]:
    yield type(value).__qualname__
    if isinstance(value, Dataset):
        yield value.content_hash
    elif isinstance(value, (np.ndarray, Tensor)):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        yield hash_arrays({"values": array})
    elif is_dataclass(value):
        for each in fields(value):
            yield each.name
            yield from _parts(getattr(value, each.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif callable(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    else:
        yield str(value)


def values(run: Run, measurement: Measurement, checkpoint: int = -1) -> Array:
    """Return f at a checkpoint of a run, shape (Q,)."""
    model = run.model(checkpoint)
    with torch.no_grad():
        return cast(Array, measurement(model, trainable(model)).double().cpu().numpy())


def predictions(model: nn.Module, params: Params, documents: Dataset) -> Array:
    """Return the label with the highest logit of every document, shape (N,)."""
    with torch.no_grad():
        labels = _outputs(documents, model, params).argmax(-1)
    return cast(Array, labels.cpu().numpy())


def query_names(measurement: Any, count: int) -> tuple[str, ...]:
    """Return the names of a measurement's queries, numbered where it has none of its own."""
    names = getattr(measurement, "queries", None)
    if names is not None and len(names) == count:
        return tuple(names)
    return tuple(f"{measurement.name} {q}" for q in range(count))


def gradients(measurement: Any, model: nn.Module, params: Params) -> tuple[Params, Tensor]:
    """Return (grad f with tensors (Q, *shape), f of shape (Q,)) at `params`; one backward pass a query."""
    found = list(each_gradient(measurement, model, params))
    stacked = {name: torch.stack([row[name] for _, row in found]) for name in params}
    return stacked, torch.stack([value for value, _ in found])


def each_gradient(measurement: Any, model: nn.Module, params: Params) -> Iterator[tuple[Tensor, Params]]:
    """Yield (f, grad f) of every query.

    A measurement that can be indexed is evaluated query by query: in one graph of all documents, every query's backward
    pass would walk through all of them.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    for part in measurement if hasattr(type(measurement), "__getitem__") else (measurement,):
        with torch.enable_grad():
            values = part(model, leaves)
        if not values.requires_grad:
            raise InfuserError(
                f"measurement {measurement.name} carries no gradient",
                causes=["it counts or compares (Correct)", "it does not use the params that it is given"],
                remedy="raise LogProb or Margin, and read this one beside it",
            )
        for q, value in enumerate(values):
            again = q + 1 < len(values)
            row = torch.autograd.grad(value, list(leaves.values()), retain_graph=again, materialize_grads=True)
            yield value.detach(), dict(zip(leaves, row, strict=True))


def _rows(q: int | slice, count: int) -> slice:
    if isinstance(q, slice):
        return q
    if not -count <= q < count:
        raise IndexError(f"query {q} of {count}")  # not an InfuserError: iteration ends by it
    return slice(q, q + 1 or None)


def _checked_labels(documents: Dataset, labels: Sequence[int] | Array | None) -> Array:
    # A copy: a data set's own array is read-only, which torch warns about.
    wanted = np.array(documents.targets if labels is None else labels, dtype=np.int64)
    if documents.kind != "classification":
        raise InfuserError("labels are measured on classification data", got=documents.kind)
    if wanted.shape != (len(documents),):
        raise InfuserError("one label per probe is needed", got=wanted.shape, expected=(len(documents),))
    if ((wanted < 0) | (wanted >= documents.n_outputs)).any():
        expected = f"0 to {documents.n_outputs - 1}"
        raise InfuserError("a probe's label is out of range", got=listed(wanted.tolist()), expected=expected)
    return wanted


def _outputs(documents: Dataset, model: nn.Module, params: Params) -> Tensor:
    device = str(next(iter(params.values())).device)
    feed = task_of(documents).feed
    return torch.cat([functional_call(model, params, (feed(b.inputs),)) for b in documents.batches(_CHUNK, device)])


def _losses(documents: Dataset, model: nn.Module, params: Params) -> Tensor:
    device = str(next(iter(params.values())).device)
    task = task_of(documents)
    return torch.cat([losses(task, model, params, batch) for batch in documents.batches(_CHUNK, device)])


def _array(values: Array | None) -> Array:
    assert values is not None, "set in __post_init__"
    return values


def _at(values: Tensor, labels: Array | None) -> Tensor:
    return values.gather(1, torch.as_tensor(_array(labels), device=values.device)[:, None])[:, 0]
