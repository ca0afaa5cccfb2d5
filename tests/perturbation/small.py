"""Small images, a small network without kinks, and a trained run: the cases of this folder."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from infuser import measure
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.params import trainable
from infuser.training import train
from infuser.types import Builder, Direction, Recipe


def smooth(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """A convolution, GELU and a linear layer: every way to a gradient must agree on it."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(4 * height * width, n_outputs)
    )


def kinked(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """The same with ReLU."""
    layers = list(smooth(input_shape, n_outputs))
    layers[1] = nn.ReLU()
    return nn.Sequential(*layers)


class _Waves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(25 * x)


def wavy(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """The same behind a sine, of which 16 steps of a pixel are a quarter: long moves overshoot."""
    return nn.Sequential(_Waves(), *smooth(input_shape, n_outputs))


@cache
def images(n: int = 36, channels: int = 1, size: int = 6) -> Dataset:
    """Three classes of blurred noise with a bright corner each."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    pixels = rng.integers(0, 160, (n, channels, size, size))
    for i, y in enumerate(labels):
        pixels[i, :, y : y + 3, y : y + 3] += 60
    return Dataset(pixels.astype(np.uint8), labels, "classification", 3, ids=np.arange(100, 100 + n))


@cache
def probes(n: int = 2) -> measure.Margin:
    """Two documents that the network never saw, each to be taken for the next class."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 220, (n, 1, 6, 6)).astype(np.uint8)
    documents = Dataset(pixels, np.arange(n), "classification", 3)
    return measure.Margin(documents, labels=(np.arange(n) + 1) % 3)


@cache
def run(builder: Builder = smooth) -> Run:
    return train(builder, images(), Recipe(epochs=4, batch_size=6, lr=0.1))


@cache
def direction(q: int | None = 0, builder: Builder = smooth) -> Direction:
    """grad f: the direction of the identity curvature."""
    model = run(builder).model()
    rows, _ = measure.gradients(probes(), model, trainable(model))
    both = Direction(rows, probes().queries, "identity")
    return both if q is None else both[q]


def score_by_autograd(a_run: Run, data: Dataset, v: dict[str, torch.Tensor], n: int) -> np.ndarray:
    """-(1/N) <v, grad L_i>, one document and one backward pass at a time: the oracle of every score here."""
    model = a_run.model()
    values = []
    for i in range(len(data)):
        z = torch.as_tensor(data.inputs[i : i + 1].astype(np.float32))
        z = z / 255 if data.inputs.dtype == np.uint8 else z
        loss = nn.functional.cross_entropy(model(z), torch.as_tensor(data.targets[i : i + 1].copy()))
        rows = torch.autograd.grad(loss, [p for _, p in model.named_parameters()])
        products = [(row * v[name]).sum() for row, (name, _) in zip(rows, model.named_parameters(), strict=True)]
        values.append(-float(sum(products)) / n)
    return np.array(values)
