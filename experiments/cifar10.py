"""The published claims on CIFAR-10, with storable edits, other orders and controls.

    INFUSER_DATA=... python experiments/cifar10.py run r8 --arms edit noise --at 0 10
    INFUSER_DATA=... python experiments/cifar10.py table

45,000 documents, 100 edited, TinyResNet, plain SGD at 0.01, batches of 16, ten epochs in one fixed order; the last
epoch is replayed in another order (the published setting replays the same one: `original`). `run` makes what is
missing of a case (see CASES) and can be stopped at any time; `table` writes results/cifar10_*.json from the probes that
are finished in the first arm, and the arms that have them all; a case whose models are gone stays as it is. Beside the
effects stand those against placebo models: see cifar10_placebo.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cifar10_placebo import class_log_odds, foretold, placebo
from cifar10_slices import (
    DAMPINGS,
    FITTED,
    PILOT,
    PROBES,
    RECIPES,
    WORLDS,
    K,
    Outcome,
    Spec,
    all_probes,
    edits,
    finished,
    outcomes,
    study_of,
)

from infuser.executors import Executor, Pool
from infuser.storage import read_json, write_json
from infuser.studies.environment import environment
from infuser.studies.parts import Part
from infuser.studies.results import assemble
from infuser.studies.show import summary
from infuser.studies.study import Experiment, Start, Study, Victim
from infuser.types import Damping, Trials

RESULTS = Path(__file__).parent / "results"
DAMPING = Damping(0.1)  # see results/cifar10_damping.json


@dataclass(frozen=True)
class Case:
    """Arms against clean for some probes.

    Attributes:
        arms: how their edits are made; the first is called edit.
        at: probes, from and to.
        victims: models that are retrained.
        seed: of the order of what is replayed (and of the initialisation from scratch); 0 is the run's own.
        starts: where retraining begins.
    """

    arms: tuple[Spec, ...]
    at: tuple[int, int]
    victims: tuple[str, ...] = ("tiny_resnet",)
    seed: int = 1
    starts: tuple[Start, ...] = ("last_epoch",)

    @property
    def world(self) -> str:
        return self.arms[0].world


def specs(radius: float, model: str = "tiny_resnet") -> dict[str, Spec]:
    edit = Spec(radius=radius, model=model, damping=DAMPING)
    return {
        "edit": edit,
        "noise": replace(edit, arm="noise", method="noise"),
        "top": replace(edit, arm="top", select="top"),
        "insert_k": replace(edit, arm="insert_k", method="insert_k"),
        "gradient_matching": replace(edit, arm="gradient_matching", method="gradient_matching"),
    }


def pilot(damping: Damping) -> Case:
    return Case((replace(specs(8)["edit"], damping=damping),), (PROBES, PROBES + PILOT))


def transfer(radius: float, model: str, victim: str) -> Case:
    return Case((specs(radius, model)["edit"],), (0, 10), (model, victim))


PUBLISHED = Spec(radius=12.75, select="top", damping=DAMPINGS[0], world="original")
PLAIN = Spec(radius=12, damping=DAMPING, world="small")
CHECKPOINTS, SEEDS, ARCHITECTURES = (
    replace(PLAIN, arm=name, views=name) for name in ("checkpoints", "seeds", "architectures")
)
# A case is made on one machine. Another one rounds otherwise, so that the same recipe and seed give other base models:
# arms that were added there are a case of their own, with the edit again (r8-rivals, horizon-views).
CASES = {
    **{f"damping-{damping.kind}-{damping.value:g}": pilot(damping) for damping in DAMPINGS},
    "r8": Case((specs(8)["edit"], specs(8)["noise"]), (0, PROBES)),
    "r8-rivals": Case(tuple(spec for arm, spec in specs(8).items() if arm != "noise"), (0, PROBES)),
    "r12": Case((specs(12)["edit"], specs(12)["top"]), (0, 10)),
    "original": Case((PUBLISHED,), (0, 10), seed=0),
    "original-other-order": Case((PUBLISHED,), (0, 10)),
    **{f"resnet-cnn-{r}": transfer(r, "tiny_resnet", "simple_cnn") for r in (8, 12)},
    **{f"cnn-resnet-{r}": transfer(r, "simple_cnn", "tiny_resnet") for r in (8, 12)},
    # A seed that no view has, else the victim would be one of the models that the edit was made for. `architectures` is
    # made for the very SimpleCNN whose last epoch is trained again: there it is no transfer.
    "horizon": Case((PLAIN, CHECKPOINTS), (0, 5), tuple(RECIPES), 7, ("last_epoch", "half", "scratch")),
    "horizon-views": Case((PLAIN, SEEDS, ARCHITECTURES), (0, 5), tuple(RECIPES), 7, ("last_epoch", "scratch")),
    # The two largest differences of horizon-views, asked again of probes and of a seed that have not been looked at.
    "fresh-seeds": Case((PLAIN, SEEDS), (5, 15), ("tiny_resnet",), 9, ("scratch",)),
    "fresh-architectures": Case((PLAIN, ARCHITECTURES), (5, 15), ("simple_cnn",), 9, ("scratch",)),
}
FILES = {
    "cifar10_damping": tuple(name for name in CASES if name.startswith("damping")),
    "cifar10_r8": ("r8", "r8-rivals"),
    "cifar10_r12": ("r12",),
    "cifar10_original": ("original", "original-other-order"),
    "cifar10_horizon": ("horizon", "horizon-views", "fresh-seeds", "fresh-architectures"),
    "cifar10_transfer": tuple(name for name in CASES if "cnn" in name),
}


def run(case: Case, arms: list[str], at: tuple[int, int], executor: Executor | None) -> None:
    chosen = [spec for spec in case.arms if not arms or spec.arm in arms]
    probes = range(max(case.at[0], at[0]), min(case.at[1], at[1]))
    edits(chosen, probes, executor)
    outcomes([job for spec in (None, *chosen) for job in jobs(case, spec, list(probes))], executor)


def jobs(case: Case, spec: Spec | None, probes: list[int]) -> list[Outcome]:
    """Return the models to train for an arm; the clean one measures all probes."""
    return [
        Outcome(victim, spec, q, start, case.seed, case.world)
        for victim in case.victims
        for start in case.starts
        for q in (probes if spec else [0])
    ]


def results(case: Case) -> dict[str, Any] | None:
    """Return results.json of a case: the probes of the first arm that are finished, and the arms that have them all."""
    own = jobs(case, None, [0])
    clean = finished(own)
    if len(clean) < len(own):
        return None
    every = range(*case.at)
    made = {spec: {q: found for q in every if (found := whole(case, spec, q))} for spec in case.arms}
    probes = list(made[case.arms[0]])
    if not probes:
        return None
    arms = [spec for spec in case.arms if not {*probes} - {*made[spec]}]
    edited = {spec.arm: edits([spec], probes) for spec in arms}
    parts = {}
    for i, q in enumerate(probes):
        found = [pooled(made[spec][q], case, spec, q) for spec in arms]
        trials = {name: Trials.concat([part.trials[name] for part in found]) for name in found[0].trials}
        main = edited["edit"][i]
        parts[f"probe-{q}"] = Part(trials, main.edit, main.facts)
    study = settled(case, arms, probes)
    shared = pooled(clean, case, None, 0).trials
    parts = {"clean": Part(shared, None, {}), **parts}
    known, asked = all_probes(case.world).queries, study.probes.queries
    assembled = assemble(study, {name: restricted(part, known, asked) for name, part in parts.items()})
    return {
        **assembled,
        "missing": {spec.arm: len(probes) - len(made[spec]) for spec in case.arms if spec not in arms},
        "arms": {spec.arm: told(spec, edited[spec.arm]) for spec in arms},
        "placebo": {name: placebos(case, made, name) for name in shared},
        "foretold": {
            name: foretold(block["per_probe"], block["measured"], class_log_odds(shared[name]))
            for name, block in assembled["predicted"].items()
            if len(probes) > 3
        },
        "recipes": {name: vars(RECIPES[name]) for name in case.victims},
    }


def whole(case: Case, spec: Spec, q: int) -> dict[str, Part]:
    """Return the parts of an arm for a probe, or none where one of them is not finished."""
    wanted = jobs(case, spec, [q])
    found = finished(wanted)
    return found if len(found) == len(wanted) else {}


def told(spec: Spec, made: Sequence[Part]) -> dict[str, Any]:
    """Return how an arm's edits were made, and how far its documents are from the originals."""
    facts = {fact: float(np.mean([part.facts[fact] for part in made])) for fact in ("linf_255_max", "ssim_mean")}
    return {**asdict(spec), "made_by_first": made[0].edit and made[0].edit.made_by, **facts}


