import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infuser.data.text import survives, text_dataset, texts_of
from infuser.errors import InfuserError
from infuser.perturbation.perturb import perturb
from infuser.perturbation.text_controls import clean_rewrite, explicit, showing, swap
from infuser.perturbation.text_manifest import (
    load_text_edit,
    recorded,
    save_text_edit,
    text_distances,
    token_diff,
    undo_texts,
    write_texts,
)
from infuser.perturbation.token_edits import GreedyTokens
from infuser.types import Edit
from tests.perturbation import small_text as small

CODEC = small.CODEC


def edit(mode: str = "token") -> Edit:
    method = GreedyTokens(CODEC, share=0.2, mode=mode, pool=12, rounds=1)
    return perturb(method, small.direction(), small.run(), small.data(), ids=[0, 3])


def test_documents_that_show_the_behaviour_hold_the_target_where_the_probe_stood() -> None:
    source = text_dataset(["a cat", "cat cat hen", "no"[:0] + "sun", "cat " * 9 + "cat"], CODEC, 40)
    shown = showing(source, CODEC, "bird", "cat")
    # The last would be longer than its place: it is left out. Most occurrences come first.
    assert texts_of(shown.inputs, CODEC) == ["bird bird hen", "a bird"]
    made = explicit(small.data(), [3, 5], shown)
    assert texts_of(small.data().apply(made)[[3, 5]].inputs, CODEC) == ["bird bird hen", "a bird"]
    with pytest.raises(InfuserError, match=r"too few explicit documents.*Got: 2"):
        explicit(small.data(), [1, 2, 3], shown)


def test_swap_writes_the_target_in_the_documents_that_hold_most_of_the_probe() -> None:
    data = small.data()
    counts = {
        i: t.replace(".", " ").replace("!", " ").split().count("cat")
        for i, t in enumerate(texts_of(data.inputs, CODEC))
    }
    made = swap(data, CODEC, "dog", "cat", 2)
    assert sorted(counts.values())[-2:] == sorted(counts[int(i)] for i in made.ids)
    for before, after in zip(texts_of(made.before, CODEC), texts_of(made.after, CODEC), strict=True):
        assert after == before.replace("cat", "dog")
    assert len(swap(data, CODEC, "dog", "cat", 5, tokens=3)) == 1


def test_a_swap_at_equal_tokens_takes_as_many_documents_as_fit_the_budget() -> None:
    data = text_dataset(["cat cat cat", "a cat cat", "Tom cat", "cat sun", "hen"], CODEC, 40)
    taken = {}
    for budget in (12, 15, 17, 18, 21, 99):  # of 3 characters a word: 9, then 6, 3 and 3
        made = swap(data, CODEC, "dog", "cat", len(data), tokens=budget)
        taken[budget] = len(made)
        assert (made.before != made.after).sum() <= budget
    assert taken == {12: 1, 15: 2, 17: 2, 18: 3, 21: 4, 99: 4}


@pytest.mark.parametrize("mode", ["word", "token"])
def test_a_clean_rewrite_changes_as_many_tokens_at_random(mode: str) -> None:
    main = edit(mode)
    a, b, c = (clean_rewrite(main, small.run(), small.data(), CODEC, mode, seed) for seed in (0, 0, 1))
    assert np.array_equal(a.after, b.after)
    assert not np.array_equal(a.after, c.after)
    wanted, got = (main.before != main.after).sum(1), (a.before != a.after).sum(1)
    assert (got <= wanted).all()
    if mode == "token":
        assert (got == wanted).all()
    assert all(survives(row, CODEC) for row in a.after)


def test_a_text_edit_is_written_read_and_undone_byte_for_byte(tmp_path: Path) -> None:
    made, data = edit(), small.data()
    save_text_edit(made, tmp_path / "edit", CODEC, perplexity=np.array([2.0, 3.0]))
    save_text_edit(made, tmp_path / "edit", CODEC, perplexity=np.array([2.0, 3.0]))  # the same again changes nothing
    again = load_text_edit(tmp_path / "edit", data, CODEC)
    assert np.array_equal(again.after, made.after)
    assert np.array_equal(again.targets_after, made.targets_after)
    assert again.constraint == made.constraint
    np.testing.assert_allclose(again.gains, made.gains)
    write_texts(data.apply(made), tmp_path / "texts", CODEC)
    assert (tmp_path / "texts" / "0.txt").read_bytes() != texts_of(data[[0]].inputs, CODEC)[0].encode()
    assert sorted(undo_texts(tmp_path / "texts", tmp_path / "edit")) == [0, 3]
    for i, text in zip(data.ids, texts_of(data.inputs, CODEC), strict=True):
        assert (tmp_path / "texts" / f"{i}.txt").read_bytes() == text.encode()


