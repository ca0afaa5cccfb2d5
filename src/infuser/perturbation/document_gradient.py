"""The document gradient: how the predicted effect of a training document moves with the document itself.

On smooth networks all ways to it agree. On networks of ReLUs the gradient of a loss jumps where a unit switches, and
the exact derivative (forward, double) passes over the jumps, while a central difference of a finite step averages
over them, as a finite edit does. The two then differ by design, at every step but the very smallest, and in float32
those are lost in rounding. Which of them guides an edit better after retraining is not settled; the central one costs
half. Below a certain step its average rests on few jumps and is noise, above it the loss is no longer what it is at
theta; where that is differs by direction, so the step is chosen by a check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from infuser import params as algebra
from infuser.errors import InfuserError, listed
from infuser.tasks import Task, plain_attention
from infuser.types import Batch, Params

Via = Literal["auto", "central", "forward", "double"]
STEP = 0.05  # h |v| of a central difference where nobody checked for a better one
TOLERANCE = 0.7  # the largest disagreement of two steps at which the central difference is still more signal than noise
_LARGEST = 0.4  # the first h |v| that the check tries; it is halved from there


@dataclass(frozen=True)
class PredictedEffect:
    """s(z) = -(1/N) <v, grad_theta L(z)>, the predicted effect of a document z on f, as a function of z.

    Attributes:
        model: in eval mode.
        params: theta, where gradients are taken.
        task: per-document losses.
        v: the direction by parameter name, without a query dimension; a missing name counts as v = 0.
        n: N, documents in the training set.
        via: `central` (two gradients, at theta +- h v), `forward` (forward over reverse mode, exact), `double` (double
            backward, exact; the slowest, an oracle).
        step: h |v| of the central difference, in units of the parameters.
    """

    model: nn.Module
    params: Params
    task: Task
    v: Params
    n: int
    via: Via = "central"
    step: float = STEP

    def __post_init__(self) -> None:
        wrong = [k for k, value in self.v.items() if k not in self.params or value.shape != self.params[k].shape]
        if wrong or not self.v:
            raise InfuserError(
                "the direction does not fit the model's parameters",
                got=listed([f"{k}: {tuple(self.v[k].shape)}" for k in wrong]) or "no tensors",
                expected="one tensor per parameter, of its shape, without a query dimension",
                causes=["the direction was made for another model"],
            )
        if self.via not in ("auto", "central", "forward", "double"):
            raise InfuserError("unknown way to a document gradient", got=self.via, expected="central, forward, double")
        if self.n < 1 or not self.step > 0:
            raise InfuserError("N and the step must be positive", got=f"N = {self.n}, step {self.step:g}")

    def at(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (s of shape (B,), grad_z s of shape (B, *shape)) at documents `z` in network units.

        The central difference reads s from the losses that it needs anyway.
        """
        _require_floats(z)
        ways = {"forward": self._forward, "double": self._double}
        return ways.get(self.via, self._central)(z.detach(), targets)

    @cached_property
    def _length(self) -> float:
        return float(algebra.norm(self.v))

    def _losses(self, params: Params, z: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(functional_call(self.model, params, (z,)), targets)

    def _central(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self._length == 0:
            return z.new_zeros(len(z)), torch.zeros_like(z)
        h = self.step / self._length
        losses, slopes = [], []
        for sign in (1.0, -1.0):
            leaf = z.detach().requires_grad_()
            # Shifted anew at every call rather than held: the sum is nothing beside a pass through the network.
            with torch.enable_grad():
                loss = self._losses(algebra.add(self.params, self.v, sign * h), leaf, targets)
                (slope,) = torch.autograd.grad(loss.sum(), leaf)
            losses.append(loss.detach())
            slopes.append(slope)
        factor = -1 / (2 * h * self.n)
        return (losses[0] - losses[1]) * factor, (slopes[0] - slopes[1]) * factor

    def _forward(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        point = {name: self.params[name] for name in self.v}

        def slope_and_losses(p: Params) -> tuple[Tensor, Tensor]:
            def total(x: Tensor) -> tuple[Tensor, Tensor]:
                losses = self._losses({**self.params, **p}, x, targets)
                return losses.sum(), losses

            found: tuple[Tensor, Tensor] = grad(total, has_aux=True)(z)
            return found

        # Not reverse over forward: torch takes the statistics of a LayerNorm's tangent for constants there.
        with torch.enable_grad(), plain_attention():
            slope, tangent = jvp(slope_and_losses, (point,), (self.v,))[1]
        return tangent.detach() / -self.n, slope.detach() / -self.n

    def _double(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        point = {name: self.params[name].detach().requires_grad_() for name in self.v}
        leaf = z.detach().requires_grad_()
        with torch.enable_grad(), plain_attention():
            loss = self._losses({**self.params, **point}, leaf, targets)
            rows = torch.autograd.grad(loss.sum(), list(point.values()), create_graph=True, materialize_grads=True)
            product = sum((row * self.v[name]).sum() for name, row in zip(point, rows, strict=True))
            assert isinstance(product, Tensor), "v is not empty"
            (slope,) = torch.autograd.grad(product, leaf, materialize_grads=True)
            # One document at a time: this way is an oracle, and the shortest code is the easiest to trust.
            tangent = [self._double_score(z[i : i + 1], targets[i : i + 1]) for i in range(len(z))]
        return torch.stack(tangent) / -self.n, slope / -self.n

    def _double_score(self, z: Tensor, targets: Tensor) -> Tensor:
        point = {name: self.params[name].detach().requires_grad_() for name in self.v}
        loss = self._losses({**self.params, **point}, z, targets)
        rows = torch.autograd.grad(loss.sum(), list(point.values()), materialize_grads=True)
        return torch.stack([(row * self.v[name]).sum() for name, row in zip(point, rows, strict=True)]).sum()

    def checked(self, z: Tensor, targets: Tensor, tolerance: float = TOLERANCE) -> PredictedEffect:
        """Return this effect with the step that suits the documents `z` best; `auto` becomes central or forward.

        `central` and `auto` take the step of `choose_step`. Where even that one disagrees with twice itself by more
        than `tolerance`, it carries more noise than signal: `auto` becomes `forward`, `central` is an error. The exact
        ways are returned as they are.

        Raises:
            InfuserError: via is `central` and no step is good enough.
        """
        if self.via in ("forward", "double"):
            return self
        step, error = choose_step(self, z, targets)
        if error <= tolerance:
            return replace(self, via="central", step=step)
        if self.via == "auto":
            return replace(self, via="forward")
        raise InfuserError(
            "no step makes the central difference of the document gradient steady",
            got=f"a disagreement of {error:.2%} between the best step |h v| = {step:g} and twice it",
            expected=f"at most {tolerance:.0%}",
            causes=["the loss is rough along v", "the documents' losses are so small that rounding hides them"],
            remedy="use via='forward' or 'auto'",
        )


@dataclass(frozen=True)
class MeanEffect:
    """The mean of several models' predicted effects, each times its factor: what an edit for all of them should raise.

    Attributes:
        parts: (factor, predicted effect) of each model; all feed documents alike.
    """

    parts: tuple[tuple[float, PredictedEffect], ...]

    @property
    def task(self) -> Task:
        """Of the first model."""
        return self.parts[0][1].task

    @property
    def via(self) -> str:
        """How each model's document gradient is taken."""
        return ", ".join(dict.fromkeys(effect.via for _, effect in self.parts))

    def at(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (s of shape (B,), grad_z s of shape (B, *shape)) of the mean at documents `z` in network units."""
        scores, slopes = zip(*(effect.at(z, targets) for _, effect in self.parts), strict=True)
        factors = [factor / len(self.parts) for factor, _ in self.parts]
        score, slope = torch.zeros_like(scores[0]), torch.zeros_like(slopes[0])
        for factor, own, own_slope in zip(factors, scores, slopes, strict=True):
            score, slope = score + factor * own, slope + factor * own_slope
        return score, slope


def document_gradient(
    model: nn.Module,
    params: Params,
    task: Task,
    batch: Batch,
    v: Params,
    *,
    n: int,
    via: Literal["central", "forward", "double"] = "central",
    step: float = STEP,
) -> Tensor:
    """Return G = -(1/N) grad_z <grad_theta L(z), v> of every document of a batch, (B, *shape) in network units.

    Replacing z by z + delta moves f by about <G, delta>. The central difference is

        G ~ -(1/N) (grad_z L(z; theta + h v) - grad_z L(z; theta - h v)) / 2 h,     h |v| = step,

    two gradients; its truncation error falls with h squared and its rounding error grows with 1/h (see `choose_step`).
    `forward` is exact: the input gradient of the derivative of L along v. `double` is the textbook formula. Networks
    with ReLUs are another matter: see the head of this file.

    Args:
        model: in eval mode; nothing of it is changed.
        params: theta by name.
        task: how the batch is fed, and its losses.
        batch: B documents, 8-bit or floats.
        v: the direction, one tensor per parameter; a missing name counts as v = 0.
        n: N, documents in the training set.
        via: see above.
        step: h |v|, in units of the parameters.

    Raises:
        InfuserError: v does not fit the parameters, or the documents have no gradient (token ids).

    Source: Infusion, arXiv 2602.09987; Koh and Liang, arXiv 1703.04730, equation 5.
    """
    effect = PredictedEffect(model, params, task, v, n, via, step)
    return effect.at(task.feed(batch.inputs), batch.targets)[1]


def choose_step(effect: PredictedEffect, z: Tensor, targets: Tensor, halvings: int = 12) -> tuple[float, float]:
    """Return (h |v|, disagreement) of the steadiest central difference at documents `z` in network units.

    The gradient at each step is compared with that at half of it, relative, in Euclidean norm over all documents, and
    the smaller step of the closest pair is taken. While truncation rules, the disagreement is three times the error of
    the smaller step; once rounding rules (or, with ReLUs, the few units that still switch) it grows again, and the
    search ends.
    """
    step = _LARGEST
    best = (step, float("inf"))
    coarse = _slope(effect, step, z, targets)
    for _ in range(halvings):
        fine = _slope(effect, step / 2, z, targets)
        size = float(fine.norm())
        error = float((coarse - fine).norm()) / size if size > 0 else 0.0
        if error < best[1]:
            best = (step / 2, error)
        elif error > 2 * best[1] or error == 0:
            break
        step, coarse = step / 2, fine
    return best


def _slope(effect: PredictedEffect, step: float, z: Tensor, targets: Tensor) -> Tensor:
    return replace(effect, via="central", step=step).at(z, targets)[1].double()


def _require_floats(z: Tensor) -> None:
    if not z.is_floating_point():
        raise InfuserError(
            "these documents carry no gradient",
            got=str(z.dtype),
            expected="pixels or other floats",
            causes=["the data set holds token ids"],
            remedy="edit texts by token substitution",
        )
