from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from infuser.data.text import PAD, Characters, survives, text_dataset, texts_of
from infuser.errors import InfuserError
from infuser.perturbation.perturb import Perturber, perturb
from infuser.perturbation.substitutions import Lexicon, Substitution, propose, sites
from infuser.perturbation.token_edits import Draft, GreedyTokens, TokenBudget, stacked, writable
from infuser.perturbation.token_effect import TokenEffect
from infuser.types import Array, Edit
from tests.perturbation import small_text as small
from tests.perturbation.test_token_effect import exact

CODEC = small.CODEC


@lru_cache
def edited(**settings) -> Edit:
    method = GreedyTokens(CODEC, **{"share": 0.3, "pool": 24, "rounds": 2, **settings})
    return perturb(method, small.direction(), small.run(), small.data(), ids=[0, 3])


@pytest.mark.parametrize("mode", ["word", "token"])
def test_gains_are_the_exact_change_of_the_inner_product(mode: str) -> None:
    edit = edited(mode=mode)
    wanted = exact(edit.after, edit.targets_after) - exact(edit.before, edit.targets_before)
    np.testing.assert_allclose(edit.gains, wanted, rtol=1e-4, atol=1e-6)
    assert (edit.gains > 0).all()
    # The negative: the gains of one document are not those of another.
    assert not np.allclose(edit.gains, wanted[::-1], rtol=0.05)


@pytest.mark.parametrize("mode", ["word", "token"])
def test_an_edit_stays_text_within_its_budget_and_out_of_what_is_no_letter(mode: str) -> None:
    edit = edited(mode=mode)
    changed = (edit.before != edit.after).sum(1)
    assert (changed <= 0.3 * (edit.before != PAD).sum(1)).all()
    assert (changed > 0).all()
    assert all(survives(row, CODEC) for row in edit.after)
    editable = np.isin(edit.before, sorted(CODEC.editable))
    assert (edit.before == edit.after)[~editable].all()
    assert np.isin(edit.after[edit.before != edit.after], sorted(CODEC.editable)).all()
    assert (edit.targets_after == np.where(edit.targets_before == -100, -100, edit.after)).all()


def test_word_mode_replaces_words_by_words_of_the_data_of_the_same_length() -> None:
    edit = edited()
    for before, after in zip(texts_of(edit.before, CODEC), texts_of(edit.after, CODEC), strict=True):
        for a, b in zip(before.split(), after.split(), strict=True):
            assert len(a) == len(b)
            assert a[0].isupper() == b[0].isupper()
            if a != b:
                assert b.strip(".!") in small.WORDS


def test_best_single_substitution_is_found_by_scoring_all_of_them() -> None:
    """With room for one token and a pool of everything, the edit is the best over all single replacements."""
    row, target = small.data().inputs[0], small.data().targets[0]
    share = 1.5 / int((row != PAD).sum())
    method = GreedyTokens(CODEC, share=share, mode="token", rounds=1, pool=10_000, per_site=10_000)
    edit = perturb(method, small.direction(), small.run(), small.data(), ids=[0])
    places = np.flatnonzero(np.isin(row, sorted(CODEC.editable)))
    made = [Substitution(int(t), (w,)).put(row, target) for t in places for w in sorted(CODEC.editable)]
    best = exact(np.stack([put for put, _ in made]), np.stack([labels for _, labels in made])).max()
    np.testing.assert_allclose(edit.gains[0], best - exact(row[None], target[None])[0], rtol=1e-4)
    assert edit.gains[0] < edited(mode="token").gains[0]  # and a larger budget gains more


def test_proposals_are_the_largest_of_the_table() -> None:
    row = small.data().inputs[0]
    lexicon = GreedyTokens(CODEC, mode="token").lexicon(small.data())
    table = np.random.default_rng(0).normal(size=(len(row), CODEC.size))
    got = propose(table, row, lexicon, "token", 10, 100)
    brute = sorted(
        ((table[t, w], t, w) for t, i in enumerate(row) if i in CODEC.editable for w in CODEC.editable - {int(i)}),
        reverse=True,
    )[:10]
    assert [(s.gain, s.start, s.ids[0]) for s in got] == brute
    assert max(np.bincount([s.start for s in propose(table, row, lexicon, "token", 50, 2)])) == 2


