"""Data, models and recipes that the f-INE experiments share."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from infuser import models
from infuser.data import digits
from infuser.data.dataset import Dataset
from infuser.data.mnist import mnist
from infuser.types import Builder, Recipe


@dataclass(frozen=True)
class Case:
    name: str
    data: Dataset
    test: Dataset
    wrong: np.ndarray  # ids of documents with a wrong label
    builder: Builder
    recipe: Recipe


def case(name: str) -> Case:
    """Return a case by name: mnist-0, digits-0, generated-0 or cnn-0, the number being the data seed.

    Other recipes for calibration: digits_e5-0 trains 5 epochs, digits_b10-0 in batches of 10.
    """
    kind, seed = name.split("-")
    kind, *changes = kind.split("_")
    rng = np.random.default_rng([int(seed), 17])
    if kind == "mnist":
        train, test = (pooled(part) for part in mnist(os.environ["INFUSER_DATA"]))
        builder, recipe = partial(models.mlp, hidden=(32, 32)), Recipe(epochs=20, batch_size=50, lr=0.2)
    elif kind in ("digits", "cnn"):
        train, test = digits(seed=int(seed))
        builder, recipe = partial(models.mlp, hidden=(32, 32)), Recipe(epochs=20, batch_size=50, lr=0.2)
        if kind == "cnn":
            builder, recipe = partial(models.simple_cnn, width=8), Recipe(epochs=20, batch_size=50, lr=0.2)
    else:
        train, test = generated(rng)
        builder, recipe = partial(models.mlp, hidden=(32, 32)), Recipe(epochs=20, batch_size=50, lr=0.2)
    for change in changes:
        recipe = recipe.with_(**{{"e": "epochs", "b": "batch_size"}[change[0]]: int(change[1:])})
    documents = train[rng.choice(train.ids, 1000, replace=False)]
    data, wrong = mislabelled(documents, 0.1, rng)
    return Case(name, data, test[rng.choice(test.ids, min(1000, len(test)), replace=False)], wrong, builder, recipe)


def pooled(data: Dataset) -> Dataset:
    """Return images of half the width, means over 2 x 2 pixels: a quarter of the arithmetic."""
    n, c, h, w = data.inputs.shape
    means = data.inputs.reshape(n, c, h // 2, 2, w // 2, 2).astype(np.float32).mean((3, 5))
    return replace(data, inputs=np.rint(means).astype(np.uint8), name=f"{data.name}, pooled")


def mislabelled(data: Dataset, share: float, rng: np.random.Generator) -> tuple[Dataset, np.ndarray]:
    """Return the data with this share of labels moved to another class, uniformly, and the ids concerned."""
    at = rng.choice(len(data), round(share * len(data)), replace=False)
    targets = data.targets.copy()
    targets[at] = (targets[at] + rng.integers(1, data.n_outputs, len(at))) % data.n_outputs
    return replace(data, targets=targets), data.ids[at]


def generated(rng: np.random.Generator, n: int = 2000) -> tuple[Dataset, Dataset]:
    """Return documents of ten overlapping normal classes in 20 dimensions."""
    centres = rng.normal(size=(10, 20))
    labels = rng.integers(0, 10, n)
    inputs = (centres[labels] + rng.normal(0, 0.9, (n, 20))).astype(np.float32)
    everything = Dataset(inputs, labels, "classification", 10, name="generated")
    return everything[np.arange(n // 2)], everything[np.arange(n // 2, n)]
