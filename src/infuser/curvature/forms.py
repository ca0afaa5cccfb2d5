"""How a module's call becomes two matrices whose product is the gradient of its weight.

For every document the gradient of a weight, as a matrix with a leading group axis, is G = sum_t left_t right_t^T.
For Linear, left are the output gradients and right the inputs; for Embedding, left are one-hot rows and right the
output gradients. Axis letters: B documents, K groups, T tokens or positions, O rows, I columns (the bias is the last).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from infuser.errors import InfuserError


@dataclass(frozen=True)
class OneHot:
    """Rows of an identity matrix of `width`, kept as their indices (B, T)."""

    ids: Tensor
    width: int


Side: TypeAlias = "Tensor | OneHot"


class Form(Protocol):
    """The geometry of one module's calls."""

    @property
    def module(self) -> str:
        """The module's qualified name."""
        ...

    def arrange(self, x: Tensor, g: Tensor, documents: int) -> tuple[Tensor, Tensor]:
        """Return input and output gradient with documents first; models may fold tokens into the batch axis."""
        ...


class MatrixForm(Form, Protocol):
    """A form whose gradient is a matrix per group."""

    def pair(self, x: Tensor, g: Tensor) -> tuple[Side, Tensor]:
        """Return left (B, K, T, O) and right (B, K, T, I) of these documents."""
        ...

    def right(self, x: Tensor) -> Tensor | None:
        """Return the inputs (B, K, T, I), or None where the input is not the right side."""
        ...

    def positions(self, x: Tensor) -> int:
        """Return T."""
        ...

    def apply(self, x: Tensor, matrix: Tensor, g: Tensor) -> Tensor:
        """Return <g, M x> of each document, shape (B,), for one matrix M (K, O, I) in place of the weight."""
        ...

    def weight_to_matrix(self, weight: Tensor) -> Tensor:
        """Return (..., *weight shape) as (..., K, O, I) without the bias column."""
        ...

    def matrix_to_weight(self, matrix: Tensor) -> Tensor:
        """Return the inverse of `weight_to_matrix`."""
        ...