def test_a_word_gains_the_sum_over_its_tokens() -> None:
    row = small.data().inputs[0]
    lexicon = GreedyTokens(CODEC).lexicon(small.data())
    table = np.random.default_rng(0).normal(size=(len(row), CODEC.size))
    for s in propose(table, row, lexicon, "word", 30, 5):
        assert s.gain == pytest.approx(sum(table[t, i] for t, i in zip(s.places, s.ids, strict=True)))
        assert tuple(row[s.start : s.start + len(s.ids)]) != s.ids
    assert all(start > 0 for start, _ in sites(row, lexicon, "word"))


class Merging(Characters):
    """A codec whose 'ab' is one token, so that a and b in two tokens do not round-trip."""

    @property
    def size(self) -> int:
        return len(self.alphabet) + 2

    @property
    def pieces(self) -> tuple[str, ...]:
        return ("", *self.alphabet, "ab")

    def encode(self, text: str) -> list[int]:
        parts = text.split("ab")
        ids = [Characters.encode(self, part) for part in parts]
        return [i for n, part in enumerate(ids) for i in ([len(self.alphabet) + 1] if n else []) + part]


def test_a_substitution_that_breaks_the_round_trip_is_passed_over() -> None:
    codec = Merging("abc ")
    ds = text_dataset(["cc cc"], codec, 8)
    lexicon = Lexicon.of(ds, codec, 10, words=False)
    draft = Draft(ds.inputs[0], ds.inputs[0], ds.targets[0], 0.0, 0.0)
    a, b, c = (codec.alphabet.index(x) + 1 for x in "abc")
    kept, steps = stacked([Substitution(1, (a,)), Substitution(2, (b,)), Substitution(4, (b,))], draft, lexicon, 3)
    assert [s.start for s in kept] == [1, 4]
    assert codec.decode(steps[-1][0][1:6]) == "ac bc"
    plain = replace(lexicon, codec=Characters("abc "))
    assert len(stacked([Substitution(1, (a,)), Substitution(2, (b,))], draft, plain, 3)[0]) == 2
    assert c in lexicon.codec.editable


def test_banned_words_and_their_tokens_stay_out() -> None:
    free = edited(mode="word")
    brought = set(free.after[free.after != free.before].tolist())
    word = next(w for w in small.WORDS if any(w in t.split() for t in texts_of(free.after, CODEC)) and len(w) == 3)
    held = edited(mode="word", ban=(word,))
    letters = set(CODEC.encode(word))
    assert brought & letters
    assert not letters & set(held.after[held.after != held.before].tolist())


