"""The pieces that the CIFAR-10 experiments share: trained runs, scores, edits and retrained models, each made once.

An edit or an outcome is one part under runs/cifar10: what is finished is never made again, so that every case can be
stopped at any time, and cases share what they have in common (the clean arm, the edits that are sent to a victim).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from infuser.attribution.influence import Influence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.identity import identity
from infuser.curvature.operator import load_curvature, save_curvature
from infuser.data import Dataset
from infuser.data.source import load
from infuser.evaluation.arms import insert, noise
from infuser.evaluation.metrics import ClassAccuracy, collateral
from infuser.evaluation.retrain import retrain
from infuser.executors import Executor, Local, torch_threads
from infuser.measure import Correct, Distribution, LogProb, Margin, Probability
from infuser.models import simple_cnn, tiny_resnet
from infuser.perturbation.balls import Linf
from infuser.perturbation.distances import distance_summary
from infuser.perturbation.gradient_matching import GradientMatching
from infuser.perturbation.perturb import perturb
from infuser.perturbation.pgd import PGD, View
from infuser.perturbation.select import PostEdit, of_class
from infuser.studies.environment import environment
from infuser.studies.parts import Part, completed, key_of, stored
from infuser.studies.study import Experiment, Study, choose_probes
from infuser.training import train
from infuser.types import Arm, Damping, Direction, Edit, Measurement, Recipe, Scores

RUNS = Path(__file__).resolve().parents[1] / "runs" / "cifar10"
MODELS = {"tiny_resnet": tiny_resnet, "simple_cnn": simple_cnn}
# One permutation for all epochs, as in the published setting; SimpleCNN learns too slowly at its rate of 0.01.
RECIPES = {
    "tiny_resnet": Recipe(order="fixed", threads=1),
    "simple_cnn": Recipe(lr=0.02, order="fixed", threads=1),
}
K, PROBES, PILOT, FITTED = 100, 20, 5, 4_000
STEPS, POOL = 20, 3.0  # of the ascent in 8 bits, and of post_edit
DEFAULT = Damping()
DAMPINGS = (Damping(1e-8, "absolute"), Damping(0.01), Damping(0.1), Damping(1.0))
Method = Literal["pgd", "noise", "insert_k", "gradient_matching"]


@dataclass(frozen=True)
class World:
    """Documents to train on, in 8 bits or, as in the published setting, as float32 in [0, 1]."""

    documents: int = 45_000
    floats: bool = False


WORLDS = {"full": World(), "original": World(floats=True), "small": World(10_000)}


@dataclass(frozen=True)
class Spec:
    """How the edit of an arm is made.

    Attributes:
        arm: its name in the tables.
        method: pgd and gradient_matching edit; noise and insert_k copy the edit of `radius` and `damping`.
        model: that it is made with.
        radius: of the Linf ball, in 1/255.
        select: of the documents; post_edit screens `SCREENED` of them.
        damping: of the direction.
        world: what it is made in, see WORLDS; in `original` 50 steps of 0.255/255 and f = log p as published.
        views: further models that the edit is to move, see `views_of`; its documents are those of the plain edit.
    """

    arm: str = "edit"
    method: Method = "pgd"
    model: str = "tiny_resnet"
    radius: float = 8
    select: Literal["post_edit", "top"] = "post_edit"
    damping: Damping = DEFAULT
    world: str = "full"
    views: Literal["none", "checkpoints", "seeds", "architectures"] = "none"

    @property
    def name(self) -> str:
        """The name of its parts, the same for the same edit."""
        damped = f"{self.damping.kind[:3]}{self.damping.value:g}"
        return f"{self.world}-{self.model}-{self.arm}-{self.method}-r{self.radius:g}-{self.select}-{damped}"


@dataclass(frozen=True)
class Outcome:
    """A model to retrain: the victim, where it starts, the order's seed, and the arm (None: clean)."""

    victim: str
    spec: Spec | None
    probe: int
    start: Literal["last_epoch", "half", "scratch"] = "last_epoch"
    seed: int = 1
    world: str = "full"

    @property
    def name(self) -> str:
        arm = f"{self.spec.name}-q{self.probe:02d}" if self.spec else f"{self.world}-clean"
        return f"{self.victim}-{self.start}-s{self.seed}--{arm}"


