import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infuser.errors import InfuserError
from infuser.evaluation.arms import arms, insert, noise
from infuser.measure import Custom, Margin
from infuser.perturbation.balls import Linf
from infuser.types import Edit
from tests.evaluation.small import data, pixel_edit, probe

pairs = st.integers(1, 3).flatmap(
    lambda n: st.integers(1, 12).flatmap(lambda d: st.tuples(*[hnp.arrays(np.uint8, (n, d)) for _ in range(2)]))
)


def edit_of(before, after):
    k = len(before)
    labels = np.zeros(k, dtype=np.int64)
    return Edit(np.arange(k), before, after, labels, labels, Linf(255), "any")


def sizes(edit):
    return np.abs(edit.after.astype(int) - edit.before.astype(int)).reshape(len(edit), -1)


@settings(max_examples=300, deadline=None)
@given(pairs, st.integers(0, 3))
def test_noise_has_exactly_the_differences_of_the_edit(pair, seed):
    edit = edit_of(*pair)
    twin = noise(edit, seed)
    assert twin.after.dtype == np.uint8
    np.testing.assert_array_equal(np.sort(sizes(twin), axis=1), np.sort(sizes(edit), axis=1))
    np.testing.assert_array_equal(sizes(twin).max(1), sizes(edit).max(1))
    np.testing.assert_array_equal((sizes(twin) ** 2).sum(1), (sizes(edit) ** 2).sum(1))


def test_shuffling_without_care_would_leave_the_range():
    # What the property rests on: a difference of 200 fits 0 and 255 but not 128, with either sign.
    before, after = np.array([[0, 128, 128, 128]], np.uint8), np.array([[200, 128, 128, 128]], np.uint8)
    for seed in range(20):
        np.testing.assert_array_equal(noise(edit_of(before, after), seed).after, after)
    misplaced = before.astype(int) + np.array([[0, 200, 0, 0]])
    assert misplaced.max() > 255
    assert (before.astype(int) - np.array([[0, 200, 0, 0]])).min() < 0


def test_all_admissible_placements_are_equally_likely():
    # 200 fits positions 0, 1 (values 10, 250); 150 fits 0, 1, 2; 20 fits all: 2 x 2 x 1 placements.
    before = np.array([[10, 250, 100, 128]], np.uint8)
    after = np.array([[210, 100, 120, 128]], np.uint8)
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(2000):
        key = tuple(sizes(noise(edit_of(before, after), seed))[0].tolist())
        seen[key] = seen.get(key, 0) + 1
    admissible = {
        tuple(p)
        for p in __import__("itertools").permutations([200, 150, 20, 0])
        if all(d <= max(int(x), 255 - int(x)) for d, x in zip(p, before[0], strict=True))
    }
    assert set(seen) == admissible
    expected = 2000 / len(admissible)
    chi2 = sum((n - expected) ** 2 / expected for n in seen.values())
    assert chi2 < 2 * len(admissible) + 12


def test_noise_moves_differences_and_takes_both_signs_and_follows_its_seed():
    edit = pixel_edit()
    twin = noise(edit, 0)
    assert (np.sign(twin.after.astype(int) - twin.before) != np.sign(edit.after.astype(int) - edit.before)).mean() > 0.2
    np.testing.assert_array_equal(twin.after, noise(edit, 0).after)
    assert (twin.after != noise(edit, 1).after).any()
    np.testing.assert_array_equal(twin.targets_after, edit.targets_after)


def test_noise_of_tokens_is_refused():
    tokens = np.zeros((1, 4), dtype=np.int64)
    edit = Edit(np.array([0]), tokens, tokens + 1, tokens, tokens, None, "tokens")
    with pytest.raises(InfuserError, match="8-bit"):
        noise(edit)


def test_arms_keep_ids_and_order_and_say_why():
    documents, edit = data()[0], pixel_edit()
    other = pixel_edit(seed=1)
    made = arms(documents, {"edit": edit, "random_docs": other}, probe())
    assert [arm.name for arm in made] == ["clean", "edit", "random_docs", "noise", "insert_1", "insert_k"]
    for arm in made:
        np.testing.assert_array_equal(arm.data.ids, documents.ids)
        assert len(arm.reason.split()) >= 4
    by_name = {arm.name: arm.data for arm in made}
    assert by_name["clean"].content_hash == documents.content_hash
    assert by_name["edit"].content_hash == documents.apply(edit).content_hash
    changed = {name: (d.inputs != documents.inputs).reshape(len(d), -1).any(1).sum() for name, d in by_name.items()}
    assert changed == {"clean": 0, "edit": 12, "random_docs": 12, "noise": 12, "insert_1": 1, "insert_k": 12}


