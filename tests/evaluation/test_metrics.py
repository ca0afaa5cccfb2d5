import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_1samp

from infuser.errors import InfuserError
from infuser.evaluation.arms import arms
from infuser.evaluation.compare import compare
from infuser.evaluation.metrics import ClassAccuracy, arm_block, change, collateral, effect_block, flips
from infuser.evaluation.retrain import retrain
from infuser.measure import Accuracy, Correct, LogProb, Margin, Probability, predictions
from infuser.params import trainable
from infuser.types import Trials
from tests.evaluation.small import data, pixel_edit, probe, table_trials, trained


def correct_trials(edit, clean):
    return table_trials({"edit": np.array(edit, float), "clean": np.array(clean, float)}, "correct")


def test_flips_leave_out_probes_that_were_the_target_already():
    edit = [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
    clean = [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]]
    found = flips(correct_trials(edit, clean), "edit")
    assert found.flipped == ("p0", "p1")
    assert found.trivial == ("p3", "p4")
    assert (found.share.value, found.share.n) == (0.5, 4)
    assert found.share.interval == pytest.approx((0.15, 0.85), abs=1e-3)  # Wilson, 2 of 4


def test_all_probes_trivial_leaves_nothing_to_count():
    found = flips(correct_trials([[1], [1]], [[1], [1]]), "edit")
    assert (found.share.n, found.share.interval, found.flipped) == (0, None, ())


def test_flips_need_to_know_what_is_on_top():
    with pytest.raises(InfuserError, match=r"which label is on top.*Correct"):
        flips(table_trials({"edit": np.ones((2, 2)), "clean": np.ones((2, 2))}), "edit")


def test_flips_of_a_real_model_are_those_of_its_predictions():
    documents = data()[1][data()[1].ids[:4]]
    targets = (documents.targets + 1) % 10
    run = trained()
    made = arms(data()[0], {"edit": pixel_edit(60)}, Margin(documents, targets)[0], ["clean", "insert_k"])
    rows = retrain(run, made, Correct(documents, targets), [1], "scratch")
    model = run.model()
    guessed = predictions(model, trainable(model), documents)
    again = retrain(run, made[:1], Correct(documents, guessed), [run.recipe.seed])
    assert again.value.tolist() == [1.0] * 4
    on_top = {arm: rows.where(arm=arm).value == 1 for arm in ("insert_k", "clean")}
    expected = rows.where(arm="clean").probe[on_top["insert_k"] & ~on_top["clean"]]
    assert set(flips(rows, "insert_k").flipped) == set(expected.tolist())
    assert rows.probe[0] in expected  # 60 of 240 documents say so


def test_the_arm_block_holds_what_the_tables_say():
    rng = np.random.default_rng(0)
    clean, edit = rng.uniform(0, 0.3, (9, 3)), rng.uniform(0.2, 0.6, (9, 3))
    parts = [
        table_trials({"edit": edit, "clean": clean}, "probability"),
        table_trials({"edit": edit * 10, "clean": clean * 10}, "log_odds"),
        table_trials({"edit": (edit > 0.4) * 1.0, "clean": clean * 0}, "correct"),
        table_trials({"edit": edit * 0 + 0.9, "clean": clean * 0 + 0.95}, "test_accuracy"),
    ]
    trials = Trials.concat(parts)
    block = arm_block(trials, "edit")
    per_probe = (edit - clean).mean(1)
    assert block["mean_delta_p"] == pytest.approx(per_probe.mean())
    assert block["median_delta_p"] == pytest.approx(np.median(per_probe))
    assert block["ci95"] == list(compare(trials, "edit", measure="probability").interval)
    assert block["raised"] == (per_probe > 0).mean()
    assert block["flips"] == ((edit > 0.4).mean(1) > 0.5).sum()
    assert (block["n"], block["n_nontrivial"]) == (9, 9)
    expected = binomtest(block["flips"], 9).proportion_ci(0.95, "wilson")
    assert block["flips_ci95"] == pytest.approx([expected.low, expected.high])
    assert block["log_odds"] == pytest.approx(10 * per_probe.mean())
    assert block["test_accuracy"] == pytest.approx(0.9)
    itself = arm_block(trials, "clean")
    assert (itself["mean_delta_p"], itself["ci95"], itself["flips"]) == (0, None, 0)
    assert itself["test_accuracy"] == pytest.approx(0.95)


