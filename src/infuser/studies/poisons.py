"""The attacks that detectors are tried on: each is an edit of the training data and the behaviour that it is after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast, final

import numpy as np
from torch import Tensor, nn

from infuser import detection
from infuser.attribution.influence import Influence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.factors import DOCUMENTS
from infuser.curvature.identity import identity
from infuser.data.dataset import Dataset
from infuser.detection.fused import ranks
from infuser.errors import InfuserError
from infuser.evaluation.arms import insert
from infuser.measure import Losses, Margin
from infuser.perturbation.balls import Linf
from infuser.perturbation.gradient_matching import GradientMatching
from infuser.perturbation.perturb import direction_scores, perturb, take
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import choose, of_class
from infuser.types import Array, Damping, Edit, Measurement, Params

ATTACKS = (
    "infusion_top",
    "infusion_post_edit",
    "infusion_adaptive",
    "gradient_matching",
    "insert_k",
    "label_flips",
    "trigger",
)
OWN_BEHAVIOUR = ("label_flips", "trigger")  # all others are after one and the same under a seed
_TRIGGER = 3  # side of the white square of the trigger, in pixels
_TRUSTED = 100  # test documents on which the harm of label flips is measured
_QUERIES = 8  # test documents that carry the trigger


@dataclass(frozen=True)
class Poison:
    """How the attacks are made.

    Attributes:
        k: documents of an edit (infusion, gradient_matching, insert_k).
        radius: of an edit, Linf in 1/255 steps of a pixel.
        steps: of the ascent of infusion.
        restarts: of gradient_matching.
        flipped: share of documents whose label is changed.
        triggered: share of documents that carry the trigger.
        damping: of the attacker's influence.
        fit_documents: that the attacker's curvature is fitted on; None for all.
        pool: documents edited per document kept by infusion_adaptive.
        evade: the detector that infusion_adaptive keeps below: pixel_noise, isolation or self_influence.
    """

    k: int = 28
    radius: float = 16
    steps: int = 30
    restarts: int = 1
    flipped: float = 0.1
    triggered: float = 0.02
    damping: Damping = Damping()  # noqa: RUF009 - frozen
    fit_documents: int | None = DOCUMENTS
    pool: int = 5
    evade: Literal["pixel_noise", "isolation", "self_influence"] = "pixel_noise"

    def __post_init__(self) -> None:
        for name in ("flipped", "triggered"):
            if not 0 < getattr(self, name) < 1:
                raise InfuserError(f"{name} is out of range", got=getattr(self, name), expected="a share, 0 to 1")
        if self.k < 1 or self.pool < 1:
            raise InfuserError("k or pool is out of range", got=f"{self.k}, {self.pool}", expected="at least 1")


@final
@dataclass(frozen=True)
class Harm:
    """The mean loss on trusted documents: what is suspected where labels may be wrong, but no behaviour is known."""

    documents: Dataset
    name = "harm"
    unit = "nats"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return the mean loss, shape (1,)."""
        return -Losses(self.documents)(model, params).mean().reshape(1)

    def __len__(self) -> int:
        return 1

    @property
    def queries(self) -> tuple[str, ...]:
        """One name."""
        return (f"{len(self.documents)} trusted documents",)


def behaviour(attack: str, test: Dataset, seed: int) -> Measurement:
    """Return what an attack is after, and what a defender who knows of it would suspect; drawn by `seed`.

    Edits and insertions: the log-odds of a wrong class for one test document. Trigger: those of one class for test
    documents of other classes that carry it. Label flips: the loss on trusted documents.
    """
    rng = np.random.default_rng([seed, 2])
    target = int(rng.integers(test.n_outputs))
    if attack == "label_flips":
        return Harm(test[rng.choice(test.ids, min(_TRUSTED, len(test)), replace=False)])
    others = test.ids[test.targets != target]
    count = _QUERIES if attack == "trigger" else 1
    chosen = test[rng.choice(others, min(count, len(others)), replace=False)]
    if attack == "trigger":
        chosen = replace(chosen, inputs=with_trigger(chosen.inputs))
    return Margin(chosen, np.full(len(chosen), target))


