"""f(theta) of language models: what they say next. One value per query, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import PAD, Codec, text_dataset
from infuser.data.words import in_place, occurrences
from infuser.errors import InfuserError, listed
from infuser.measure import each_gradient
from infuser.tasks import CausalLM
from infuser.types import Array, Measurement, Params

_CHUNK = 16  # documents a forward pass; results do not depend on it


@final
@dataclass(frozen=True)
class Continuation:
    """log p(continuation | prefix), summed over the continuation's tokens, in nats.

    Args:
        documents: prefix and continuation, the loss on the continuation alone (see text_dataset's pairs).
        name: for tables.
        labels: names of the queries; ids of the documents by default.
    """

    documents: Dataset
    name: str = "log_prob"
    labels: tuple[str, ...] = ()
    unit: ClassVar[str] = "nats"

    def __post_init__(self) -> None:
        _require_loss(self.documents)

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per document, shape (Q,)."""
        return -document_losses(self.documents, model, params)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, q: int) -> Continuation:
        label = self.queries[q]  # an IndexError here is what ends an iteration
        return replace(self, documents=self.documents[self.documents.ids[q : q + 1 or None]], labels=(label,))

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the queries."""
        return self.labels or tuple(str(i) for i in self.documents.ids.tolist())


@final
@dataclass(frozen=True)
class WordContrast:
    """log p(wanted | prefix) - log p(against | prefix) in the same places, in nats.

    Args:
        wanted: the word to be raised in each place.
        against: the word that stands there, over the same prefixes.
        name: for tables.
    """

    wanted: Continuation
    against: Continuation
    name: str = "contrast"
    unit: ClassVar[str] = "nats"

    def __post_init__(self) -> None:
        if self.wanted.queries != self.against.queries:
            raise InfuserError("the two words do not stand in the same places", got=len(self.wanted))

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per place, shape (Q,)."""
        return self.wanted(model, params) - self.against(model, params)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, q: int) -> WordContrast:
        return replace(self, wanted=self.wanted[q], against=self.against[q])

    @property
    def queries(self) -> tuple[str, ...]:
        """The places: document@token."""
        return self.wanted.queries


@final
@dataclass(frozen=True)
class TokenLoss:
    """The mean loss of a token over a set, negated so that raising f lowers it; exp(-f) is the perplexity."""

    documents: Dataset
    name: str = "neg_token_loss"
    unit: ClassVar[str] = "nats per token"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return -(sum of token losses) / (number of tokens with a loss), shape (1,)."""
        tokens = int((self.documents.targets[:, 1:] != IGNORED).sum())
        return -(document_losses(self.documents, model, params).sum() / tokens).reshape(1)

    def __len__(self) -> int:
        return 1

    @property
    def queries(self) -> tuple[str, ...]:
        """One name."""
        return (f"-token loss of {self.documents.name}",)


@final
@dataclass(frozen=True)
class ContrastParts:
    """What a contrast consists of, each averaged over the places, from one evaluation: see `parts` for their order.

    Args:
        contrast: in the places.
        label: queries are named label:part.
        parts: names of log p(wanted) - log p(against), of its two terms in nats, and of the share of places where the
            wanted word is likelier (rank flips). The last carries no gradient.
    """

    contrast: WordContrast
    label: str
    name: str = "parts"
    parts: tuple[str, str, str, str] = ("contrast", "log_p_target", "log_p_probe", "wins")
    unit: ClassVar[str] = "nats, and a share"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per part, shape (4,)."""
        wanted, against = self.contrast.wanted(model, params), self.contrast.against(model, params)
        rows = (wanted - against, wanted, against, (wanted > against).to(wanted))
        return torch.stack([row.mean() for row in rows])

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def queries(self) -> tuple[str, ...]:
        """label:part."""
        return tuple(f"{self.label}:{part}" for part in self.parts)


@final
@dataclass(frozen=True)
class Wins:
    """1 in the places where the wanted word is likelier than the other, else 0: rank flips. It carries no gradient."""

    contrast: WordContrast
    name: str = "wins"
    unit: ClassVar[str] = "share"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per place, shape (Q,)."""
        values = self.contrast(model, params)
        return (values > 0).to(values)

    def __len__(self) -> int:
        return len(self.contrast)

    @property
    def queries(self) -> tuple[str, ...]:
        """The places."""
        return self.contrast.queries


@final
@dataclass(frozen=True)
class Mean:
    """The mean of a measurement over its queries: one query, so that its gradient takes one backward pass.

    Args:
        inner: what is averaged.
        label: name of the one query.
        name: for tables; that of `inner` by default.
    """

    inner: Measurement
    label: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.inner.name)

    @property
    def unit(self) -> str:
        """The unit of what is averaged."""
        return self.inner.unit

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return the mean, shape (1,)."""
        return self.inner(model, params).mean().reshape(1)

    def __len__(self) -> int:
        return 1

    @property
    def queries(self) -> tuple[str, ...]:
        """One name."""
        return (self.label or f"mean {self.name}",)