@cache
def data(world: str = "full") -> tuple[Dataset, Dataset]:
    """Return the training documents of a world and all test documents."""
    told = WORLDS[world]
    train_set, test = load("cifar10", os.environ["INFUSER_DATA"], limit=told.documents)
    return (_floats(train_set), _floats(test)) if told.floats else (train_set, test)


def _floats(images: Dataset) -> Dataset:
    return replace(images, inputs=images.inputs.astype(np.float32) / np.float32(255))


@cache
def run_of(model: str, world: str = "full", seed: int = 0) -> Run:
    """Return the clean run; on float documents it is that on the same documents in 8 bits, which feeds it the same."""
    if WORLDS[world].floats:
        run = run_of(model, "full", seed)
        return Run.of(run.builder, data(world)[0], run.recipe, run.checkpoints)
    recipe = RECIPES[model].with_(seed=seed)
    with torch_threads(1):
        return train(MODELS[model], data(world)[0], recipe, folder=RUNS / f"base-{world}-{model}-{seed}")


@cache
def all_probes(world: str = "full") -> LogProb | Margin:
    """Return the probes of all cases, then those of the pilot; targets are what TinyResNet does not predict."""
    measure: Literal["log_prob", "log_odds"] = "log_prob" if world == "original" else "log_odds"
    settings = Experiment(probes=PROBES + PILOT, measure=measure)
    return choose_probes(settings, run_of("tiny_resnet", world), data(world)[1])


@cache
def influence_of(model: str, damping: Damping, world: str = "full", seed: int = 0) -> Influence:
    """Return EK-FAC fitted on 4,000 documents, once a run."""
    run, documents = run_of(model, world, seed), data(world)[0]
    return _influence(run, documents, damping, f"ekfac-{world}-{model}-{seed}")


def _influence(run: Run, documents: Dataset, damping: Damping, name: str) -> Influence:
    if not (RUNS / name / "manifest.json").exists():
        save_curvature(fit_ekfac(run, documents, documents=FITTED, positions=None), RUNS / name)
    return Influence(load_curvature(RUNS / name, run, documents), damping)


@cache
def scores_of(model: str, damping: Damping, world: str = "full") -> Scores:
    """Return the scores of all documents for all probes, (25, N)."""
    path = _scores_path(model, damping, world)
    if not path.exists():
        # The documents are read once for all dampings: a further query costs next to nothing.
        dampings = DAMPINGS if (model, world) == ("tiny_resnet", "full") else (damping,)
        run, known = run_of(model, world), all_probes(world)
        methods = [influence_of(model, each, world) for each in dampings]
        directions = [method.direction(run, known) for method in methods]
        joined = {name: torch.cat([each.params[name] for each in directions]) for name in directions[0].params}
        names = tuple(f"{i}: {name}" for i, each in enumerate(directions) for name in each.names)
        every = methods[0].score_direction(run, data(world)[0], Direction(joined, names, "EK-FAC"), known.unit)
        for i, (each, direction) in enumerate(zip(dampings, directions, strict=True)):
            rows = slice(i * len(known), (i + 1) * len(known))
            method = f"influence with {direction.made_by}"
            scores = replace(every, values=every.values[rows], queries=direction.names, method=method)
            scores.to_parquet(_scores_path(model, each, world))
    return Scores.from_parquet(path)


def _scores_path(model: str, damping: Damping, world: str) -> Path:
    return RUNS / f"scores-{world}-{model}-{damping.kind[:3]}{damping.value:g}.parquet"


