"""Layers: groups of parameters whose per-document gradients come from inputs and output gradients alone.

`a` and `g` below are what `collect` captured for a layer: one entry per call of its modules. Gradients are formed, or
contracted without being formed, whichever costs less. Axis letters: B documents, Q queries, K groups, T positions,
O rows, I columns (the bias is the last column).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from infuser.curvature.forms import ConvForm, DiagonalForm, EmbeddingForm, Form, LinearForm, MatrixForm, OneHot, Side
from infuser.curvature.ghost import cross_products, self_products
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.types import Params

_NORMS = {"batch", "layer", "group", "instance", "rms"}
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


def find_layers(model: nn.Module, names: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Return the layers that cover the trainable parameters of `model`, in the order of the modules.

    Covered are Linear, Conv1d to Conv3d, Embedding, GPT-2's Conv1D, and normalisations (Batch, Layer, Group, Instance,
    RMSNorm of any make). Modules that share a weight share a layer. Other trainable parameters are named in a warning.

    Args:
        model: any module.
        names: parameters to cover; all trainable ones by default.

    Raises:
        InfuserError: nothing is covered (all parameters are listed), or `names` holds unknown ones.
    """
    wanted = _wanted(model, names)
    canonical = {id(p): name for name, p in model.named_parameters()}
    users: dict[str, list[tuple[str, nn.Module]]] = {}
    for module_name, module in _supported(model):
        for own in ("weight", "bias"):
            p = getattr(module, own, None)
            if p is not None and canonical.get(id(p)) in wanted:
                users.setdefault(canonical[id(p)], []).append((module_name, module))
    layers: list[Layer] = []
    done: set[str] = set()
    for name in users:
        if name not in done:
            layer = _layer(name, users, canonical, done)
            if layer is not None:
                layers.append(layer)
                done.update(layer.names)
    missing = [name for name in wanted if name not in done]
    if not layers:
        kinds = sorted({type(m).__name__ for m in model.modules() if list(m.parameters(recurse=False))})
        raise InfuserError(
            "no layer of the model is supported",
            got=f"parameters {listed(missing, 20)} of {listed(kinds, 20)}",
            expected="Linear, Conv1d, Conv2d, Conv3d, Embedding, Conv1D, or a normalisation layer",
            remedy="use the identity or dense curvature",
        )
    if missing:
        shown = f"{len(missing)} trainable parameters are not covered and count as constant: {listed(missing, 20)}"
        warnings.warn(shown, UserWarning, stacklevel=2)
    return tuple(layers)


def _wanted(model: nn.Module, names: Sequence[str] | None) -> tuple[str, ...]:
    own = trainable(model)
    unknown = [name for name in names or () if name not in own]
    if unknown:
        remedy = "use names of model.named_parameters() that require a gradient"
        raise InfuserError("not trainable parameters of the model", got=listed(unknown), remedy=remedy)
    return tuple(own if names is None else names)


def _supported(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # MultiheadAttention uses its projections' weights without calling them, so nothing can be captured there.
    hidden = {id(m) for mha in model.modules() if isinstance(mha, nn.MultiheadAttention) for m in mha.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in hidden and (_kind(module) is not None):
            hidden.add(id(module))
            yield name, module


def _kind(module: nn.Module) -> str | None:
    """Return which form a module's calls have, None for what is not supported."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not isinstance(module, nn.LazyConv2d):
        return "conv"
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq
        return "embedding" if plain else None
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch" if module.track_running_stats else None
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if isinstance(module, nn.GroupNorm):
        return "group"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return None if module.track_running_stats else "instance"
    own = list(module.named_parameters(recurse=False))
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    if "RMSNorm" in type(module).__name__ and [name for name, _ in own] == ["weight"] and own[0][1].ndim == 1:
        return "rms"
    return None


def _layer(
    name: str, users: dict[str, list[tuple[str, nn.Module]]], canonical: dict[int, str], done: set[str]
) -> Layer | None:
    """Return the layer of a parameter, with its bias where all modules that share the weight share that as well."""
    modules = users[name]
    first: Any = modules[0][1]
    kind = _kind(first)
    if name != canonical.get(id(getattr(first, "weight", None))) or kind in _NORMS:
        return _diagonal(name, users, canonical, done)
    forms = [module for module in modules if getattr(module[1], "weight", None) is getattr(first, "weight", None)]
    biases = {canonical.get(id(getattr(m, "bias", None))) for _, m in forms}
    bias = next(iter(biases)) if len(biases) == 1 else None
    has_bias = bias in users and bias not in done and users[bias] == forms and kind != "embedding"
    built = tuple(_matrix_form_of(module_name, module, has_bias) for module_name, module in forms)
    names = (name, bias) if has_bias and bias else (name,)
    matrices = {tuple(form.weight_to_matrix(first.weight).shape) for form in built}
    layouts = {form.transposed for form in built if isinstance(form, LinearForm)}
    if len(matrices) != 1 or len(layouts) > 1 or (True in layouts and len({type(f) for f in built}) > 1):
        return None  # tied between layouts that do not match
    k, o, i = next(iter(matrices))
    return MatrixLayer(names, built, (k, o, i + has_bias))


def _matrix_form_of(name: str, module: Any, ones: bool) -> MatrixForm:
    kind = _kind(module)
    if kind == "conv":
        return ConvForm.of(name, module, ones)
    if kind == "embedding":
        return EmbeddingForm(name, module.num_embeddings, module.padding_idx)
    return LinearForm(name, transposed=kind == "conv1d", ones=ones)


def _diagonal(
    name: str, users: dict[str, list[tuple[str, nn.Module]]], canonical: dict[int, str], done: set[str]
) -> DiagonalLayer | None:
    """Return a normalisation's affine parameters, or a bias alone."""
    modules = users[name]
    first: Any = modules[0][1]
    is_weight = name == canonical.get(id(first.weight))
    kinds = {_kind(module) for _, module in modules}
    if is_weight and not kinds <= _NORMS:
        return None
    bias = canonical.get(id(getattr(first, "bias", None))) if is_weight else name
    with_bias = bias in users and bias not in done and users[bias] == modules
    shape = tuple(getattr(first, "weight" if is_weight else "bias").shape)
    forms = []
    for module_name, module in modules:
        kind = _kind(module) if is_weight else "bias"
        last = kind in ("layer", "rms") or (kind == "bias" and _kind(module) in ("linear", "conv1d", "layer"))
        forms.append(DiagonalForm(module_name, str(kind), shape, -1 if last else 1, module))
    names = tuple(n for n in (name if is_weight else None, bias if with_bias else None) if n)
    return DiagonalLayer(names, tuple(forms), (1, math.prod(shape), len(names)), is_weight, with_bias)


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
