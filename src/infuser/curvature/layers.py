"""Layers: groups of parameters whose per-document gradients come from inputs and output gradients alone.

`a` and `g` below are what `collect` captured for a layer: one entry per call of its modules. Gradients are formed, or
contracted without being formed, whichever costs less. Axis letters: B documents, Q queries, K groups, T positions,
O rows, I columns (the bias is the last column).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from infuser.curvature.forms import DiagonalForm, EmbeddingForm, Form, LinearForm, MatrixForm, OneHot, Side
from infuser.curvature.ghost import cross_products, self_products
from infuser.types import Params

_PATCHES = 2**20  # numbers of unfolded input held at a time: what stays in a core's cache
_GRADIENTS = 2**24  # numbers of per-document gradients held at a time


@dataclass(frozen=True)
class Input:
    """The input of one call, documents first, and the geometry of the module that was called."""

    form: Form
    x: Tensor


Inputs: TypeAlias = tuple[Input, ...]
Grads: TypeAlias = tuple[Tensor, ...]


class Layer(Protocol):
    """A group of parameters seen as matrices (K, O, I), and what can be computed of its per-document gradients."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, weight first."""
        ...

    @property
    def forms(self) -> tuple[Form, ...]:
        """One per module that uses the parameters."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, O, I) of the matrix; a diagonal layer is (1, D, number of parameters)."""
        ...

    @property
    def diagonal(self) -> bool:
        """Whether only a diagonal block makes sense."""
        ...

    def to_matrix(self, params: Params) -> Tensor:
        """Return the layer's parameters as (..., K, O, I); leading dimensions are kept."""
        ...

    def from_matrix(self, matrix: Tensor) -> Params:
        """Return (..., K, O, I) as parameters: the inverse of `to_matrix`."""
        ...

    def matrices(self, a: Inputs, g: Grads) -> Tensor:
        """Return the per-document gradients as (B, K, O, I)."""
        ...

    def gradients(self, a: Inputs, g: Grads) -> Params:
        """Return the per-document gradients by name, (B, *shape)."""
        ...

    def contract(self, a: Inputs, g: Grads, vectors: Params | Tensor) -> Tensor:
        """Return <v_q, gradient of document b>, (Q, B).

        `vectors` are parameters with a leading Q axis, or `to_matrix` of them (cheaper when used for many batches).
        """
        ...

    def ghost(self, a1: Inputs, g1: Grads, a2: Inputs, g2: Grads) -> Tensor:
        """Return the inner products of the gradients of two sets of documents, (B1, B2)."""
        ...

    def self_ghost(self, a: Inputs, g: Grads) -> Tensor:
        """Return each document's squared gradient norm, (B,)."""
        ...


