"""Words inside documents of tokens: where they stand, and the ids of another word in the same place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import PAD, Codec, survives
from infuser.errors import InfuserError
from infuser.types import Array

# Runs of letters; with apostrophes and hyphens inside they are one word, which is then no word of letters.
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")


@dataclass(frozen=True)
class Word:
    """A word of letters that whole tokens spell.

    Attributes:
        start: position of its first token in the document.
        stop: behind its last token.
        text: without the space before it.
        spaced: its first token holds the space before it.
        behind: it stands behind a space, in its first token or in one of its own.
    """

    start: int
    stop: int
    text: str
    spaced: bool
    behind: bool


def words_of(row: Array, codec: Codec) -> list[Word]:
    """Return the words of letters in a stored document that begin and end where tokens do; specials break words.

    >>> from infuser.data.text import Characters
    >>> codec = Characters("abt ,")
    >>> [(w.text, w.start) for w in words_of(np.array([0, *codec.encode("a bat, at")]), codec)]
    [('a', 1), ('bat', 3), ('at', 8)]
    """
    ids = [int(i) for i in row if i != PAD]
    pieces = ["\0" if i in codec.specials else codec.pieces[i] for i in ids]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    starts = {
        end - len(piece): j for j, (end, piece) in reversed(list(enumerate(zip(ends, pieces, strict=True)))) if piece
    }
    stops = {end: j + 1 for j, (end, piece) in enumerate(zip(ends, pieces, strict=True)) if piece}
    text = "".join(pieces)
    found = []
    for match in _WORD.finditer(text):
        begin, end = match.span()
        spaced = begin not in starts and begin - 1 in starts and text[begin - 1] == " "
        start = starts.get(begin - 1 if spaced else begin)
        if start is not None and end in stops and match.group().isalpha():
            found.append(Word(start, stops[end], match.group(), spaced, text[begin - 1 : begin] == " "))
    return found


def occurrences(data: Dataset, word: str, codec: Codec) -> list[tuple[int, Word]]:
    """Return (document id, word) for every place where `word` stands, in the order of the data.

    Raises:
        InfuserError: the word is nowhere.
    """
    _require_word(word)
    # A cheap look at the text first: most documents do not hold the word.
    found = []
    for position, row in enumerate(data.inputs):
        if word in "".join(codec.pieces[int(i)] for i in row if i != PAD):
            found += [(int(data.ids[position]), w) for w in words_of(row, codec) if w.text == word]
    if not found:
        raise InfuserError(
            f"the word {word!r} is nowhere in {data.name}",
            got=f"{len(data)} documents",
            causes=["it is spelled or capitalised otherwise", "it always stands inside a longer token"],
            remedy="choose a word that occurs, or use more documents",
        )
    return found


def in_place(row: Array, word: Word, text: str, codec: Codec) -> list[int] | None:
    """Return the ids that `text` takes in the place of `word`, or None where it changes the tokens before it."""
    before = [int(i) for i in row[: word.start]]
    begin = 1 if before and before[0] == codec.bos else 0
    context = codec.decode(before[begin:])
    # The first word of a text carries its space in the token alone.
    space = " " if word.spaced and word.start > begin else ""
    ids = codec.encode(context + space + text)
    kept = len(before) - begin
    return ids[kept:] if ids[:kept] == before[begin:] else None


@dataclass(frozen=True)
class Entry:
    """A word behind a space.

    Attributes:
        text: without the space.
        ids: that it has there.
        spaced: they hold the space.
    """

    text: str
    ids: tuple[int, ...]
    spaced: bool


def vocabulary(data: Dataset, codec: Codec, limit: int = 2000) -> list[Entry]:
    """Return the `limit` commonest words that stand behind a space, commonest first, in their commonest ids."""
    counts: Counter[Entry] = Counter()
    for row in data.inputs:
        found = (w for w in words_of(row, codec) if w.behind)
        counts.update(Entry(w.text, tuple(row[w.start : w.stop].tolist()), w.spaced) for w in found)
    kept: dict[str, Entry] = {}
    for entry, _ in counts.most_common():
        if len(kept) == limit:
            break
        kept.setdefault(entry.text, entry)
    return list(kept.values())


def replaced(
    row: Array, target: Array, spans: Sequence[Word], text: str, codec: Codec, *, cut: bool = False
) -> tuple[Array, Array] | None:
    """Return (row, targets) with `text` in the place of these words, or None where it does not fit the stored length.

    The new tokens carry a loss where the first token of the word that they replace did. With `cut` a document that
    grows beyond the stored length loses its last tokens instead, as documents that were truncated already have.
    """
    length = len(row)
    for word in sorted(spans, key=lambda w: -w.start):  # from the back, so that places in front stay what they are
        ids = in_place(row, word, text, codec)
        if ids is None:
            return None
        real = int((row != PAD).sum())
        new = np.array(ids, dtype=row.dtype)
        loss = new if target[word.start] >= 0 else np.full_like(new, target[word.start])
        row = np.concatenate([row[: word.start], new, row[word.stop : real]])
        target = np.concatenate([target[: word.start], loss, target[word.stop : real]])
    if len(row) > length and cut:
        stop = next((n for n in range(length, 1, -1) if survives(row[:n], codec)), 1)
        row, target = row[:stop], target[:stop]
    if len(row) > length:
        return None
    padding = (0, length - len(row))
    return np.pad(row, padding, constant_values=PAD), np.pad(target, padding, constant_values=IGNORED)


def _require_word(word: str) -> None:
    if not word.isalpha():
        raise InfuserError("a word is made of letters", got=repr(word), expected="letters alone, without spaces")
