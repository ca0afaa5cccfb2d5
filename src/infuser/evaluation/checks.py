"""Caveats as values: what a reader must know before believing a result, found without being asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from infuser.errors import listed
from infuser.evaluation.metrics import flips
from infuser.evaluation.stats import wilson
from infuser.evaluation.truth import Agreement
from infuser.types import Arm, Array, Edit, Effect, Recipe, Trials


@dataclass(frozen=True)
class Caveat:
    """Something that limits what a result says.

    Attributes:
        code: a fixed word, for programs.
        text: a sentence with its numbers, for people.
    """

    code: str
    text: str

    def __str__(self) -> str:
        return self.text


def check_edit(edit: Edit) -> tuple[Caveat, ...]:
    """Return caveats of an edit: it changes nothing, or no document comes near the limit of its ball."""
    changed = (edit.before != edit.after).reshape(len(edit), -1).any(1)
    changed |= (edit.targets_before != edit.targets_after).reshape(len(edit), -1).any(1)
    found = []
    if not changed.all():
        text = f"{int((~changed).sum())} of {len(edit)} edited documents are unchanged: {_ids(edit.ids[~changed])}."
        found.append(Caveat("unchanged_documents", text))
    if edit.constraint is not None and changed.any():
        reached, limit = float(edit.constraint.distance(edit.before, edit.after).max()), edit.constraint.limit
        if reached < 0.95 * limit:
            text = f"The budget never binds: no document goes beyond {reached:.4g} of {limit:.4g} allowed."
            found.append(Caveat("budget_not_binding", text))
    return tuple(found)


def check_arms(arms: Sequence[Arm]) -> tuple[Caveat, ...]:
    """Return caveats of arms: they differ in documents or in how many they change, or two are the same data."""
    found = []
    by_hash: dict[str, list[str]] = {}
    for arm in arms:
        by_hash.setdefault(arm.data.content_hash, []).append(arm.name)
        if not np.array_equal(arm.data.ids, arms[0].data.ids):
            text = f"Arms {arms[0].name} and {arm.name} hold other documents ({len(arms[0].data)}, {len(arm.data)})."
            found.append(Caveat("arms_unequal", text))
    same = [names for names in by_hash.values() if len(names) > 1]
    found += [Caveat("arms_identical", f"Arms {' and '.join(names)} are the same data.") for names in same]
    clean = next((arm for arm in arms if arm.name == "clean"), None)
    sizes = {arm.name: _changed(arm, clean) for arm in arms if clean and arm is not clean and arm.name != "insert_1"}
    if len(set(sizes.values()) - {None}) > 1:
        text = f"The arms change different numbers of documents: {', '.join(f'{n} {k}' for n, k in sizes.items())}."
        found.append(Caveat("arms_unequal_size", text))
    return tuple(found)


def _changed(arm: Arm, clean: Arm) -> int | None:
    if not np.array_equal(arm.data.ids, clean.data.ids):
        return None
    different = (arm.data.inputs != clean.data.inputs).reshape(len(arm.data), -1).any(1)
    different |= (arm.data.targets != clean.data.targets).reshape(len(arm.data), -1).any(1)
    different |= arm.data.weights != clean.data.weights
    return int(different.sum())


def check_trials(trials: Trials, arm: str = "edit", control: str = "clean") -> tuple[Caveat, ...]:
    """Return caveats of trials: trivial probes, saturated probabilities."""
    found = []
    measured = set(trials.where(arm=arm).measure.tolist())
    if "correct" in measured:
        trivial = flips(trials, arm, control).trivial
        n = len(set(trials.where(arm=arm, measure="correct").probe.tolist()))
        if trivial:
            text = f"{len(trivial)} of {n} probes have their target on top without any edit: {listed(trivial)}."
            found.append(Caveat("trivial_probes", text))
    if "probability" in measured:
        values = trials.where(arm=arm, measure="probability").value
        share = float(((values < 1e-4) | (values > 1 - 1e-4)).mean())
        if share > 0.2:
            text = f"{100 * share:.0f} % of the target's probabilities are within 1e-4 of 0 or 1: read the log-odds."
            found.append(Caveat("saturated_probabilities", text))
    return tuple(found)


def check_seeds(trials: Trials, recipe: Recipe) -> tuple[Caveat, ...]:
    """Return caveats of the seeds: fewer than 3, or only the order that the edit was made for."""
    seeds = sorted(set(trials.seed.tolist()))
    found = []
    if len(seeds) < 3:
        text = f"Only {len(seeds)} retraining seed{'s' if len(seeds) > 1 else ''}: the interval is about these alone."
        found.append(Caveat("few_seeds", text))
    if recipe.seed in seeds:
        text = f"Seed {recipe.seed} is the order that the edit was made for" + (
            ", and there is no other: nothing is shown about other orders." if len(seeds) == 1 else "."
        )
        found.append(Caveat("crafted_order", text))
    return tuple(found)


def check_effects(effects: Sequence[Effect]) -> tuple[Caveat, ...]:
    """Return caveats of effects: no interval, an interval that holds zero, arms whose intervals overlap."""
    found = []
    for effect in effects:
        name = f"{effect.arm} minus {effect.control} in {effect.measure}"
        if effect.interval is None:
            text = f"{name} has no interval: {effect.estimate.n} {effect.estimate.unit_of_n}."
            found.append(Caveat("no_interval", text))
        elif effect.interval[0] <= 0 <= effect.interval[1]:
            found.append(Caveat("interval_holds_zero", f"The interval of {name} holds zero: {effect.estimate}."))
    for i, a in enumerate(effects):
        for b in effects[i + 1 :]:
            if _overlap(a, b):
                text = f"The intervals of {a.arm} and {b.arm} against {a.control} in {a.measure} overlap: "
                found.append(Caveat("intervals_overlap", text + "compare them with each other, paired."))
    return tuple(found)


def check_p_values(effects: Sequence[Effect]) -> tuple[Caveat, ...]:
    """Return a caveat where p is below 0.05 and the interval holds zero: p takes the seeds as given."""
    small = [(e, e.interval) for e in effects if e.p is not None and e.p < 0.05 and e.interval is not None]
    apart = [f"{e.arm} - {e.control}" for e, (low, high) in small if low <= 0 <= high]
    if not apart:
        return ()
    text = (
        f"p is small though the interval holds zero: {listed(apart)}. p takes the seeds as given, the interval does"
        " not: on other seeds there may be no such effect."
    )
    return (Caveat("p_of_these_seeds", text),)


def _overlap(a: Effect, b: Effect) -> bool:
    if (a.control, a.measure) != (b.control, b.measure) or a.interval is None or b.interval is None:
        return False
    return max(a.interval[0], b.interval[0]) <= min(a.interval[1], b.interval[1])


def check_model(model: nn.Module, recipe: Recipe | None = None) -> tuple[Caveat, ...]:
    """Return caveats where training is random beyond its order, as scores and edits are not."""
    kinds = (nn.modules.dropout._DropoutNd, nn.RReLU)
    random = [name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, kinds) and _active(m)]
    found = []
    if random:
        text = (
            f"{len(random)} layers are random in training ({listed(random)}), and taken without it in scores and edits."
        )
        found.append(Caveat("randomised_model", text))
    if recipe is not None and recipe.augmentation != "none":
        text = (
            f"Documents are augmented in training ({recipe.augmentation}), and taken as they are in scores and edits."
        )
        found.append(Caveat("augmented", text))
    return tuple(found)


def _active(module: nn.Module) -> bool:
    return not isinstance(module, nn.modules.dropout._DropoutNd) or module.p > 0


def check_accuracy(accuracy: float, n: int, chance: float) -> tuple[Caveat, ...]:
    """Return a caveat where the clean model's accuracy on n test documents cannot be told from chance (Wilson)."""
    low = (wilson(round(accuracy * n), n).interval or (0.0, 1.0))[0]
    if low > chance:
        return ()
    text = f"The clean model is right on {accuracy:.1%} of {n} test documents, no more than chance ({chance:.1%})."
    return (Caveat("no_better_than_chance", f"{text} What moves it says little about a model that works."),)


def check_agreement(agreement: Agreement) -> tuple[Caveat, ...]:
    """Return a caveat where predicted and measured changes disagree: rank below 0.5, or wrong in size by over 2."""
    found = []
    rank, slope = agreement.rank, agreement.slope
    if np.isfinite(rank.value) and rank.value < 0.5:
        found.append(Caveat("prediction_mismatch", f"Predicted effects rank poorly against measured ones: {rank}."))
    if np.isfinite(slope.value) and not 0.5 <= slope.value <= 2:
        text = f"Predicted effects are wrong in size: measured per predicted is {slope}."
        found.append(Caveat("prediction_size", text))
    return tuple(found)


def distinct(caveats: Iterable[Caveat]) -> tuple[Caveat, ...]:
    """Return each caveat once, in order of appearance."""
    return tuple(dict.fromkeys(caveats))


def _ids(ids: Array) -> str:
    return listed(ids.tolist())
