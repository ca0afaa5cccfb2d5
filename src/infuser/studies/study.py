"""The settings of the main study, and what all its jobs share: data, run, probes, fitted method and scores."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
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
from infuser.curvature.factors import DOCUMENTS
from infuser.curvature.identity import identity
from infuser.curvature.kfac import fit_kfac
from infuser.data import Dataset, subset
from infuser.data.source import load
from infuser.errors import InfuserError, listed, require
from infuser.executors import Executor
from infuser.measure import LogProb, Margin, predictions
from infuser.params import trainable
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import PostEdit, Strategy
from infuser.storage import plain
from infuser.studies.environment import environment
from infuser.studies.parts import key_of
from infuser.training import train
from infuser.types import Builder, Damping, Recipe, Scores

Start = Literal["last_epoch", "half", "scratch"]
Control = Literal[
    "noise", "random_docs", "top", "insert_1", "insert_k", "no_curvature", "influence", "gradient_matching"
]
CRAFTED = 1_000_000  # seeds of the replays that an unrolled edit is made with count from here


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
        recipe: how the clean model is trained, and every arm again.
        curvature: what the directions are solved with.
        fit_documents: documents that the curvature is fitted on at most; None means all.
        damping: added to the eigenvalues.
        measure: f, what the edit is to raise.
        probes: number of test documents, each with a random target that is not its clean prediction.
        probe_seed: draws probes and targets.
        judged: test documents, drawn by seed 0, that every retrained model's accuracy is measured on.
        k: documents edited a probe.
        norm: by which an edit is measured: linf, the largest change of a pixel, or l2, that of the whole image.
        radius: how far an edit may go, in 1/255 steps of a pixel.
        steps: gradient steps of an edit.
        unrolled: replay this part of training, one of the regimes, at every step of an edit, in other orders than those
            of `seeds`, for the exact derivative of f: five to ten times that training a step, for the edit and for
            random_docs and top. null takes the direction of the influence.
        select: strategy that chooses the k documents.
        pool: documents that post_edit edits for each that it keeps.
        controls: arms beside clean and edit.
        restarts: of gradient_matching, 250 steps each.
        regimes: what is retrained.
        seeds: of retraining; order for last_epoch and half, initialisation and order for scratch.
        victims: architectures for transfer.
        shards: parts that the documents are cut into for the curvature and the scores, each a job of its own; the sums
            of the curvature depend on it in their last bits.
        workers: processes that jobs run in, each with recipe.threads threads; 1 stays in this process.
    """

    data: str = "digits"
    data_folder: str | None = None
    limit: int | None = None
    model: str = "tiny_resnet"
    model_options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=lambda: Recipe(threads=1))
    curvature: Literal["ekfac", "kfac", "identity"] = "ekfac"
    fit_documents: int | None = DOCUMENTS
    damping: Damping = field(default_factory=Damping)
    measure: Literal["log_prob", "log_odds"] = "log_odds"
    probes: int = 20
    probe_seed: int = 0
    judged: int = 2_000
    k: int = 28
    norm: Literal["linf", "l2"] = "linf"
    radius: float = 16
    steps: int = 30
    unrolled: Start | None = None
    select: Strategy = "post_edit"
    pool: float = 3.0
    controls: tuple[Control, ...] = ("noise", "random_docs", "insert_1", "insert_k", "no_curvature")
    restarts: int = 1
    regimes: tuple[Start, ...] = ("last_epoch",)
    seeds: tuple[int, ...] = (1, 2, 3)
    victims: tuple[Victim, ...] = ()
    shards: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("probes", "judged", "k", "steps", "restarts", "shards", "workers"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("seeds", self.seeds, 0 < len(set(self.seeds)) == len(self.seeds), "at least one, all distinct")
        seeds = (self.probe_seed, *self.seeds)
        require("probe_seed, seeds", seeds, all(0 <= seed < 2**63 for seed in seeds), "0 <= seed < 2**63")
        if self.unrolled:
            expected = f"none that an unrolled edit is made with: {CRAFTED} and on"
            require("seeds", self.seeds, {*self.seeds}.isdisjoint(self.crafted), expected)
            if self.unrolled not in self.regimes:
                raise InfuserError(
                    f"the edit is made for {self.unrolled}, which is not among the regimes that are measured",
                    got=listed(self.regimes),
                    remedy=f"--set 'regimes=[{self.unrolled}]'",
                )
            if self.select == "post_edit":
                raise InfuserError(
                    "post_edit keeps a part of what it edits, and an unrolled edit is made of all documents jointly",
                    remedy="--set select=potential, or top, random, ...",
                )
        elif "influence" in self.controls:
            raise InfuserError(
                "the control influence is the edit itself",
                remedy="leave it out; or set unrolled, beside which it shows what the exact derivative adds",
            )
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
    def crafted(self) -> range:
        """The seeds of the replays that an unrolled edit is made with."""
        return range(CRAFTED, CRAFTED + self.steps + 1)

    @property
    def ball(self) -> Linf | L2:
        """The constraint set of an edit."""
        return Linf(self.radius) if self.norm == "linf" else L2(self.radius)


@dataclass(frozen=True)
class Scored:
    """What results.json follows from, together with what the jobs gave: all of it lies in the run's folder.

    Attributes:
        settings: of the study.
        data: the clean training documents.
        test: test documents, ids disjoint from those of data.
        run: trained on `data`.
        victims: architecture -> its own clean run.
        probes: f for each probe; probes[q] is one of them.
        scores: (Q, N) by influence.
    """

    settings: Experiment
    data: Dataset
    test: Dataset
    run: Run
    victims: Mapping[str, Run]
    probes: LogProb | Margin
    scores: Scores

    @property
    def judged(self) -> Dataset:
        """The test documents that accuracy is measured on."""
        return subset(self.test, min(self.settings.judged, len(self.test)))

    @property
    def runs(self) -> list[tuple[str, Run]]:
        """The models to retrain, by the name that their regime carries."""
        return [("", self.run), *((f"{name}:", run) for name, run in self.victims.items())]


@dataclass(frozen=True)
class Study(Scored):
    """What all jobs share.

    Attributes:
        influence: the fitted method.
        plain: the same without curvature.
    """

    influence: Influence
    plain: Influence


@dataclass(frozen=True)
class Common:
    """What studies that are prepared one after another have in common: made once, and found by what determines it.

    Attributes:
        folder: where the base runs lie, each under its key; None keeps them in the folder of the one study.
        held: key -> value.
    """

    folder: Path | None = None
    held: dict[str, Any] = field(default_factory=dict)

    def once(self, make: Callable[[], Any], *determinants: Any) -> Any:
        """Return make(), or what it gave before for the same determinants."""
        key = key_of({"of": plain(determinants)})
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]


