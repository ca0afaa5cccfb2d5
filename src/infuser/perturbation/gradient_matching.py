"""Gradient matching: the baseline that aligns the documents' summed gradient with the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from infuser import params as algebra
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, STEPS, Linf, require_ascent
from infuser.perturbation.document_gradient import PredictedEffect
from infuser.perturbation.pgd import document_scores, predicted_effect, require_pixels
from infuser.progress import track
from infuser.types import Array, Direction, Edit, Params

_CHECKED = 16  # documents that the central difference is checked on
_DECAYS = (3 / 8, 5 / 8, 7 / 8)  # shares of the steps after which the step size falls to a tenth


@dataclass(frozen=True)
class GradientMatching:
    """Raise cos(sum_i grad L(z_i'), -grad f) over the edited documents together, by signed Adam inside the ball.

    It is a Perturber like any other, but the direction that it takes has to be grad f itself, which is the direction of
    the identity curvature without damping:

        target = Influence(identity(run), damping=Damping(0, "absolute")).direction(run, probes)
        perturb(GradientMatching(Linf(8)), target, run, data, ids=of_class(data, label, k, seed))

    The documents should be of the class that the probes are to be taken for: `select.of_class`. f should be minus the
    loss of the probes at that class (measure.LogProb), so that -grad f is the gradient of the target's loss.

    With g the summed gradient, the cosine's slope by a document is grad_z <grad_theta L(z), w> with
    w = d cos / d g: the document gradient along w, which is taken as everywhere in this package. A step costs a full
    gradient and two by the pixels of the edited documents; there are steps times restarts of them.

    Args:
        ball: how far a document may move.
        steps: of each restart.
        step_size: of Adam in steps of 1/255; 0.4 radius by default, a tenth of it after 3/8, 5/8 and 7/8 of the steps.
        restarts: from random points of the ball; that with the highest cosine after rounding is kept.
        seed: of the starting points.
        batch_size: documents a pass; the result does not depend on it beyond rounding.

    Source: Geiping et al., arXiv 2009.02276 (Witches' Brew), algorithm 1: 250 steps and 8 restarts. Its augmentation of
    the documents during the ascent is left out.
    """

    ball: Linf | L2
    steps: int = 250
    step_size: float | None = None
    restarts: int = 8
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        counts = {"steps": self.steps, "restarts": self.restarts, "batch_size": self.batch_size}
        require_ascent(self.ball, self.step_size, **counts)

    def __str__(self) -> str:
        return f"gradient matching {self.ball}, {self.steps} steps, {self.restarts} restarts, seed {self.seed}"

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Edit:
        """Return the edit of the documents `ids`, in that order.

        gains are -(1/N) <grad f, grad L(z') - grad L(z)>: the change of f by one gradient step of size 1 on the mean
        loss, not a predicted change after training. A document may have a negative one: only the sum is matched.

        Raises:
            InfuserError: the documents are not 8-bit pixels, or the direction does not fit the model or is zero.
        """
        effect = predicted_effect(direction, run, data)
        chosen = data[ids]
        require_pixels(chosen, storable=True)
        length = algebra.norm(effect.v)
        if not length > 0:
            raise InfuserError("the target gradient is zero", causes=["the probes are already certain"])
        target = algebra.scale(effect.v, -1 / float(length))
        generator = torch.Generator().manual_seed(self.seed)
        tried = [self._restart(effect, target, chosen, generator, r) for r in range(self.restarts)]
        cosine, after = max(tried, key=lambda pair: pair[0])
        gains = document_scores(effect, replace(chosen, inputs=after)) - document_scores(effect, chosen)
        return Edit(
            chosen.ids,
            chosen.inputs,
            after,
            chosen.targets,
            chosen.targets,
            self.ball,
            f"{self}, cosine {cosine:.3f}; {direction.mean().names[0]}; {direction.made_by}",
            gains,
        )

    def _restart(
        self, effect: PredictedEffect, target: Params, chosen: Dataset, generator: torch.Generator, restart: int
    ) -> tuple[float, Array]:
        """Return (cosine after rounding, stored documents) of one restart."""
        whole = chosen.batch(np.arange(len(chosen)), str(next(iter(effect.params.values())).device))
        center, targets = effect.task.feed(whole.inputs), whole.targets
        z = self.ball.project(self.ball.sample(center, generator), center)
        size = (0.4 * self.ball.radius if self.step_size is None else self.step_size) / STEPS
        adam = torch.optim.Adam([z], lr=size)
        decay = torch.optim.lr_scheduler.MultiStepLR(adam, [round(share * self.steps) for share in _DECAYS], gamma=0.1)
        best_cosine, best = -float("inf"), z.clone()
        matching = None
        for _ in track(range(self.steps), f"matching gradients, restart {restart + 1} of {self.restarts}"):
            cosine, w = self._cosine(effect, target, z, targets)
            if cosine > best_cosine:
                best_cosine, best = cosine, z.clone()
            if matching is None:
                # s(z) = -(1/n) <v, grad L>, so v = -w and n = 1 make its slope that of <w, grad L>.
                few = slice(0, _CHECKED)
                matching = replace(effect, v=algebra.scale(w, -1), n=1, via="auto").checked(z[few], targets[few])
            slopes = self._slopes(replace(matching, v=algebra.scale(w, -1)), z, targets)
            z.grad = -slopes.sign()
            adam.step()
            decay.step()
            z.copy_(self.ball.project(z, center))
        candidates = [self.ball.store(found.double().cpu().numpy(), chosen.inputs) for found in (best, z)]
        rated = [(self._stored_cosine(effect, target, chosen, stored), stored) for stored in candidates]
        return max(rated, key=lambda pair: pair[0])

    def _slopes(self, matching: PredictedEffect, z: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(z.split(self.batch_size), targets.split(self.batch_size), strict=True)
        return torch.cat([matching.at(part, wanted)[1] for part, wanted in pairs])

    def _cosine(self, effect: PredictedEffect, target: Params, z: Tensor, targets: Tensor) -> tuple[float, Params]:
        """Return (cos(g, target), w = d cos / d g) with g the documents' summed gradient and target of length 1."""
        point = {name: effect.params[name].detach().requires_grad_() for name in target}
        summed = algebra.zeros(target)
        for part, wanted in zip(z.split(self.batch_size), targets.split(self.batch_size), strict=True):
            with torch.enable_grad():
                outputs = functional_call(effect.model, {**effect.params, **point}, (part.detach(),))
                loss = effect.task.loss(outputs, wanted).sum()
                rows = torch.autograd.grad(loss, list(point.values()), materialize_grads=True)
            summed = {name: summed[name] + row for name, row in zip(point, rows, strict=True)}
        length = float(algebra.norm(summed))
        if not 0 < length < float("inf"):
            raise InfuserError(
                "the summed gradient of the documents is zero or not finite",
                got=f"norm {length:g}",
                causes=["the model diverged"],
            )
        cosine = float(algebra.dot(summed, target)) / length
        return cosine, algebra.add(algebra.scale(target, 1 / length), summed, -cosine / length**2)

    def _stored_cosine(self, effect: PredictedEffect, target: Params, chosen: Dataset, stored: Array) -> float:
        edited = replace(chosen, inputs=stored).batch(np.arange(len(chosen)), str(next(iter(target.values())).device))
        return self._cosine(effect, target, effect.task.feed(edited.inputs), edited.targets)[0]