def test_a_whole_word_is_put_in_as_a_whole_or_not_at_all() -> None:
    codec = Characters("abcd ")
    ds = text_dataset(["dd dddd dd"], codec, 12)
    free = Lexicon.of(ds, codec, 10, words=False)
    held = Lexicon.of(ds, codec, 10, whole=("abc",), words=False)
    a, b, c, d = codec.encode("abcd")
    assert held.whole == ((a, b, c),)
    row, place = ds.inputs[0], 4  # "dddd" begins there
    draft = Draft(row, row, ds.targets[0], 0.0, 0.0)
    parts = [Substitution(place, (a,)), Substitution(place + 1, (b,)), Substitution(place + 2, (c,))]
    assert stacked(parts, draft, free, 3)[0] == parts
    assert stacked(parts, draft, held, 3)[0] == [parts[0], parts[2]]  # "ab" before "d" would break the word off
    assert stacked(parts[::-1], draft, held, 3)[0] == parts[::-1]  # but not before "c"
    whole = Substitution(place, held.whole[0])
    assert stacked([whole], draft, held, 4)[0] == [whole]
    written = stacked([whole], draft, held, 4)[1][0][0]
    assert held.broken_off(row).tolist() == held.broken_off(written).tolist() == [0]
    written[place + 2] = d
    assert held.broken_off(written).tolist() == [1]

    # Each length counts for itself: a "bc" less does not pay for a "bcd" more.
    longer = replace(held, whole=(tuple(codec.encode("bcda")),))
    assert longer.broken_off(np.array(codec.encode("bcd bcc bca bc"))).tolist() == [3, 1]
    before, after = (text_dataset([text], codec, 12).inputs[0] for text in ("bcc dddd dd", "bcd dddd dd"))
    assert not writable(after, before, longer)
    assert writable(after, before, held)
    assert not writable(before, after, longer)

    # It is proposed in every run of letters that has room for it, and by nobody else.
    def starts(lexicon: Lexicon) -> list[int]:
        return [t for t, candidates in sites(row, lexicon, "token") if candidates.shape[1] == 3]

    editable = np.isin(row, sorted(codec.editable))
    assert starts(held) == [t for t in range(len(row) - 2) if editable[t : t + 3].all()] == [4, 5]
    assert starts(free) == []


def test_an_edit_breaks_no_whole_word_off_that_it_broke_off_before() -> None:
    lexicon = Lexicon.of(small.data(), CODEC, 10, words=False)
    broken = {}
    for word in small.WORDS:
        counted = replace(lexicon, whole=(tuple(CODEC.encode(word)),))
        edit = edited(mode="token")
        broken[word] = sum(
            counted.broken_off(a).sum() - counted.broken_off(b).sum()
            for a, b in zip(edit.after, edit.before, strict=True)
        )
    word = max(broken, key=lambda w: broken[w])
    assert broken[word] > 0
    counted = replace(lexicon, whole=(tuple(CODEC.encode(word)),))
    held = edited(mode="token", whole=(word,))
    assert all(
        (counted.broken_off(a) <= counted.broken_off(b)).all() for a, b in zip(held.after, held.before, strict=True)
    )
    assert (held.gains > 0).all()


def test_a_fluency_limit_holds_and_costs_gain() -> None:
    effect = TokenEffect.of(small.direction(), small.run(), small.data())
    free, held = edited(mode="token"), edited(mode="token", fluency=0.05)
    tokens = (held.targets_before[:, 1:] >= 0).sum(1)

    def rise(edit: Edit) -> Array:
        after, before = (
            effect.scores(*x)[1] for x in ((edit.after, edit.targets_after), (edit.before, edit.targets_before))
        )
        return (after - before) / tokens

    assert (rise(held) <= 0.05 + 1e-6).all()
    assert (rise(free) > 0.05).any()
    assert held.gains.sum() < free.gains.sum()


def test_undo_gives_the_documents_back_and_post_edit_keeps_the_best() -> None:
    edit = edited()
    data = small.data()
    assert data.apply(edit).apply(edit.undo()).content_hash == data.content_hash
    assert data.apply(edit).content_hash != data.content_hash
    method = GreedyTokens(CODEC, share=0.2, pool=12, rounds=1)
    assert isinstance(method, Perturber)
    chosen = perturb(method, small.direction(), small.run(), data, 3)
    everything = perturb(method, small.direction(), small.run(), data, ids=data.ids)  # as large as the pool
    final = exact(everything.after, everything.targets_after)
    assert set(chosen.ids.tolist()) == set(data.ids[np.argsort(-final)[:3]].tolist())


def test_bad_settings_are_named() -> None:
    with pytest.raises(InfuserError, match="token budget is out of range"):
        GreedyTokens(CODEC, share=0)
    with pytest.raises(InfuserError, match="unknown mode"):
        GreedyTokens(CODEC, mode="letter")
    assert TokenBudget(0.5).distance(np.array([[1, 2]]), np.array([[1, PAD]])).tolist() == [np.inf]
