"""What the experiment on the exact derivative compares: the edits of a probe, and how derivatives agree.

edit               along EK-FAC, of the documents that post_edit chose; at the damping that did best on other probes
edit_views         the same documents along EK-FAC of four models, three of other seeds
noise              the same sizes without an aim
unrolled           the same documents along the exact derivative through the last epoch, in the run's own order
unrolled_orders    the same, another order at every step
unrolled_scratch   the same through all of training, another initialisation at every step
unrolled_chosen    the same on the documents where it promises most (unrolled_orders where training is too long)
edit_chosen        the same documents as the last along EK-FAC
edit_potential     along EK-FAC, of the documents where EK-FAC itself promises most
edit_checkpoints   along EK-FAC of the run's checkpoints, of the documents where their mean promises most
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from scipy.stats import spearmanr

from infuser.attribution.attribute import attribute
from infuser.attribution.influence import Influence
from infuser.attribution.unrolled import Unrolled
from infuser.checkpoints import Run
from infuser.data import Dataset
from infuser.evaluation.arms import noise as noise_like
from infuser.measure import Margin
from infuser.params import trainable
from infuser.perturbation.balls import Linf
from infuser.perturbation.document_gradient import document_gradient
from infuser.perturbation.perturb import perturb
from infuser.perturbation.pgd import PGD, View
from infuser.perturbation.unrolled_pgd import UnrolledPGD
from infuser.tasks import task_of
from infuser.types import Array, Builder, Direction, Edit, Recipe

# Seeds that averages are taken over, and seeds for all. Crafted edits see 1, 2, ..., one a step.
CRAFT, UNSEEN = (1, 2, 3), (101, 102, 103)


@dataclass(frozen=True)
class Case:
    """What is trained, and how much is edited."""

    data: str
    limit: int | None
    builder: Builder
    other: Builder
    recipe: Recipe
    other_recipe: Recipe
    k: int
    radius: float
    probes: int = 6
    steps: int = 20
    whole: bool = True  # the whole of training is short enough to differentiate, not the last epoch alone


@dataclass(frozen=True)
class Bench:
    """What the probes of a case share.

    Attributes:
        views: runs of other seeds, and how their directions are solved.
        path: the run at earlier checkpoints, likewise.
        damping: tried damping -> effect of the edit on other probes.
    """

    case: Case
    data: Dataset
    run: Run
    other: Run
    probes: Margin
    damping: Mapping[float, float]
    influence: Influence
    views: tuple[tuple[Run, Influence], ...]
    path: tuple[tuple[Run, Influence], ...]


@dataclass(frozen=True)
class Craft:
    """What an edit of one probe is made from.

    Attributes:
        bench: what probes share.
        q: number of the probe.
        of: arm -> its edit.
    """

    bench: Bench
    q: int
    of: Callable[[str], Edit]

    @property
    def probe(self) -> Margin:
        return self.bench.probes[self.q]

    @property
    def direction(self) -> Direction:
        return self.bench.influence.direction(self.bench.run, self.probe)

    @property
    def along(self) -> PGD:
        return PGD(Linf(self.bench.case.radius), steps=self.bench.case.steps)

    def averaged(self, models: tuple[tuple[Run, Influence], ...]) -> PGD:
        """Return the ascent along EK-FAC of the run and of these."""
        return replace(self.along, views=tuple(View(run, how.direction(run, self.probe)) for run, how in models))

    def exact(self, start: str, *, own: bool = False) -> UnrolledPGD:
        """Return the ascent along the exact derivative; one seed more than steps, so that no move counts itself."""
        case = self.bench.case
        seeds = () if own else tuple(range(1, case.steps + 2))
        return UnrolledPGD(Linf(case.radius), self.probe, start, seeds, case.steps)

    def edit(self, method: PGD | UnrolledPGD, ids: Array | None = None) -> Edit:
        """Return the edit of the documents `ids`, else of those with the highest potential."""
        bench, how = self.bench, {"k": self.bench.case.k, "select": "potential"} if ids is None else {"ids": ids}
        return perturb(method, self.direction, bench.run, bench.data, **how)


def edit_along(influence: Influence, case: Case, data: Dataset, run: Run, probe: Margin) -> Edit:
    """Return the edit along a direction, of the documents that post_edit chooses."""
    scores = attribute(influence, run, data, probe)
    method = PGD(Linf(case.radius), steps=case.steps)
    return perturb(method, influence.direction(run, probe), run, data, case.k, scores=scores)


def edit(craft: Craft) -> Edit:
    bench = craft.bench
    return edit_along(bench.influence, bench.case, bench.data, bench.run, craft.probe)


def edit_views(craft: Craft) -> Edit:
    return craft.edit(craft.averaged(craft.bench.views), craft.of("edit").ids)


def noise(craft: Craft) -> Edit:
    return noise_like(craft.of("edit"), craft.q)


def unrolled(craft: Craft) -> Edit:
    return craft.edit(craft.exact("last_epoch", own=True), craft.of("edit").ids)


def unrolled_orders(craft: Craft) -> Edit:
    return craft.edit(craft.exact("last_epoch"), craft.of("edit").ids)


def unrolled_scratch(craft: Craft) -> Edit:
    return craft.edit(craft.exact("scratch"), craft.of("edit").ids)


def unrolled_chosen(craft: Craft) -> Edit:
    return craft.edit(craft.exact("scratch" if craft.bench.case.whole else "last_epoch"))


def edit_chosen(craft: Craft) -> Edit:
    return craft.edit(craft.along, craft.of("unrolled_chosen").ids)


def edit_potential(craft: Craft) -> Edit:
    return craft.edit(craft.along)


def edit_checkpoints(craft: Craft) -> Edit:
    return craft.edit(craft.averaged(craft.bench.path))


# In an order in which each finds the edits that it needs.
MAKERS: Mapping[str, tuple[Callable[[Craft], Edit], str | None]] = {
    "edit": (edit, None),
    "edit_views": (edit_views, "edit"),
    "noise": (noise, "edit"),
    "unrolled": (unrolled, "edit"),
    "unrolled_orders": (unrolled_orders, "edit"),
    "unrolled_scratch": (unrolled_scratch, "edit"),
    "unrolled_chosen": (unrolled_chosen, None),
    "edit_chosen": (edit_chosen, "unrolled_chosen"),
    "edit_potential": (edit_potential, None),
    "edit_checkpoints": (edit_checkpoints, None),
}
# What the sum of an arm's gains predicts: f after training in this way.
PREDICTS = {
    "edit": "scratch",
    "unrolled": "own order",
    "unrolled_orders": "last_epoch",
    "unrolled_scratch": "scratch",
    "unrolled_chosen": "scratch",
    "edit_chosen": "scratch",
    "edit_potential": "scratch",
    "edit_checkpoints": "scratch",
}
PAIRS = (
    ("EK-FAC", "own order"),
    ("EK-FAC", "orders"),
    ("own order", "orders"),
    ("orders", "other orders"),
    ("EK-FAC", "runs"),
    ("runs", "other runs"),
)


def agreement(craft: Craft) -> dict[str, float]:
    """Return rank correlations of scores over all documents, and cosines of the gradients of the edited ones."""
    bench, probe, direction, ids = craft.bench, craft.probe, craft.direction, craft.of("edit").ids
    run, data = bench.run, bench.data
    ways = {"own order": Unrolled(), "orders": Unrolled(seeds=CRAFT), "other orders": Unrolled(seeds=UNSEEN)}
    if bench.case.whole:
        ways |= {"runs": Unrolled("scratch", CRAFT), "other runs": Unrolled("scratch", UNSEEN)}
    found = {name: way.derivatives(run, data, probe, ids) for name, way in ways.items()}
    scores = {name: by_weight.values[0] for name, (by_weight, _) in found.items()}
    slopes = {name: by_input[0] for name, (_, by_input) in found.items()}
    scores["EK-FAC"] = attribute(bench.influence, run, data, probe).values[0]
    model, batch, v = run.model(), data.batch(data.positions(ids), "cpu"), direction.single()
    slopes["EK-FAC"] = document_gradient(model, trainable(model), task_of(data), batch, v, n=len(data), via="forward")
    pairs = [(a, b) for a, b in PAIRS if a in scores and b in scores]
    ranks = {f"rank: {a}, {b}": float(spearmanr(scores[a], scores[b]).statistic) for a, b in pairs}
    return ranks | {f"cosine: {a}, {b}": cosine(slopes[a], slopes[b]) for a, b in pairs}


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean over documents of the cosine of their gradients."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).mean())