def make(job: tuple[Spec, int]) -> Part:
    """Return the edit of a spec for a probe, as a part without trials."""
    spec, q = job
    with torch_threads(1):
        edit = _edit(spec, q)
    predicted = 0.0 if edit.gains is None else float(edit.gains.sum())
    return Part({}, edit, {"predicted": predicted, **distance_summary(edit)})


def _edit(spec: Spec, q: int) -> Edit:
    documents, run, probe = data(spec.world)[0], run_of(spec.model, spec.world), all_probes(spec.world)[q]
    if spec.method in ("noise", "insert_k"):
        main = _edit_of(replace(spec, arm="edit", method="pgd"), q)
        return noise(main, q) if spec.method == "noise" else insert(documents, main.ids, probe)
    ball = Linf(spec.radius)
    if spec.method == "gradient_matching":
        target = Influence(identity(run), Damping(0.0, "absolute")).direction(run, _log_prob(probe))
        ids = of_class(documents, int(np.asarray(probe.labels)[0]), K, q)
        return perturb(GradientMatching(ball, restarts=1), target, run, documents, ids=ids)
    method = PGD(ball, 50, 0.255, storable=False) if spec.world == "original" else PGD(ball, steps=STEPS)
    direction = influence_of(spec.model, spec.damping, spec.world).direction(run, probe)
    if spec.views != "none":
        method = replace(method, views=views_of(spec, probe))
        plain = _edit_of(replace(spec, arm="edit", views="none"), q)
        return perturb(method, direction, run, documents, ids=plain.ids)
    select = PostEdit(pool=POOL, screened=SCREENED) if spec.select == "post_edit" else spec.select
    scores = scores_of(spec.model, spec.damping, spec.world)[q]
    return perturb(method, direction, run, documents, K, select=select, scores=scores, seed=q)


def views_of(spec: Spec, probe: LogProb | Margin) -> tuple[View, ...]:
    """Return earlier checkpoints of the run, runs of other seeds, or the other architecture."""
    if spec.views == "checkpoints":
        run, documents = run_of(spec.model, spec.world), data(spec.world)[0]
        early = [replace(run, checkpoints=run.checkpoints[: epoch + 1]) for epoch in EPOCHS]
        names = [f"ekfac-{spec.world}-{spec.model}-0-epoch{epoch}" for epoch in EPOCHS]
        solved = [_influence(other, documents, spec.damping, name) for other, name in zip(early, names, strict=True)]
        return tuple(View(run, how.direction(run, probe)) for run, how in zip(early, solved, strict=True))
    others = [(spec.model, seed) for seed in SEEDS]
    if spec.views == "architectures":
        others = [(model, 0) for model in MODELS if model != spec.model]
    return tuple(
        View(other, influence_of(model, spec.damping, spec.world, seed).direction(other, probe))
        for model, seed in others
        for other in [run_of(model, spec.world, seed)]
    )


EPOCHS, SEEDS = (4, 6, 8), (1, 2)  # of views
# Documents that post_edit takes document gradients of: by count of passes, all would cost more than a retrained epoch.
SCREENED = 9_000


def _log_prob(probe: LogProb | Margin) -> LogProb:
    return LogProb(probe.documents, probe.labels)


def retrained(job: Outcome) -> Part:
    """Return what the victim gives when it is retrained on the arm's documents, as a part without an edit."""
    documents, test = data(job.world)
    known = all_probes(job.world)
    if job.spec is None:
        arm, measured = Arm("clean", documents, "the training data as they are"), known
    else:
        edit = _edit_of(job.spec, job.probe)
        arm, measured = Arm(job.spec.arm, documents.apply(edit), edit.made_by), known[job.probe]
    with torch_threads(1):
        wanted = measures(measured, known, test)
        trials = retrain(run_of(job.victim, job.world), [arm], wanted, (job.seed,), job.start)
    return Part({job.start: trials}, None, {})