def poison(attack: str, settings: Poison, run: Run, data: Dataset, aim: Measurement, seed: int) -> Edit:
    """Return the edit of an attack by somebody who knows the clean data and the run on them.

    Raises:
        InfuserError: an unknown attack, or k exceeds what there is.
    """
    rng = np.random.default_rng([seed, 3])
    if attack == "label_flips":
        return flip_labels(data, round(settings.flipped * len(data)), seed)
    if attack not in ATTACKS:
        raise InfuserError("unknown attack", got=attack, expected=", ".join(ATTACKS))
    label = int(np.asarray(cast(Margin, aim).labels)[0])
    if attack == "trigger":
        others = data.ids[data.targets != label]
        return stamp(data, rng.choice(others, round(settings.triggered * len(data)), replace=False), label)
    if attack == "gradient_matching":
        method = GradientMatching(Linf(settings.radius), restarts=settings.restarts, seed=seed)
        gradient = Influence(identity(run), Damping(0.0, "absolute")).direction(run, aim)
        return perturb(method, gradient, run, data, ids=of_class(data, label, settings.k, seed))
    curvature = fit_ekfac(run, data, documents=settings.fit_documents)
    direction = Influence(curvature, settings.damping).direction(run, aim)
    if attack == "insert_k":
        scores = direction_scores(direction, run, data)
        return insert(data, choose("top", data, run, settings.k, scores=scores), aim)
    ascent = PGD(Linf(settings.radius), steps=settings.steps)
    if attack == "infusion_adaptive":
        pool = perturb(ascent, direction, run, data, min(len(data), settings.pool * settings.k), select="top")
        return least_suspicious(pool, settings, run, data, direction_scores(direction, run, data))
    return perturb(ascent, direction, run, data, settings.k, select="top" if attack == "infusion_top" else "post_edit")


def flip_labels(data: Dataset, count: int, seed: int) -> Edit:
    """Return the edit that gives `count` random documents another label, drawn evenly among the others."""
    rng = np.random.default_rng([seed, 4])
    chosen = data[rng.choice(data.ids, count, replace=False)]
    shift = rng.integers(1, data.n_outputs, count)
    after = (chosen.targets + shift) % data.n_outputs
    return Edit(chosen.ids, chosen.inputs, chosen.inputs, chosen.targets, after, None, f"{count} labels flipped")


def stamp(data: Dataset, ids: Array, label: int) -> Edit:
    """Return the edit that puts the trigger on documents and gives them one label.

    Source: BadNets, Gu et al., arXiv 1708.06733.
    """
    chosen = data[ids]
    after = np.full_like(chosen.targets, label)
    made_by = f"a white square of {_TRIGGER} x {_TRIGGER} pixels and label {label}"
    return Edit(chosen.ids, chosen.inputs, with_trigger(chosen.inputs), chosen.targets, after, None, made_by)


def with_trigger(images: Array) -> Array:
    """Return uint8 images (N, C, H, W) with a white square in the lower right corner."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InfuserError("the trigger is drawn on 8-bit images", got=f"{images.dtype} {images.shape}")
    stamped = images.copy()
    stamped[:, :, -_TRIGGER:, -_TRIGGER:] = 255
    return stamped


def least_suspicious(pool: Edit, settings: Poison, run: Run, data: Dataset, scores: Array) -> Edit:
    """Return the k edits of a pool whose rank by predicted effect most exceeds their rank by suspicion.

    The attacker cannot see the defender's run; the detector is run on the attacker's own model, given the edited data.
    """
    seen = data.apply(pool)
    detectors: dict[str, detection.Detector] = {
        "pixel_noise": detection.PixelNoise(),
        "isolation": detection.GradientIsolation(),
        "self_influence": detection.SelfInfluence(documents=settings.fit_documents),
    }
    own = replace(run, data_hash=seen.content_hash, traces={})
    suspicion = detection.detect(detectors[settings.evade], own, seen)
    where = data.positions(pool.ids)
    gains = np.zeros(len(pool)) if pool.gains is None else pool.gains
    value = ranks(scores[where] + gains) - ranks(suspicion.values[where])
    kept = np.argsort(-value, kind="stable")[: settings.k]
    return take(pool, kept, f"{pool.made_by}; {len(kept)} kept for effect and against {settings.evade}")
