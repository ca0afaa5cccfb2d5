"""The main study: pick probes, find and edit the documents that matter, retrain every arm, state the effects.

    settings -> data, run, curvature, scores -> one job a probe (edits, arms, retraining) -> trials -> results

What all jobs share is one `Study` value; a job is the number of its probe; a part is what it gave. The driver alone
writes files, so that jobs may run anywhere.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import infuser.models
from infuser.attribution.attribute import attribute
from infuser.attribution.influence import Influence
from infuser.checkpoints import Run
from infuser.config import dump, resolve
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.identity import identity
from infuser.curvature.kfac import fit_kfac
from infuser.data import Dataset
from infuser.data.source import load
from infuser.errors import InfuserError
from infuser.evaluation.arms import arms
from infuser.evaluation.metrics import collateral
from infuser.evaluation.retrain import retrain
from infuser.executors import Executor, Local, Pool
from infuser.measure import Accuracy, Correct, Distribution, LogProb, Margin, Probability, predictions
from infuser.params import trainable
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.distances import distance_summary
from infuser.perturbation.gradient_matching import GradientMatching
from infuser.perturbation.manifest import load_edit, save_edit
from infuser.perturbation.perturb import perturb
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import Strategy, of_class
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.folder import opened
from infuser.studies.parts import Part, completed, determinants, key_of
from infuser.studies.reporting import write_report
from infuser.studies.results import assemble, pooled_trials, write_trials
from infuser.training import train
from infuser.types import Arm, Damping, Direction, Edit, Measurement, Recipe, Scores

Start = Literal["last_epoch", "half", "scratch"]
Control = Literal["noise", "random_docs", "top", "insert_1", "insert_k", "no_curvature", "gradient_matching"]


@dataclass(frozen=True)
class Victim:
    """Another architecture that is trained on the same edited files, with its own recipe and its own clean control.

    Attributes:
        model: a name in infuser.models, or module:function.
        recipe: how it is trained; the seeds vary as for the main model.
    """

    model: str = "simple_cnn"
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.02, threads=1))


@dataclass(frozen=True)
class Experiment:
    """All settings of the study.

    Attributes:
        data: digits, mnist, cifar10, folder:PATH, parquet:PATH, npz:PATH or hf:NAME.
        data_folder: where the files of a named data set lie.
        limit: train on this many documents, chosen by seed 0; None means all.
        model: a name in infuser.models, or module:function.
        recipe: of the clean run.
        curvature: what the directions are solved with.
        fit_documents: documents that the curvature is fitted on; None means all.
        damping: added to the eigenvalues.
        measure: f, what the edit is to raise.
        probes: number of test documents, each with a random target that is not its clean prediction.
        probe_seed: draws probes and targets.
        k: documents edited a probe.
        norm: of the ball.
        radius: of the ball, in 1/255 steps of a pixel.
        steps: of the ascent.
        select: strategy that chooses the k documents.
        controls: arms beside clean and edit.
        regimes: what is retrained.
        seeds: of retraining; order for last_epoch and half, initialisation and order for scratch.
        victims: architectures for transfer.
        workers: processes that jobs run in, each with recipe.threads threads; 1 stays in this process.
    """

    data: str = "digits"
    data_folder: str | None = None
    limit: int | None = None
    model: str = "tiny_resnet"
    recipe: Recipe = field(default_factory=lambda: Recipe(threads=1))
    curvature: Literal["ekfac", "kfac", "identity"] = "ekfac"
    fit_documents: int | None = None
    damping: Damping = field(default_factory=Damping)
    measure: Literal["log_prob", "log_odds"] = "log_odds"
    probes: int = 20
    probe_seed: int = 0
    k: int = 28
    norm: Literal["linf", "l2"] = "linf"
    radius: float = 16
    steps: int = 30
    select: Strategy = "post_edit"
    controls: tuple[Control, ...] = ("noise", "random_docs", "insert_1", "insert_k", "no_curvature")
    regimes: tuple[Start, ...] = ("last_epoch",)
    seeds: tuple[int, ...] = (1, 2, 3)
    victims: tuple[Victim, ...] = ()
    workers: int = 2

    def __post_init__(self) -> None:
        for name, least in (("probes", 1), ("k", 1), ("steps", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise InfuserError(f"{name} is out of range", got=getattr(self, name), expected=f"at least {least}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InfuserError("seeds must be distinct, and at least one", got=self.seeds)
        self.ball  # noqa: B018 - a radius that is out of range fails here, before anything is trained

    @property
    def ball(self) -> Linf | L2:
        """The constraint set of an edit."""
        return Linf(self.radius) if self.norm == "linf" else L2(self.radius)


@dataclass(frozen=True)
class Study:
    """What all jobs share.

    Attributes:
        settings: of the study.
        data: the clean training documents.
        test: test documents, ids disjoint from those of data.
        run: trained on `data`.
        victims: architecture -> its own clean run.
        probes: f for each probe; probes[q] is one of them.
        influence: the fitted method.
        plain: the same without curvature.
        scores: (Q, N) by influence.
    """

    settings: Experiment
    data: Dataset
    test: Dataset
    run: Run
    victims: Mapping[str, Run]
    probes: LogProb | Margin
    influence: Influence
    plain: Influence
    scores: Scores

    @property
    def runs(self) -> list[tuple[str, Run]]:
        """The models to retrain, by the name that their regime carries."""
        return [("", self.run), *((f"{name}:", run) for name, run in self.victims.items())]


def run_experiment(
    settings: Experiment,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Run the study into the folder `out` and return what results.json holds.

    Raises:
        InfuserError: bad settings or data, or `out` holds another run.
    """
    timing: dict[str, float] = {}
    with opened(out, dump(settings), resume=resume, overwrite=overwrite) as folder:
        write_json(folder / "environment.json", environment())
        study = prepare(settings, folder, timing, allow_code=allow_code)
        study.scores.to_parquet(folder / "scores.parquet")
        with _timed(timing, "jobs"):
            parts = _parts(study, folder, executor or _executor(settings))
        results = {**assemble(study, parts), "environment": environment()}
        write_trials(folder / "trials.parquet", pooled_trials(parts))
        write_json(folder / "results.json", results)
        write_report(folder / "report.html", study, parts, results)
        timing |= {name: part.seconds for name, part in parts.items()}
        write_json(folder / "timing.json", timing)
    return results


