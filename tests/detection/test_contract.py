"""Every detector keeps the contract, says what it needs, and finds what it is meant to find."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from infuser import detection
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.evaluation.finding import find
from infuser.testing import check_detector
from infuser.training import train
from infuser.types import Measurement, Suspicion
from tests.detection.small import BLIND, FINDER, RECIPE, TOLD, behaviour, documents, observed, small_mlp


def _name(detector: object) -> str:
    return type(detector).__name__


@pytest.mark.parametrize("detector", [*BLIND, *TOLD], ids=_name)
def test_every_detector_keeps_the_contract(detector: detection.Detector) -> None:
    run, data, _ = observed()
    suspicion = check_detector(detector, run, data, behaviour())
    assert len(np.unique(suspicion.values)) > 10
    assert (suspicion.told == "blind") == (detector in BLIND)


@dataclass(frozen=True)
class _Forgetful:
    """Gives other numbers at every call."""

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        return Suspicion(np.random.default_rng().random(len(data)), data.ids, "forgetful")


@dataclass(frozen=True)
class _Shuffled:
    """Returns the documents in another order."""

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        return Suspicion(np.arange(len(data), dtype=float), data.ids[::-1], "shuffled")


def test_the_contract_is_not_kept_by_everything() -> None:
    run, data, _ = observed()
    with pytest.raises(AssertionError, match="another suspicion"):
        check_detector(_Forgetful(), run, data)
    with pytest.raises(InfuserError, match="in their order"):
        check_detector(_Shuffled(), run, data)


# Wrong labels, 10 %: chance has a recall of 0.10.
@pytest.mark.parametrize(
    ("detector", "least"),
    [
        (detection.TrainingLoss(), 0.8),
        (detection.TrainingLoss("aum"), 0.8),
        (detection.FIne(FINDER), 0.7),
        (detection.SelfInfluence(), 0.5),
        (detection.DeepKNN(k=10), 0.5),
        (detection.GradientIsolation(), 0.5),
    ],
    ids=repr,
)
def test_wrong_labels_are_found(detector: detection.Detector, least: float) -> None:
    run, data, ids = observed()
    recall = find(detection.detect(detector, run, data), ids).estimates["recall_at_k"]
    assert recall is not None
    assert recall.value >= least


def test_missing_traces_name_the_remedy() -> None:
    data = documents()[0]
    bare = train(small_mlp, data, RECIPE.with_(epochs=1))
    for detector in (detection.TrainingLoss(), detection.FIne(FINDER), detection.FIne(FINDER, "measurement")):
        with pytest.raises(InfuserError, match=r"Remedy: train again with observers=\["):
            detection.detect(detector, bare, data, behaviour())
    assert len(detection.detect(detection.TrainingLoss("final"), bare, data)) == len(data)


def test_other_data_than_the_runs_are_refused() -> None:
    run, data, ids = observed()
    with pytest.raises(InfuserError, match=r"other data.*Remedy: train on the data"):
        detection.detect(detection.DeepKNN(), run, data.without(ids[:1]))
    with pytest.raises(InfuserError, match="other data"):
        detection.detect(detection.DeepKNN(), run, documents()[0])


def test_chance_finds_no_more_than_its_share() -> None:
    run, data, ids = observed()
    found = [find(detection.detect(detection.RandomOrder(seed), run, data), ids) for seed in range(36)]
    recalls = [finding.estimates["recall_at_k"].value for finding in found]  # type: ignore[union-attr]
    # 36 draws of a hypergeometric share with mean 0.1 and standard deviation 0.052: a sixth of it for their mean.
    assert abs(np.mean(recalls) - 0.1) < 4 * 0.052 / 6
    perfect = find(detection.detect(detection.Perfect.of(ids), run, data), ids)
    assert all(estimate.value == 1 for estimate in perfect.estimates.values() if estimate is not None)


@pytest.mark.parametrize("detector", TOLD, ids=_name)
def test_a_behaviour_has_to_be_named_where_it_is_needed(detector: detection.Detector) -> None:
    run, data, _ = observed()
    with pytest.raises(InfuserError, match="Remedy: pass measurement"):
        detection.detect(detector, run, data)


def test_observers_are_collected_once_each() -> None:
    data = documents()[0]
    names = [observer.name for observer in detection.observers_of((*BLIND, *BLIND, *TOLD), data, behaviour())]
    assert len(names) == len(set(names)) == 3
    assert detection.observers_of((detection.DeepKNN(), detection.TrainingLoss("final")), data) == ()


def test_regression_has_no_labels_to_compare() -> None:
    data = documents()[0]
    floats = replace(data, targets=data.targets[:, None].astype(np.float32), kind="regression", n_outputs=1, classes=())
    run = train(small_mlp, floats, RECIPE.with_(epochs=1, lr=0.001))
    for detector in (detection.DeepKNN(), detection.GradientIsolation()):
        with pytest.raises(InfuserError, match="labels"):
            detection.detect(detector, run, floats)
    for detector in (detection.SpectralSignatures(), detection.ActivationClustering(), detection.SelfInfluence()):
        assert len(np.unique(detection.detect(detector, run, floats).values)) > 10
