"""A case grows by the arms that were finished after its results were written, when the models of those are gone.

The results hold each earlier arm's effect on every probe, so that a new arm is compared with all of them. It is worth
that only if clean training gives what it gave then: this is checked first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.evaluation.compare import PRIMARY, compare
from infuser.evaluation.metrics import effect_block
from infuser.studies.results import all_effects, arm_result
from infuser.types import Trials

AGREE = 1e-3  # log-odds by which two clean models of one recipe, seed and machine may differ


def grown(
    held: Mapping[str, Any],
    trials: Mapping[str, Trials],
    clean: Mapping[str, Mapping[str, float]],
    told: Mapping[str, Mapping[str, Any]],
    placebo: Mapping[str, Mapping[str, Any]],
    judged: Dataset,
    order: Sequence[str],
) -> dict[str, Any]:
    """Return the results of a case with further arms.

    Args:
        held: the results so far.
        trials: regime -> rows of the new arms and of clean.
        clean: regime -> probe -> log-odds of clean.
        told: new arm -> how its edits were made.
        placebo: regime -> new arm -> its effect against the models that were edited for other probes.
        judged: documents that accuracy is measured on.
        order: of the arms, for the list of effects.

    Raises:
        InfuserError: clean training gives other models than it gave for the results so far.
    """
    regimes = {}
    for name, block in held["regimes"].items():
        require_same_clean(name, held["foretold"][name]["clean_log_odds"], clean[name])
        found = {arm: dict(compare(trials[name], arm, "clean", PRIMARY).per_probe) for arm in told}
        known = {**block["per_probe"], **found}
        per_probe = {arm: known[arm] for arm in order if arm in known}
        arms = {arm: arm_result(trials[name], arm, judged) for arm in told}
        effects = [effect_block(effect) for effect in effects_of(per_probe, held["seeds"])]
        regimes[name] = {**block, "arms": {**block["arms"], **arms}, "effects": effects, "per_probe": per_probe}
    return {
        **held,
        "regimes": regimes,
        "arms": {**held["arms"], **told},
        "placebo": {name: {**held["placebo"][name], **placebo[name]} for name in regimes},
        "missing": {arm: n for arm, n in held["missing"].items() if arm not in told},
    }


def require_same_clean(regime: str, held: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Raise where clean training does not give the log-odds that it gave for the results so far."""
    apart = np.array([abs(found[probe] - value) for probe, value in held.items()])
    worst = list(held)[int(apart.argmax())]  # NaN, where there is one
    if not apart.max() <= AGREE:
        raise InfuserError(
            f"{regime}: clean training gives another model than the one that the results were measured against",
            got=f"{found[worst]:.4f} log-odds for {worst}",
            expected=f"{held[worst]:.4f}",
            causes=["another machine, version of torch, recipe or seed"],
            remedy="make all arms of the case anew: remove it from its result file",
        )


def effects_of(per_probe: Mapping[str, Mapping[str, float]], seeds: Sequence[int]) -> list[Any]:
    """Return each arm against clean, and the edit against each of the others, from the effects on the probes."""
    (seed,) = seeds
    rows = [(arm, seed, probe, PRIMARY, value) for arm, found in per_probe.items() for probe, value in found.items()]
    rows += [("clean", seed, probe, PRIMARY, 0.0) for probe in per_probe["edit"]]
    return all_effects(Trials.from_rows(rows, ""))
