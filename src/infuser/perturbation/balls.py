"""Balls: how far a document may be moved. Radii are in steps of 1/255, the unit in which pixels are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, final

import numpy as np
import torch
from torch import Tensor

from infuser.errors import InfuserError, require
from infuser.types import Array, Constraint

STEPS = 255  # stored levels above zero: one step is 1/255 in network units


class Ball(Constraint, Protocol):
    """A constraint around a document that gradient ascent can move in.

    Tensors are in network units (B, ...), arrays as stored: uint8 levels, or floats in network units.
    """

    @property
    def radius(self) -> float:
        """The largest distance allowed, in steps of 1/255."""
        ...

    def project(self, z: Tensor, center: Tensor, box: bool = True) -> Tensor:
        """Return points inside the ball around `center`, and inside [0, 1] where `box`; points inside stay."""
        ...

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the move of length 1 in this norm that gains most to first order; zero where the gradient is zero."""
        ...

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return what a move of length 1 can gain to first order, shape (B,)."""
        ...

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        """Return random points of the ball around `center`, not yet held to [0, 1]."""
        ...

    def store(self, z: Array, before: Array) -> Array:
        """Return `z` (network units) as stored values of the type of `before`, inside the ball after rounding."""
        ...


@final
@dataclass(frozen=True)
class Linf:
    """No value of a document moves by more than `radius` steps of 1/255.

    Raises:
        InfuserError: the radius is not above 0, or is above 255.

    >>> print(Linf(8))
    Linf 8/255
    """

    radius: float

    def __post_init__(self) -> None:
        _check_radius("Linf", self.radius, self.radius <= STEPS, "above 0 and at most 255 (steps of 1/255)")

    def __str__(self) -> str:
        return f"Linf {self.radius:g}/255"

    @property
    def limit(self) -> float:
        """The radius, in steps of 1/255."""
        return self.radius

    def distance(self, before: Array, after: Array) -> Array:
        """Return the largest absolute difference of each document, shape (k,), in steps of 1/255."""
        return cast(Array, np.abs(_difference(before, after)).max(axis=1, initial=0.0))

    def project(self, z: Tensor, center: Tensor, box: bool = True) -> Tensor:
        """Return `z` clipped to the ball around `center`, and to [0, 1] where `box`."""
        r = self.radius / STEPS
        inside = torch.minimum(torch.maximum(z, center - r), center + r)
        return inside.clamp(0, 1) if box else inside

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient."""
        return gradient.sign()

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return the L1 norm of each document's gradient, shape (B,)."""
        return gradient.flatten(1).abs().sum(1)

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        """Return centres plus independent uniform noise in [-radius, radius]."""
        noise = torch.rand(center.shape, generator=generator, dtype=center.dtype).to(center.device)
        return center + (2 * noise - 1) * (self.radius / STEPS)

    def store(self, z: Array, before: Array) -> Array:
        """Return the stored values nearest to `z` inside the ball.

        8-bit documents keep to [0, 255]; a radius that is not whole holds only whole steps. Float documents get the
        nearest number of their own type that is inside, so that no rounding takes them out.
        """
        if before.dtype == np.uint8:
            whole = np.floor(self.radius)
            center = before.astype(np.float64)
            low, high = np.maximum(center - whole, 0), np.minimum(center + whole, STEPS)
            return cast(Array, np.clip(np.rint(_finite(z) * STEPS), low, high).astype(np.uint8))
        exact = before.astype(np.float64)
        low, high = exact - self.radius / STEPS, exact + self.radius / STEPS
        after = np.clip(_finite(z), low, high).astype(before.dtype)
        # Asked of the distance itself, since the bounds are rounded too; one step of the type towards `before` will do.
        outside = np.abs(after.astype(np.float64) - exact) * STEPS > self.radius
        return cast(Array, np.where(outside, np.nextafter(after, before), after))


