"""Algebra on parameters: a dict of tensors treated as one vector. Nothing here writes in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from infuser.errors import InfuserError
from infuser.types import Params


def trainable(model: nn.Module) -> Params:
    """Return the detached trainable parameters by name; the tensors share the model's memory."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def add(a: Params, b: Params, scale: float = 1.0) -> Params:
    """Return a + scale * b over the names of `a`; names missing in `b` count as zero."""
    return {name: value + scale * b[name] if name in b else value for name, value in a.items()}


def scale(a: Params, factor: float) -> Params:
    """Return factor * a."""
    return {name: factor * value for name, value in a.items()}


def zeros(a: Params) -> Params:
    """Return zeros shaped as `a`."""
    return {name: torch.zeros_like(value) for name, value in a.items()}


def dot(a: Params, b: Params) -> Tensor:
    """Return the inner product <a, b>, summed in float64.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}).item()
    11.0
    """
    _same_names(a, b)
    return torch.stack([(value.double() * b[name].double()).sum() for name, value in a.items()]).sum()


def norm(a: Params) -> Tensor:
    """Return the Euclidean norm, in float64.

    >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}).item()
    5.0
    """
    return dot(a, a).sqrt()


def rows_of(value: Tensor) -> Tensor:
    """Return one parameter's (Q, *shape) as (Q, numbers), a single number's (Q,) too.

    >>> rows_of(torch.ones(3)).shape, rows_of(torch.ones(3, 2, 2)).shape
    (torch.Size([3, 1]), torch.Size([3, 4]))
    """
    return value.reshape(len(value), -1)


def flatten(a: Params, batch_dims: int = 0) -> Tensor:
    """Return the values as one vector in the order of the names; leading `batch_dims` dimensions are kept."""
    return torch.cat([value.reshape(*value.shape[:batch_dims], -1) for value in a.values()], dim=batch_dims)


def unflatten(vector: Tensor, like: Params) -> Params:
    """Return a (P,) vector, or (Q, P) vectors, cut into the shapes of `like`: the inverse of `flatten`."""
    parts = torch.split(vector, [value.numel() for value in like.values()], dim=-1)
    return {
        name: part.reshape(*vector.shape[:-1], *value.shape)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


def apply(fn: Callable[[Tensor], Tensor], a: Params) -> Params:
    """Return fn of every tensor."""
    return {name: fn(value) for name, value in a.items()}


def _same_names(a: Params, b: Params) -> None:
    if a.keys() != b.keys():
        raise InfuserError(
            "the two parameter sets have different names",
            got=sorted(a.keys() ^ b.keys())[:8],
            expected="the same names on both sides",
            causes=["they come from different models", "requires_grad was changed between the two"],
        )
