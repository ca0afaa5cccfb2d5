"""A case that grows by an arm is the case that was measured with all of them at once."""

from __future__ import annotations

import cifar10_grow
import numpy as np
import pytest

from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.evaluation.metrics import effect_block
from infuser.studies.results import all_effects, arm_result
from infuser.types import Trials

PROBES, ARMS, SEED = ("10->1", "11->0", "12->2", "13->1"), ("edit", "noise", "top"), 7
JUDGED = Dataset.from_arrays(np.zeros((6, 1, 2, 2), dtype=np.uint8), np.array([0, 0, 0, 1, 1, 2]), name="judged")
ODDS = {probe: -3.0 + q for q, probe in enumerate(PROBES)}


def measured() -> Trials:
    """Return the rows of one clean model, and of one model a probe for every arm."""
    rng = np.random.default_rng(0)
    rows = []
    for arm in ("clean", *ARMS):
        shared = dict(zip((f"class {c}" for c in range(3)), rng.random(3), strict=True))
        for probe in PROBES:
            odds = ODDS[probe] + (0 if arm == "clean" else rng.normal(1, 1))
            rows.append((arm, SEED, probe, "log_odds", odds))
            rows.append((arm, SEED, probe, "probability", 1 / (1 + np.exp(-odds))))
            rows.append((arm, SEED, probe, "correct", float(odds > 0)))
        rows += [(arm, SEED, name, "class_accuracy", value) for name, value in shared.items()]
        rows.append((arm, SEED, "", "collateral", rng.random()))
    return Trials.from_rows(rows, "last_epoch")


def case(arms: tuple[str, ...]) -> dict:
    """Return what results say of these arms."""
    rows = measured()
    kept = Trials.concat([rows.where(arm=arm) for arm in ("clean", *arms)])
    effects = all_effects(kept)
    block = {
        "arms": {arm: arm_result(kept, arm, JUDGED) for arm in ("clean", *arms)},
        "effects": [effect_block(effect) for effect in effects],
        "per_probe": {effect.arm: dict(effect.per_probe) for effect in effects if effect.control == "clean"},
        "unit": "log_odds",
    }
    return {
        "seeds": [SEED],
        "regimes": {"last_epoch": block},
        "foretold": {"last_epoch": {"clean_log_odds": ODDS}},
        "arms": {arm: {"arm": arm} for arm in arms},
        "placebo": {"last_epoch": {arm: {"mean": 0.0} for arm in arms}},
        "missing": {arm: len(PROBES) for arm in ARMS if arm not in arms},
    }


def grown(held: dict, new: tuple[str, ...], clean: dict[str, float] = ODDS) -> dict:
    rows = measured()
    trials = Trials.concat([rows.where(arm=arm) for arm in ("clean", *new)])
    told = {arm: {"arm": arm} for arm in new}
    placebo = {"last_epoch": {arm: {"mean": 0.0} for arm in new}}
    return cifar10_grow.grown(held, {"last_epoch": trials}, {"last_epoch": clean}, told, placebo, JUDGED, ARMS)


@pytest.mark.parametrize("first", [("edit",), ("edit", "noise"), ("edit", "top")])
def test_a_grown_case_is_the_whole_one(first):
    rest = tuple(arm for arm in ARMS if arm not in first)
    assert grown(case(first), rest) == case(ARMS)
    assert case(first) != case(ARMS)


def test_another_clean_model_is_refused():
    with pytest.raises(InfuserError, match="another model"):
        grown(case(("edit",)), ("noise",), {**ODDS, PROBES[1]: ODDS[PROBES[1]] + 0.01})
    with pytest.raises(InfuserError, match="another model"):
        grown(case(("edit",)), ("noise",), {**ODDS, PROBES[1]: float("nan")})
