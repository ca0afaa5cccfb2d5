"""How far is EK-FAC from the exact derivative of training, and what does the exact one buy?

    INFUSER_DATA=... python experiments/unrolled.py run digits
    INFUSER_DATA=... python experiments/unrolled.py run mnist
    INFUSER_DATA=... python experiments/unrolled.py run cifar10
    python experiments/unrolled.py table

For each probe: scores and document gradients of EK-FAC beside those of training itself, through the last epoch (the
run's own order, and means over three others) and, where that is short enough, from scratch. Then edits in the same ball
and number of steps (see unrolled_arms.py), measured on orders and initialisations that edits were made for (own order,
crafted), on others, and on another architecture.

Arms of a probe are parts: `run` goes on where it was stopped, an arm more makes nothing anew, and `table` writes
results/unrolled.json from the probes that have all their arms.
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
from unrolled_arms import CRAFT, MAKERS, PREDICTS, UNSEEN, Bench, Case, Craft, agreement, edit_along

from infuser.attribution import replay, unrolled
from infuser.attribution.influence import Influence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.data import Dataset
from infuser.data.source import load
from infuser.evaluation.compare import compare
from infuser.evaluation.metrics import effect_block
from infuser.evaluation.retrain import retrain
from infuser.evaluation.stats import mean_estimate
from infuser.executors import Local
from infuser.measure import Margin
from infuser.models import mlp, simple_cnn, tiny_resnet
from infuser.perturbation import pgd, unrolled_pgd
from infuser.storage import plain, read_json, write_json
from infuser.studies.environment import environment
from infuser.studies.parts import Part, completed, key_of, stored
from infuser.studies.study import Experiment, choose_probes
from infuser.training import train
from infuser.types import Arm, Edit, Recipe, Trials

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "unrolled", ROOT / "experiments" / "results" / "unrolled.json"
DAMPINGS, PILOT = (0.01, 0.1, 1.0, 10.0), 3  # relative ones, tried on so many other probes
EPOCHS = (1, 2, 4, 6, 8)  # checkpoints of the run's path, beside its end
ENOUGH = 3  # probes, for a table
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
BESIDE = (
    ("unrolled_orders", "edit_views"),
    ("unrolled_scratch", "edit_views"),
    ("unrolled_chosen", "edit_chosen"),
    ("unrolled_chosen", "edit_potential"),
    ("unrolled_chosen", "edit_checkpoints"),
    ("edit_checkpoints", "edit_potential"),
)


@dataclass(frozen=True)
class Job:
    """An arm of a probe, clean (q = -1: measured on all probes), or the agreement of derivatives."""

    arm: str
    q: int = -1

    @property
    def name(self) -> str:
        return self.arm if self.q < 0 else f"probe-{self.q:02d}--{self.arm}"


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

    def solved(model: Run) -> tuple[Run, Influence]:
        return model, influence_of(model, data, damping)

    recipes = {seed: case.recipe.with_(seed=seed) for seed in CRAFT}
    views = tuple(solved(train(case.builder, data, r, folder=RUNS / name / f"seed-{s}")) for s, r in recipes.items())
    early = tuple(solved(replace(run, checkpoints=run.checkpoints[: epoch + 1])) for epoch in EPOCHS)
    probes = choose_probes(Experiment(probes=case.probes), run, test)
    return Bench(case, data, run, other, probes, found, influence_of(run, data, damping), views, early)


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


def jobs_of(case: Case) -> list[Job]:
    """Return the jobs of a case, each after those whose edits it needs."""
    arms = [arm for arm in MAKERS if case.whole or arm != "unrolled_scratch"]
    return [Job("clean"), *(Job(arm, q) for q in range(case.probes) for arm in [*arms, "agreement"])]


def run_case(name: str, at: tuple[int, int]) -> None:
    shared = bench(name)
    keys = {job.name: key(name, shared, job) for job in jobs_of(shared.case)}
    write_json(RUNS / name / "made.json", {"keys": keys, "environment": environment()})
    jobs = {job.name: job for job in jobs_of(shared.case) if job.q < 0 or at[0] <= job.q < at[1]}
    completed(RUNS / name, shared.data, jobs, keys, Local(1), partial(part_of, name, shared, keys))


def part_of(name: str, shared: Bench, keys: Mapping[str, str], job: Job) -> Part:
    """Return the trials of an arm with its edit, or how derivatives agree."""

    def edit_of(arm: str) -> Edit:
        needed = Job(arm, job.q).name
        edit = stored(RUNS / name, shared.data, {needed: keys[needed]})[needed].edit
        assert edit is not None
        return edit

    craft = Craft(shared, job.q, edit_of)
    if job.arm == "agreement":
        return Part({}, None, agreement(craft))
    if job.arm == "clean":
        return Part(measured(shared, Arm("clean", shared.data, ""), shared.probes), None, {})
    edit = MAKERS[job.arm][0](craft)
    arm = Arm(job.arm, shared.data.apply(edit), edit.made_by)
    gains = np.zeros(0) if edit.gains is None else edit.gains
    return Part(measured(shared, arm, craft.probe), edit, {"predicted": float(gains.sum())})


def measured(shared: Bench, arm: Arm, probes: Margin) -> dict[str, Trials]:
    """Return the trials of an arm by what is retrained."""
    run, own = shared.run, shared.case.recipe.seed
    trials = {
        "own order": retrain(run, [arm], probes, (own,), "last_epoch"),
        "crafted orders": retrain(run, [arm], probes, CRAFT, "last_epoch"),
    }
    if shared.case.whole:
        trials["crafted scratch"] = retrain(run, [arm], probes, CRAFT, "scratch")
    for regime in ("last_epoch", "scratch"):
        trials[regime] = retrain(run, [arm], probes, UNSEEN, regime)
        trials[f"other architecture, {regime}"] = retrain(shared.other, [arm], probes, UNSEEN, regime)
    return trials


def key(name: str, shared: Bench, job: Job) -> str:
    """Return a hash of what determines a job: settings, weights, the code of its arm, and the arm that it needs."""
    case = {**asdict(CASES[name]), "builder": told(CASES[name].builder), "other": told(CASES[name].other)}
    weights = [run.checkpoints[-1].content_hash for run in (shared.run, shared.other)]
    maker, needs = MAKERS.get(job.arm, (agreement if job.arm == "agreement" else measured, None))
    sources = [inspect.getsource(each) for each in (unrolled_pgd, unrolled, replay, pgd, Craft, edit_along, measured)]
    made = {"case": plain(case), "job": job.name, "weights": weights, "damping": shared.damping, "epochs": EPOCHS}
    made |= {"seeds": (CRAFT, UNSEEN), "sources": [*sources, inspect.getsource(maker)]}
    made |= {of: environment()[of] for of in ("packages", "system")}
    return key_of({**made, "needs": needs and key(name, shared, Job(needs, job.q))})


def told(builder: Any) -> str:
    """Return a builder's name and options: its own text holds an address, which no later process has."""
    options = getattr(builder, "keywords", {})
    return f"{getattr(builder, 'func', builder).__name__} {sorted(options.items())}"


