"""From trials to results.json: every number with its n, seeds, control and interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infuser.data import Dataset
from infuser.evaluation.checks import (
    Caveat,
    check_accuracy,
    check_agreement,
    check_edit,
    check_effects,
    check_model,
    check_p_values,
    check_seeds,
    check_trials,
    distinct,
)
from infuser.evaluation.compare import PRIMARY, compare
from infuser.evaluation.metrics import ClassAccuracy, arm_block, effect_block
from infuser.evaluation.placebo import PLACEBO, with_placebo
from infuser.evaluation.truth import Agreement, agreement
from infuser.storage import atomic_path, hash_arrays
from infuser.studies.parts import Part
from infuser.studies.study import Scored
from infuser.types import Effect, Scores, Trials

SCHEMA = 1


def assemble(study: Scored, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return what results.json says, but for the environment: a function of the settings and the parts alone."""
    settings, pooled = study.settings, pooled_trials(parts)
    edits = [part.edit for part in parts.values() if part.edit is not None]
    facts = [part.facts for part in parts.values() if part.edit is not None]
    predicted = np.array([fact["predicted"] for fact in facts])
    caveats: list[Caveat] = [caveat for edit in edits for caveat in check_edit(edit)]
    caveats += check_model(study.run.model(), study.run.recipe)
    regimes, forecasts = {}, {}
    for regime, trials in pooled.items():
        effects = all_effects(trials)
        regimes[regime] = _regime(trials, effects, study)
        shares = np.bincount(study.judged.targets) / len(study.judged)
        accuracy = regimes[regime]["arms"]["clean"]["test_accuracy"]
        main = compare(trials, "edit", "clean", study.probes.name)
        foretold = dict(zip(study.probes.queries, predicted.tolist(), strict=True))
        forecasts[regime], matched = forecast(foretold, main)
        # An unrolled edit says nothing of other parts of training than its own.
        agreeing = check_agreement(matched) if settings.unrolled in (None, regime) else ()
        # The edit's own effects; that controls do nothing is what they are for.
        own = [effect for effect in effects if effect.arm == "edit"]
        found = [*check_accuracy(accuracy, len(study.judged), float(shares.max())), *check_trials(trials)]
        found += [*check_seeds(trials, settings.recipe), *check_effects(own), *check_p_values(effects), *agreeing]
        caveats += [replace(c, text=f"{regime}: {c.text}") if len(pooled) > 1 else c for c in found]
    return {
        "schema": SCHEMA,
        "dataset": study.data.name,
        "model": settings.model,
        "n_train": len(study.data),
        "n_edited": settings.k,
        "n_judged": len(study.judged),
        "norm": settings.norm,
        "radius": settings.radius,
        "strategy": settings.select,
        "unrolled": settings.unrolled,
        "base_seed": settings.recipe.seed,
        "seeds": list(settings.seeds),
        "probes": study.probes.documents.ids.tolist(),
        "targets": np.asarray(study.probes.labels).tolist(),
        "regimes": regimes,
        "edit": {
            "linf_255_max": max(fact["linf_255_max"] for fact in facts),
            "l2_mean": float(np.mean([fact["l2_mean"] for fact in facts])),
            "ssim_mean": float(np.mean([fact["ssim_mean"] for fact in facts])),
        },
        "predicted": forecasts,
        "scores": {"method": study.scores.method, "unit": study.scores.unit, "sha256": _hash(study.scores)},
        "caveats": [caveat.text for caveat in distinct(caveats)],
    }


def forecast(predicted: Mapping[str, float], main: Effect) -> tuple[dict[str, Any], Agreement]:
    """Return what results.json says of predicted and measured changes, and how well they agree.

    Args:
        predicted: query -> change of f.
        main: the effect of the edit, with its queries.
    """
    measured = np.array([main.per_probe[name] for name in predicted])
    matched = agreement(np.array(list(predicted.values())), measured, main.estimate.unit_of_n)
    block = {
        "per_probe": dict(predicted),
        "measured": dict(main.per_probe),
        "slope": _estimate(matched.slope),
        "rank_correlation": _estimate(matched.rank),
    }
    return block, matched


def pooled_trials(parts: Mapping[str, Part]) -> dict[str, Trials]:
    """Return the rows of all jobs by regime, with the arm placebo."""
    # Sorted, as the files of the parts have them: a resumed run pools them in the order of one that was not stopped.
    regimes = sorted({regime for part in parts.values() for regime in part.trials})
    pooled = {regime: Trials.concat([part.trials[regime] for part in parts.values()]) for regime in regimes}
    return {regime: with_placebo(trials) for regime, trials in pooled.items()}


def all_effects(trials: Trials) -> list[Effect]:
    """Return each arm against clean, and the edit against each control, on the primary scale."""
    arms = [name for name in dict.fromkeys(trials.arm.tolist()) if name != "clean"]
    pairs = [(arm, "clean") for arm in arms] + [("edit", control) for control in arms if control != "edit"]
    return [compare(trials, arm, control, PRIMARY) for arm, control in pairs]


def write_trials(path: Path, pooled: Mapping[str, Trials]) -> None:
    """Write all rows as parquet with the columns regime, arm, seed, probe, measure and value.

    A probe has several rows of `elsewhere` in an arm and seed: one for every model that was edited for another probe.
    """
    names = ("arm", "seed", "probe", "measure", "value")
    columns: dict[str, Any] = {"regime": np.concatenate([np.repeat(r, len(t)) for r, t in pooled.items()])}
    columns |= {name: np.concatenate([getattr(trials, name) for trials in pooled.values()]) for name in names}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _regime(trials: Trials, effects: Sequence[Effect], study: Scored) -> dict[str, Any]:
    trained = [arm for arm in dict.fromkeys(trials.arm.tolist()) if arm != PLACEBO]
    return {
        "unit": effects[0].measure,
        "arms": {arm: arm_result(trials, arm, study.judged) for arm in trained},
        "effects": [effect_block(effect) for effect in effects],
        "per_probe": {effect.arm: dict(effect.per_probe) for effect in effects if effect.control == "clean"},
    }


def arm_result(trials: Trials, arm: str, judged: Dataset) -> dict[str, Any]:
    """Return the arm's block with the accuracy of each class, their mean over documents, and the probes' neighbours."""
    near, classes = (trials.where(arm=arm, measure=name) for name in ("collateral", "class_accuracy"))
    names, documents = ClassAccuracy(judged).queries, np.unique(judged.targets, return_counts=True)[1]
    per_class = {name: float(classes.where(probe=name).value.mean()) for name in names}
    return {
        **arm_block(trials, arm),
        "test_accuracy": float(np.dot(list(per_class.values()), documents) / documents.sum()),
        "collateral": float(near.value.mean()),
        "class_accuracy": per_class,
    }


def _hash(scores: Scores) -> str:
    return hash_arrays({"ids": scores.ids, "values": scores.values})


def _estimate(estimate: Any) -> dict[str, Any] | None:
    if estimate is None:
        return None
    interval = None if estimate.interval is None else list(estimate.interval)
    return {"value": estimate.value, "ci95": interval, "n": estimate.n}
