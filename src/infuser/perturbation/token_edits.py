"""Edits of text: a few words or tokens of a document replaced, each replacement re-scored exactly.

The first-order gain of a token says little about its exact gain, so it only proposes; what is accepted is decided by
the score of the edited document itself. After every accepted substitution the document's text still encodes to its
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Literal, cast, final

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import PAD, Codec, document_ids, survives
from infuser.errors import InfuserError
from infuser.perturbation.substitutions import LabelGain, Lexicon, Proposer, Substitution, propose
from infuser.perturbation.token_effect import TokenEffect
from infuser.progress import track
from infuser.types import Array, Direction, Edit

Mode = Literal["word", "token"]


@final
@dataclass(frozen=True)
class TokenBudget:
    """At most this share of a document's tokens may change, and none is added or removed.

    >>> TokenBudget(0.5).distance(np.array([[1, 2, 3, 4, -1]]), np.array([[1, 9, 3, 4, -1]])).tolist()
    [0.25]
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InfuserError("the token budget is out of range", got=self.share, expected="0 < share <= 1")

    @property
    def limit(self) -> float:
        """The share."""
        return self.share

    def distance(self, before: Array, after: Array) -> Array:
        """Return the share of tokens changed of each document, shape (k,); infinite where the length changed."""
        changed = (before != after).sum(1) / np.maximum((before != PAD).sum(1), 1)
        return cast(Array, np.where(((before == PAD) != (after == PAD)).any(1), np.inf, changed))

    def tokens(self, row: Array) -> int:
        """Return how many tokens of a document may change."""
        return floor(self.share * int((row != PAD).sum()) + 1e-9)

    def __str__(self) -> str:
        return f"{self.share:.0%} of tokens"


@dataclass(frozen=True)
class Draft:
    """A document on its way.

    Attributes:
        original: (T,) as stored.
        row: (T,) as it is now.
        target: (T,) labels.
        score: s, in units of f.
        loss: under the clean model, in nats.
    """

    original: Array
    row: Array
    target: Array
    score: float
    loss: float

    @property
    def changed(self) -> int:
        """Tokens that differ from the original."""
        return int((self.row != self.original).sum())


