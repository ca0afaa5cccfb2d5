"""TinyResNet: three residual blocks."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infuser.errors import InfuserError


class _Block(nn.Module):
    """conv3x3, BatchNorm, ReLU, conv3x3, BatchNorm, added to a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class _TinyResNet(nn.Module):
    def __init__(self, channels: int, n_outputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.layer1 = _Block(width, width, 1)
        self.layer2 = _Block(width, 2 * width, 2)
        self.layer3 = _Block(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.conv(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return cast(Tensor, self.head(out.mean((2, 3))))


def tiny_resnet(input_shape: tuple[int, ...], n_outputs: int, width: int = 32) -> nn.Module:
    """Return a residual network: stem conv3x3, blocks of width, 2 width (stride 2), 4 width (stride 2), a linear head.

    Source: Infusion, arXiv 2602.09987, its CIFAR-10 model at width 32.

    Raises:
        InfuserError: the input is not an image.
    """
    if len(input_shape) != 3:
        raise InfuserError("TinyResNet needs images", got=input_shape, expected="(channels, height, width)")
    # On CPUs convolutions, above all their backward pass, are faster in this layout.
    model = _TinyResNet(input_shape[0], n_outputs, width)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
