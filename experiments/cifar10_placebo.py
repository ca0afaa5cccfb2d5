"""What the CIFAR-10 tables say beside the effects: placebo models, and what the probe alone foretells.

A model that was edited for another probe is a placebo for this one: it was retrained on as many edited documents, and
nothing in them aims at it. Its log-odds carry what retraining on other data does by chance, which the one clean model
shares with every arm and probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from infuser.evaluation.stats import mean_estimate
from infuser.types import Array, Trials


def class_log_odds(trials: Trials) -> dict[str, float]:
    """Return the log-odds of the target of every probe that a model gives class probabilities for, by probe."""
    rows = trials.where(measure="class_probability")
    by_probe: dict[str, dict[int, float]] = {}
    for name, value in zip(rows.probe.tolist(), rows.value.tolist(), strict=True):
        probe, _, label = name.partition("#")
        by_probe.setdefault(probe, {})[int(label)] = value
    found = {}
    for probe, p in by_probe.items():
        target = int(probe.partition("->")[2])
        rest = sum(value for label, value in p.items() if label != target)
        found[probe] = float(np.log(max(p[target], 1e-45)) - np.log(max(rest, 1e-45)))
    return found


def placebo(models: Mapping[str, Sequence[tuple[str, Trials]]], arms: Sequence[str]) -> dict[str, Any]:
    """Return each arm's effect against the models that were edited for other probes.

    Args:
        models: arm -> (the probe that a model's edit is for, its rows), of one victim and start.
        arms: whose effect is wanted; all arms of `models` give placebos.
    """
    read = [(arm, probe, class_log_odds(trials)) for arm, found in models.items() for probe, trials in found]
    own = {(arm, probe): values[probe] for arm, probe, values in read}
    block: dict[str, Any] = {}
    for arm in arms:
        probes = [probe for name, probe in own if name == arm]
        others = {probe: [v[probe] for _, of, v in read if of != probe and probe in v] for probe in probes}
        probes = [probe for probe in probes if len(others[probe]) > 1]
        if not probes:
            continue
        gains = np.array([own[arm, probe] - np.mean(others[probe]) for probe in probes])
        estimate = mean_estimate(gains, "probes", ())
        block[arm] = {
            "mean": estimate.value,
            "ci95": None if estimate.interval is None else list(estimate.interval),
            "n_probes": len(probes),
            "above_all": sum(own[arm, probe] > max(others[probe]) for probe in probes),
            "placebos": [len(others[probe]) for probe in probes],
            "placebo_sd": float(np.mean([np.std(others[probe], ddof=1) for probe in probes])),
        }
    return block


def foretold(
    predicted: Mapping[str, float], measured: Mapping[str, float], clean: Mapping[str, float]
) -> dict[str, Any]:
    """Return how the measured change ranks with the prediction, with the clean log-odds, and with one given the other.

    A probe far from its target has the most log-odds to gain, so that a prediction can rank probes by that alone.
    """
    probes = list(measured)
    x, y, z = (np.array([of[probe] for probe in probes]) for of in (predicted, measured, clean))
    xy, yz, xz = (_rank(*pair) for pair in ((x, y), (y, z), (x, z)))
    return {
        "n": len(probes),
        "clean_log_odds": {probe: clean[probe] for probe in probes},
        "rank_of_prediction": xy,
        "rank_of_clean_log_odds": yz,
        "rank_of_prediction_given_clean": float((xy - yz * xz) / np.sqrt((1 - yz**2) * (1 - xz**2))),
    }


def _rank(a: Array, b: Array) -> float:
    return float(spearmanr(a, b).statistic)
