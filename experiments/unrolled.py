"""How far is EK-FAC from the exact derivative of training, and what does the exact one buy?

    INFUSER_DATA=... python experiments/unrolled.py run digits
    INFUSER_DATA=... python experiments/unrolled.py run mnist
    INFUSER_DATA=... python experiments/unrolled.py run cifar10
    python experiments/unrolled.py table

For each probe: scores and document gradients of EK-FAC beside those of training itself, through the last epoch (the
run's own order, and means over three others) and, where that is short enough, from scratch. Then edits in the same ball
and number of steps:

    edit               along EK-FAC, of the documents that post_edit chose; at the damping that did best on other probes
    edit_views         the same documents along EK-FAC of four models, three of other seeds
    noise              the same sizes without an aim
    unrolled           the same documents along the exact derivative through the last epoch, in the run's own order
    unrolled_orders    the same, another order at every step
    unrolled_scratch   the same through all of training, another initialisation at every step
    unrolled_chosen    the same on the documents where it promises most (unrolled_orders where training is too long)
    edit_chosen        the same documents as the last along EK-FAC
    edit_potential     along EK-FAC, of the documents where EK-FAC itself promises most

They are measured on orders and initialisations that edits were made for (own order, crafted), on others, and on another
architecture.
Probes are parts: `run` goes on where it was stopped, `table` writes results/unrolled.json.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from infuser.attribution import replay, unrolled
from infuser.attribution.attribute import attribute
from infuser.attribution.influence import Influence
from infuser.attribution.unrolled import Unrolled
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.data import Dataset
from infuser.data.source import load
from infuser.evaluation.arms import noise
from infuser.evaluation.metrics import effect_block
from infuser.evaluation.retrain import retrain
from infuser.evaluation.stats import compare, mean_estimate
from infuser.executors import Local
from infuser.measure import Margin
from infuser.models import mlp, simple_cnn, tiny_resnet
from infuser.params import trainable
from infuser.perturbation import pgd, unrolled_pgd
from infuser.perturbation.balls import Linf
from infuser.perturbation.document_gradient import document_gradient
from infuser.perturbation.perturb import Perturber, perturb
from infuser.perturbation.pgd import PGD, View
from infuser.perturbation.unrolled_pgd import UnrolledPGD
from infuser.storage import plain, read_json, write_json
from infuser.studies.environment import environment
from infuser.studies.parts import Part, completed, key_of
from infuser.studies.study import Experiment, choose_probes
from infuser.tasks import task_of
from infuser.training import train
from infuser.types import Arm, Array, Builder, Edit, Recipe, Trials

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "unrolled", ROOT / "experiments" / "results" / "unrolled.json"
# Seeds that averages are taken over, and seeds for all. Crafted edits see 1, 2, ..., one a step.
CRAFT, UNSEEN = (1, 2, 3), (101, 102, 103)
DAMPINGS, PILOT = (0.01, 0.1, 1.0, 10.0), 3  # relative ones, tried on so many other probes


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


CASES = {
    "digits": Case(
        "digits", None, partial(simple_cnn, width=16), partial(tiny_resnet, width=16),
        Recipe(lr=0.05, batch_size=32, threads=1), Recipe(lr=0.02, batch_size=32, threads=1), 28, 16,
    ),
    "mnist": Case(
        "mnist", 5_000, partial(mlp, hidden=(64, 64)), partial(simple_cnn, width=8),
        Recipe(lr=0.1, batch_size=50, threads=1), Recipe(lr=0.05, batch_size=32, threads=1), 50, 16,
    ),
    "cifar10": Case(
        "cifar10", 1_000, partial(tiny_resnet, width=16), simple_cnn,
        Recipe(threads=1), Recipe(lr=0.02, threads=1), 20, 12, probes=4, steps=10, whole=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the probes of a case share."""

    case: Case
    data: Dataset
    run: Run
    other: Run
    probes: Margin
    damping: Mapping[float, float]
    influence: Influence
    views: tuple[tuple[Run, Influence], ...]