def table() -> None:
    """Write what is finished; cases that were measured before, and whose parts are gone, stay."""
    found = {name: result for name in CASES if (result := results(name)) is not None}
    write_json(RESULTS, {**(read_json(RESULTS) if RESULTS.exists() else {}), **found})
    for name, result in found.items():
        print(f"\n{name}, {result['probes']} probes")
        for fact, value in {**result["agreement"], **result["predicted"]}.items():
            print(f"  {fact:45s} {value['value']:+.2f} {value['ci95']}")
        for regime, rows in result["effects"].items():
            for row in rows:
                print(f"  {regime:35s} {row['arm']:18s} - {row['control']:18s} {row['mean']:+.2f} {row['ci95']}")


def results(name: str) -> dict[str, Any] | None:
    """Return what is known of a case from the probes that have all their arms, or None of too few."""
    case, path = CASES[name], RUNS / name / "made.json"
    if not path.exists():
        return None
    made = read_json(path)
    data, _ = load(case.data, os.environ.get("INFUSER_DATA"), limit=case.limit)
    parts = stored(RUNS / name, data, made["keys"])
    arms = [job.arm for job in jobs_of(case) if job.q == 0 and job.arm != "agreement"]
    wanted = {q: [Job(arm, q).name for arm in [*arms, "agreement"]] for q in range(case.probes)}
    probes = [q for q, names in wanted.items() if {*names, "clean"} <= {*parts}]
    if len(probes) < ENOUGH:
        return None
    of = {arm: [parts[Job(arm, q).name] for q in probes] for arm in [*arms, "agreement"]}
    facts = {fact: said([part.facts[fact] for part in of["agreement"]]) for fact in of["agreement"][0].facts}
    chosen = [set(part.edit.ids.tolist()) for part in of["unrolled_chosen"]]
    for arm in ("edit", "edit_potential", "edit_checkpoints"):
        shared = [len(ids & {*part.edit.ids.tolist()}) / case.k for ids, part in zip(chosen, of[arm], strict=True)]
        facts[f"documents shared: {arm}, unrolled_chosen"] = said(shared)
    return {
        "model": told(case.builder),
        "other": told(case.other),
        "documents": len(data),
        "edited": case.k,
        "radius": case.radius,
        "steps": case.steps,
        "recipe": asdict(case.recipe),
        "other_recipe": asdict(case.other_recipe),
        "probes": len(probes),
        "seeds": {"averages": CRAFT, "crafted edits": [1, case.steps + 1], "measured on": UNSEEN},
        "checkpoints": EPOCHS,
        "damping": read_json(RUNS / name / "damping.json"),
        "agreement": facts,
        "predicted": {arm: said([part.facts["predicted"] for part in of[arm]]) for arm in PREDICTS if arm in of},
        # Where training is too long, the last epoch is all that the exact choice and its edit go through.
        "predicts": PREDICTS if case.whole else {**PREDICTS, "unrolled_chosen": "last_epoch"},
        "effects": {regime: effects(parts["clean"], of, arms, regime) for regime in parts["clean"].trials},
        "environment": made["environment"],
    }