def prepare(settings: Experiment, folder: Path, timing: dict[str, float], *, allow_code: bool = False) -> Study:
    """Return the shared state: data, the trained run (resumed from `folder`), probes, directions' method and scores."""
    with _timed(timing, "data"):
        data, test = load(settings.data, settings.data_folder, limit=settings.limit)
    builder = resolve(settings.model, infuser.models, allow_code)
    with _timed(timing, "training"):
        run = train(builder, data, settings.recipe, folder=folder / "checkpoints" / "main")
        victims = {}
        for victim in settings.victims:
            other = resolve(victim.model, infuser.models, allow_code)
            where = folder / "checkpoints" / victim.model.replace(":", "-")
            victims[victim.model] = train(other, data, victim.recipe, folder=where)
    probes = choose_probes(settings, run, test)
    with _timed(timing, "curvature"):
        curvature = _fit(settings, run, data)
    influence = Influence(curvature, settings.damping)
    with _timed(timing, "scores"):
        scores = attribute(influence, run, data, probes)
    plain = Influence(identity(run), Damping(0.0, "absolute"))
    return Study(settings, data, test, run, victims, probes, influence, plain, scores)


def choose_probes(settings: Experiment, run: Run, test: Dataset) -> LogProb | Margin:
    """Return random test documents, each with a random target that is neither its prediction nor its label."""
    if settings.probes > len(test):
        raise InfuserError("more probes than test documents", got=settings.probes, expected=f"at most {len(test)}")
    if test.n_outputs < 3:
        raise InfuserError("a probe needs a class that is neither predicted nor true", got=f"{test.n_outputs} classes")
    model = run.model()
    rng = np.random.default_rng([settings.probe_seed, 1])
    chosen = test[rng.choice(test.ids, settings.probes, replace=False)]
    predicted = predictions(model, trainable(model), chosen)
    targets = []
    for guess, label in zip(predicted, chosen.targets, strict=True):
        targets.append(rng.choice([c for c in range(test.n_outputs) if c not in (guess, label)]))
    kind = LogProb if settings.measure == "log_prob" else Margin
    return kind(chosen, np.array(targets, dtype=np.int64))