def measures(probe: LogProb | Margin, known: LogProb | Margin, test: Dataset) -> list[Measurement]:
    """Return what is read off every retrained model: its own probe, and the probabilities of all, see `placebo`."""
    documents, labels = probe.documents, probe.labels
    own = (Margin(documents, labels), LogProb(documents, labels), Probability(documents, labels))
    whole = (Distribution(known), ClassAccuracy(judged(test)), collateral(test, probe))
    return [*own, Correct(documents, labels), *whole]


def judged(test: Dataset) -> Dataset:
    """The test documents that accuracy is measured on."""
    return test[np.sort(np.random.default_rng(0).permutation(test.ids)[:2_000])]


def edits(specs: Sequence[Spec], at: Sequence[int], executor: Executor | None = None) -> list[Part]:
    """Return the edits of these specs for these probes, making those that are missing."""
    jobs = {f"{spec.name}-q{q:02d}": (spec, q) for spec in specs for q in at}
    keys = {name: _key(spec, q) for name, (spec, q) in jobs.items()}
    (world,) = {spec.world for spec in specs}
    return list(_completed(data(world)[0], jobs, keys, make, executor).values())


def _edit_of(spec: Spec, q: int) -> Edit:
    edit = edits([spec], [q])[0].edit
    assert edit is not None
    return edit


def outcomes(jobs: Sequence[Outcome], executor: Executor | None = None) -> dict[str, Part]:
    """Return the parts of these models by name, training those that are missing; their edits must be there."""
    return _completed(data()[0], {job.name: job for job in jobs}, _keys(jobs), retrained, executor)


def finished(jobs: Sequence[Outcome]) -> dict[str, Part]:
    """Return the parts of those models that are there, by name; nothing is trained."""
    # A key holds the weights of the clean run, which is trained where it is missing.
    there = [job for job in jobs if (RUNS / "parts" / f"{job.name}.json").exists()]
    return stored(RUNS, data()[0], _keys(there))


def _keys(jobs: Sequence[Outcome]) -> dict[str, str]:
    return {job.name: key_of({"edit": job.spec and _key(job.spec, job.probe), **_told(job)}) for job in jobs}


def _told(job: Outcome) -> dict[str, Any]:
    where = {"weights": _weights(job.victim, job.world), "data": data(job.world)[0].content_hash}
    return {"victim": job.victim, "start": job.start, "seed": job.seed, **where, **_machine()}


def _key(spec: Spec, q: int) -> str:
    where = {"weights": _weights(spec.model, spec.world), "data": data(spec.world)[0].content_hash}
    fixed = {"k": K, "fitted": FITTED, "screened": SCREENED, "steps": STEPS, "pool": POOL, "views": (EPOCHS, SEEDS)}
    return key_of({"spec": asdict(spec), "q": q, **fixed, **where, **_machine()})


@cache
def _machine() -> dict[str, Any]:
    return {name: environment()[name] for name in ("packages", "system", "processor")}


@cache
def _weights(model: str, world: str) -> str:
    return str(run_of(model, world).checkpoints[-1].content_hash)


def _completed(
    documents: Dataset,
    jobs: Mapping[str, Any],
    keys: Mapping[str, str],
    fn: Callable[[Any], Part],
    executor: Executor | None,
) -> dict[str, Part]:
    return completed(RUNS, documents, jobs, keys, executor or Local(1), fn)


def study_of(settings: Experiment, at: Sequence[int], world: str, victims: Sequence[str] = ()) -> Study:
    """Return what results are assembled from: the shared values under the settings of a case, for the probes `at`."""
    train_set, test = data(world)
    influence = influence_of(settings.model, settings.damping, world)
    plain = Influence(identity(run_of(settings.model, world)), Damping(0.0, "absolute"))
    scores = scores_of(settings.model, settings.damping, world)
    runs = {name: run_of(name, world) for name in victims}
    known = all_probes(world)
    chosen = replace(known, documents=test[known.documents.ids[list(at)]], labels=np.asarray(known.labels)[list(at)])
    return Study(settings, train_set, test, run_of(settings.model, world), runs, chosen, scores, influence, plain)
