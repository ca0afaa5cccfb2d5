"""What the studies of language models share: the arms of one case, its retraining, and the results over all cases."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import spearmanr

from infuser.attribution import Influence
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.data.text import Codec
from infuser.errors import InfuserError
from infuser.evaluation.arms import arms
from infuser.evaluation.compare import compare
from infuser.evaluation.retrain import retrain
from infuser.executors import Local
from infuser.measure_text import ContrastParts, Mean, coherence, document_losses
from infuser.models.huggingface import HuggingFace
from infuser.params import trainable
from infuser.perturbation.embedding_edits import EmbeddingPGD
from infuser.perturbation.perturb import perturb
from infuser.perturbation.select import PostEdit
from infuser.perturbation.text_controls import clean_rewrite
from infuser.perturbation.text_manifest import load_text_edit, save_text_edit, text_distances
from infuser.perturbation.token_edits import GreedyTokens
from infuser.perturbation.token_effect import TokenEffect, substitution_gains
from infuser.storage import read_json
from infuser.studies.environment import environment, versions
from infuser.studies.parts import Part, completed, determinants, key_of
from infuser.types import Arm, Array, Direction, Edit, Measurement, Trials

PRIMARY = "contrast"
START: Literal["last_epoch"] = "last_epoch"
_TRANSFORMERS = ("transformers", "tokenizers", "peft")  # that models and tokens depend on as well


@dataclass(frozen=True)
class Case:
    """One unit of analysis: a behaviour to be raised, and how it is measured.

    Attributes:
        name: of the unit; every measure has one query of this name.
        craft: what edits are made for; its inputs are disjoint from those of `measures`.
        measures: what is read off every retrained model; ContrastParts among them give "contrast", the primary one.
        own: arm -> edit that only the case can make, given the documents of the main edit (insert_k, swap).
        ban: words that its edits may not bring in.
        whole: words that its edits may not break off.
    """

    name: str
    craft: Measurement
    measures: tuple[Measurement, ...]
    own: Mapping[str, Callable[[Edit], Edit]]
    ban: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """What all cases share.

    Attributes:
        run: its last epoch is the part that is replayed; trained on `data`.
        data: N documents.
        codec: of the documents.
        influence: the fitted method.
        method: of editing.
        k: documents edited.
        select: how they are chosen; "post_edit" edits `pool` times as many.
        pool: of post_edit.
        controls: arms beside clean and edit.
        seeds: orders of the replayed part.
        embedding: if given, an arm "embedding" edits the same documents in this way, which no file can hold.
    """

    run: Run
    data: Dataset
    codec: Codec
    influence: Influence
    method: GreedyTokens
    k: int
    select: str
    pool: float
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    embedding: EmbeddingPGD | None = None


def perform(setup: Setup, case: Case, folder: Path) -> Part:
    """Edit for one case, write the edit, retrain from what was written, and measure every arm."""
    begun = time.monotonic()
    model = setup.run.model()
    agreement = coherence(case.craft, model, trainable(model))
    direction = setup.influence.direction(setup.run, Mean(case.craft))
    edits = make_edits(setup, case, direction)
    ratio = perplexity_ratio(setup.run, setup.data, edits["edit"])
    where = folder / "edits" / case.name
    # What lies there is of a case that was not finished, else it would not be made again.
    shutil.rmtree(where, ignore_errors=True)
    gains = substitution_gains(TokenEffect.of(direction, setup.run, setup.data), edits["edit"])
    save_text_edit(edits["edit"], where, setup.codec, perplexity=ratio, substitution_gains=gains)
    edits["edit"] = load_text_edit(where, setup.data, setup.codec)
    prepared = [arm for arm in arms(setup.data, edits, controls=()) if arm.name != "clean"]
    trials = unfolded(retrain(setup.run, prepared, case.measures, setup.seeds, START))
    forecasts = predicted_by_arm(setup, direction, edits)
    if setup.embedding is not None:
        moved = setup.embedding.edit(direction, setup.run, setup.data, edits["edit"].ids)
        arm = Arm("embedding", setup.data.apply(moved.edit), f"{moved.edit.made_by}; not storable")
        rows = retrain(moved.install(setup.run), [arm], case.measures, setup.seeds, START)
        trials = Trials.concat([trials, unfolded(rows)])
        forecasts["embedding"] = float(moved.gains.sum())
    distances = text_distances(edits["edit"], setup.codec)
    facts = {
        "coherence": agreement,
        "predicted": float(np.sum(0 if edits["edit"].gains is None else edits["edit"].gains)),
        "predicted_by_arm": forecasts,
        "perplexity_ratio": float(np.exp(np.log(ratio).mean())),
        **{f"{name}_mean": float(values.mean()) for name, values in distances.items()},
        "tokens_by_arm": {name: int((e.before != e.after).sum()) for name, e in edits.items()},
    }
    return Part({START: trials}, None, facts, time.monotonic() - begun)


def make_edits(setup: Setup, case: Case, direction: Direction) -> dict[str, Edit]:
    """Return the edit and those of the controls."""
    method = replace(setup.method, ban=case.ban, whole=case.whole)

    def made(select: Any, **more: Any) -> Edit:
        return perturb(method, direction, setup.run, setup.data, setup.k, select=select, **more)

    seed = seed_of(case.name)
    edits = {"edit": made(PostEdit(setup.pool) if setup.select == "post_edit" else setup.select, seed=seed)}
    for control in setup.controls:
        if control == "random_docs":
            edits[control] = made("random", seed=seed + 1)
        elif control == "clean_rewrite":
            mode = setup.method.mode
            edits[control] = clean_rewrite(edits["edit"], setup.run, setup.data, setup.codec, mode, seed)
        elif control in case.own:
            edits[control] = case.own[control](edits["edit"])
        else:
            raise InfuserError("unknown control", got=control, expected=["random_docs", "clean_rewrite", *case.own])
    return edits


def predicted_by_arm(setup: Setup, direction: Direction, edits: Mapping[str, Edit]) -> dict[str, float]:
    """Return the predicted change of f by arm, in nats: scores of the documents after less before, summed."""
    effect = TokenEffect.of(direction, setup.run, setup.data)

    def total(inputs: Array, targets: Array) -> float:
        return float(effect.scores(inputs, targets)[0].sum())

    return {name: total(e.after, e.targets_after) - total(e.before, e.targets_before) for name, e in edits.items()}


def unfolded(trials: Trials) -> Trials:
    """Return the rows of ContrastParts, named case:part, as rows of one measure a part."""
    folded = trials.measure == ContrastParts.name
    split = [name.rpartition(":") if fold else (name, "", "") for name, fold in zip(trials.probe, folded, strict=True)]
    probe = np.array([name for name, _, _ in split])
    measure = np.array([part or old for (_, _, part), old in zip(split, trials.measure.tolist(), strict=True)])
    return replace(trials, probe=probe, measure=measure)


def seed_of(name: str) -> int:
    """Return a seed that follows from a name alone."""
    return int.from_bytes(name.encode(), "big") % 2**31


def perplexity_ratio(run: Run, data: Dataset, edit: Edit) -> Array:
    """Return the perplexity of each edited document over that before, under the clean model, (k,)."""
    model = run.model()
    params = trainable(model)
    before, after = data[edit.ids], data.apply(edit)[edit.ids]
    with torch.no_grad():
        losses = [document_losses(d, model, params).double().cpu().numpy() for d in (before, after)]
    tokens = [(d.targets[:, 1:] >= 0).sum(1) for d in (before, after)]
    return np.asarray(np.exp(losses[1] / tokens[1] - losses[0] / tokens[0]))


def all_cases(setup: Setup, cases: Sequence[Case], folder: Path, settings: Any) -> tuple[Trials, dict[str, Any]]:
    """Return (all rows, facts by case), taking finished cases from `folder` and writing each as it is done."""
    jobs: dict[str, Case | None] = {"clean": None, **{case.name: case for case in cases}}
    base = determinants(settings, environment())
    base |= {"data": setup.data.content_hash, "weights": setup.run.checkpoints[-1].content_hash}
    if isinstance(setup.run.builder, HuggingFace):
        base |= {"transformers": versions(_TRANSFORMERS)}
    keys = {name: key_of({**base, "case": name}) for name in jobs}

    def job(case: Case | None) -> Part:
        return _clean(setup, cases) if case is None else perform(setup, case, folder)

    parts = completed(folder, setup.data, jobs, keys, Local(), job)
    facts = {name: dict(part.facts) for name, part in parts.items() if name != "clean"}
    return Trials.concat([part.trials[START] for part in parts.values()]), facts


def results(trials: Trials, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return arms, effects and facts over all cases: the unit is the case, seeds are orders."""
    names = [arm for arm in dict.fromkeys(trials.arm.tolist()) if arm != "clean"]
    measures = list(dict.fromkeys(trials.measure.tolist()))
    table = {
        arm: {m: _block(compare(trials, arm, "clean", m)) for m in measures if len(trials.where(arm=arm, measure=m))}
        for arm in names
    }
    pairs = [(arm, "clean") for arm in names] + [("edit", control) for control in names if control != "edit"]
    effects = [_block(compare(trials, arm, control, PRIMARY)) for arm, control in pairs]
    clean = {m: trials.where(arm="clean", measure=m) for m in measures}
    drift = {m: _drift(rows) for m, rows in clean.items()}
    untreated = {m: {p: float(r.value[r.probe == p].mean()) for p in np.unique(r.probe)} for m, r in clean.items()}
    regime = {"unit": "nats", "arms": table, "effects": effects, "clean": untreated, "clean_drift": drift}
    regime["forecast"] = forecast(table, facts)
    return {
        "regimes": {START: regime},
        "cases": dict(facts),
    }