@final
@dataclass(frozen=True)
class GreedyTokens:
    """Replace words or tokens, those first whose exact gain per token is highest.

    Each round proposes substitutions by a first-order table at the current document, scores each of them exactly on
    its own, then the best of them jointly, and accepts what raises the joint score.

    Args:
        codec: of the documents.
        share: of a document's tokens that may change at most.
        mode: `word` replaces a word by a word of as many tokens; `token` any token of letters by another.
        rounds: of re-linearisation.
        pool: substitutions scored exactly in a round.
        per_site: most of them in one place.
        proposer: what ranks them beforehand.
        ban: words that no edit may bring in, nor any of their tokens.
        whole: words that no edit may break off: their first two, three, ... tokens may not stand without the next one
            more often than before. Edits of tokens may put them in as a whole. A model that is certain how a word goes
            on shows no gradient there, so that the score is blind to what a broken word teaches it.
        fluency: nats per token that the document's loss under the clean model may rise by; None for no limit.
        words: how many of the data's commonest words may be put in.
    """

    codec: Codec
    share: float = 0.1
    mode: Mode = "word"
    rounds: int = 3
    pool: int = 96
    per_site: int = 4
    proposer: Proposer = field(default_factory=LabelGain)
    ban: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    fluency: float | None = None
    words: int = 1500

    def __post_init__(self) -> None:
        TokenBudget(self.share)
        for name in ("rounds", "pool", "per_site", "words"):
            if getattr(self, name) < 1:
                raise InfuserError(f"{name} is out of range", got=getattr(self, name), expected="at least 1")
        if self.mode not in ("word", "token"):
            raise InfuserError("unknown mode", got=self.mode, expected="word or token")

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Edit:
        """Return the edit of these documents; gains are the exact predicted changes of f.

        Raises:
            InfuserError: the data are not tokens, or a document does not round-trip as it is.
        """
        effect = TokenEffect.of(direction, run, data)
        lexicon = self.lexicon(data)
        chosen = data[ids]
        done = [
            self.rewrite(effect, lexicon, chosen.inputs[i], chosen.targets[i])
            for i in track(range(len(chosen)), "editing documents")
        ]
        rows, targets = np.stack([draft.row for draft, _ in done]), np.stack([draft.target for draft, _ in done])
        gains = np.array([draft.score - start for draft, start in done])
        budget = TokenBudget(self.share)
        return Edit(chosen.ids, chosen.inputs, rows, chosen.targets, targets, budget, str(self), gains)

    def potential(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Array:
        """Return the sum of the best label-side gains within the budget for each document, (k,) in units of f."""
        effect, lexicon, chosen = TokenEffect.of(direction, run, data), self.lexicon(data), data[ids]
        bounds = np.zeros(len(chosen))
        for i, (row, target) in enumerate(zip(chosen.inputs, chosen.targets, strict=True)):
            room, written = TokenBudget(self.share).tokens(row), set[int]()
            for s in propose(effect.label_gains(row, target), row, lexicon, self.mode, len(row), 1):
                if not written.isdisjoint(s.places):
                    continue
                if s.gain <= 0 or len(written) + len(s.ids) > room:
                    break
                written.update(s.places)
                bounds[i] += s.gain
        return bounds

    def lexicon(self, data: Dataset) -> Lexicon:
        """Return what may be put into documents of `data`."""
        return Lexicon.of(data, self.codec, self.words, self.ban, self.whole, words=self.mode == "word")

    def rewrite(self, effect: TokenEffect, lexicon: Lexicon, row: Array, target: Array) -> tuple[Draft, float]:
        """Return (the edited document, the score that it had before)."""
        require_writable(row, self.codec)
        (score,), (loss,) = effect.scores(row[None], target[None])
        draft = Draft(row, row, target, float(score), float(loss))
        highest = np.inf if self.fluency is None else draft.loss + self.fluency * int((target[1:] != IGNORED).sum())
        budget = TokenBudget(self.share).tokens(row)
        for left in range(self.rounds, 0, -1):
            room = ceil((budget - draft.changed) / left)
            better = self._round(effect, lexicon, draft, room, highest) if room > 0 else None
            if better is None:
                break
            draft = better
        return draft, float(score)

    def _round(self, effect: TokenEffect, lexicon: Lexicon, draft: Draft, room: int, highest: float) -> Draft | None:
        """Return the document after one round that changes at most `room` further tokens; None if nothing helps."""
        table = self.proposer.table(effect, draft.row, draft.target)
        tried = propose(table, draft.row, lexicon, self.mode, self.pool, self.per_site)
        if not tried:
            return None
        gains = scored(effect, draft, [s.put(draft.row, draft.target) for s in tried])[0] - draft.score
        worth = gains / np.array([len(s.ids) for s in tried])
        ranked = [tried[i] for i in np.argsort(-worth, kind="stable") if gains[i] > 0]
        chain, steps = stacked(ranked, draft, lexicon, room)
        if not chain:
            return None
        scores, losses = scored(effect, draft, steps)
        marginal = np.diff(scores, prepend=draft.score)
        helpful, last = stacked([s for s, gain in zip(chain, marginal, strict=True) if gain > 0], draft, lexicon, room)
        if helpful and len(helpful) < len(chain):
            more = scored(effect, draft, last[-1:])
            steps, scores, losses = [*steps, last[-1]], np.append(scores, more[0]), np.append(losses, more[1])
        scores = np.where(losses <= highest, scores, -np.inf)
        best = int(np.argmax(scores))
        if not scores[best] > draft.score:
            return None
        return Draft(draft.original, *steps[best], float(scores[best]), float(losses[best]))

    def __str__(self) -> str:
        limits = [f"without {', '.join(self.ban)}"] if self.ban else []
        limits += [f"never breaking off {', '.join(self.whole)}"] if self.whole else []
        limits += [f"at most {self.fluency:g} nats a token less likely"] if self.fluency is not None else []
        return "; ".join([f"greedy {self.mode} edits of {TokenBudget(self.share)}, {self.proposer}", *limits])


def scored(effect: TokenEffect, draft: Draft, documents: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return (scores, losses) of versions of a document."""
    return effect.scores(np.stack([row for row, _ in documents]), np.stack([target for _, target in documents]))


def stacked(
    ranked: Sequence[Substitution], draft: Draft, lexicon: Lexicon, room: int
) -> tuple[list[Substitution], list[tuple[Array, Array]]]:
    """Return (substitutions, document after each): those that fit beside the ones before them.

    One that overlaps, exceeds `room` further tokens or makes a document that is not `writable` is passed over.
    """
    row, target = draft.row, draft.target
    kept: list[Substitution] = []
    steps: list[tuple[Array, Array]] = []
    written: set[int] = set()
    for s in ranked:
        if draft.changed + room <= int((row != draft.original).sum()):
            break
        if written.intersection(s.places):
            continue
        tried = s.put(row, target)
        if int((tried[0] != draft.original).sum()) > draft.changed + room:
            continue
        if not writable(tried[0], draft.original, lexicon):
            continue
        row, target = tried
        written.update(s.places)
        kept.append(s)
        steps.append(tried)
    return kept, steps


def writable(row: Array, original: Array, lexicon: Lexicon) -> bool:
    """Return whether a text encodes to its tokens and neither brings in a banned word nor breaks off a whole one."""
    if not survives(row, lexicon.codec) or (lexicon.broken_off(row) > lexicon.broken_off(original)).any():
        return False
    if not lexicon.ban:
        return True
    after, before = (lexicon.codec.decode(document_ids(x, lexicon.codec)) for x in (row, original))
    return lexicon.banned(after) <= lexicon.banned(before)


def require_writable(row: Array, codec: Codec) -> None:
    """Raise unless a document round-trips as it is."""
    if not survives(row, codec):
        raise InfuserError(
            "a document does not encode to its own tokens, so that its edit could not be stored as text",
            got=repr(codec.decode(document_ids(row, codec))[:60]),
            remedy="build the data set with text_dataset, which checks this",
        )
