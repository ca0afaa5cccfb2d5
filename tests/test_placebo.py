"""Effects against models that were edited for other probes, by hand."""

from __future__ import annotations

import cifar10_placebo
import numpy as np
import pytest
from scipy.stats import t as student

from infuser.types import Trials

PROBES = ("10->1", "11->0", "12->2", "13->1")


def model(logits: np.ndarray) -> Trials:
    """Return the rows of a model with these logits (4, 3)."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = [
        ("edit", 1, f"{probe}#{c}", "class_probability", p[i, c]) for i, probe in enumerate(PROBES) for c in range(3)
    ]
    return Trials.from_rows(rows, "last_epoch")


def test_log_odds_are_read_off_the_probabilities_of_the_classes():
    logits = np.random.default_rng(0).normal(0, 4, (4, 3))
    found = cifar10_placebo.class_log_odds(model(logits))
    for i, probe in enumerate(PROBES):
        target = int(probe[-1])
        others = np.delete(logits[i], target)
        assert found[probe] == pytest.approx(logits[i, target] - np.logaddexp.reduce(others))


def test_an_arm_is_compared_with_the_models_of_other_probes_alone():
    """Each edit raises its own probe's log-odds by some amount, over jitter that is known."""
    rng = np.random.default_rng(1)
    jitter, gains = rng.normal(0, 0.3, (4, 4)), np.array([2.0, 3.0, 4.0, 0.0])
    models = []
    for of, probe in enumerate(PROBES):
        odds = jitter[of].copy()
        odds[of] += gains[of]
        logits = np.zeros((4, 3))
        for i, name in enumerate(PROBES):
            logits[i, int(name[-1])] = odds[i] + np.log(2)  # two other classes at 0
        models.append((probe, model(logits)))
    block = cifar10_placebo.placebo({"edit": models}, ["edit"])["edit"]
    expected = np.array([jitter[q, q] + gains[q] - np.delete(jitter[:, q], q).mean() for q in range(4)])
    half = student.ppf(0.975, 3) * expected.std(ddof=1) / 2
    assert block["mean"] == pytest.approx(expected.mean())
    assert block["ci95"] == pytest.approx([expected.mean() - half, expected.mean() + half])
    assert block["above_all"] == sum(jitter[q, q] + gains[q] > np.delete(jitter[:, q], q).max() for q in range(4))
    assert block["placebos"] == [3, 3, 3, 3]
    assert block["placebo_sd"] == pytest.approx(np.mean([np.delete(jitter[:, q], q).std(ddof=1) for q in range(4)]))


def test_models_without_the_probabilities_of_others_are_no_placebos():
    rows = [("edit", 1, f"10->1#{c}", "class_probability", 1 / 3) for c in range(3)]
    own = Trials.from_rows(rows, "last_epoch")
    assert cifar10_placebo.placebo({"edit": [("10->1", own), ("10->1", own)]}, ["edit"]) == {}


def test_a_prediction_that_knows_the_distance_alone_has_no_partial_rank():
    rng = np.random.default_rng(2)
    names = [f"{i}->1" for i in range(400)]
    clean, noise, other = rng.normal(size=(3, 400))
    measured = dict(zip(names, -clean + noise, strict=True))
    by_distance = dict(zip(names, -clean + 0.5 * other, strict=True))
    knowing = dict(zip(names, noise + 0.5 * other, strict=True))
    base = dict(zip(names, clean, strict=True))
    told = cifar10_placebo.foretold(by_distance, measured, base)
    assert told["rank_of_prediction"] > 0.4
    assert abs(told["rank_of_prediction_given_clean"]) < 0.15
    assert told["rank_of_clean_log_odds"] < -0.5
    assert cifar10_placebo.foretold(knowing, measured, base)["rank_of_prediction_given_clean"] > 0.6
