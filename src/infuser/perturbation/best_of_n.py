"""Replacement documents from any generator: for each document the one that does most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import PAD, Codec, document_ids, survives
from infuser.errors import InfuserError, listed
from infuser.perturbation.token_effect import TokenEffect
from infuser.types import Array, Direction, Edit


@final
@dataclass(frozen=True)
class EditDistance:
    """At most this many insertions, deletions and substitutions of tokens, as a share of the document's tokens.

    >>> EditDistance(1.0).distance(np.array([[1, 2, 3, -1]]), np.array([[2, 3, 4, 5]])).round(2).tolist()
    [1.0]
    """

    share: float

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise InfuserError("the edit distance is out of range", got=self.share, expected="a number above 0")

    @property
    def limit(self) -> float:
        """The share; it may exceed 1 where replacements are longer."""
        return self.share

    def distance(self, before: Array, after: Array) -> Array:
        """Return the Levenshtein distance of token ids over the tokens before, shape (k,)."""
        from rapidfuzz.distance import Levenshtein

        pairs = zip(before.tolist(), after.tolist(), strict=True)
        plain = (([i for i in a if i != PAD], [i for i in b if i != PAD]) for a, b in pairs)
        return np.array([Levenshtein.distance(a, b) / max(len(a), 1) for a, b in plain], dtype=np.float64)

    def __str__(self) -> str:
        return f"edit distance {self.share:.0%} of tokens"


@final
@dataclass(frozen=True)
class BestOfN:
    """Replace each document by the one of its candidates with the highest exact predicted gain.

    Args:
        codec: of the documents.
        candidates: document id -> replacement texts, from any generator.
        budget: what a candidate may differ by; others are not looked at.
    """

    codec: Codec
    candidates: Mapping[int, Sequence[str]]
    budget: EditDistance

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Edit:
        """Return the edit; a document stays as it is where no candidate within the budget raises f.

        Raises:
            InfuserError: a document has no candidates, or a candidate is too long or does not round-trip.
        """
        effect = TokenEffect.of(direction, run, data)
        chosen = data[ids]
        missing = [int(i) for i in chosen.ids if not self.candidates.get(int(i))]
        if missing:
            raise InfuserError(
                "documents without candidates", got=listed(missing), remedy="generate some, or drop them"
            )
        rows, targets, gains = chosen.inputs.copy(), chosen.targets.copy(), np.zeros(len(chosen))
        for at, i in enumerate(chosen.ids.tolist()):
            made = [self._stored(text, chosen.inputs[at], chosen.targets[at], i) for text in self.candidates[i]]
            offered, labels = np.stack([row for row, _ in made]), np.stack([target for _, target in made])
            near = (
                self.budget.distance(np.repeat(chosen.inputs[at : at + 1], len(made), 0), offered) <= self.budget.limit
            )
            if not near.any():
                continue
            before = effect.scores(chosen.inputs[at : at + 1], chosen.targets[at : at + 1])[0][0]
            gained = np.where(near, effect.scores(offered, labels)[0] - before, -np.inf)
            best = int(np.argmax(gained))
            if gained[best] > 0:
                rows[at], targets[at], gains[at] = offered[best], labels[best], gained[best]
        made_by = f"best of up to {max(len(self.candidates[i]) for i in chosen.ids.tolist())} candidates, {self.budget}"
        return Edit(chosen.ids, chosen.inputs, rows, chosen.targets, targets, self.budget, made_by, gains)

    def _stored(self, text: str, like: Array, target: Array, i: int) -> tuple[Array, Array]:
        """Return (row, targets) of a text, with the document's own marks and its loss from the same place on."""
        plain = document_ids(like, self.codec)
        real = like[like != PAD].tolist()
        begin = 1 if real[:1] == [self.codec.bos] and self.codec.bos is not None else 0
        ids = [*real[:begin], *self.codec.encode(text), *real[begin + len(plain) :]]
        if len(ids) > len(like):
            raise InfuserError(
                f"a candidate of document {i} is too long", got=len(ids), expected=f"at most {len(like)}"
            )
        row = np.full_like(like, PAD)
        row[: len(ids)] = ids
        if not survives(row, self.codec) or self.codec.decode(document_ids(row, self.codec)) != text:
            raise InfuserError(f"a candidate of document {i} does not round-trip", got=repr(text[:60]))
        labels = np.where(row == PAD, IGNORED, row).astype(target.dtype)
        labels[: int(np.argmax(target != IGNORED))] = IGNORED
        return row, labels

    def __repr__(self) -> str:
        return f"BestOfN({self.codec!r}, candidates of {len(self.candidates)} documents, {self.budget!r})"
