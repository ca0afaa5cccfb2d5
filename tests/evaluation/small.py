"""A small trained model on real digits, an edit of it, and trials with known values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from torch import nn

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.data.digits import digits
from infuser.measure import Margin
from infuser.models import mlp
from infuser.perturbation.balls import Linf
from infuser.training import train
from infuser.types import Array, Edit, Recipe, Trials

small_mlp = partial(mlp, hidden=(16,))
RECIPE = Recipe(epochs=4, batch_size=16, lr=0.1, threads=1)


def batch_norm_net(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, n_outputs)
    )


@cache
def data() -> tuple[Dataset, Dataset]:
    train_set, test_set = digits()
    return train_set[train_set.ids[:240]], test_set[test_set.ids[:120]]


@cache
def trained(builder: Callable[..., nn.Module] = small_mlp, recipe: Recipe = RECIPE) -> Run:
    return train(builder, data()[0], recipe)


def probe() -> Margin:
    """One test document, wanted as the class after its own."""
    one = data()[1][data()[1].ids[:1]]
    return Margin(one, (one.targets + 1) % 10)


def pixel_edit(k: int = 12, radius: int = 16, seed: int = 0) -> Edit:
    """Random signs of full radius on the first k documents of the probe's target class and others."""
    documents = data()[0][data()[0].ids[:k]]
    step = radius * np.random.default_rng(seed).choice([-1, 1], documents.inputs.shape)
    after = np.clip(documents.inputs.astype(int) + step, 0, 255).astype(np.uint8)
    return Edit(
        documents.ids, documents.inputs, after, documents.targets, documents.targets, Linf(radius), "random signs"
    )


def table_trials(
    arms: dict[str, Array], measure: str = "log_odds", seeds: Sequence[int] = (), starts: dict[str, str] | None = None
) -> Trials:
    """Trials of (n, s) tables by arm; probes are p0, p1, ..."""
    rows = [
        (arm, int(seed), f"p{p}", measure, float(table[p, s]))
        for arm, table in arms.items()
        for p in range(table.shape[0])
        for s, seed in enumerate(seeds or range(table.shape[1]))
    ]
    return Trials.from_rows(rows, "last_epoch", starts)


def tables(n: int = 12, s: int = 3, effect: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return values (n, s) of an edit that raises all of them by about `effect`, and of clean."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(n, s))
    return {"edit": clean + effect + 0.1 * rng.normal(size=(n, s)), "clean": clean}
