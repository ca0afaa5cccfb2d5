"""Models per minute of true_influence's batched training, against a loop and against the bound of three forward passes.

    python benchmarks/true_mu.py --models 39 --repeats 5

One thread, CPU seconds, repetitions interleaved, medians; one epoch with batches of 50. The bound is three plain
forward passes of one model over every batch that training reads (forward, and twice that for the backward pass), with
their own overhead. Written to benchmarks/results.json.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from measuring import interleaved, keep

from infuser import models
from infuser.checkpoints import build
from infuser.data.dataset import Dataset
from infuser.evaluation.batched import train_together
from infuser.training import train
from infuser.types import Recipe

CASES = {
    "MLP 64-32-32-10": (partial(models.mlp, hidden=(32, 32)), (1, 8, 8), 1000, 50),
    "MLP 196-64-64-10": (partial(models.mlp, hidden=(64, 64)), (1, 14, 14), 1000, 50),
    "MLP 784-64-64-10": (partial(models.mlp, hidden=(64, 64)), (1, 28, 28), 1000, 50),
    "SimpleCNN, width 8, 8 x 8": (partial(models.simple_cnn, width=8), (1, 8, 8), 500, 50),
}


def main() -> None:
    """Measure and write models a minute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=39)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, (builder, shape, n, batch_size) in CASES.items():
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        data = Dataset(pixels, rng.integers(0, 10, n), "classification", 10)
        recipe = Recipe(epochs=1, batch_size=batch_size, lr=0.1)
        model = build(builder, shape, 10, 0)

        def passes(model=model, data=data, batch_size=batch_size) -> None:
            with torch.no_grad():
                for batch in data.batches(batch_size):
                    model(batch.inputs.float() / 255)

        calls = {
            "batched": partial(train_together, builder, data, recipe, np.ones((chosen.models, n))),
            "one at a time": partial(train, builder, data, recipe),
            "bound": passes,
        }
        seconds = {way: float(np.median(values)) for way, values in interleaved(calls, chosen.repeats).items()}
        each = {**seconds, "batched": seconds["batched"] / chosen.models, "bound": 3 * seconds["bound"]}
        rows[name] = {way: 60 / value for way, value in each.items()}
        print(f"{name:28}" + "".join(f"{way}: {value:8.0f}   " for way, value in rows[name].items()))
    keep(
        "models_a_minute", {"models": chosen.models, "repeats": chosen.repeats, "unit": "models a minute", "rows": rows}
    )


if __name__ == "__main__":
    main()