def bench(name: str) -> Bench:
    case = CASES[name]
    data, test = load(case.data, os.environ.get("INFUSER_DATA"), limit=case.limit)
    run = train(case.builder, data, case.recipe, folder=RUNS / name / "checkpoints")
    other = train(case.other, data, case.other_recipe, folder=RUNS / name / "other")
    known = choose_probes(Experiment(probes=case.probes + PILOT), run, test)
    path = RUNS / name / "damping.json"
    if not path.exists():
        write_json(path, pilot(case, data, run, [known[q] for q in range(case.probes, len(known))]))
    found = {float(damping): effect for damping, effect in read_json(path).items()}
    damping = max(found, key=lambda each: found[each])
    views = []
    for seed in CRAFT:
        view = train(case.builder, data, case.recipe.with_(seed=seed), folder=RUNS / name / f"seed-{seed}")
        views.append((view, influence_of(view, data, damping)))
    probes = choose_probes(Experiment(probes=case.probes), run, test)
    return Bench(case, data, run, other, probes, found, influence_of(run, data, damping), tuple(views))


def influence_of(run: Run, data: Dataset, damping: float) -> Influence:
    return Influence(fit_ekfac(run, data, documents=None, positions=None), damping)


def pilot(case: Case, data: Dataset, run: Run, probes: Sequence[Margin]) -> dict[str, float]:
    """Return the mean effect from scratch of EK-FAC's edit at each damping."""
    seeds = CRAFT if case.whole else CRAFT[:1]
    found = {}
    for damping in DAMPINGS:
        influence, effects = influence_of(run, data, damping), []
        for probe in probes:
            edit = edit_along(influence, case, data, run, probe)
            arms = [Arm("clean", data, ""), Arm("edit", data.apply(edit), edit.made_by)]
            effects.append(compare(retrain(run, arms, probe, seeds, "scratch"), "edit").estimate.value)
        found[str(damping)] = float(np.mean(effects))
    return found


def edit_along(influence: Influence, case: Case, data: Dataset, run: Run, probe: Margin) -> Edit:
    """Return the edit along a direction, of the documents that post_edit chooses."""
    scores = attribute(influence, run, data, probe)
    method = PGD(Linf(case.radius), steps=case.steps)
    return perturb(method, influence.direction(run, probe), run, data, case.k, scores=scores)


def probe_job(shared: Bench, q: int) -> Part:
    """Return the trials of every arm for a probe, and how the derivatives agree."""
    probe, case, run, data = shared.probes[q], shared.case, shared.run, shared.data
    direction, ball = shared.influence.direction(run, probe), Linf(case.radius)
    edited = edit_along(shared.influence, case, data, run, probe)
    views = tuple(View(view, influence.direction(view, probe)) for view, influence in shared.views)
    along = PGD(ball, steps=case.steps)
    # No gain is counted by a replay that its move has seen: one seed more than steps.
    seeds = tuple(range(1, case.steps + 2))
    own = UnrolledPGD(ball, probe, steps=case.steps)
    orders, whole = replace(own, seeds=seeds), replace(own, seeds=seeds, start="scratch")

    def made_on(ids: Array, method: Perturber) -> Edit:
        return perturb(method, direction, run, data, ids=ids)

    made = {
        "edit": edited,
        "edit_views": made_on(edited.ids, replace(along, views=views)),
        "noise": noise(edited, q),
        "unrolled": made_on(edited.ids, own),
        "unrolled_orders": made_on(edited.ids, orders),
    }
    if case.whole:
        made["unrolled_scratch"] = made_on(edited.ids, whole)
    made["unrolled_chosen"] = perturb(whole if case.whole else orders, direction, run, data, case.k)
    made["edit_chosen"] = made_on(made["unrolled_chosen"].ids, along)
    made["edit_potential"] = perturb(along, direction, run, data, case.k, select="potential")
    facts = agreement(shared, probe, edited.ids)
    for name in ("edit", "edit_potential"):
        both = np.isin(made[name].ids, made["unrolled_chosen"].ids).mean()
        facts[f"share of documents: {name}, unrolled_chosen"] = float(both)
    facts |= {f"predicted {name}": float(made[name].gains.sum()) for name in PREDICTS if name in made}
    arms = [Arm("clean", data, ""), *(Arm(name, data.apply(edit), edit.made_by) for name, edit in made.items())]
    trials = {
        "own order": retrain(run, arms, probe, (case.recipe.seed,), "last_epoch"),
        "crafted orders": retrain(run, arms, probe, CRAFT, "last_epoch"),
    }
    if case.whole:
        trials["crafted scratch"] = retrain(run, arms, probe, CRAFT, "scratch")
    for regime in ("last_epoch", "scratch"):
        trials[regime] = retrain(run, arms, probe, UNSEEN, regime)
        trials[f"other architecture, {regime}"] = retrain(shared.other, arms, probe, UNSEEN, regime)
    return Part(trials, None, facts)


