"""Projected gradient ascent along the exact derivative of training, in place of what a direction predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from infuser.attribution.unrolled import Unrolled
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, STEPS, Linf, require_ascent, step_of
from infuser.perturbation.pgd import require_finite, require_pixels
from infuser.progress import track
from infuser.tasks import task_of
from infuser.types import Array, Direction, Edit, Measurement

_LOOKED = 3  # replays that `potential` averages over


@dataclass(frozen=True)
class UnrolledPGD:
    """Ascend f after training itself, by its exact derivative by the documents, taken anew at every step.

    A step replays training on the documents as they are then and passes the derivative back through it (see
    `attribution.unrolled`), so that it costs five to ten times the training from `start`, for any number of edited
    documents. Without `seeds` it is the run's own order that is replayed, and the edit is made for that order alone.
    With them each step replays another of these orders (and initialisations, from scratch) and moves along the mean of
    the derivatives so far, as a stand-in for that of the expected f. Each document's derivative has a dual norm of one
    in this mean, since some orders are far steeper than others.

    The documents are edited jointly: each derivative is that of a model trained on all of them as they are then.

    Args:
        ball: how far a document may move.
        probes: f itself; several queries count as their mean. The direction that `perturb` takes is to be of the same
            queries; it is not used for the ascent, but by strategies that read its scores.
        start: last_epoch, half, scratch, or a number of epochs done: what the edit is made for.
        seeds: of the replays, other ones than those that the effect is measured with; replay t takes seeds[t mod S].
            There are steps + 1 replays, and with as many seeds no gain is counted by an order that its move has seen.
        steps: moves.
        step_size: of one move, in steps of 1/255; 2.5 radius / steps by default.

    Source: Ilyas and Engstrom, arXiv 2504.16430 (the derivative); Dong et al., arXiv 1710.06081 (the mean of gradients
    for edits that transfer).
    """

    ball: Linf | L2
    probes: Measurement
    start: str | int = "last_epoch"
    seeds: tuple[int, ...] = ()
    steps: int = 20
    step_size: float | None = None
    joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_ascent(self.ball, self.step_size, steps=self.steps)
        if self.steps + 1 < len(self.seeds):
            got, expected = f"{len(self.seeds)} seeds", f"at most {self.steps + 1} for {self.steps} steps"
            raise InfuserError("more seeds than replays", got=got, expected=expected)

    def __str__(self) -> str:
        orders = f"{len(self.seeds)} other orders" if self.seeds else "the run's own order"
        return f"unrolled PGD {self.ball}, {self.steps} steps of {self._step:g}/255, from {self.start}, {orders}"

    @property
    def _step(self) -> float:
        return step_of(self.ball, self.steps, self.step_size)

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Edit:
        """Return the edit of the documents `ids`, in that order: the last iterate.

        gain_i sums <df/dz_i, move of z_i> over the moves between stored iterates, with the derivative that the next
        replay finds at the end of each: the share of document i in the change of f, up to the length of the steps and,
        with `seeds`, the chance of the orders.

        Raises:
            InfuserError: the documents are not 8-bit pixels, the direction is of other queries, the run did not keep
                the checkpoint, or the derivative is not finite.
        """
        chosen = data[ids]
        require_pixels(chosen, storable=True)
        self._require_same_queries(direction)
        batch = chosen.batch(np.arange(len(chosen)), run.device)
        center = task_of(data).feed(batch.inputs)
        z, total, gains = center.clone(), torch.zeros_like(center), np.zeros(len(chosen))
        edit = Edit(
            chosen.ids, chosen.inputs, chosen.inputs, chosen.targets, chosen.targets, self.ball,
            f"{self}; {direction.mean().names[0]}",
        )  # fmt: skip
        slope = self._slope(run, data, chosen.ids, 0)
        for t in track(range(self.steps), "replaying training"):
            size = self.ball.dual_norm(slope).reshape(-1, *(1,) * (slope.ndim - 1))
            # In the one order only the latest derivative is that of the present documents.
            unit = torch.where(size > 0, slope / size.clamp(min=torch.finfo(size.dtype).tiny), slope)
            total = total + unit if self.seeds else unit
            z = self.ball.project(z + self.ball.steepest(total) * (self._step / STEPS), center)
            stored = self.ball.store(z.double().cpu().numpy(), chosen.inputs)
            moved = (stored.astype(np.float64) - edit.after) / STEPS
            edit = replace(edit, after=stored)
            # The slope that a move was made along would overstate it: what it holds by chance, the move holds too.
            slope = self._slope(run, data.apply(edit), chosen.ids, t + 1)
            gains += (slope.double().cpu().numpy() * moved).reshape(len(chosen), -1).sum(1)
        return replace(edit, gains=_per_weight(gains, data, chosen.ids))

    def potential(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Array:
        """Return radius times the dual norm of df/dz of the documents `ids`, (k,) in units of f.

        The derivative is the plain mean over the first three of `seeds`; like `gains` it is per unit of weight.
        """
        require_pixels(data, storable=True)
        self._require_same_queries(direction)
        way = Unrolled(self.start, self.seeds[:_LOOKED])
        slope = way.document_gradient(run, data, self.probes, ids).mean(0)
        sizes = self.ball.dual_norm(slope).double().cpu().numpy() * (self.ball.radius / STEPS)
        return _per_weight(sizes, data, ids)

    def _slope(self, run: Run, data: Dataset, ids: Array, t: int) -> Tensor:
        seeds = (self.seeds[t % len(self.seeds)],) if self.seeds else ()
        slope = Unrolled(self.start, seeds).document_gradient(run, data, self.probes, ids).mean(0)
        require_finite(slope, ids)
        return slope

    def _require_same_queries(self, direction: Direction) -> None:
        own = getattr(self.probes, "queries", None)
        if own is not None and direction.names not in (tuple(own), (f"mean of {len(own)}",)):
            raise InfuserError(
                "the direction is of other queries than the edit is to move",
                got=direction.names,
                expected=tuple(own),
                remedy="pass influence.direction(run, probes) of the same probes",
            )


def _per_weight(values: Array, data: Dataset, ids: Sequence[int] | Array) -> Array:
    """Return values over their documents' weights: `perturb` multiplies by these, which training has counted already.

    A document of weight 0 moves nothing, and its value of 0 stays.
    """
    weights = data.weights[data.positions(ids)]
    return np.asarray(np.divide(values, weights, out=np.zeros_like(values), where=weights > 0))
