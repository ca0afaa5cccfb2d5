import numpy as np
import pytest

from infuser.data.text import PAD, Characters, survives, text_dataset, texts_of
from infuser.data.words import in_place, occurrences, replaced, vocabulary, words_of
from infuser.errors import InfuserError

TEXTS = ["the cat sat. The cat, the cats", "a cat's dog-cart cat", "no"]
CODEC = Characters.of([*TEXTS, "hen"])
DATA = text_dataset(TEXTS, CODEC, 40)


class Spaced(Characters):
    """A codec whose ids are words with the space before them, as in BPE."""

    @property
    def pieces(self) -> tuple[str, ...]:
        return ("", "the", " cat", " s", "at", ".", " hen", " c", " ")

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            i = max(
                (i for i, p in enumerate(self.pieces) if p and text.startswith(p)), key=lambda i: len(self.pieces[i])
            )
            ids.append(i)
            text = text[len(self.pieces[i]) :]
        return ids


def test_words_are_runs_of_letters_that_no_mark_joins_to_others() -> None:
    assert [w.text for w in words_of(DATA.inputs[0], CODEC)] == ["the", "cat", "sat", "The", "cat", "the", "cats"]
    assert [w.text for w in words_of(DATA.inputs[1], CODEC)] == ["a", "cat"]
    for row in DATA.inputs:
        for w in words_of(row, CODEC):
            assert CODEC.decode(row[w.start : w.stop]) == w.text


def test_a_token_may_hold_the_space_before_its_word() -> None:
    codec = Spaced("x")
    row = np.array([0, *codec.encode("the cat sat."), PAD])
    found = words_of(row, codec)
    assert [(w.text, w.start, w.stop, w.spaced, w.behind) for w in found] == [
        ("the", 1, 2, False, False),
        ("cat", 2, 3, True, True),
        ("sat", 3, 5, True, True),
    ]
    assert in_place(row, found[1], "hen", codec) == [6]
    # " c" and "at" would merge with what the codec reads as one token: the ids are those of the text, not of its parts.
    assert in_place(row, found[2], "cat", codec) == [2]


def test_occurrences_are_whole_words_and_a_word_never_seen_is_an_error() -> None:
    assert [i for i, _ in occurrences(DATA, "cat", CODEC)] == [0, 0, 1]
    with pytest.raises(InfuserError, match=r"'cow' is nowhere in text"):
        occurrences(DATA, "cow", CODEC)
    with pytest.raises(InfuserError, match="a word is made of letters"):
        occurrences(DATA, "a cat", CODEC)


def test_vocabulary_counts_words_behind_a_space() -> None:
    entries = vocabulary(DATA, CODEC)
    assert entries[0].text == "cat"
    assert {e.text for e in entries} == {"cat", "sat", "The", "the", "cats"}
    assert all(CODEC.decode(e.ids) == e.text for e in entries)
    assert [e.text for e in vocabulary(DATA, CODEC, 1)] == ["cat"]


def test_replacing_words_keeps_the_rest_and_its_losses() -> None:
    row, target = DATA.inputs[0], DATA.targets[0].copy()
    target[:8] = -100
    spans = [w for w in words_of(row, CODEC) if w.text == "cat"]
    made = replaced(row, target, spans, "hens", CODEC)
    assert made is not None
    assert texts_of(made[0][None], CODEC) == ["the hens sat. The hens, the cats"]
    assert survives(made[0], CODEC)
    assert (made[1][:9] == -100).all()
    assert (made[1][9:33] == made[0][9:33]).all()
    assert (made[1][made[0] == PAD] == -100).all()
    assert replaced(row, target, spans, "t" * 10, CODEC) is None  # longer than the stored length
    made = replaced(row, target, spans, "t" * 10, CODEC, cut=True)
    assert made is not None
    whole = TEXTS[0].replace(" cat ", f" {'t' * 10} ").replace(" cat,", f" {'t' * 10},")
    assert texts_of(made[0][None], CODEC) == [whole[:39]]  # the begin mark takes the fortieth place
    assert made[0].shape == row.shape