def test_insert_puts_the_probe_with_its_wanted_label_in_place():
    documents, edit = data()[0], pixel_edit()
    wanted = probe()
    one, several = (
        {arm.name: arm.data for arm in arms(documents, {"edit": edit}, wanted, ["insert_1", "insert_k"])}[name]
        for name in ("insert_1", "insert_k")
    )
    np.testing.assert_array_equal(one[edit.ids[:1]].inputs, wanted.documents.inputs)
    assert one[edit.ids[:1]].targets.tolist() == wanted.labels.tolist()
    np.testing.assert_array_equal(one[edit.ids[1:]].inputs, edit.before[1:])
    assert several[edit.ids].targets.tolist() == wanted.labels.tolist() * 12
    assert (several[edit.ids].inputs == wanted.documents.inputs).all()


def test_random_documents_may_come_from_a_function():
    documents = data()[0]
    asked = []

    def make(ids):
        asked.append(ids)
        chosen = documents[ids]
        return Edit(
            ids, chosen.inputs, chosen.inputs ^ np.uint8(1), chosen.targets, chosen.targets, Linf(1), "lowest bit"
        )

    made = arms(documents, {"edit": pixel_edit(), "random_docs": make}, probe(), ["clean", "random_docs"], seed=3)
    assert len(asked[0]) == len(set(asked[0].tolist())) == 12
    assert (made[-1].data[asked[0]].inputs != documents[asked[0]].inputs).all()
    arms(documents, {"edit": pixel_edit(), "random_docs": make}, probe(), ["clean", "random_docs"], seed=4)
    assert set(asked[0].tolist()) != set(asked[1].tolist())
    with pytest.raises(InfuserError, match="other documents than those drawn"):
        arms(documents, {"edit": pixel_edit(), "random_docs": lambda ids: pixel_edit()}, probe())


def test_random_documents_are_those_that_the_training_sees():
    documents = data()[0]
    asked = []

    def make(ids):
        asked.append(ids.tolist())
        chosen = documents[ids]
        return Edit(ids, chosen.inputs, chosen.inputs ^ np.uint8(1), chosen.targets, chosen.targets, Linf(1), "a bit")

    def draw(of):
        arms(of, {"edit": pixel_edit(), "random_docs": make}, probe(), ["random_docs"], seed=3)
        return asked[-1]

    # Where all count, the draw is that of all ids.
    rng = np.random.default_rng([3, 1])
    assert draw(documents) == sorted(rng.choice(documents.ids, 12, replace=False).tolist())
    seen = documents.ids[100:112]
    assert draw(documents.with_weights(np.setdiff1d(documents.ids, seen), 0)) == sorted(seen.tolist())
    with pytest.raises(InfuserError, match=r"too few documents to draw.*11 of weight above 0.*at least 12"):
        draw(documents.with_weights(np.setdiff1d(documents.ids, seen[1:]), 0))


@pytest.mark.parametrize(
    ("edits", "target", "controls", "message"),
    [
        ({"edit": pixel_edit()}, probe(), ["random_docs"], r"random_docs needs an edit.*Remedy: add it"),
        ({"edit": pixel_edit()}, probe(), ["clean", "gradient_matching"], "gradient_matching needs an edit"),
        ({"edit": pixel_edit()}, probe(), ["placebo"], "not a control"),
        ({"edit": pixel_edit(), "clean": pixel_edit()}, probe(), [], "clean is the data"),
        ({}, probe(), ["clean"], "at least one document"),
        ({"edit": pixel_edit(), "other": lambda ids: pixel_edit()}, probe(), [], "other must be an edit"),
        ({"edit": pixel_edit()}, None, ["insert_1"], "insert needs a document"),
        ({"edit": pixel_edit()}, Custom(lambda m, p: m), ["insert_k"], "insert needs a document"),
        ({"edit": pixel_edit()}, Margin(data()[1]), ["insert_1"], "120 probes"),
    ],
)
def test_bad_requests_name_their_remedy(edits, target, controls, message):
    with pytest.raises(InfuserError, match=message):
        arms(data()[0], edits, target, controls)


def test_insert_refuses_a_probe_of_another_kind():
    with pytest.raises(InfuserError, match="not of the training data's kind"):
        insert(data()[0], data()[0].ids[:1], Margin(_wide()))


def _wide():
    from infuser.data.dataset import Dataset

    return Dataset(np.zeros((1, 1, 9, 9), np.uint8), np.array([0]), "classification", 10)
