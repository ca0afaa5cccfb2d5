"""The main study: pick probes, find and edit the documents that matter, retrain every arm, state the effects.

    settings -> data, run, curvature, scores -> one job a probe (edits, arms, retraining) -> trials -> results

What all jobs share is one `Study` value; a job is the number of its probe; a part is what it gave. The driver alone
writes files, so that jobs may run anywhere.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infuser.checkpoints import Run
from infuser.config import canonical, dump
from infuser.data import Dataset
from infuser.evaluation.arms import arms
from infuser.evaluation.metrics import ClassAccuracy, collateral
from infuser.evaluation.placebo import Elsewhere
from infuser.evaluation.retrain import retrain
from infuser.executors import Executor, Local, Pool, torch_threads
from infuser.measure import Correct, Distribution, LogProb, Margin, Probability
from infuser.perturbation.distances import distance_summary
from infuser.perturbation.gradient_matching import GradientMatching
from infuser.perturbation.manifest import load_edit, save_edit
from infuser.perturbation.perturb import Perturber, perturb
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import PostEdit, Strategy, of_class
from infuser.perturbation.unrolled_pgd import UnrolledPGD
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.folder import opened
from infuser.studies.parts import Part, completed, determinants, key_of
from infuser.studies.reporting import write_report
from infuser.studies.results import assemble, pooled_trials, write_trials
from infuser.studies.study import Experiment, Study, prepare, timed
from infuser.types import Arm, Direction, Edit, Measurement, Scores


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
    settings = canonical(settings)  # keys and files are the same, whether Python or YAML gave them
    with opened(out, dump(settings), resume=resume, overwrite=overwrite) as folder:
        write_json(folder / "environment.json", environment())
        runner = executor or _executor(settings)
        with torch_threads(threads_of(settings)):
            study = prepare(settings, folder, timing, allow_code=allow_code, executor=runner)
        with timed(timing, "jobs"):
            jobs, keys = jobs_of(study)
            parts = completed(folder, study.data, jobs, keys, runner, partial(probe_job, study))
        return finish(study, folder, parts, timing)


def finish(study: Study, folder: Path, parts: Mapping[str, Part], timing: Mapping[str, float]) -> dict[str, Any]:
    """Write everything that the parts say into the folder of a run, and return what results.json holds."""
    results = {**assemble(study, parts), "environment": environment()}
    study.scores.to_parquet(folder / "scores.parquet")
    write_trials(folder / "trials.parquet", pooled_trials(parts))
    write_report(folder / "report.html", study, parts, results)
    write_json(folder / "timing.json", {**timing, **{name: part.seconds for name, part in parts.items()}})
    # Last: a run that has its results is whole.
    write_json(folder / "results.json", results)
    return results


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
    edits = {name: _reloaded(made, study.data) for name, made in edits.items()}
    edit = edits["edit"]
    own = [c for c in settings.controls if c not in edits]
    prepared = arms(study.data, edits, probe, controls=own, seed=settings.probe_seed + q)
    treated = [arm for arm in prepared if arm.name != "clean"]
    measures = [*_measures(study, probe), *([Elsewhere(study.probes, q)] if len(study.probes) > 1 else [])]
    trials = {}
    for name, run in study.runs:
        for start in settings.regimes:
            trials[name + start] = retrain(run, treated, measures, settings.seeds, start)
    gains = np.zeros(0) if edit.gains is None else edit.gains
    facts = {"predicted": float(gains.sum()), **distance_summary(edit)}
    return Part(trials, edit, facts, time.monotonic() - begun)


def make_edits(study: Study, q: int) -> dict[str, Edit]:
    """Return the edit of probe q and of each control that needs one of its own."""
    settings, data, run = study.settings, study.data, study.run
    along = PGD(settings.ball, steps=settings.steps)
    method: Perturber = along
    if settings.unrolled:
        seeds = tuple(settings.crafted)
        method = UnrolledPGD(settings.ball, study.probes[q], settings.unrolled, seeds, settings.steps)
    direction = study.influence.direction(run, study.probes[q])
    own, seed = study.scores[q], settings.probe_seed + q

    def made(method: Perturber, towards: Direction, strategy: Strategy, scores: Scores | None = None) -> Edit:
        select = PostEdit(settings.pool) if strategy == "post_edit" else strategy
        return perturb(method, towards, run, data, settings.k, select=select, scores=scores, seed=seed)

    edits = {"edit": made(method, direction, settings.select, own)}
    if "random_docs" in settings.controls:
        edits["random_docs"] = made(method, direction, "random")
    if "top" in settings.controls:
        edits["top"] = made(method, direction, "top", own)
    if "influence" in settings.controls:
        edits["influence"] = made(along, direction, settings.select, own)
    gradient = study.plain.direction(run, study.probes[q])
    if "no_curvature" in settings.controls:
        edits["no_curvature"] = made(along, gradient, settings.select)
    if "gradient_matching" in settings.controls:
        ids = of_class(data, int(np.asarray(study.probes[q].labels)[0]), settings.k, seed)
        matching = GradientMatching(settings.ball, restarts=settings.restarts)
        edits["gradient_matching"] = perturb(matching, gradient, run, data, ids=ids)
    return edits


def _reloaded(edit: Edit, data: Dataset) -> Edit:
    """Return the edit as its files give it back: what is trained on is what a user would find on disk."""
    with tempfile.TemporaryDirectory() as folder:
        save_edit(edit, folder, data)
        return load_edit(folder, data)


def jobs_of(study: Study) -> tuple[dict[str, int], dict[str, str]]:
    """Return the jobs of a study, name -> number of the probe, and under which key each is kept."""
    data = (study.data, study.test)
    return keyed_jobs(study.settings, data, study.runs, study.probes.queries, environment())


def keyed_jobs(
    settings: Experiment,
    data: tuple[Dataset, Dataset],
    runs: Sequence[tuple[str, Run]],
    queries: Sequence[str],
    made_with: Mapping[str, Any],
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the jobs and keys of a study of these (training, test) data, made in the environment `made_with`."""
    names = ["clean", *(f"probe-{name.replace('->', '-')}" for name in queries)]
    jobs = dict(zip(names, range(-1, len(queries)), strict=True))
    weights = {name: run.checkpoints[-1].content_hash for name, run in runs}
    hashes = {"data": data[0].content_hash, "test": data[1].content_hash}
    shared = {**determinants(settings, made_with), **hashes, "weights": weights}
    return jobs, {name: key_of({**shared, "job": name}) for name in jobs}


def _measures(study: Study, probes: LogProb | Margin) -> list[Measurement]:
    """What is measured on every retrained model, one row a probe each."""
    documents, labels = probes.documents, probes.labels
    own = (Margin(documents, labels), LogProb(documents, labels), Probability(documents, labels))
    whole = (ClassAccuracy(study.judged), collateral(study.test, probes))
    return [*own, Correct(documents, labels), Distribution(probes), *whole]


def threads_of(settings: Experiment) -> int:
    """Return the threads of the shared part and of every job, wherever it runs: sums depend on it."""
    return settings.recipe.threads or 1


def _executor(settings: Experiment) -> Executor:
    threads = threads_of(settings)
    return Local(threads) if settings.workers == 1 else Pool(settings.workers, threads)
