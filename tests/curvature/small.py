"""Tiny float64 models, one per kind of layer, and data for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from infuser import models
from infuser.checkpoints import Run, build
from infuser.data.dataset import IGNORED, Dataset


class Conv1D(nn.Module):
    """What transformers calls Conv1D: a linear layer with a transposed weight."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class RMSNorm(nn.Module):
    """A root-mean-square norm written by hand, with Gemma's offset of one where asked."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (self.offset + self.weight)


class Twice(nn.Module):
    """One linear layer called twice, and another that shares its weight but not its bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(torch.tanh(self.one(x)))))


class Attention(nn.Module):
    """Separate projections of one input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)


class Folded(nn.Module):
    """Folds tokens into the batch axis before its linear layer and its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(0, 1))).view_as(x)


class Bag(nn.Module):
    """Sums embeddings of tokens, of which one is padding; positions are looked up once for all documents."""

    def __init__(self, vocabulary: int, width: int, outputs: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Embedding(6, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + self.places(torch.arange(ids.shape[1])[None])
        return self.head(torch.tanh(h).sum(1))


def image_net(*middle: nn.Module) -> nn.Sequential:
    """Return the layers, then an average over positions of a smooth function and a linear head of three outputs."""
    return nn.Sequential(*middle, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def built(make: Callable[[], nn.Module], input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """A builder: the model in float64 with frozen statistics that are not trivial."""
    model = make().double()
    if any(isinstance(m, nn.LazyLinear) for m in model.modules()):
        model(torch.zeros(1, *input_shape, dtype=torch.float64))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if getattr(module, "affine", getattr(module, "elementwise_affine", False)):
            nn.init.normal_(module.weight)
    return model


IMAGE = (4, 7, 6)
CONVS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(4, 3, 3),
    "no bias": lambda: nn.Conv2d(4, 3, (2, 3), bias=False),
    "stride, padding": lambda: nn.Conv2d(4, 3, 3, stride=(2, 1), padding=(1, 2)),
    "dilation": lambda: nn.Conv2d(4, 3, 2, dilation=(2, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise, dilated, strided": lambda: nn.Conv2d(4, 8, 3, padding=2, groups=4, dilation=2, stride=2),
    "circular": lambda: nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="circular"),
    "reflect, grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2),
    "replicate": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate", stride=2),
    "same, even kernel": lambda: nn.Conv2d(4, 3, (2, 4), padding="same"),
    "same, even kernel, circular": lambda: nn.Conv2d(4, 3, (2, 4), padding="same", padding_mode="circular"),
    "valid": lambda: nn.Conv2d(4, 3, 3, padding="valid"),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"conv2d {name}": (partial(lambda make: image_net(make()), make), IMAGE) for name, make in CONVS.items()},
    "conv1d": (lambda: image_net(nn.Conv1d(2, 4, 3, padding=1, groups=2, padding_mode="circular")), (2, 6)),
    "conv3d": (lambda: image_net(nn.Conv3d(2, 3, (2, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1))), (2, 3, 4, 3)),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "in place": (lambda: image_net(nn.Conv2d(4, 3, 3), nn.LeakyReLU(0.5, inplace=True)), IMAGE),
    "first in place": (lambda: nn.Sequential(nn.Linear(5, 3), nn.LeakyReLU(0.5, inplace=True)), (5,)),
    "batch norm": (lambda: image_net(nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3)), IMAGE),
    "group norm": (lambda: image_net(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (lambda: image_net(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "layer norm": (lambda: image_net(nn.Linear(5, 4), nn.LayerNorm(4)), (3, 5)),
    "layer norm over two axes": (lambda: image_net(nn.LayerNorm((3, 5))), (3, 5)),
    "torch rms norm": (lambda: image_net(nn.RMSNorm(5)), (3, 5)),
    "rms norm": (lambda: image_net(nn.Linear(5, 4), RMSNorm(4, 0.0)), (3, 5)),
    "rms norm with offset": (lambda: image_net(nn.Linear(5, 4), RMSNorm(4, 1.0)), (3, 5)),
    "gpt2 conv1d": (lambda: image_net(Conv1D(4, 5), nn.Tanh(), Conv1D(3, 4)), (3, 5)),
    "tokens": (lambda: image_net(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)), (6, 5)),
    "called twice, tied": (lambda: image_net(Twice(5)), (3, 5)),
    "shared input": (lambda: image_net(Attention(5)), (3, 5)),
    "folded": (lambda: image_net(Folded(5)), (3, 5)),
}


def dataset(shape: tuple[int, ...], n: int = 6, seed: int = 0, outputs: int = 3) -> Dataset:
    """Return float64 inputs with labels."""
    rng = np.random.default_rng(seed)
    return Dataset(rng.normal(size=(n, *shape)), rng.integers(0, outputs, n), "classification", outputs)


def regression(shape: tuple[int, ...], n: int = 6, seed: int = 0, outputs: int = 2) -> Dataset:
    """Return float64 inputs with float64 targets."""
    rng = np.random.default_rng(seed)
    return Dataset(rng.normal(size=(n, *shape)), rng.normal(size=(n, outputs)), "regression", outputs)


def texts(n: int = 5, length: int = 6, vocabulary: int = 9, seed: int = 0, extra: int = 0) -> Dataset:
    """Return token documents of different lengths, padded on the right, `extra` positions more than needed."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, vocabulary, (n, length))
    for row, used in enumerate(rng.integers(3, length, n)):
        ids[row, used:] = -1
    ids = np.pad(ids, ((0, 0), (0, extra)), constant_values=-1)
    return Dataset(ids, np.where(ids < 0, IGNORED, ids), "causal_lm", vocabulary)


def run_of(make: Callable[[], nn.Module], data: Dataset, seed: int = 0) -> Run:
    """Return a run of one checkpoint: the model as it is drawn."""
    builder = partial(built, make)
    return Run.from_weights(builder, build(builder, data.input_shape, data.n_outputs, seed).state_dict(), data)


def case(name: str, n: int = 6) -> tuple[Run, Dataset]:
    """Return a run and data of one of MODELS, or of the models for tokens."""
    if name == "bag":
        rng = np.random.default_rng(0)
        data = Dataset(rng.integers(0, 7, (n, 6)), rng.integers(0, 3, n), "classification", 3)
        return run_of(lambda: Bag(7, 4, 3), data), data
    if name.startswith("gpt"):
        data = texts(n)
        tied = name == "gpt, tied"
        make = partial(models.tiny_gpt, data.input_shape, data.n_outputs, width=4, depth=1, heads=2, tied=tied)
        return run_of(make, data), data
    make, shape = MODELS[name]
    data = dataset(shape, n)
    return run_of(make, data), data


ALL = [*MODELS, "bag", "gpt", "gpt, tied"]