def agreement(shared: Bench, probe: Margin, ids: Array) -> dict[str, float]:
    """Return rank correlations of scores over all documents, and cosines of the gradients of the documents `ids`."""
    run, data, direction = shared.run, shared.data, shared.influence.direction(shared.run, probe)
    ways = {"own order": Unrolled(), "orders": Unrolled(seeds=CRAFT), "other orders": Unrolled(seeds=UNSEEN)}
    if shared.case.whole:
        ways |= {"runs": Unrolled("scratch", CRAFT), "other runs": Unrolled("scratch", UNSEEN)}
    found = {name: way.derivatives(run, data, probe, ids) for name, way in ways.items()}
    scores = {name: by_weight.values[0] for name, (by_weight, _) in found.items()}
    slopes = {name: by_input[0] for name, (_, by_input) in found.items()}
    scores["EK-FAC"] = attribute(shared.influence, run, data, probe).values[0]
    model, batch, v = run.model(), data.batch(data.positions(ids), "cpu"), direction.single()
    slopes["EK-FAC"] = document_gradient(model, trainable(model), task_of(data), batch, v, n=len(data), via="forward")
    pairs = [(a, b) for a, b in PAIRS if a in scores and b in scores]
    ranks = {f"rank: {a}, {b}": float(spearmanr(scores[a], scores[b]).statistic) for a, b in pairs}
    return ranks | {f"cosine: {a}, {b}": cosine(slopes[a], slopes[b]) for a, b in pairs}


# What the sum of an arm's gains predicts: f after training in this way.
PREDICTS = {
    "edit": "scratch",
    "unrolled": "own order",
    "unrolled_orders": "last_epoch",
    "unrolled_scratch": "scratch",
    "unrolled_chosen": "scratch",
    "edit_chosen": "scratch",
    "edit_potential": "scratch",
}
BESIDE = (
    ("unrolled_orders", "edit_views"),
    ("unrolled_scratch", "edit_views"),
    ("unrolled_chosen", "edit_chosen"),
    ("unrolled_chosen", "edit_potential"),
)
PAIRS = (
    ("EK-FAC", "own order"),
    ("EK-FAC", "orders"),
    ("own order", "orders"),
    ("orders", "other orders"),
    ("EK-FAC", "runs"),
    ("runs", "other runs"),
)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean over documents of the cosine of their gradients."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).mean())


def run_case(name: str) -> None:
    shared = bench(name)
    jobs = {f"probe-{q:02d}": q for q in range(len(shared.probes))}
    keys = {job: key(name, shared, q) for job, q in jobs.items()}
    write_json(RUNS / name / "made.json", {"keys": keys, "environment": environment()})
    completed(RUNS / name, shared.data, jobs, keys, Local(1), partial(probe_job, shared))