def prepare(
    settings: Experiment,
    folder: Path,
    timing: dict[str, float],
    *,
    allow_code: bool = False,
    executor: Executor | None = None,
    common: Common | None = None,
) -> Study:
    """Return the shared state: data, the trained run (resumed from `folder`), probes, directions' method and scores.

    Args:
        settings: of the study.
        folder: of its run.
        timing: to which the seconds of each step are added.
        allow_code: let the settings name module:function.
        executor: where the shards of the curvature and of the scores are read.
        common: what earlier studies have made already.
    """
    common = common or Common()
    executor = executor if settings.shards > 1 else None  # one shard is read here, without a trip
    source = (settings.data, settings.data_folder, settings.limit)
    with timed(timing, "data"):
        data, test = common.once(lambda: load(source[0], source[1], limit=source[2]), "data", source)
    require_sizes(settings, data, test)  # before anything is trained
    with timed(timing, "training"):
        where = folder / "checkpoints"
        run, base = _base(settings, data, where / "main", common, allow_code)
        victims = {}
        for victim in settings.victims:
            place = where / victim.model.replace(":", "-")
            victims[victim.model], _ = _base(victim, data, place, common, allow_code)
    aim = (base, test.content_hash, settings.measure, settings.probes, settings.probe_seed)
    probes = common.once(lambda: choose_probes(settings, run, test), "probes", aim)
    how = (base, settings.curvature, settings.fit_documents, settings.shards)
    with timed(timing, "curvature"):
        curvature = common.once(lambda: _fit(settings, run, data, executor), "curvature", how)
    influence = Influence(curvature, settings.damping)
    sharded = replace(influence, executor=executor, shards=settings.shards)
    with timed(timing, "scores"):
        by = (how, aim, asdict(settings.damping))
        scores = common.once(lambda: attribute(sharded, run, data, probes), "scores", by)
    flat = common.once(lambda: identity(run), "identity", base)
    without = Influence(flat, Damping(0.0, "absolute"))
    return Study(settings, data, test, run, victims, probes, scores, influence, without)


