"""The settings of the main study, and what all its jobs share: data, run, probes, fitted method and scores."""

from __future__ import annotations

import inspect
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
from infuser.config import resolve
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.identity import identity
from infuser.curvature.kfac import fit_kfac
from infuser.data import Dataset, subset
from infuser.data.source import load
from infuser.errors import InfuserError, require
from infuser.measure import LogProb, Margin, predictions
from infuser.params import trainable
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import PostEdit, Strategy
from infuser.training import train
from infuser.types import Builder, Damping, Recipe, Scores

Start = Literal["last_epoch", "half", "scratch"]
Control = Literal["noise", "random_docs", "top", "insert_1", "insert_k", "no_curvature", "gradient_matching"]


@dataclass(frozen=True)
class Victim:
    """Another architecture that is trained on the same edited files, with its own recipe and its own clean control.

    Attributes:
        model: a name in infuser.models, or module:function.
        options: keyword arguments of the model's function.
        recipe: how it is trained; the seeds vary as for the main model.
    """

    model: str = "simple_cnn"
    options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.02, threads=1))


@dataclass(frozen=True)
class Experiment:
    """All settings of the study.

    Attributes:
        data: digits, mnist, cifar10, folder:PATH, parquet:PATH, npz:PATH or hf:NAME.
        data_folder: where the files of a named data set lie.
        limit: train on this many documents, chosen by seed 0; None means all.
        model: a name in infuser.models, or module:function.
        model_options: keyword arguments of the model's function, such as width: 16.
        recipe: of the clean run.
        curvature: what the directions are solved with.
        fit_documents: documents that the curvature is fitted on at most; None means all.
        damping: added to the eigenvalues.
        measure: f, what the edit is to raise.
        probes: number of test documents, each with a random target that is not its clean prediction.
        probe_seed: draws probes and targets.
        judged: test documents, drawn by seed 0, that every retrained model's accuracy is measured on.
        k: documents edited a probe.
        norm: of the ball.
        radius: of the ball, in 1/255 steps of a pixel.
        steps: of the ascent.
        select: strategy that chooses the k documents.
        pool: documents that post_edit edits for each that it keeps.
        controls: arms beside clean and edit.
        restarts: of gradient_matching, 250 steps each.
        regimes: what is retrained.
        seeds: of retraining; order for last_epoch and half, initialisation and order for scratch.
        victims: architectures for transfer.
        workers: processes that jobs run in, each with recipe.threads threads; 1 stays in this process.
    """

    data: str = "digits"
    data_folder: str | None = None
    limit: int | None = None
    model: str = "tiny_resnet"
    model_options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=lambda: Recipe(threads=1))
    curvature: Literal["ekfac", "kfac", "identity"] = "ekfac"
    fit_documents: int | None = None
    damping: Damping = field(default_factory=Damping)
    measure: Literal["log_prob", "log_odds"] = "log_odds"
    probes: int = 20
    probe_seed: int = 0
    judged: int = 2_000
    k: int = 28
    norm: Literal["linf", "l2"] = "linf"
    radius: float = 16
    steps: int = 30
    select: Strategy = "post_edit"
    pool: float = 3.0
    controls: tuple[Control, ...] = ("noise", "random_docs", "insert_1", "insert_k", "no_curvature")
    restarts: int = 1
    regimes: tuple[Start, ...] = ("last_epoch",)
    seeds: tuple[int, ...] = (1, 2, 3)
    victims: tuple[Victim, ...] = ()
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("probes", "judged", "k", "steps", "restarts", "workers"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("seeds", self.seeds, 0 < len(set(self.seeds)) == len(self.seeds), "at least one, all distinct")
        seeds = (self.probe_seed, *self.seeds)
        require("probe_seed, seeds", seeds, all(0 <= seed < 2**63 for seed in seeds), "0 <= seed < 2**63")
        for name in ("limit", "fit_documents"):
            value = getattr(self, name)
            require(name, value, value is None or value >= 1, "at least 1, or null for all")
        require("regimes", self.regimes, 0 < len(set(self.regimes)) == len(self.regimes), "at least one, all distinct")
        # A victim's model is the name of its folder and of its rows.
        models = [victim.model for victim in self.victims]
        require("victims", models, len(set(models)) == len(models), "models that are all distinct")
        # What is out of range fails here, before anything is trained.
        PostEdit(self.pool)
        PGD(self.ball, steps=self.steps)

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
    def judged(self) -> Dataset:
        """The test documents that accuracy is measured on."""
        return subset(self.test, min(self.settings.judged, len(self.test)))

    @property
    def runs(self) -> list[tuple[str, Run]]:
        """The models to retrain, by the name that their regime carries."""
        return [("", self.run), *((f"{name}:", run) for name, run in self.victims.items())]


def prepare(settings: Experiment, folder: Path, timing: dict[str, float], *, allow_code: bool = False) -> Study:
    """Return the shared state: data, the trained run (resumed from `folder`), probes, directions' method and scores."""
    with timed(timing, "data"):
        data, test = load(settings.data, settings.data_folder, limit=settings.limit)
    builder = _builder(settings.model, settings.model_options, allow_code)
    with timed(timing, "training"):
        run = train(builder, data, settings.recipe, folder=folder / "checkpoints" / "main")
        victims = {}
        for victim in settings.victims:
            other = _builder(victim.model, victim.options, allow_code)
            where = folder / "checkpoints" / victim.model.replace(":", "-")
            victims[victim.model] = train(other, data, victim.recipe, folder=where)
    probes = choose_probes(settings, run, test)
    with timed(timing, "curvature"):
        curvature = _fit(settings, run, data)
    influence = Influence(curvature, settings.damping)
    with timed(timing, "scores"):
        scores = attribute(influence, run, data, probes)
    plain = Influence(identity(run), Damping(0.0, "absolute"))
    return Study(settings, data, test, run, victims, probes, influence, plain, scores)


def choose_probes(settings: Experiment, run: Run, test: Dataset) -> LogProb | Margin:
    """Return random test documents, each with a random target that is neither its prediction nor its label.

    The first n of more probes are the n probes of fewer.
    """
    if settings.probes > len(test):
        raise InfuserError("more probes than test documents", got=settings.probes, expected=f"at most {len(test)}")
    if test.n_outputs < 3:
        raise InfuserError("a probe needs a class that is neither predicted nor true", got=f"{test.n_outputs} classes")
    model = run.model()
    rng = np.random.default_rng([settings.probe_seed, 1])
    chosen = test[rng.permutation(test.ids)[: settings.probes]]
    predicted = predictions(model, trainable(model), chosen)
    targets = []
    for guess, label in zip(predicted, chosen.targets, strict=True):
        targets.append(rng.choice([c for c in range(test.n_outputs) if c not in (guess, label)]))
    kind = LogProb if settings.measure == "log_prob" else Margin
    return kind(chosen, np.array(targets, dtype=np.int64))


def _builder(name: str, options: Mapping[str, Any], allow_code: bool) -> Builder:
    function = resolve(name, infuser.models, allow_code)
    unknown = sorted(set(options) - set(inspect.signature(function).parameters))
    if unknown:
        raise InfuserError(
            f"{name} has no option {unknown[0]}",
            expected=str(inspect.signature(function)),
            remedy="pass --set 'model_options={}' for none",
        )
    return partial(function, **options) if options else function


def _fit(settings: Experiment, run: Run, data: Dataset) -> Any:
    if settings.curvature == "identity":
        return identity(run)
    fit = fit_ekfac if settings.curvature == "ekfac" else fit_kfac
    documents = None if settings.fit_documents is None else min(settings.fit_documents, len(data))
    return fit(run, data, documents=documents, seed=settings.recipe.seed)


@contextmanager
def timed(timing: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of the block to `timing`."""
    begun = time.monotonic()
    try:
        yield
    finally:
        timing[name] = round(time.monotonic() - begun, 3)
