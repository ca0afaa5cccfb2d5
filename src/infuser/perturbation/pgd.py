"""Projected gradient ascent on pixels: small edits that raise the predicted effect of a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from infuser.attribution.scoring import inner_products
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.perturbation.balls import L2, STEPS, Linf, require_ascent, step_of
from infuser.perturbation.document_gradient import TOLERANCE, MeanEffect, PredictedEffect
from infuser.progress import track
from infuser.tasks import task_of
from infuser.types import Array, Batch, Direction, Edit, Params

_CHECKED = 16  # documents that the central difference is checked on


@dataclass(frozen=True)
class View:
    """Another model that the same edit is to move: another seed, checkpoint or architecture, trained on the same data.

    Attributes:
        run: whose last checkpoint is looked at.
        direction: of the same f, solved for that model.
    """

    run: Run
    direction: Direction


@dataclass(frozen=True)
class PGD:
    """Ascend s(z) = -(1/N) <v, grad L(z)> inside a ball around each document, its gradient taken anew at every step.

    The move is the steepest one of the ball's norm: the sign of the gradient (Linf) or the gradient over its norm (L2).
    The best iterate by s is rounded to what a file can hold, inside the ball; a document whose rounded edit would lower
    s keeps its original. A step costs two gradients by the pixels.

    With `views` s is the mean over models, each view brought to the scale of the run itself (by the dual norm of its
    document gradients, summed over the documents to be edited), so that none of them drowns the others. Gains are then
    those of the mean.

    Args:
        ball: how far a document may move.
        steps: gradient evaluations.
        step_size: of one move, in steps of 1/255; 2.5 radius / steps by default (Madry et al., arXiv 1706.06083).
        storable: 8-bit documents in, 8-bit documents out, inside [0, 255]. Without it documents are floats that are
            clipped to the ball alone: the setting of the original Infusion experiments, which no image file holds.
        via: how the document gradient is taken; auto is central differences at the step of `choose_step`, or forward
            over reverse mode where no step is steady.
        tolerance: the largest disagreement of two steps of the central difference.
        batch_size: documents that ascend together; the result does not depend on it beyond rounding.
        views: further models that the edit is to move as well.

    Source: Infusion, arXiv 2602.09987; Madry et al., arXiv 1706.06083.
    """

    ball: Linf | L2
    steps: int = 50
    step_size: float | None = None
    storable: bool = True
    via: Literal["auto", "central", "forward"] = "auto"
    tolerance: float = TOLERANCE
    batch_size: int = 128
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        require_ascent(self.ball, self.step_size, self.storable, steps=self.steps, batch_size=self.batch_size)

    def __str__(self) -> str:
        stored = "" if self.storable else ", floats without [0, 1]"
        models = f", mean of {1 + len(self.views)} models" if self.views else ""
        return f"PGD {self.ball}, {self.steps} steps of {self._step:g}/255{stored}{models}"

    @property
    def _step(self) -> float:
        return step_of(self.ball, self.steps, self.step_size)

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Edit:
        """Return the edit of the documents `ids`, in that order, with the predicted gain of each.

        gain_i = s(z_i') - s(z_i), evaluated exactly (forward mode) on the stored documents. A direction of several
        queries counts as its mean.

        Raises:
            InfuserError: the documents are not pixels (floats where not storable), or the direction does not fit.
        """
        chosen = data[ids]
        require_pixels(chosen, self.storable)
        effect = self._effect(direction, run, data, chosen)
        parts = []
        for start in range(0, len(chosen), self.batch_size):
            positions = np.arange(start, min(start + self.batch_size, len(chosen)))
            described = f"editing documents {start + 1} to {positions[-1] + 1} of {len(chosen)}"
            parts.append(self._ascend(effect, chosen.batch(positions, run.device), chosen.inputs[positions], described))
        last, best = (np.concatenate(column) for column in zip(*parts, strict=True))
        # The original comes first: it stays unless an edit is better.
        candidates = [chosen.inputs, best, last]
        scores = np.stack([document_scores(effect, replace(chosen, inputs=stored)) for stored in candidates])
        winner = scores.argmax(0)
        rows = np.arange(len(chosen))
        return Edit(
            chosen.ids,
            chosen.inputs,
            np.stack(candidates)[winner, rows],
            chosen.targets,
            chosen.targets,
            self.ball,
            f"{self} via {effect.via}; {direction.mean().names[0]}; {direction.made_by}",
            scores[winner, rows] - scores[0],
        )

    def potential(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Array:
        """Return radius times the dual norm of the gradient of each of the documents `ids`, (k,) in units of f.

        It is what a first-order edit of the document could gain if nothing else bounded it: a cheap hint at which
        documents are worth editing, for one gradient pass over the data.
        """
        require_pixels(data, self.storable)
        chosen = data[ids]
        sizes = self._sizes(self._effect(direction, run, data, chosen), chosen, run.device)
        return sizes * (self.ball.radius / STEPS)

    def _effect(self, direction: Direction, run: Run, data: Dataset, chosen: Dataset) -> PredictedEffect | MeanEffect:
        """Return s as a function of the documents, with the steps of its central differences checked on `chosen`."""
        own = _checked(predicted_effect(direction, run, data, via=self.via), chosen, self.tolerance)
        if not self.views:
            return own
        parts, size = [(1.0, own)], self._sizes(own, chosen, run.device).sum()
        for view in self.views:
            if view.run.data_hash != run.data_hash:
                raise InfuserError(
                    "a view was trained on other data than the run",
                    got=f"hash {view.run.data_hash[:12]}",
                    expected=f"hash {run.data_hash[:12]}",
                    remedy="train every view on the data that are edited",
                )
            effect = predicted_effect(view.direction, view.run, data, via=self.via)
            effect = _checked(effect, chosen, self.tolerance)
            other = self._sizes(effect, chosen, run.device).sum()
            parts.append((float(size / other) if other > 0 else 0.0, effect))
        return MeanEffect(tuple(parts))

    def _sizes(self, effect: PredictedEffect | MeanEffect, data: Dataset, device: str) -> Array:
        """Return the dual norm of each document gradient, (len(data),)."""
        parts = []
        for batch in data.batches(self.batch_size, device):
            _, slope = effect.at(effect.task.feed(batch.inputs), batch.targets)
            parts.append(self.ball.dual_norm(slope).double().cpu().numpy())
        return np.concatenate(parts)

    def _ascend(
        self, effect: PredictedEffect | MeanEffect, batch: Batch, before: Array, described: str
    ) -> tuple[Array, Array]:
        """Return the stored (last, best) iterates of one batch."""
        center = effect.task.feed(batch.inputs)
        z = best = center
        best_score = torch.full((len(batch),), -torch.inf, device=center.device)
        for _ in track(range(self.steps), described):
            score, slope = effect.at(z, batch.targets)
            require_finite(slope, batch.ids)
            better = score > best_score
            best_score = torch.where(better, score.to(best_score), best_score)
            best = torch.where(better.reshape(-1, *(1,) * (z.ndim - 1)), z, best)
            z = self.ball.project(z + self.ball.steepest(slope) * (self._step / STEPS), center, box=self.storable)
        return (
            self.ball.store(z.double().cpu().numpy(), before),
            self.ball.store(best.double().cpu().numpy(), before),
        )


def predicted_effect(
    direction: Direction, run: Run, data: Dataset, via: Literal["auto", "central", "forward", "double"] = "auto"
) -> PredictedEffect:
    """Return s(z) = -(1/N) <v, grad L(z)> at the run's last checkpoint, v being the mean of the direction's queries."""
    model = run.model()
    v = {name: value.detach().to(run.device) for name, value in direction.mean().single().items()}
    bad = [name for name, value in v.items() if not torch.isfinite(value).all()]
    if bad:
        raise InfuserError(
            "the direction is not finite", got=f"in {listed(bad)}", remedy="raise the damping or check the checkpoint"
        )
    return PredictedEffect(model, trainable(model), task_of(data), v, len(data), via)


def document_scores(effect: PredictedEffect | MeanEffect, data: Dataset) -> Array:
    """Return s of every document of `data`, exactly (forward mode), shape (len(data),) float64."""
    if isinstance(effect, MeanEffect):
        parts = [factor * document_scores(own, data) for factor, own in effect.parts]
        return cast(Array, np.mean(parts, axis=0))
    v: Params = {name: value[None] for name, value in effect.v.items()}
    products = inner_products(effect.model, effect.params, data, v, via="jvp")[0]
    return cast(Array, products.double().cpu().numpy() / -effect.n)


def require_pixels(data: Dataset, storable: bool) -> None:
    """Raise unless the documents are 8-bit pixels (`storable`), or floats (not `storable`)."""
    if data.kind == "causal_lm":
        raise InfuserError(
            "pixel edits need images", got=f"{data.name}: token ids", remedy="edit texts by token substitution"
        )
    if storable and data.inputs.dtype != np.uint8:
        raise InfuserError(
            "storable edits need 8-bit documents",
            got=f"{data.name}: {data.inputs.dtype}",
            expected="uint8",
            causes=["the images were divided by 255 before they came here"],
            remedy="pass uint8 images; or storable=False for edits that no image file holds",
        )
    if not storable and not np.issubdtype(data.inputs.dtype, np.floating):
        raise InfuserError(
            "edits that are not storable need float documents",
            got=f"{data.name}: {data.inputs.dtype}",
            expected="float32 in units of [0, 1]",
            remedy="leave storable=True, or train on the images divided by 255",
        )


def _checked(effect: PredictedEffect, data: Dataset, tolerance: float) -> PredictedEffect:
    positions = np.unique(np.linspace(0, len(data) - 1, min(_CHECKED, len(data))).astype(np.int64))
    batch = data.batch(positions, str(next(iter(effect.params.values())).device))
    return effect.checked(effect.task.feed(batch.inputs), batch.targets, tolerance)


def require_finite(slope: Tensor, ids: Tensor | Array) -> None:
    """Raise where a document gradient is not finite."""
    finite = torch.isfinite(slope.flatten(1)).all(1)
    if not finite.all():
        raise InfuserError(
            "the document gradient is not finite",
            got=f"documents {listed(np.asarray(ids)[~finite.cpu().numpy()].tolist())}",
            causes=["the model diverged", "the direction is far too large: its damping is too small"],
            remedy="check the checkpoint's loss, or raise the damping",
        )