def forecast(table: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return by case the rank correlation over arms between what was predicted and what retraining gave."""
    found: dict[str, float | None] = {}
    for case, fact in facts.items():
        predicted = fact["predicted_by_arm"]
        measured = [table[arm][PRIMARY]["per_probe"][case] for arm in predicted]
        enough = len(set(measured)) > 2 and len(set(predicted.values())) > 2
        found[case] = float(spearmanr(list(predicted.values()), measured).statistic) if enough else None
    known = [rank for rank in found.values() if rank is not None]
    return {"rank_over_arms": found, "mean": float(np.mean(known)) if known else None}


def stored(folder: Path) -> tuple[Trials, dict[str, Any]]:
    """Return (rows, facts by case) of the cases that a folder holds so far, for a table of a study that still runs.

    Raises:
        InfuserError: not even the clean arm is there.
    """
    if not (folder / "parts" / "clean.json").exists():
        raise InfuserError("no case is finished yet", got=str(folder.name), remedy="let the study run longer")
    parts = {path.stem: read_json(path) for path in sorted((folder / "parts").glob("*.json"))}
    trials = []
    for part in parts.values():
        rows = part["trials"][START]
        columns = {name: np.array(rows[name]) for name in ("arm", "seed", "probe", "measure", "value")}
        trials.append(Trials(**columns, start=rows["start"], starts=rows["starts"]))
    facts = {name: part["facts"] for name, part in parts.items() if name != "clean"}
    everything = Trials.concat(trials)
    done = np.isin([probe.split(":")[0] for probe in everything.probe.tolist()], list(facts))
    arm, seed, probe, measure, value = (
        getattr(everything, name)[done] for name in ("arm", "seed", "probe", "measure", "value")
    )
    return Trials(arm, seed, probe, measure, value, everything.start, everything.starts), facts


def _block(effect: Any) -> dict[str, Any]:
    interval = None if effect.interval is None else list(effect.interval)
    estimate = effect.estimate
    return {
        "arm": effect.arm,
        "control": effect.control,
        "measure": effect.measure,
        "mean": effect.value,
        "ci95": interval,
        "p": effect.p,
        "n_probes": estimate.n,
        "n_seeds": len(estimate.seeds),
        "per_probe": dict(effect.per_probe),
    }


def _drift(rows: Trials) -> float | None:
    """Return the standard deviation over order seeds within a case, averaged: what an order alone moves."""
    spread = [np.std(rows.value[rows.probe == p], ddof=1) for p in np.unique(rows.probe) if (rows.probe == p).sum() > 1]
    return float(np.mean(spread)) if spread else None


def _clean(setup: Setup, cases: Sequence[Case]) -> Part:
    begun = time.monotonic()
    measures = [measure for case in cases for measure in case.measures]
    clean = Arm("clean", setup.data, "the training data as they are: what retraining changes by itself")
    trials = unfolded(retrain(setup.run, [clean], measures, setup.seeds, START))
    return Part({START: trials}, None, {}, time.monotonic() - begun)
