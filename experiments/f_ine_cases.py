"""Data, models and recipes that the f-INE experiments share."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from infuser import models
from infuser.attribution.f_recorder import Recorder
from infuser.data import digits
from infuser.data.dataset import Dataset
from infuser.data.mnist import mnist
from infuser.training import Moment
from infuser.types import Builder, Recipe


@dataclass(frozen=True)
class Case:
    name: str
    data: Dataset
    test: Dataset
    wrong: np.ndarray  # ids of documents with a wrong label
    builder: Builder
    recipe: Recipe


TABLES = ("inside", "outside", "noise", "losses")


class Table:
    """Keeps what f-INE's observer adds at every recorded step: the T x N table that new statistics are tried on."""

    def __init__(self, inner: Recorder) -> None:
        self.inner, self.name = inner, inner.name
        self.rows: dict[str, list[np.ndarray]] = {name: [] for name in TABLES}
        self.before = dict.fromkeys(TABLES, 0.0)

    def step(self, moment: Moment) -> None:
        recorded = self.inner._recorded
        self.inner.step(moment)
        if self.inner._recorded > recorded:
            for name in TABLES:
                now = self.inner._sums[name].copy()
                self.rows[name].append((now - self.before[name]).ravel().astype(np.float32))
                self.before[name] = now

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"table {name}": np.stack(values) for name, values in self.rows.items()}

    def trace(self) -> Any:
        return self.inner.trace()


def case(name: str) -> Case:
    """Return a case by name: mnist-0, digits-0, generated-0 or cnn-0, the number being the data seed.

    mnistweak-0 has the documents of mnist-0 and a training that ends before wrong labels are memorised. For calibration
    digits_e5-0 trains 5 epochs, digits_b10-0 in batches of 10, and the truth of digits_order-0 varies the order alone.
    """
    kind, seed = name.split("-")
    kind, *changes = kind.split("_")
    rng = np.random.default_rng([int(seed), 17])
    if kind in ("mnist", "mnistweak"):
        train, test = (pooled(part) for part in mnist(os.environ["INFUSER_DATA"]))
        builder, recipe = partial(models.mlp, hidden=(64, 64)), Recipe(epochs=30, batch_size=50, lr=0.5)
        if kind == "mnistweak":
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
        if change == "order":
            continue  # the truth varies the order alone
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