def _base(
    settings: Experiment | Victim, data: Dataset, place: Path, common: Common, allow_code: bool
) -> tuple[Run, str]:
    """Return a trained model and its key; its checkpoints lie in `place`, or in the common folder with a link there."""
    options = settings.model_options if isinstance(settings, Experiment) else settings.options
    builder = builder_of(settings.model, options, allow_code)
    packages = environment()["packages"]
    of = {"model": settings.model, "options": options, "recipe": asdict(settings.recipe), "packages": packages}
    key = key_of({**of, "data": data.content_hash})
    where = place if common.folder is None else common.folder / key
    run: Run = common.once(lambda: train(builder, data, settings.recipe, folder=where), "run", key)
    if place.is_symlink() and place.resolve() != where.resolve():
        place.unlink()  # to the run of other data or packages
    if where != place and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        # Relative, so that the whole can be moved. Where links are unknown, what needs the run trains it again.
        with suppress(OSError):
            place.symlink_to(os.path.relpath(where, place.parent), target_is_directory=True)
    return run, key


def require_sizes(settings: Experiment, data: Dataset, test: Dataset) -> None:
    """Raise where the data are too few for the settings.

    Raises:
        InfuserError: more edited documents or probes than there are, or too few classes for a target.
    """
    if not 1 <= settings.k <= len(data):
        raise InfuserError("k is out of range", got=settings.k, expected=f"1 to {len(data)}, the training documents")
    _require_probes(settings, test)


def _require_probes(settings: Experiment, test: Dataset) -> None:
    if settings.probes > len(test):
        raise InfuserError("more probes than test documents", got=settings.probes, expected=f"at most {len(test)}")
    if test.n_outputs < 3:
        raise InfuserError("a probe needs a class that is neither predicted nor true", got=f"{test.n_outputs} classes")


def choose_probes(settings: Experiment, run: Run, test: Dataset) -> LogProb | Margin:
    """Return random test documents, each with a random target that is neither its prediction nor its label.

    The first n of more probes are the n probes of fewer.
    """
    _require_probes(settings, test)
    model = run.model()
    rng = np.random.default_rng([settings.probe_seed, 1])
    chosen = test[rng.permutation(test.ids)[: settings.probes]]
    predicted = predictions(model, trainable(model), chosen)
    targets = []
    for guess, label in zip(predicted, chosen.targets, strict=True):
        targets.append(rng.choice([c for c in range(test.n_outputs) if c not in (guess, label)]))
    kind = LogProb if settings.measure == "log_prob" else Margin
    return kind(chosen, np.array(targets, dtype=np.int64))


def builder_of(name: str, options: Mapping[str, Any], allow_code: bool) -> Builder:
    """Return the function (input_shape, n_outputs) -> model that a name and its options stand for."""
    function = resolve(name, infuser.models, allow_code)
    unknown = sorted(set(options) - set(inspect.signature(function).parameters))
    if unknown:
        raise InfuserError(
            f"{name} has no option {unknown[0]}",
            expected=str(inspect.signature(function)),
            remedy="pass --set 'model_options={}' for none",
        )
    return partial(function, **options) if options else function


def _fit(settings: Experiment, run: Run, data: Dataset, executor: Executor | None) -> Any:
    if settings.curvature == "identity":
        return identity(run)
    fit = fit_ekfac if settings.curvature == "ekfac" else fit_kfac
    documents, seed = settings.fit_documents, settings.recipe.seed
    return fit(run, data, documents=documents, seed=seed, executor=executor, shards=settings.shards)


@contextmanager
def timed(timing: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of the block to `timing`."""
    begun = time.monotonic()
    try:
        yield
    finally:
        timing[name] = round(time.monotonic() - begun, 3)
