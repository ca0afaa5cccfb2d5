"""A multi-layer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn


def mlp(input_shape: tuple[int, ...], n_outputs: int, hidden: tuple[int, ...] = (64, 64)) -> nn.Sequential:
    """Return flatten, then Linear and ReLU for each hidden width, then Linear to `n_outputs`.

    >>> sum(p.numel() for p in mlp((1, 2, 2), 3, hidden=(5,)).parameters())
    43
    """
    widths = (math.prod(input_shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))