@dataclass(frozen=True)
class LinearForm:
    """Linear, and the Conv1D of GPT-2, whose weight is stored transposed (I, O)."""

    module: str
    transposed: bool = False
    ones: bool = False

    def arrange(self, x: Tensor, g: Tensor, documents: int) -> tuple[Tensor, Tensor]:
        """Return (B, T, I) and (B, T, O)."""
        return _fold(self.module, x, documents, 1), _fold(self.module, g, documents, 1)

    def pair(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return left (B, 1, T, O) and right (B, 1, T, I)."""
        return g.unsqueeze(1), self.right(x)

    def right(self, x: Tensor) -> Tensor:
        """Return (B, 1, T, I), with a last column of ones where there is a bias."""
        return (torch.cat([x, x.new_ones(()).expand(*x.shape[:-1], 1)], -1) if self.ones else x).unsqueeze(1)

    def positions(self, x: Tensor) -> int:
        """Return T."""
        return x.shape[1]

    def apply(self, x: Tensor, matrix: Tensor, g: Tensor) -> Tensor:
        """Return <g, M x>."""
        weight, bias = (matrix[0, :, :-1], matrix[0, :, -1]) if self.ones else (matrix[0], None)
        return (F.linear(x, weight, bias) * g).flatten(1).sum(1)

    def weight_to_matrix(self, weight: Tensor) -> Tensor:
        """Return (..., 1, O, I)."""
        return (weight.mT if self.transposed else weight).unsqueeze(-3)

    def matrix_to_weight(self, matrix: Tensor) -> Tensor:
        """Return the weight's own layout."""
        weight = matrix.squeeze(-3)
        return weight.mT if self.transposed else weight


@dataclass(frozen=True)
class ConvForm:
    """Conv1d, Conv2d and Conv3d with groups, dilation, stride, any padding and padding mode.

    A column of the matrix is (offset in the kernel, channel): channels last, so that patches are copied in runs.

    Attributes:
        channels: of the input, per group.
        kernel: spatial size.
        padding: for F.pad: last dimension first, before and after.
    """

    module: str
    groups: int
    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    mode: str
    ones: bool = False

    @classmethod
    def of(cls, name: str, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, ones: bool) -> ConvForm:
        """Return the form of a convolution module."""
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if conv.padding == "same":
            sides = [(t // 2, t - t // 2) for t in total]  # torch pads the odd one at the end
        elif conv.padding == "valid":
            sides = [(0, 0)] * len(total)
        else:
            sides = [(int(p), int(p)) for p in conv.padding]
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padding = tuple(p for pair in reversed(sides) for p in pair)
        channels = conv.in_channels // conv.groups
        return cls(name, conv.groups, channels, conv.kernel_size, conv.stride, conv.dilation, padding, mode, ones)

    def arrange(self, x: Tensor, g: Tensor, documents: int) -> tuple[Tensor, Tensor]:
        """Return (B, C, *space) of both."""
        if len(x) != documents or x.ndim != len(self.kernel) + 2:
            raise _folded(self.module, x, documents)
        return x, g

    def pair(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return left (B, K, T, O) and right (B, K, T, I)."""
        return g.reshape(len(g), self.groups, -1, math.prod(g.shape[2:])).mT, self.right(x)

    def right(self, x: Tensor) -> Tensor:
        """Return all patches, (B, K, T, I)."""
        windows = self._windows(x)
        b, space = len(windows), windows.shape[1 : 1 + len(self.kernel)]
        columns = math.prod(self.kernel) * self.channels
        patches = x.new_empty(b, self.groups, math.prod(space), columns + self.ones)
        for k in range(self.groups):
            part = windows[..., k * self.channels : (k + 1) * self.channels]
            target = patches[:, k, :, :columns].unflatten(1, space)
            target.unflatten(-1, (*self.kernel, self.channels)).copy_(part)
        if self.ones:
            patches[..., -1] = 1
        return patches

    def sampled_right(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the patches at flat `positions` (B, S) alone, (B, K, S, I)."""
        windows = self._windows(x)
        space = windows.shape[1 : 1 + len(self.kernel)]
        where = torch.unravel_index(positions, space)
        rows = torch.arange(len(x), device=x.device)[:, None]
        chosen = windows[(rows, *where)]  # (B, S, *kernel, C)
        chosen = chosen.unflatten(-1, (self.groups, self.channels)).movedim(-2, 1).flatten(3)
        return torch.cat([chosen, chosen.new_ones(()).expand(*chosen.shape[:-1], 1)], -1) if self.ones else chosen

    def gram(self, x: Tensor) -> Tensor:
        """Return the sum over documents and positions of right right^T, (K, I, I).

        Two offsets of the kernel that differ by the same number of rows meet the same pairs of rows of the image, but
        for those at its edges. So the image is unfolded along the other axes alone, and pairs of rows are multiplied
        once for each difference: a third of the products for a kernel of 3 rows, exactly the same sum.
        """
        rows, step, reach = self.kernel[0], self.dilation[0], (self.kernel[0] - 1) * self.dilation[0]
        rest = range(1, len(self.kernel))
        image = self._padded(x).movedim(1, -1)
        out = image.shape[1] - reach
        if self.stride[0] != 1 or out < reach:
            flat = self.right(x).movedim(1, 0).flatten(1, 2)
            return flat.mT @ flat
        for i in rest:
            image = image.unfold(1 + i, self.dilation[i] * (self.kernel[i] - 1) + 1, self.stride[i])
            image = image[..., :: self.dilation[i]]
        # (B, rows, *space, K C, *kernel) as (K, rows, B x space, kernel x C), so that any rows together are one matrix.
        image = image.unflatten(1 + len(self.kernel), (self.groups, self.channels))
        image = image.movedim((2 + len(rest), 1), (0, 1)).movedim(3 + len(rest), -1)
        image = image.flatten(2 + 1 + len(rest)).flatten(2, 2 + len(rest)).contiguous()
        columns = image.shape[-1]
        gram = x.new_empty(self.groups, rows, columns, rows, columns)
        for lag in range(rows):
            edge = reach - lag * step
            above, below = image[:, : image.shape[1] - lag * step], image[:, lag * step :]

            def product(first: int, last: int, one: Tensor = above, two: Tensor = below) -> Tensor:
                return one[:, first:last].flatten(1, 2).mT @ two[:, first:last].flatten(1, 2)

            common = product(edge, out)
            for k in range(rows - lag):
                total = common
                if edge:
                    total = common + product(k * step, edge) + product(out, out + k * step)
                gram[:, k, :, k + lag] = total
                if lag:
                    gram[:, k + lag, :, k] = total.mT
        gram = gram.flatten(3, 4).flatten(1, 2)
        if not self.ones:
            return gram
        sums = [image[:, k * step : k * step + out].sum((1, 2)) for k in range(rows)]
        count = gram.new_full((self.groups, 1), out * image.shape[2])
        bias = torch.cat([*sums, count], 1).unsqueeze(1)
        return torch.cat([torch.cat([gram, bias[..., :-1].mT], 2), bias], 1)

    def positions(self, x: Tensor) -> int:
        """Return T, the number of output positions."""
        pads = [self.padding[2 * i] + self.padding[2 * i + 1] for i in reversed(range(len(self.kernel)))]
        sizes = zip(x.shape[2:], pads, self.kernel, self.stride, self.dilation, strict=True)
        return math.prod((n + p - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in sizes)

    def apply(self, x: Tensor, matrix: Tensor, g: Tensor) -> Tensor:
        """Return <g, M * x>: one convolution, without patches."""
        weight, bias = (matrix[..., :-1], matrix[..., -1].flatten()) if self.ones else (matrix, None)
        convolve = cast(Any, (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1])
        weight = self.matrix_to_weight(weight).contiguous()
        out = convolve(self._padded(x), weight, bias, self.stride, 0, self.dilation, self.groups)
        return cast(Tensor, (out * g).flatten(1).sum(1))

    def weight_to_matrix(self, weight: Tensor) -> Tensor:
        """Return (..., K, O, kernel x channels) from (..., K O, channels, *kernel)."""
        lead = weight.ndim - 2 - len(self.kernel)
        split: Tensor = weight.unflatten(lead, (self.groups, -1))
        return split.movedim(lead + 2, -1).flatten(lead + 2)

    def matrix_to_weight(self, matrix: Tensor) -> Tensor:
        """Return (..., K O, channels, *kernel)."""
        lead = matrix.ndim - 3
        split: Tensor = matrix.unflatten(-1, (*self.kernel, self.channels))
        return split.movedim(-1, lead + 2).flatten(lead, lead + 1)

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding, self.mode) if any(self.padding) else x

    def _windows(self, x: Tensor) -> Tensor:
        """Return a view (B, *space, *kernel, C) of the padded input."""
        windows = self._padded(x).movedim(1, -1).contiguous()
        for i, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            windows = windows.unfold(1 + i, d * (k - 1) + 1, s)[..., ::d]
        return windows.movedim(1 + len(self.kernel), -1)  # unfold appends, so that channels stand before the kernel


@dataclass(frozen=True)
class EmbeddingForm:
    """Embedding: the rows that a document names receive its output gradients."""

    module: str
    width: int
    padding_idx: int | None = None

    def arrange(self, x: Tensor, g: Tensor, documents: int) -> tuple[Tensor, Tensor]:
        """Return ids (B, T) and gradients (B, T, D)."""
        return _fold(self.module, x, documents, 0), _fold(self.module, g, documents, 1)

    def pair(self, x: Tensor, g: Tensor) -> tuple[OneHot, Tensor]:
        """Return one-hot rows and gradients (B, 1, T, D)."""
        return OneHot(x, self.width), self._seen(x, g).unsqueeze(1)

    def right(self, x: Tensor) -> None:
        """Return None: the input is the left side."""
        return None

    def positions(self, x: Tensor) -> int:
        """Return T."""
        return x.shape[1]

    def apply(self, x: Tensor, matrix: Tensor, g: Tensor) -> Tensor:
        """Return the sum over tokens of <g, M[id]>."""
        return (F.embedding(x, matrix[0]) * self._seen(x, g)).flatten(1).sum(1)

    def weight_to_matrix(self, weight: Tensor) -> Tensor:
        """Return (..., 1, V, D)."""
        return weight.unsqueeze(-3)

    def matrix_to_weight(self, matrix: Tensor) -> Tensor:
        """Return (..., V, D)."""
        return matrix.squeeze(-3)

    def _seen(self, x: Tensor, g: Tensor) -> Tensor:
        return g if self.padding_idx is None else g * (x != self.padding_idx).unsqueeze(-1)


@dataclass(frozen=True)
class DiagonalForm:
    """A module whose output is weight * normalised(x) + bias, elementwise, or any module of which only the bias counts.

    Attributes:
        kind: batch, layer, group, other (RMSNorm of any make), or bias.
        shape: of the parameters; one axis of channels except for LayerNorm.
        axis: of the channels in the output; negative for those that end with them.
        nn_module: the module itself; its weights are not read.
    """

    module: str
    kind: str
    shape: tuple[int, ...]
    axis: int
    nn_module: nn.Module = field(repr=False, compare=False)

    def arrange(self, x: Tensor, g: Tensor, documents: int) -> tuple[Tensor, Tensor]:
        """Return both with documents first and channels where they were."""
        if len(g) == documents:
            return x, g
        if self.axis > 0 and g.ndim > 2:
            raise _folded(self.module, x, documents)
        if self.axis > 0:  # (B T, C), as BatchNorm1d takes it
            return x.reshape(documents, -1, x.shape[1]).mT, g.reshape(documents, -1, g.shape[1]).mT
        keep = len(self.shape)
        return x if self.kind == "bias" else _fold(self.module, x, documents, keep), _fold(
            self.module, g, documents, keep
        )

    def columns(self, x: Tensor, g: Tensor, weight: bool, bias: bool) -> Tensor:
        """Return each document's gradient, (B, D, number of parameters): weight first."""
        sums = self._sum(g)
        parts = [self._weight(x, g, sums)] if weight else []
        return torch.stack([*parts, sums] if bias else parts, -1)

    def _weight(self, x: Tensor, g: Tensor, sums: Tensor) -> Tensor:
        module: Any = self.nn_module
        if self.kind == "batch":
            # sum g (x - mean) / std without a normalised copy of x
            rate = (module.running_var + module.eps).rsqrt()
            centred: Tensor = (self._sum(g * x) - module.running_mean * sums) * rate
            return centred
        if self.kind == "layer":
            normal = F.layer_norm(x, self.shape, None, None, module.eps)
        elif self.kind == "group":
            normal = F.group_norm(x, module.num_groups, None, None, module.eps)
        else:
            # Affine in its weight, with or without an offset of one: the difference of two weights leaves x normalised.
            one = torch.ones(self.shape, dtype=x.dtype, device=x.device)
            with torch.no_grad():  # a bias of the module's own would bring a graph along
                ends = [functional_call(module, {"weight": weight}, (x,)) for weight in (one, 0 * one)]
            normal = ends[0] - ends[1]
        return self._sum(g * normal)

    def _sum(self, values: Tensor) -> Tensor:
        """Return (B, D): the sum over everything but documents and channels."""
        if self.axis > 0:
            return values.flatten(2).sum(2) if values.ndim > 2 else values
        return values.reshape(len(values), -1, math.prod(self.shape)).sum(1)


def _fold(name: str, x: Tensor, documents: int, trailing: int) -> Tensor:
    """Return (B, T, *last `trailing` dimensions)."""
    if x.ndim <= trailing or len(x) % documents:
        raise _folded(name, x, documents)
    return x.reshape(documents, -1, *x.shape[x.ndim - trailing :])


def _folded(name: str, x: Tensor, documents: int) -> InfuserError:
    return InfuserError(
        f"cannot tell which document an input of layer {name} belongs to",
        got=f"input of shape {tuple(x.shape)} for {documents} documents",
        expected="documents on the first axis",
        causes=["the model folds or moves the batch axis"],
        remedy="leave this layer out with names=, or keep documents first",
    )
