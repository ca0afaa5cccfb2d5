"""How far is EK-FAC from the exact derivative of training, and what does the exact one buy?

    INFUSER_DATA=... python experiments/unrolled.py run digits
    INFUSER_DATA=... python experiments/unrolled.py run mnist
    INFUSER_DATA=... python experiments/unrolled.py run cifar10
    python experiments/unrolled.py table

For each probe: scores and document gradients of EK-FAC beside those of the unrolled last epoch, on the run's own order
and averaged over other orders; then edits of the same documents within the same ball along each of them, measured on
what they were made for (`unrolled`: own order; `unrolled_orders`: crafted orders; `unrolled_scratch`: crafted scratch),
on orders that nobody saw, from scratch, and on another architecture. They edit the documents that post_edit chose for
EK-FAC, in as many steps of one size, and the last two replay another order or initialisation at every step.
`unrolled_chosen` is `unrolled_scratch` on the documents whose derivative promises most.
Probes are parts: `run` goes on where it was stopped, `table` writes results/unrolled.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

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
from infuser.perturbation.balls import Linf
from infuser.perturbation.document_gradient import document_gradient
from infuser.perturbation.perturb import perturb
from infuser.perturbation.pgd import PGD
from infuser.perturbation.unrolled_pgd import UnrolledPGD
from infuser.storage import plain, read_json, write_json
from infuser.studies.environment import environment
from infuser.studies.parts import Part, completed, key_of
from infuser.studies.study import Experiment, choose_probes
from infuser.tasks import task_of
from infuser.training import train
from infuser.types import Arm, Builder, Recipe, Trials

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "unrolled", ROOT / "experiments" / "results" / "unrolled.json"
# Orders that averages are taken over, and orders for all. Crafted edits see seeds 1, 2, ..., one a step.
CRAFT, UNSEEN = (1, 2, 3), (101, 102, 103)
DAMPING = 0.1


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
    whole: bool = True  # edits are also made through the whole of training, not through the last epoch alone


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
    influence: Influence


def bench(name: str) -> Bench:
    case = CASES[name]
    data, test = load(case.data, os.environ.get("INFUSER_DATA"), limit=case.limit)
    run = train(case.builder, data, case.recipe, folder=RUNS / name / "checkpoints")
    other = train(case.other, data, case.other_recipe, folder=RUNS / name / "other")
    probes = choose_probes(Experiment(probes=case.probes), run, test)
    influence = Influence(fit_ekfac(run, data, documents=None, positions=None), DAMPING)
    return Bench(case, data, run, other, probes, influence)


def probe_job(shared: Bench, q: int) -> Part:
    """Return the trials of every arm for a probe, and how the two derivatives agree."""
    probe, case, run, data = shared.probes[q], shared.case, shared.run, shared.data
    direction = shared.influence.direction(run, probe)
    ball = Linf(case.radius)
    scores = attribute(shared.influence, run, data, probe)
    edited = perturb(PGD(ball, steps=case.steps), direction, run, data, case.k, scores=scores)
    ways = {"unrolled": Unrolled(), "unrolled_orders": Unrolled(seeds=CRAFT), "unrolled_unseen": Unrolled(seeds=UNSEEN)}
    exact = {name: way.derivatives(run, data, probe, edited.ids) for name, way in ways.items()}
    slopes = {name: by_input[0] for name, (_, by_input) in exact.items()}
    model = run.model()
    batch = data.batch(data.positions(edited.ids), "cpu")
    v = direction.single()
    slopes["ekfac"] = document_gradient(model, trainable(model), task_of(data), batch, v, n=len(data), via="forward")
    found = {"ekfac": scores.values[0], **{name: by_weight.values[0] for name, (by_weight, _) in exact.items()}}
    facts = {f"rank {a} {b}": float(spearmanr(found[a], found[b]).statistic) for a, b in PAIRS}
    facts |= {f"cosine {a} {b}": cosine(slopes[a], slopes[b]) for a, b in PAIRS}
    seeds = tuple(range(1, case.steps + 1))
    ascents = {
        "unrolled": UnrolledPGD(ball, probe, steps=case.steps),
        "unrolled_orders": UnrolledPGD(ball, probe, seeds=seeds, steps=case.steps),
        **({"unrolled_scratch": UnrolledPGD(ball, probe, "scratch", seeds, case.steps)} if case.whole else {}),
    }
    made = {"edit": edited, "noise": noise(edited, q)}
    made |= {name: perturb(ascent, direction, run, data, ids=edited.ids) for name, ascent in ascents.items()}
    if case.whole:
        bounds = ascents["unrolled_scratch"].potential(direction, run, data, data.ids)
        best = data.ids[np.argsort(-bounds, kind="stable")[: case.k]]
        made["unrolled_chosen"] = perturb(ascents["unrolled_scratch"], direction, run, data, ids=best)
    facts |= {f"predicted {name}": float(edit.gains.sum()) for name, edit in made.items() if edit.gains is not None}
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


PAIRS = (
    ("ekfac", "unrolled"),
    ("ekfac", "unrolled_orders"),
    ("ekfac", "unrolled_unseen"),
    ("unrolled", "unrolled_unseen"),
    ("unrolled_orders", "unrolled_unseen"),
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
    orders = {"crafted for": CRAFT, "measured on": UNSEEN}
    made = {"case": plain(case), "q": q, "weights": weights, "orders": orders, "damping": DAMPING}
    return key_of({**made, "packages": environment()["packages"]})


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
            "documents": case.limit,
            "edited": case.k,
            "radius": case.radius,
            "recipe": asdict(case.recipe),
            "probes": len(parts),
            "orders": {"crafted for": CRAFT, "measured on": UNSEEN},
            "agreement": facts,
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
    """Return every arm against clean and against the plain edit, in log-odds."""
    pooled = trials_of(stored)
    arms = [name for name in dict.fromkeys(pooled.arm.tolist()) if name != "clean"]
    pairs = [(arm, "clean") for arm in arms] + [(arm, "edit") for arm in arms if arm != "edit"]
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