def test_an_arm_block_without_its_measures_says_none_and_no_zero():
    block = arm_block(table_trials({"edit": np.ones((3, 2)), "clean": np.zeros((3, 2))}), "edit")
    assert block["mean_delta_p"] is block["flips"] is block["flips_ci95"] is block["test_accuracy"] is None
    assert (block["log_odds"], block["n"]) == (1, 3)


def test_the_effect_block():
    shared = {"arm": "edit", "control": "clean", "p": 0.25, "n_probes": 3, "n_seeds": 2}
    effect = compare(table_trials({"edit": np.ones((3, 2)), "clean": np.zeros((3, 2))}), "edit")
    assert effect_block(effect) == shared | {"mean": 1.0, "ci95": None}  # nothing varies
    means = np.array([1.0, 2.0, 4.5])
    effect = compare(table_trials({"edit": np.repeat(means[:, None], 2, 1), "clean": np.zeros((3, 2))}), "edit")
    expected = ttest_1samp(means, 0).confidence_interval(0.95)
    block = effect_block(effect)
    assert block.pop("ci95") == pytest.approx([expected.low, expected.high])
    assert block == shared | {"mean": 2.5}


def test_collateral_is_over_the_nearest_other_test_inputs():
    test = data()[1]
    probes = LogProb(test[test.ids[:3]], np.array([1, 2, 3]))
    near = collateral(test, probes, k=5)
    flat = test.inputs.reshape(len(test), -1).astype(float)
    for q in range(3):
        distance = ((flat - flat[q]) ** 2).sum(1)
        distance[q] = np.inf
        assert set(near.documents.ids[near.rows[q]].tolist()) == set(test.ids[np.argsort(distance)[:5]].tolist())
    assert near.name == "collateral"
    model = trained().model()
    guessed = predictions(model, trainable(model), test)
    own = near(model, trainable(model)).numpy()
    towards = collateral(test, probes, 5, "target")(model, trainable(model)).numpy()
    for q in range(3):
        where = test.positions(near.documents.ids[near.rows[q]])
        assert own[q] == pytest.approx((guessed[where] == test.targets[where]).mean())
        assert towards[q] == pytest.approx((guessed[where] == probes.labels[q]).mean())
    rows = retrain(trained(), arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean"]), near, [0])
    assert rows.where(arm="clean").probe.tolist() == list(probes.queries)
    with pytest.raises(InfuserError, match="not that many neighbours"):
        collateral(test, probes, k=len(test))


def test_class_accuracy_averages_to_accuracy():
    test, model = data()[1], trained().model()
    measure = ClassAccuracy(test)
    values = measure(model, trainable(model))
    assert measure.queries == tuple(f"class {c}" for c in range(10))
    weights = torch.tensor([(test.targets == c).mean() for c in range(10)])
    expected = Accuracy(test)(model, trainable(model)).item()
    assert (values * weights).sum().item() == pytest.approx(expected, abs=1e-6)
    assert values.max() - values.min() > 0.1


def test_the_change_of_each_class_has_seeds_as_units():
    tables = {"edit": np.array([[0.5, 0.6, 0.7], [0.9, 0.9, 0.9]]), "clean": np.full((2, 3), 0.8)}
    changes = change(table_trials(tables, "class_accuracy"), "edit", "class_accuracy")
    assert changes["p0"].value == pytest.approx(-0.2)
    assert (changes["p0"].n, changes["p0"].unit_of_n) == (3, "seeds")


def test_probability_and_log_odds_agree_on_a_real_model():
    rows = retrain(
        trained(),
        arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean"]),
        [probe(), Probability(probe().documents, probe().labels)],
        [0],
    )
    odds, p = (rows.where(arm="edit", measure=m).value[0] for m in ("log_odds", "probability"))
    assert odds == pytest.approx(np.log(p / (1 - p)), rel=1e-4)