@dataclass(frozen=True)
class MatrixLayer:
    """A weight, with or without bias, of Linear, Conv, Embedding or GPT-2's Conv1D; tied weights have several forms."""

    names: tuple[str, ...]
    forms: tuple[MatrixForm, ...]
    shape: tuple[int, int, int]
    diagonal: bool = False

    def __str__(self) -> str:
        k, o, i = self.shape
        groups = f"{k} groups of " if k > 1 else ""
        tied = f", tied over {len(self.forms)} modules" if len(self.forms) > 1 else ""
        return f"{self.names[0]}: {groups}{o} x {i}{' with bias' if len(self.names) > 1 else ''}{tied}"

    def to_matrix(self, params: Params) -> Tensor:
        """Return [W | b] as (..., K, O, I)."""
        matrix = self.forms[0].weight_to_matrix(params[self.names[0]])
        if len(self.names) == 1:
            return matrix
        bias = params[self.names[1]]
        return torch.cat([matrix, bias.unflatten(-1, self.shape[:2]).unsqueeze(-1)], -1)

    def from_matrix(self, matrix: Tensor) -> Params:
        """Return the parameters of (..., K, O, I)."""
        if len(self.names) == 1:
            return {self.names[0]: self.forms[0].matrix_to_weight(matrix)}
        weight = self.forms[0].matrix_to_weight(matrix[..., :-1])
        return {self.names[0]: weight, self.names[1]: matrix[..., -1].flatten(-2)}

    def matrices(self, a: Inputs, g: Grads) -> Tensor:
        """Return the per-document gradients as (B, K, O, I), summed over positions and calls."""
        total: Tensor | None = None
        for call, grad in zip(a, g, strict=True):
            if total is None:
                total = grad.new_empty(len(grad), *self.shape)
                self._form(call, grad, total)
            else:
                total += self._form(call, grad, torch.empty_like(total))
        assert total is not None, "collect captures at least one call"
        return total

    def _form(self, call: Input, grad: Tensor, out: Tensor) -> Tensor:
        form = matrix_form(call.form)
        for rows in _slices(len(grad), form.positions(call.x) * self.shape[0] * self.shape[2], _PATCHES):
            left, right = form.pair(call.x[rows], grad[rows])
            outer(left, right, out[rows])
        return out

    def gradients(self, a: Inputs, g: Grads) -> Params:
        """Return the per-document gradients by name, (B, *shape)."""
        return self.from_matrix(self.matrices(a, g))

    def contract(self, a: Inputs, g: Grads, vectors: Params | Tensor) -> Tensor:
        """Return <v_q, gradient of document b>, (Q, B).

        One query costs a layer's forward pass (<g, V a>); for more, gradients are formed once, and each query costs 1/T
        of that. Where T = 1 nothing is ever formed.
        """
        matrix = self.to_matrix(vectors) if isinstance(vectors, dict) else vectors
        queries = len(matrix)
        if self._cheaper_unformed(a, queries):
            if queries > 1 and all(isinstance(call.form, LinearForm) for call in a):
                return self._apply_all(a, g, matrix)
            return torch.stack([self._apply(a, g, one) for one in matrix])
        flat = matrix.flatten(1)
        parts = [flat @ self.matrices(*part).flatten(1).T for part in self._parts(a, g)]
        return torch.cat(parts, 1)

    def _cheaper_unformed(self, a: Inputs, queries: int) -> bool:
        # In multiplications, per document and column. Unfolding makes forming slower than a layer's own forward. A
        # vocabulary's gradient is mostly zeros: reading V at T tokens costs T D, forming costs V D.
        o = self.shape[1]
        passes = sum(matrix_form(c.form).positions(c.x) * (1 if isinstance(c.form, EmbeddingForm) else o) for c in a)
        return queries * passes <= 1.5 * passes + (queries + 1) * o

    def _apply(self, a: Inputs, g: Grads, matrix: Tensor) -> Tensor:
        products = [matrix_form(c.form).apply(c.x, matrix, grad) for c, grad in zip(a, g, strict=True)]
        return torch.stack(products).sum(0)

    def _apply_all(self, a: Inputs, g: Grads, matrix: Tensor) -> Tensor:
        """Return what `_apply` returns for every query, by one product instead of a loop over small ones."""
        total = matrix.new_zeros(len(matrix), len(g[0]))
        for call, grad in zip(a, g, strict=True):
            left, right = matrix_form(call.form).pair(call.x, grad)
            assert isinstance(left, Tensor), "only linear forms come here"
            b, _, t, o = left.shape
            rows = right.reshape(b * t, -1)
            parts = []
            for some in matrix.split(max(1, _GRADIENTS // (b * t * o))):
                out = (rows @ some.flatten(0, 2).T).view(b, t, len(some), o)
                parts.append((out * left.reshape(b, t, 1, o)).sum((1, 3)))
            total += torch.cat(parts, 1).T
        return total

    def ghost(self, a1: Inputs, g1: Grads, a2: Inputs, g2: Grads) -> Tensor:
        """Return <gradient b1, gradient b2>, (B1, B2), by Gram matrices over positions where that is cheaper."""
        t1, t2 = (sum(matrix_form(c.form).positions(c.x) for c in a) for a in (a1, a2))
        b1, b2, (_, o, i) = len(g1[0]), len(g2[0]), self.shape
        if b1 * b2 * t1 * t2 * (o + i) <= (b1 * t1 + b2 * t2 + b1 * b2) * o * i:
            return cross_products(_pairs(a1, g1), _pairs(a2, g2))
        rows = []
        for part in self._parts(a1, g1):
            one = self.matrices(*part).flatten(1)
            rows.append(torch.cat([one @ self.matrices(*other).flatten(1).T for other in self._parts(a2, g2)], 1))
        return torch.cat(rows)

    def self_ghost(self, a: Inputs, g: Grads) -> Tensor:
        """Return |gradient b|^2, (B,)."""
        t, (_, o, i) = sum(matrix_form(c.form).positions(c.x) for c in a), self.shape
        if t * (o + i) <= o * i:
            parts = self._parts(a, g, size=t * (o + i + t) * self.shape[0])
            return torch.cat([self_products(_pairs(*part)) for part in parts])
        return torch.cat([self.matrices(*part).flatten(1).square().sum(1) for part in self._parts(a, g)])

    def _parts(self, a: Inputs, g: Grads, size: int | None = None) -> Iterator[tuple[Inputs, Grads]]:
        """Yield (a, g) of as many documents at a time as memory allows."""
        for rows in _slices(len(g[0]), size or math.prod(self.shape), _GRADIENTS):
            yield tuple(Input(call.form, call.x[rows]) for call in a), tuple(grad[rows] for grad in g)


@dataclass(frozen=True)
class DiagonalLayer:
    """The weight and bias of a normalisation, or a bias that has no weight beside it, as columns of (1, D, 1 or 2)."""

    names: tuple[str, ...]
    forms: tuple[DiagonalForm, ...]
    shape: tuple[int, int, int]
    weight: bool
    bias: bool
    diagonal: bool = True

    def __str__(self) -> str:
        return f"{self.names[0]}: {self.shape[1]} x {self.shape[2]} diagonal"

    def to_matrix(self, params: Params) -> Tensor:
        """Return (..., 1, D, number of parameters)."""
        ndim = len(self.forms[0].shape)
        columns = [params[name].flatten(params[name].ndim - ndim) for name in self.names]
        return torch.stack(columns, -1).unsqueeze(-3)

    def from_matrix(self, matrix: Tensor) -> Params:
        """Return the parameters by name."""
        shape = self.forms[0].shape
        return {name: matrix[..., 0, :, i].unflatten(-1, shape) for i, name in enumerate(self.names)}

    def matrices(self, a: Inputs, g: Grads) -> Tensor:
        """Return the per-document gradients as (B, 1, D, number of parameters)."""
        calls = []
        for call, grad in zip(a, g, strict=True):
            assert isinstance(call.form, DiagonalForm), "find_layers pairs diagonal layers with diagonal forms"
            calls.append(call.form.columns(call.x, grad, self.weight, self.bias))
        return torch.stack(calls).sum(0).unsqueeze(1)

    def gradients(self, a: Inputs, g: Grads) -> Params:
        """Return the per-document gradients by name, (B, *shape)."""
        return self.from_matrix(self.matrices(a, g))

    def contract(self, a: Inputs, g: Grads, vectors: Params | Tensor) -> Tensor:
        """Return <v_q, gradient of document b>, (Q, B)."""
        matrix = self.to_matrix(vectors) if isinstance(vectors, dict) else vectors
        return matrix.flatten(1) @ self.matrices(a, g).flatten(1).T

    def ghost(self, a1: Inputs, g1: Grads, a2: Inputs, g2: Grads) -> Tensor:
        """Return <gradient b1, gradient b2>, (B1, B2)."""
        return self.matrices(a1, g1).flatten(1) @ self.matrices(a2, g2).flatten(1).T

    def self_ghost(self, a: Inputs, g: Grads) -> Tensor:
        """Return |gradient b|^2, (B,)."""
        return self.matrices(a, g).flatten(1).square().sum(1)


def describe(layers: tuple[Layer, ...]) -> str:
    """Return one line per layer: its first parameter and its matrix."""
    return "\n".join(str(layer) for layer in layers)


def outer(left: Side, right: Tensor, out: Tensor) -> Tensor:
    """Write sum_t left_t right_t^T of left (B, K, T, O) and right (B, K, T, I) into the contiguous (B, K, O, I)."""
    if isinstance(left, OneHot):
        flat = out.zero_().view(-1, out.shape[-1])
        first = torch.arange(len(left.ids), device=flat.device)[:, None] * left.width
        flat.index_add_(0, (left.ids + first).flatten(), right.flatten(0, 2))
    else:
        torch.bmm(left.flatten(0, 1).mT, right.flatten(0, 1), out=out.flatten(0, 1))
    return out


def matrix_form(form: Form) -> MatrixForm:
    """Return the form of a matrix layer's call as what it is."""
    return form  # type: ignore[return-value]  # find_layers pairs matrix layers with matrix forms


def _pairs(a: Inputs, g: Grads) -> list[tuple[Side, Tensor]]:
    return [matrix_form(call.form).pair(call.x, grad) for call, grad in zip(a, g, strict=True)]


def _slices(n: int, size: int, budget: int) -> Iterator[slice]:
    """Yield slices of n documents of `size` numbers each, at most `budget` numbers at a time."""
    step = max(1, budget // max(size, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