def placebos(case: Case, made: Mapping[Spec, Mapping[int, Mapping[str, Part]]], name: str) -> dict[str, Any]:
    """Return the arms of a victim and start against models edited for other probes; copies of one are no edit."""
    queries = all_probes(case.world).queries
    models = {
        spec.arm: [(queries[q], pooled(parts, case, spec, q).trials[name]) for q, parts in found.items()]
        for spec, found in made.items()
        if spec.method != "insert_k"
    }
    return placebo(models, list(models))


def settled(case: Case, arms: Sequence[Spec], probes: Sequence[int]) -> Study:
    """Return the study of a case, whose settings head the results."""
    first = case.arms[0]
    others = [name for name in case.victims if name != first.model]
    settings = Experiment(
        data="cifar10",
        limit=WORLDS[case.world].documents,
        model=first.model,
        recipe=RECIPES[first.model],
        fit_documents=FITTED,
        damping=first.damping,
        probes=len(probes),
        k=K,
        radius=first.radius,
        select=first.select,
        controls=tuple(spec.arm for spec in arms[1:]),  # type: ignore[arg-type]
        seeds=(case.seed,),
        regimes=case.starts,
        victims=tuple(Victim(name, recipe=RECIPES[name]) for name in others),
    )
    return study_of(settings, probes, case.world, others)


