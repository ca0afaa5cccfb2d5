"""Small observed runs on digits, and data that were tampered with on purpose."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np

from infuser import data, detection, models
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.f_ine_preconditioned import PreconditionedFInfluence
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.measure import Margin
from infuser.training import train
from infuser.types import Recipe

small_mlp = partial(models.mlp, hidden=(24,))
RECIPE = Recipe(epochs=12, batch_size=16, lr=0.2, seed=1, threads=1)
FINDER = FInfluence(every=8, partners=64)
BLIND = (
    detection.TrainingLoss(),
    detection.FIne(FINDER),
    detection.SelfInfluence(),
    detection.SpectralSignatures(),
    detection.ActivationClustering(),
    detection.DeepKNN(k=10),
    detection.GradientIsolation(),
    detection.PixelNoise(),
    detection.RandomOrder(seed=3),
    detection.Fused((detection.TrainingLoss(), detection.DeepKNN(k=10))),
)
TOLD = (
    detection.InfluenceTowards(),
    detection.FIne(FINDER, "measurement"),
    detection.FInePreconditioned(PreconditionedFInfluence(checkpoints=2)),
)


@cache
def documents() -> tuple[Dataset, Dataset]:
    train_set, test_set = data.digits()
    return train_set[train_set.ids[:300]], test_set[test_set.ids[:100]]


@cache
def flipped(count: int = 30, seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """Return (the documents, `count` of them under another label; their ids)."""
    clean = documents()[0]
    rng = np.random.default_rng(seed)
    at = rng.choice(len(clean), count, replace=False)
    targets = clean.targets.copy()
    targets[at] = (targets[at] + rng.integers(1, 10, count)) % 10
    return replace(clean, targets=targets), clean.ids[at]


def behaviour() -> Margin:
    """Three test documents, wanted as the class after their own."""
    test = documents()[1]
    few = test[test.ids[:3]]
    return Margin(few, (few.targets + 1) % 10)


@cache
def observed() -> tuple[Run, Dataset, np.ndarray]:
    """Return (a run with every trace that BLIND and TOLD read, its data, the ids under a wrong label)."""
    found, ids = flipped()
    observers = detection.observers_of((*BLIND, *TOLD), found, behaviour())
    return train(small_mlp, found, RECIPE, observers=observers), found, ids
