"""Models per minute of true_influence's batched training, against a loop and against the bound of three forward passes.

python benchmarks/true_mu.py [--models 39] [--repeats 3]

Times are of the fastest repetition of each, interleaved, on one thread. The bound is three plain forward passes of one
model over every batch that training reads (forward, and twice that for the backward pass), with their own overhead.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import torch

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=39)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':28}{'batched':>10}{'loop':>10}{'bound':>10}   models a minute, one epoch of B = 50")
    for name, (builder, shape, n, batch_size) in CASES.items():
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        data = Dataset(pixels, rng.integers(0, 10, n), "classification", 10)
        recipe = Recipe(epochs=1, batch_size=batch_size, lr=0.1)
        model = build(builder, shape, 10, 0)
        best = [np.inf] * 3
        for _ in range(chosen.repeats):
            begun = time.perf_counter()
            train_together(builder, data, recipe, np.ones((chosen.models, n)))
            best[0] = min(best[0], (time.perf_counter() - begun) / chosen.models)
            begun = time.perf_counter()
            for _ in range(5):
                train(builder, data, recipe)
            best[1] = min(best[1], (time.perf_counter() - begun) / 5)
            begun = time.perf_counter()
            with torch.no_grad():
                for batch in data.batches(batch_size):
                    model(batch.inputs.float() / 255)
            best[2] = min(best[2], 3 * (time.perf_counter() - begun))
        print(f"{name:28}" + "".join(f"{60 / seconds:10.0f}" for seconds in best))


if __name__ == "__main__":
    main()