def key(name: str, shared: Bench, q: int) -> str:
    case = {**asdict(CASES[name]), "builder": told(CASES[name].builder), "other": told(CASES[name].other)}
    weights = [run.checkpoints[-1].content_hash for run in (shared.run, shared.other)]
    seeds = {"averages": CRAFT, "measured on": UNSEEN}
    sources = [inspect.getsource(each) for each in (unrolled_pgd, unrolled, replay, pgd, probe_job, agreement)]
    made = {"case": plain(case), "q": q, "weights": weights, "seeds": seeds, "damping": shared.damping}
    return key_of({**made, "sources": sources, **{of: environment()[of] for of in ("packages", "system")}})


def told(builder: Any) -> str:
    """Return a builder's name and options: its own text holds an address, which no later process has."""
    options = getattr(builder, "keywords", {})
    return f"{getattr(builder, 'func', builder).__name__} {sorted(options.items())}"


def table() -> None:
    """Write what is finished."""
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        made = RUNS / name / "made.json"
        if not made.exists():
            continue
        keys = read_json(made)["keys"]
        paths = {job: RUNS / name / "parts" / f"{job}.json" for job in keys}
        found = {job: read_json(path) for job, path in paths.items() if path.exists()}
        parts = [part for job, part in found.items() if part["key"] == keys[job]]
        if len(parts) < 3:
            continue
        facts = {
            fact: said(mean_estimate(np.array([part["facts"][fact] for part in parts]), "probes", ()))
            for fact in parts[0]["facts"]
        }
        regimes = {regime: effects([part["trials"][regime] for part in parts]) for regime in parts[0]["trials"]}
        results[name] = {
            "model": told(case.builder),
            "other": told(case.other),
            "documents": len(load(case.data, os.environ.get("INFUSER_DATA"), limit=case.limit)[0]),
            "edited": case.k,
            "radius": case.radius,
            "steps": case.steps,
            "recipe": asdict(case.recipe),
            "other_recipe": asdict(case.other_recipe),
            "probes": len(parts),
            "seeds": {"averages": CRAFT, "crafted edits": [1, case.steps + 1], "measured on": UNSEEN},
            "damping": read_json(RUNS / name / "damping.json"),
            "agreement": {fact: value for fact, value in facts.items() if not fact.startswith("predicted")},
            "predicted": {arm: facts[f"predicted {arm}"] for arm in PREDICTS if f"predicted {arm}" in facts},
            "predicts": PREDICTS,
            "effects": regimes,
            "environment": read_json(made)["environment"],
        }
        print(f"\n{name}, {len(parts)} probes")
        for fact, value in facts.items():
            print(f"  {fact:45s} {value['value']:+.2f} {value['ci95']}")
        for regime, rows in regimes.items():
            for row in rows:
                print(f"  {regime:35s} {row['arm']:18s} - {row['control']:6s} {row['mean']:+.2f} {row['ci95']}")
    write_json(RESULTS, results)


def trials_of(stored: Sequence[Mapping[str, Any]]) -> Trials:
    """Return the rows of all probes; what the arms of each started from was checked when they were trained."""
    columns = ("arm", "seed", "probe", "measure", "value")
    return Trials.concat([Trials(**{c: np.array(p[c]) for c in columns}, start=p["start"]) for p in stored])


def effects(stored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every arm against clean and against the edit along EK-FAC (on the same documents), in log-odds."""
    pooled = trials_of(stored)
    arms = [name for name in dict.fromkeys(pooled.arm.tolist()) if name != "clean"]
    pairs = [(arm, "clean") for arm in arms] + [(arm, "edit") for arm in arms if arm != "edit"]
    pairs += [(arm, control) for arm, control in BESIDE if arm in arms]
    return [effect_block(compare(pooled, arm, control)) for arm, control in pairs]


def said(estimate: Any) -> dict[str, Any]:
    return {"value": estimate.value, "ci95": estimate.interval}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("cases", nargs="*", default=list(CASES))
    args = parser.parse_args()
    if args.stage == "table":
        table()
    for name in args.cases if args.stage == "run" else ():
        run_case(name)


if __name__ == "__main__":
    main()