@final
@dataclass(frozen=True)
class Less:
    """first - weight * mean of second, by query of the first: raise the one where the other should not rise with it."""

    first: Measurement
    second: Measurement
    weight: float = 1.0
    name: str = "difference"

    @property
    def unit(self) -> str:
        """The unit of the first."""
        return self.first.unit

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per query of the first, shape (Q,)."""
        return self.first(model, params) - self.weight * self.second(model, params).mean()

    @property
    def queries(self) -> tuple[str, ...]:
        """Those of the first."""
        return tuple(getattr(self.first, "queries", ()))


def coherence(measurement: Measurement, model: nn.Module, params: Params) -> float:
    """Return the mean pairwise cosine of the queries' gradients: 1 where one change of the weights serves them all.

    With unit gradients u_q it is (|sum u_q|^2 - Q) / (Q (Q - 1)). Low values foretell that raising the mean of f on
    some inputs does little for others.

    Raises:
        InfuserError: there are fewer than two queries, or a gradient is zero.
    """
    total: Tensor | None = None
    count = 0
    for _, row in each_gradient(measurement, model, params):
        flat = torch.cat([g.flatten() for g in row.values()]).double()
        if not flat.norm() > 0:
            raise InfuserError("a query's gradient is zero", got=measurement.name)
        total = flat / flat.norm() if total is None else total + flat / flat.norm()
        count += 1
    if count < 2 or total is None:
        raise InfuserError("coherence needs at least two queries", got=count)
    return float((total.square().sum() - count) / (count * (count - 1)))


def continuations(pairs: Sequence[tuple[str, str]], codec: Codec, context: int, name: str = "log_prob") -> Continuation:
    """Return log p(second | first) for pairs of texts.

    Raises:
        InfuserError: a pair is longer than the context, has no continuation, or does not round-trip; ids are named.
    """
    return Continuation(text_dataset(pairs, codec, context, name=name), name)


def word_contrast(
    data: Dataset, codec: Codec, target: str, probe: str, *, limit: int | None = None, seed: int = 0
) -> WordContrast:
    """Return log p(target) - log p(probe) where `probe` stands first in a document, the prefix kept.

    Args:
        data: documents to look in.
        codec: of the documents.
        target: the word to be raised.
        probe: the word that stands there.
        limit: at most this many places, drawn by `seed`.
        seed: of the draw.

    Raises:
        InfuserError: the probe word is nowhere, or the target fits in none of its places.
    """
    first = dict(reversed(occurrences(data, probe, codec)))
    chosen = sorted(first)
    if limit is not None and len(chosen) > limit:
        chosen = sorted(np.random.default_rng(seed).choice(chosen, limit, replace=False).tolist())
    rows: list[tuple[str, list[int], list[int], list[int]]] = []
    for i in chosen:
        row, word = data.inputs[data.positions([i])[0]], first[i]
        ids = in_place(row, word, target, codec)
        fits = ids is not None and word.start + len(ids) <= len(row)
        if ids is not None and fits and word.start > 0:
            rows.append((f"{i}@{word.start}", row[: word.start].tolist(), ids, row[word.start : word.stop].tolist()))
    if not rows:
        raise InfuserError(f"{target!r} fits in no place of {probe!r}", got=f"{len(chosen)} places")
    labels = tuple(row[0] for row in rows)
    wanted = _spans([(prefix, ids) for _, prefix, ids, _ in rows], data, f"log p({target})", labels)
    against = _spans([(prefix, ids) for _, prefix, _, ids in rows], data, f"log p({probe})", labels)
    return WordContrast(wanted, against, f"{target} over {probe}")


def document_losses(documents: Dataset, model: nn.Module, params: Params) -> Tensor:
    """Return the loss of every document, shape (N,), in nats.

    Documents of like length share a forward pass, cut to the longest. Where a gradient is asked for, activations are
    computed again in the backward pass, so that memory holds one pass at a time.
    """
    device = next(iter(params.values())).device
    lengths = (documents.inputs != PAD).sum(1)
    order = np.argsort(lengths, kind="stable")
    kept = torch.is_grad_enabled() and any(value.requires_grad for value in params.values())
    parts = []
    for start in range(0, len(order), _CHUNK):
        at = order[start : start + _CHUNK]
        longest = int(lengths[at].max())
        batch = documents.batch(at, str(device))
        inputs, targets = batch.inputs[:, :longest], batch.targets[:, :longest]
        if kept and len(order) > _CHUNK:
            parts.append(checkpoint(_forward, model, params, inputs, targets, use_reentrant=False))
        else:
            parts.append(_forward(model, params, inputs, targets))
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(device)]


def _forward(model: nn.Module, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    task = CausalLM()
    return task.loss(functional_call(model, params, (task.feed(inputs),)), targets)


def _spans(pairs: Sequence[tuple[list[int], list[int]]], like: Dataset, name: str, labels: Any) -> Continuation:
    inputs: Array = np.full((len(pairs), like.input_shape[0]), PAD, dtype=like.inputs.dtype)
    targets: Array = np.full(inputs.shape, IGNORED, dtype=like.targets.dtype)
    for row, (prefix, ids) in enumerate(pairs):
        stop = len(prefix) + len(ids)
        inputs[row, :stop] = [*prefix, *ids]
        targets[row, len(prefix) : stop] = ids
    return Continuation(Dataset(inputs, targets, "causal_lm", like.n_outputs, name=name), name, labels)


def _require_loss(documents: Dataset) -> None:
    if documents.kind != "causal_lm":
        raise InfuserError("continuations are measured on documents of tokens", got=documents.kind)
    masked = (documents.targets[:, 1:] == IGNORED).all(1)
    if masked.any():
        fact = f"{int(masked.sum())} documents have no token with a loss"
        raise InfuserError(
            fact, got=f"documents {listed(documents.ids[masked].tolist())}", causes=["all labels are masked"]
        )