def probe_job(study: Study, q: int) -> Part:
    """Edit for probe q and retrain its arms; q = -1 retrains the clean arm and measures every probe on it."""
    begun = time.monotonic()
    if q < 0:
        trials = {}
        for name, run in study.runs:
            for start in study.settings.regimes:
                clean = [Arm("clean", study.data, "the training data as they are")]
                trials[name + start] = retrain(run, clean, _measures(study, study.probes), study.settings.seeds, start)
        return Part(trials, None, {}, time.monotonic() - begun)
    settings, probe = study.settings, study.probes[q]
    edits = make_edits(study, q)
    edit = _reloaded(edits["edit"], study.data)
    own = [c for c in settings.controls if c not in edits]
    prepared = arms(study.data, {**edits, "edit": edit}, probe, controls=own, seed=settings.probe_seed + q)
    treated = [arm for arm in prepared if arm.name != "clean"]
    trials = {}
    for name, run in study.runs:
        for start in settings.regimes:
            trials[name + start] = retrain(run, treated, _measures(study, probe), settings.seeds, start)
    gains = np.zeros(0) if edit.gains is None else edit.gains
    facts = {"predicted": float(gains.sum()), **distance_summary(edit)}
    return Part(trials, edit, facts, time.monotonic() - begun)


def make_edits(study: Study, q: int) -> dict[str, Edit]:
    """Return the edit of probe q and of each control that needs one of its own."""
    settings, data, run = study.settings, study.data, study.run
    method = PGD(settings.ball, steps=settings.steps)
    direction = study.influence.direction(run, study.probes[q])
    own, seed = study.scores[q], settings.probe_seed + q

    def made(towards: Direction, select: Strategy, scores: Scores | None = None) -> Edit:
        return perturb(method, towards, run, data, settings.k, select=select, scores=scores, seed=seed)

    edits = {"edit": made(direction, settings.select, own)}
    if "random_docs" in settings.controls:
        edits["random_docs"] = made(direction, "random")
    if "top" in settings.controls:
        edits["top"] = made(direction, "top", own)
    gradient = study.plain.direction(run, study.probes[q])
    if "no_curvature" in settings.controls:
        edits["no_curvature"] = made(gradient, settings.select)
    if "gradient_matching" in settings.controls:
        ids = of_class(data, int(np.asarray(study.probes[q].labels)[0]), settings.k, seed)
        edits["gradient_matching"] = perturb(GradientMatching(settings.ball), gradient, run, data, ids=ids)
    return edits


def _reloaded(edit: Edit, data: Dataset) -> Edit:
    """Return the edit as its files give it back: what is trained on is what a user would find on disk."""
    with tempfile.TemporaryDirectory() as folder:
        save_edit(edit, folder, data)
        return load_edit(folder, data)


def _parts(study: Study, folder: Path, executor: Executor) -> dict[str, Part]:
    names = ["clean", *(f"probe-{name.replace('->', '-')}" for name in study.probes.queries)]
    jobs = dict(zip(names, range(-1, len(study.probes)), strict=True))
    base = determinants(study.settings, environment())
    weights = {name: run.checkpoints[-1].content_hash for name, run in study.runs}
    shared = {**base, "data": study.data.content_hash, "weights": weights}
    keys = {name: key_of({**shared, "job": name}) for name in jobs}
    return completed(folder, study.data, jobs, keys, executor, partial(probe_job, study))


def _measures(study: Study, probes: LogProb | Margin) -> list[Measurement]:
    """What is measured on every retrained model, one row a probe each."""
    documents, labels = probes.documents, probes.labels
    own = (Margin(documents, labels), LogProb(documents, labels), Probability(documents, labels))
    whole = (Accuracy(study.test, probes.queries), collateral(study.test, probes))
    return [*own, Correct(documents, labels), Distribution(probes), *whole]


def _fit(settings: Experiment, run: Run, data: Dataset) -> Any:
    if settings.curvature == "identity":
        return identity(run)
    fit = fit_ekfac if settings.curvature == "ekfac" else fit_kfac
    return fit(run, data, documents=settings.fit_documents, seed=settings.recipe.seed)


def _executor(settings: Experiment) -> Executor:
    return Local() if settings.workers == 1 else Pool(settings.workers, settings.recipe.threads or 1)


@contextmanager
def _timed(timing: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    try:
        yield
    finally:
        timing[name] = round(time.monotonic() - begun, 3)
