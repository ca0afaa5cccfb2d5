"""Substitutions in documents of tokens: which are possible, and which to try first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, final

import numpy as np

from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import Codec
from infuser.data.words import vocabulary, words_of
from infuser.perturbation.token_effect import TokenEffect
from infuser.types import Array

Kind: TypeAlias = "tuple[int, bool, bool]"


@dataclass(frozen=True)
class Substitution:
    """Tokens from `start` on replaced by as many others.

    Attributes:
        start: position in the document.
        ids: what is put in.
        gain: first-order gain of f, in the unit of whoever proposed it.
    """

    start: int
    ids: tuple[int, ...]
    gain: float = 0.0

    @property
    def places(self) -> range:
        """The positions that it writes."""
        return range(self.start, self.start + len(self.ids))

    def put(self, row: Array, target: Array) -> tuple[Array, Array]:
        """Return (row, targets) with the substitution made; tokens without a loss stay without one."""
        row, target = row.copy(), target.copy()
        at = slice(self.start, self.start + len(self.ids))
        row[at] = self.ids
        target[at] = np.where(target[at] == IGNORED, IGNORED, row[at])
        return row, target


class Proposer(Protocol):
    """Ranks single tokens."""

    def table(self, effect: TokenEffect, row: Array, target: Array) -> Array:
        """Return the first-order gain of putting token w at position t, (T, V); 0 for the token that is there."""
        ...


@final
@dataclass(frozen=True)
class LabelGain:
    """Ranks by what the token's own loss gains: one pair of forward passes for all of them."""

    def table(self, effect: TokenEffect, row: Array, target: Array) -> Array:
        """Return effect.label_gains."""
        return effect.label_gains(row, target)

    def __str__(self) -> str:
        return "proposed by label-side gain"


@dataclass(frozen=True)
class Lexicon:
    """What may be put in, and where.

    Attributes:
        codec: of the documents.
        tokens: (V,) bool, the single tokens that may be put in.
        words: kind -> (M, n) ids as they stand behind a space; a kind is (n tokens, capitalised, they hold the space).
        ban: words that no edit may bring in, nor any of their tokens.
        whole: ids of words, as they stand behind a space, that no edit may break off; without a token for the space.
    """

    codec: Codec
    tokens: Array
    words: dict[Kind, Array]
    ban: tuple[str, ...] = ()
    whole: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        data: Dataset,
        codec: Codec,
        size: int,
        ban: Sequence[str] = (),
        whole: Sequence[str] = (),
        *,
        words: bool = True,
    ) -> Lexicon:
        """Return the lexicon of the `size` commonest words of a data set and of all editable tokens."""
        allowed = np.zeros(codec.size, dtype=bool)
        allowed[sorted(codec.editable)] = True
        pieces = {i for word in ban for i in (*codec.encode(word), *_behind_space(codec, word))}
        allowed[sorted(pieces)] = False
        groups: dict[Kind, list[tuple[int, ...]]] = {}
        for entry in vocabulary(data, codec, size) if words else ():
            if pieces.isdisjoint(entry.ids) and not any(word.lower() in entry.text.lower() for word in ban):
                kind = (len(entry.ids), entry.text[0].isupper(), entry.spaced)
                groups.setdefault(kind, []).append(entry.ids)
        kept = tuple(tuple(i for i in _behind_space(codec, word) if codec.pieces[i].strip()) for word in whole)
        return cls(codec, allowed, {key: np.array(rows) for key, rows in groups.items()}, tuple(ban), kept)

    def banned(self, text: str) -> int:
        """Return how often a banned word stands in a text."""
        return sum(text.lower().count(word.lower()) for word in self.ban)

    def broken_off(self, row: Array) -> Array:
        """Return how often the first two, three, ... tokens of the words of `whole` stand without the next one.

        The first token alone does not count: other words begin with it too.
        """
        standing = [[_count(row, word[:stop]) for stop in range(2, len(word) + 1)] for word in self.whole]
        return np.concatenate([np.zeros(0, np.int64), *(-np.diff(counts) for counts in standing)])


def _behind_space(codec: Codec, word: str) -> tuple[int, ...]:
    return tuple(codec.encode("a " + word)[len(codec.encode("a")) :])


def _count(row: Array, ids: Sequence[int]) -> int:
    if len(ids) > len(row):
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(row, len(ids))
    return int((windows == np.asarray(ids)).all(1).sum())


def sites(row: Array, lexicon: Lexicon, mode: Literal["word", "token"]) -> Iterator[tuple[int, Array]]:
    """Yield (start, candidates (M, n)) for every place that may be edited; padding, specials and newlines are none.

    In mode `word` a place is a word behind a space and the candidates are words of as many tokens and the same case; in
    mode `token` it is a token of letters, or as many of them as a word of `whole` has.
    """
    if mode == "token":
        candidates = np.flatnonzero(lexicon.tokens)[:, None]
        editable = np.isin(row, sorted(lexicon.codec.editable))
        yield from ((t, candidates) for t in np.flatnonzero(editable).tolist())
        for ids in lexicon.whole:
            if 1 < len(ids) <= len(row) and lexicon.tokens[list(ids)].all():
                room = np.lib.stride_tricks.sliding_window_view(editable, len(ids)).all(1)
                yield from ((t, np.array([ids])) for t in np.flatnonzero(room).tolist())
        return
    none: Array = np.empty((0, 0), dtype=np.int64)
    for word in words_of(row, lexicon.codec):
        found = lexicon.words.get((word.stop - word.start, word.text[0].isupper(), word.spaced), none)
        if word.behind and len(found):
            yield word.start, found


def propose(
    table: Array, row: Array, lexicon: Lexicon, mode: Literal["word", "token"], pool: int, per_site: int
) -> list[Substitution]:
    """Return the `pool` substitutions of highest first-order gain, best first, at most `per_site` in one place."""
    found = []
    for start, candidates in sites(row, lexicon, mode):
        n = candidates.shape[1]
        gains = table[np.arange(start, start + n), candidates].sum(1)
        gains[(candidates == row[start : start + n]).all(1)] = -np.inf
        best = np.argsort(-gains, kind="stable")[:per_site]
        found += [
            Substitution(start, tuple(candidates[i].tolist()), float(gains[i])) for i in best if np.isfinite(gains[i])
        ]
    return sorted(found, key=lambda s: -s.gain)[:pool]
