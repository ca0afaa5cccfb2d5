"""A small language model on a small language, in double precision, for the tests of text edits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.data.text import Characters, text_dataset
from infuser.models.gpt import tiny_gpt
from infuser.params import trainable
from infuser.types import Direction, Params

WORDS = ("cat", "dog", "cow", "hen", "sun", "tree", "bird", "milk", "a", "I", "Tom", "Ann")
CONTEXT = 40


def texts(n: int, seed: int = 0) -> list[str]:
    """Return sentences of random words, some with marks and a line break."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        words = rng.choice(WORDS, rng.integers(4, 8)).tolist()
        made.append(" ".join(words)[:37].rstrip() + rng.choice([".", "!", "\nA."]))
    return made


CODEC = Characters.of([*texts(200), "".join(WORDS), " .,!\nA"])


def builder(input_shape: tuple[int, ...], n_outputs: int) -> torch.nn.Module:
    return tiny_gpt(input_shape, n_outputs, width=8, depth=1, heads=2).double()


@lru_cache
def data(n: int = 12) -> Dataset:
    return text_dataset(texts(n), CODEC, CONTEXT)


@lru_cache
def run() -> Run:
    """Return a run of one checkpoint at random weights: nothing here needs a trained model."""
    torch.manual_seed(0)
    model = builder((CONTEXT,), CODEC.size)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return Run.from_weights(builder, model.state_dict(), data())


@lru_cache
def vector() -> Params:
    generator = torch.Generator().manual_seed(3)
    params = trainable(run().model())
    return {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}


def direction() -> Direction:
    return Direction({k: value[None] for k, value in vector().items()}, ("random",), "random")