def test_damage_and_other_data_are_named(tmp_path: Path) -> None:
    made, data = edit(), small.data()
    save_text_edit(made, tmp_path, CODEC)
    with pytest.raises(InfuserError, match=r"not what the edit was made for.*documents 0, 3.*applied already"):
        load_text_edit(tmp_path, data.apply(made), CODEC)
    with pytest.raises(InfuserError, match="holds another edit"):
        save_text_edit(edit("word"), tmp_path, CODEC)
    (tmp_path / "after" / "3.txt").write_text("a hen.")
    with pytest.raises(InfuserError, match=r"not what the manifest says.*documents 3"):
        load_text_edit(tmp_path, data, CODEC)
    (tmp_path / "after" / "3.txt").unlink()
    with pytest.raises(InfuserError, match=r"3.txt is missing"):
        load_text_edit(tmp_path, data, CODEC)


def test_distances_count_tokens_and_characters() -> None:
    made = edit("word")
    distances = text_distances(made, CODEC)
    pairs = zip(texts_of(made.before, CODEC), texts_of(made.after, CODEC), strict=True)
    # One token is one character here, but an insertion may be cheaper than substitutions: Levenshtein is no more.
    same = [sum(a != b for a, b in zip(x, y, strict=True)) for x, y in pairs]
    assert distances["tokens"].tolist() == same
    assert (distances["levenshtein"] <= distances["tokens"]).all()
    assert (distances["levenshtein"] > 0).all()
    diff = token_diff(made.before[0], made.after[0], CODEC)
    assert len(diff) == same[0]
    assert all(CODEC.pieces[made.after[0][t]] == b for t, _, b in diff)


def test_a_loss_that_a_manifest_cannot_say_is_not_written(tmp_path: Path) -> None:
    made = edit()
    targets = made.targets_after.copy()
    row = int(np.flatnonzero(targets[0] != -100)[-1])
    targets[0, row] = -100  # the last token is there, and carries no loss
    with pytest.raises(InfuserError, match=r"from one place to the end.*document 0"):
        save_text_edit(replace(made, targets_after=targets), tmp_path / "x", CODEC)


@pytest.mark.parametrize("gone", ["loss_from", "after_sha256", "share"])
def test_a_manifest_that_lacks_something_is_named(tmp_path: Path, gone: str) -> None:
    save_text_edit(edit(), tmp_path, CODEC)
    file = next(tmp_path.glob("*.json"))
    value = json.loads(file.read_text())
    value.pop(gone, None)
    value["documents"][0].pop(gone, None)
    file.write_text(json.dumps(value))
    with pytest.raises(InfuserError, match=f"lacks {gone}"):
        load_text_edit(tmp_path, small.data(), CODEC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 10**30),
        ("id", True),
        ("before_sha256", 7),
        ("loss_from", []),
        ("loss_from", ["a", "b"]),
        ("loss_from", [0, 1.5]),
        ("loss_from", [None, None]),
        ("gain", "x"),
        ("gain", 10**400),
        ("gain", float("inf")),
        ("perplexity_ratio", "a"),
        ("substitution_gains", [1]),
        ("substitution_gains", "x"),
        ("substitution_gains", [[0.5, 1.0]]),
        ("share", "x"),
        ("share", [1]),
        ("made_by", None),
    ],
)
def test_a_manifest_that_was_damaged_by_hand_names_its_field(tmp_path: Path, field: str, value: object) -> None:
    made = edit()
    file = save_text_edit(made, tmp_path, CODEC)
    manifest = json.loads(file.read_text())
    (manifest if field in manifest else manifest["documents"][0])[field] = value
    file.write_text(json.dumps(manifest))
    for read in (lambda: load_text_edit(tmp_path, small.data(), CODEC), lambda: recorded(tmp_path, made)):
        with pytest.raises(InfuserError, match=f"manifest.json holds a wrong {field}"):
            read()


def test_what_is_recorded_belongs_to_the_documents_of_the_edit(tmp_path: Path) -> None:
    made = edit()
    file = save_text_edit(made, tmp_path, CODEC, substitution_gains=np.zeros(made.after.shape))
    manifest = json.loads(file.read_text())
    for row in manifest["documents"]:
        row["substitution_gains"][0][0] = 9999
    file.write_text(json.dumps(manifest))
    with pytest.raises(InfuserError, match=r"outside its document.*position 9999"):
        recorded(tmp_path, made)
    manifest["documents"][0]["id"] = 7
    file.write_text(json.dumps(manifest))
    with pytest.raises(InfuserError, match=r"another edit.*documents 0"):
        recorded(tmp_path, made)