def effects(clean: Part, of: Mapping[str, Sequence[Part]], arms: Sequence[str], regime: str) -> list[dict[str, Any]]:
    """Return every arm against clean and against the edit along EK-FAC, and those of BESIDE, in log-odds."""
    treated = Trials.concat([part.trials[regime] for arm in arms for part in of[arm]])
    beside = clean.trials[regime]
    kept = np.isin(beside.probe, np.unique(treated.probe))  # clean is measured on the probes of all
    columns = {c: getattr(beside, c)[kept] for c in ("arm", "seed", "probe", "measure", "value")}
    pooled = Trials.concat([replace(beside, **columns), treated])
    pairs = [(arm, "clean") for arm in arms] + [(arm, "edit") for arm in arms if arm != "edit"]
    pairs += [pair for pair in BESIDE if {*pair} <= {*arms}]
    return [effect_block(compare(pooled, arm, control)) for arm, control in pairs]


def said(values: Sequence[float]) -> dict[str, Any]:
    estimate = mean_estimate(np.array(values), "probes", ())
    return {"value": estimate.value, "ci95": estimate.interval}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("cases", nargs="*", default=list(CASES))
    most = max(case.probes for case in CASES.values())
    parser.add_argument("--at", nargs=2, type=int, default=(0, most), help="probes, from and to")
    args = parser.parse_args()
    if args.stage == "table":
        table()
    for name in args.cases if args.stage == "run" else ():
        run_case(name, tuple(args.at))


if __name__ == "__main__":
    main()