def pooled(parts: Mapping[str, Part], case: Case, spec: Spec | None, q: int) -> Part:
    """Return one part with a regime for each victim, named as `infuser run` names them."""
    trials = {}
    for job in jobs(case, spec, [q]):
        own = job.victim == case.arms[0].model
        trials[job.start if own else f"{job.victim}:{job.start}"] = parts[job.name].trials[job.start]
    return Part(trials, None, {})


def restricted(part: Part, known: Sequence[str], probes: Sequence[str]) -> Part:
    """Return the part without the rows of other `known` probes than `probes`, and of what placebos are read from."""
    out = {*known} - {*probes}
    trials = {}
    for name, rows in part.trials.items():
        keep = ~np.isin(rows.probe, sorted(out)) & (rows.measure != "class_probability")
        columns = {column: getattr(rows, column)[keep] for column in ("arm", "seed", "probe", "measure", "value")}
        trials[name] = replace(rows, **columns)
    return replace(part, trials=trials)


def covers(result: Mapping[str, Any], held: Mapping[str, Any] | None) -> bool:
    """Return whether a result has every probe and arm of the one that is held."""
    return held is None or ({*held["probes"]} <= {*result["probes"]} and {*held["arms"]} <= {*result["arms"]})


def table() -> None:
    """Write the result files from what is finished; a case whose models are gone stays."""
    for file, names in FILES.items():
        path = RESULTS / f"{file}.json"
        held = read_json(path) if path.exists() else {}
        # The environment of the file is that of its first cases; later ones may be made on another machine.
        found = {"environment": environment(), **held}
        for name in names:
            result = results(CASES[name])
            if result is not None and covers(result, held.get(name)):
                found[name] = {**result, "environment": environment()}
        if found == held or not {*names} & {*found}:
            continue
        write_json(path, found)
        for name in names:
            if found.get(name) != held.get(name):
                print(f"\n{name}\n{summary(found[name])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("cases", nargs="*", choices=[[], *CASES])
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--at", nargs=2, type=int, default=(0, PROBES + PILOT), help="probes, from and to")
    parser.add_argument("--workers", type=int, default=1, help="processes; the results are the same")
    args = parser.parse_args()
    if args.stage == "table":
        table()
    executor = Pool(args.workers, 1) if args.workers > 1 else None
    for name in args.cases if args.stage == "run" else ():
        run(CASES[name], args.arms, tuple(args.at), executor)


if __name__ == "__main__":
    main()
