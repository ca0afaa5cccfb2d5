"""SimpleCNN: two convolutions and two linear layers, without normalisation."""

from __future__ import annotations

import torch
from torch import nn

from infuser.errors import InfuserError


def simple_cnn(input_shape: tuple[int, ...], n_outputs: int, width: int = 32) -> nn.Sequential:
    """Return conv3x3-width, pool, conv3x3-2 width, pool, Linear-128, Linear-n_outputs, with ReLUs between.

    Raises:
        InfuserError: the input is not an image of at least 4 x 4.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise InfuserError("SimpleCNN needs images", got=input_shape, expected="(channels, height >= 4, width >= 4)")
    channels, height, breadth = input_shape
    features = 2 * width * (height // 4) * (breadth // 4)
    layers = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(features, 128),
        nn.ReLU(),
        nn.Linear(128, n_outputs),
    )
    # On CPUs convolutions and pooling are faster in this layout.
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layers