@final
@dataclass(frozen=True)
class L2:
    """The Euclidean norm of a document's change is at most `radius` steps of 1/255.

    A radius of 127.5 is 0.5 in units of the pixel range. It may be above 255: the largest distance between two 8-bit
    documents of D values is 255 sqrt(D).

    Raises:
        InfuserError: the radius is not a positive number.

    >>> print(L2(127.5))
    L2 127.5/255
    """

    radius: float

    def __post_init__(self) -> None:
        _check_radius("L2", self.radius, True, "a number above 0 (steps of 1/255)")

    def __str__(self) -> str:
        return f"L2 {self.radius:g}/255"

    @property
    def limit(self) -> float:
        """The radius, in steps of 1/255."""
        return self.radius

    def distance(self, before: Array, after: Array) -> Array:
        """Return the Euclidean norm of each document's change, shape (k,), in steps of 1/255."""
        return cast(Array, np.sqrt(np.square(_difference(before, after)).sum(axis=1)))

    def project(self, z: Tensor, center: Tensor, box: bool = True) -> Tensor:
        """Return `z` drawn towards `center` along a straight line, then clipped to [0, 1] where `box`.

        Clipping moves every value towards the centre, which is in the box, so the result stays in the ball.
        """
        change = z - center
        length = _per_document(change.flatten(1).norm(dim=1), change)
        shrink = (self.radius / STEPS / length.clamp(min=torch.finfo(z.dtype).tiny)).clamp(max=1)
        inside = center + change * shrink
        return inside.clamp(0, 1) if box else inside

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the gradient over its norm, zero where it is zero."""
        # Scaled by the largest value first: the squares of tiny gradients would underflow.
        peak = _per_document(gradient.flatten(1).abs().amax(1), gradient)
        scaled = torch.where(peak > 0, gradient / peak.clamp(min=torch.finfo(gradient.dtype).tiny), gradient)
        length = _per_document(scaled.flatten(1).norm(dim=1), gradient)
        return torch.where(length > 0, scaled / length.clamp(min=torch.finfo(gradient.dtype).tiny), scaled)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return the Euclidean norm of each document's gradient, shape (B,)."""
        return gradient.flatten(1).square().sum(1).sqrt()

    def sample(self, center: Tensor, generator: torch.Generator) -> Tensor:
        """Return points drawn uniformly from the ball."""
        noise = torch.randn(center.shape, generator=generator, dtype=center.dtype).to(center.device)
        share = torch.rand(len(center), generator=generator, dtype=center.dtype).to(center.device)
        values = max(center[0].numel(), 1)
        length = self.radius / STEPS * share ** (1 / values)
        return center + self.steepest(noise) * _per_document(length, center)

    def store(self, z: Array, before: Array) -> Array:
        """Return stored values near `z` inside the ball.

        8-bit documents: the change is cut to whole steps, which only shortens it; then the values that lost most are
        rounded up again, in that order, for as long as the ball has room. Float documents get the numbers of
        their own type next to it, on the side of the original.
        """
        change = _finite(z) - before.astype(np.float64) / (STEPS if before.dtype == np.uint8 else 1)
        if before.dtype == np.uint8:
            center = before.astype(np.float64) / STEPS
            change = np.clip(center + change, 0, 1) - center
        change = change.reshape(len(before), -1) * STEPS
        length = np.sqrt(np.square(change).sum(axis=1, keepdims=True))
        change *= self.radius * (1 - 1e-12) / np.maximum(length, self.radius)
        if before.dtype == np.uint8:
            whole = _whole_steps(change, self.radius).reshape(before.shape)
            return cast(Array, (before.astype(np.int64) + whole).astype(np.uint8))
        change = change.reshape(before.shape) / STEPS
        after = (before.astype(np.float64) + change).astype(before.dtype)
        too_far = np.abs(after.astype(np.float64) - before) > np.abs(change)
        return cast(Array, np.where(too_far, np.nextafter(after, before), after))


def _whole_steps(change: Array, radius: float) -> Array:
    """Return whole steps near `change` (k, D) whose squares sum to at most radius^2 in every row."""
    size = np.abs(change)
    cut = np.floor(size)
    lost = size - cut
    order = np.argsort(-lost, axis=1, kind="stable")
    # Rounding t up to t + 1 costs 2 t + 1 of the squared norm; whoever lost less than half a step stays cut.
    cost = np.take_along_axis(np.where(lost >= 0.5, 2 * cut + 1, np.inf), order, axis=1)
    room = radius**2 - np.square(cut).sum(axis=1, keepdims=True)
    up = np.zeros_like(cut)
    np.put_along_axis(up, order, (np.cumsum(cost, axis=1) <= room).astype(np.float64), axis=1)
    return cast(Array, (np.sign(change) * (cut + up)).astype(np.int64))


def _difference(before: Array, after: Array) -> Array:
    """Return after - before as (k, D) float64 in steps of 1/255."""
    unit = 1 if before.dtype == np.uint8 else STEPS
    flat = (len(before), -1) if before.size else (len(before), 0)
    return cast(Array, ((after.astype(np.float64) - before.astype(np.float64)) * unit).reshape(flat))


def _finite(z: Array) -> Array:
    values = np.asarray(z, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InfuserError("an edited document holds values that are not finite", causes=["the model diverged"])
    return values


def _per_document(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def require_ascent(ball: Linf | L2, step_size: float | None, storable: bool = True, /, **counts: int) -> None:
    """Raise where the settings of an ascent of 8-bit (`storable`) or float documents are out of range.

    Args:
        ball: that holds the edit.
        step_size: in steps of 1/255, or None for the method's own.
        storable: the edit is rounded to 8 bits.
        counts: of steps and the like, each at least 1.
    """
    for name, value in counts.items():
        require(name, value, value >= 1, "at least 1")
    if step_size is not None:
        require("step_size", step_size, bool(np.isfinite(step_size)) and step_size > 0, "above 0 (steps of 1/255)")
    if storable and ball.radius < 1:
        raise InfuserError(
            f"{ball} holds no edit that 8 bits can store",
            got=ball.radius,
            expected="a radius of at least 1 (steps of 1/255)",
            causes=["the radius was given in units of [0, 1]"],
            remedy=f"did you mean {ball.radius * STEPS:g}?",
        )


def step_of(ball: Linf | L2, steps: int, step_size: float | None) -> float:
    """Return the length of one move in steps of 1/255: `step_size`, else 2.5 radius / steps (arXiv 1706.06083)."""
    return 2.5 * ball.radius / steps if step_size is None else step_size


def _check_radius(name: str, radius: float, holds: bool, expected: str) -> None:
    if not (np.isfinite(radius) and radius > 0 and holds):
        raise InfuserError(f"{name} radius is out of range", got=radius, expected=expected)
