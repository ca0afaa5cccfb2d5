import numpy as np
import pytest
from torch import nn

from infuser.evaluation.arms import arms
from infuser.evaluation.checks import (
    Caveat,
    check_accuracy,
    check_agreement,
    check_arms,
    check_edit,
    check_effects,
    check_model,
    check_p_values,
    check_seeds,
    check_trials,
    distinct,
)
from infuser.evaluation.compare import compare
from infuser.evaluation.truth import agreement
from infuser.perturbation.balls import L2, Linf
from infuser.types import Arm, Edit, Recipe, Trials
from tests.evaluation.small import data, pixel_edit, probe, table_trials


def codes(caveats):
    return [caveat.code for caveat in caveats]


@pytest.mark.parametrize(("ball", "expected"), [(Linf(8), []), (Linf(9), ["budget_not_binding"])])
def test_a_budget_that_never_binds(ball, expected):
    edit = pixel_edit(radius=8)
    wide = Edit(edit.ids, edit.before, edit.after, edit.targets_before, edit.targets_after, ball, "x")
    assert codes(check_edit(wide)) == expected


def test_the_budget_is_the_balls_own_and_its_numbers_are_said():
    edit = pixel_edit(radius=8)
    wide = Edit(edit.ids, edit.before, edit.after, edit.targets_before, edit.targets_after, L2(2000), "x")
    (caveat,) = check_edit(wide)
    reached = np.sqrt(((edit.after.astype(float) - edit.before) ** 2).reshape(12, -1).sum(1)).max()
    assert f"{reached:.4g} of 2000" in str(caveat)
    free = Edit(edit.ids, edit.before, edit.after, edit.targets_before, edit.targets_after, None, "x")
    assert check_edit(free) == ()


def test_documents_that_an_edit_leaves_as_they_are():
    edit = pixel_edit(k=4)
    after = edit.after.copy()
    after[1] = edit.before[1]
    same = Edit(edit.ids, edit.before, after, edit.targets_before, edit.targets_after, edit.constraint, "x")
    (caveat,) = check_edit(same)
    assert caveat.code == "unchanged_documents"
    assert str(edit.ids[1]) in caveat.text
    labels = edit.targets_after.copy()
    labels[1] += 1
    relabelled = Edit(edit.ids, edit.before, after, edit.targets_before, labels, edit.constraint, "x")
    assert check_edit(relabelled) == ()


def test_arms_that_differ_in_more_than_they_should():
    documents = data()[0]
    fine = arms(documents, {"edit": pixel_edit()}, probe(), ["clean", "noise", "insert_1", "insert_k"])
    assert check_arms(fine) == ()
    more = Arm("more", documents.apply(pixel_edit(k=20)), "")
    (caveat,) = check_arms([*fine, more])
    assert caveat.code == "arms_unequal_size"
    assert "more 20" in caveat.text
    fewer = Arm("fewer", documents.without(documents.ids[:1]), "")
    assert "arms_unequal" in codes(check_arms([*fine, fewer]))
    (caveat,) = check_arms([*fine, Arm("again", fine[1].data, "")])
    assert caveat == Caveat("arms_identical", f"Arms {fine[1].name} and again are the same data.")


def test_trivial_probes_and_saturated_probabilities():
    zero, one = np.zeros((5, 2)), np.ones((5, 2))
    fine = table_trials({"edit": one, "clean": zero}, "correct")
    assert check_trials(fine) == ()
    clean = zero.copy()
    clean[2, 1] = 1
    (caveat,) = check_trials(table_trials({"edit": one, "clean": clean}, "correct"))
    assert (caveat.code, "1 of 5 probes" in caveat.text, "p2" in caveat.text) == ("trivial_probes", True, True)
    high = table_trials({"edit": one * 0.99999, "clean": zero}, "probability")
    assert codes(check_trials(high)) == ["saturated_probabilities"]
    assert check_trials(table_trials({"edit": one * 0.9, "clean": zero}, "probability")) == ()


def seeded(*seeds):
    return Trials.from_rows([("edit", s, "p", "log_odds", 0.0) for s in seeds], "last_epoch")


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ((1, 2, 3), []),
        ((1, 2), ["few_seeds"]),
        ((0, 1, 2), ["crafted_order"]),
        ((0,), ["few_seeds", "crafted_order"]),
    ],
)
def test_too_few_seeds_and_the_crafted_order(seeds, expected):
    found = check_seeds(seeded(*seeds), Recipe(seed=0))
    assert codes(found) == expected
    if seeds == (0,):
        assert "nothing is shown about other orders" in found[1].text


def effect(mean, n=10, arm="edit", spread=0.1):
    table = mean + spread * np.random.default_rng(0).normal(size=(n, 2))
    return compare(table_trials({arm: table, "clean": np.zeros((n, 2))}), arm)


def test_effects():
    assert check_effects([effect(1.0), effect(2.0, arm="top")]) == ()
    assert codes(check_effects([effect(0.0)])) == ["interval_holds_zero"]
    assert codes(check_effects([effect(1.0, n=2)])) == ["no_interval"]
    (caveat,) = check_effects([effect(1.0), effect(1.02, arm="top")])
    assert caveat.code == "intervals_overlap"
    assert "edit and top" in caveat.text


def test_a_p_value_that_the_seeds_do_not_bear_out():
    of_probes = 0.2 + 0.05 * np.random.default_rng(0).normal(size=(10, 1))
    on_every_seed = of_probes + np.array([0.0, 0.0, 0.0])
    on_one_seed = of_probes + np.array([0.6, -0.2, -0.4])
    assert check_p_values([_against_clean(on_every_seed)]) == ()
    (caveat,) = check_p_values([_against_clean(on_one_seed)])
    assert caveat.code == "p_of_these_seeds"
    assert "edit - clean" in caveat.text
    assert check_p_values([_against_clean(on_one_seed[:2])]) == ()  # neither p nor interval


def _against_clean(table):
    return compare(table_trials({"edit": table, "clean": np.zeros_like(table)}), "edit")


def test_a_model_that_is_random_in_training():
    steady = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    assert check_model(steady) == ()
    (caveat,) = check_model(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    assert (caveat.code, "1 layers" in caveat.text) == ("randomised_model", True)
    assert check_model(steady, Recipe()) == ()
    (caveat,) = check_model(steady, Recipe(augmentation="flip"))
    assert (caveat.code, "(flip)" in caveat.text) == ("augmented", True)


def test_predictions_that_fail():
    x = np.random.default_rng(0).normal(size=20)
    assert check_agreement(agreement(x, 1.5 * x)) == ()
    assert codes(check_agreement(agreement(x, 0.1 * x))) == ["prediction_size"]
    assert codes(check_agreement(agreement(x, -x))) == ["prediction_mismatch", "prediction_size"]


@pytest.mark.parametrize(("accuracy", "expected"), [(0.11, ["no_better_than_chance"]), (0.14, []), (0.97, [])])
def test_a_model_that_is_no_better_than_chance(accuracy, expected):
    """The lower end of Wilson's interval of 40 of 360 is .083, that of 50 of 360 is .107."""
    assert codes(check_accuracy(accuracy, 360, 0.1)) == expected


def test_each_caveat_once():
    a, b = Caveat("a", "A."), Caveat("b", "B.")
    assert distinct([a, b, a]) == (a, b)
