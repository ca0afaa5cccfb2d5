"""Which layers a model has, and which of its parameters they cover."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from infuser.curvature.forms import ConvForm, DiagonalForm, EmbeddingForm, LinearForm, MatrixForm
from infuser.curvature.layers import DiagonalLayer, Layer, MatrixLayer
from infuser.errors import InfuserError, listed
from infuser.params import trainable

_NORMS = {"batch", "layer", "group", "instance", "rms"}


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
