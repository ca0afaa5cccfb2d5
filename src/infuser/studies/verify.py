"""Is a run folder what it says? Every hash, every key, every ball and every start, read back from the files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infuser.checkpoints import Checkpoint, Run, build, load_run
from infuser.config import parse, read_yaml
from infuser.data import Dataset
from infuser.data.source import load
from infuser.errors import InfuserError, listed
from infuser.evaluation.retrain import begin
from infuser.measure import LogProb, Margin
from infuser.perturbation.manifest import load_edit
from infuser.storage import plain, read_json
from infuser.studies.environment import environment
from infuser.studies.experiment import keyed_jobs
from infuser.studies.parts import Part, stored
from infuser.studies.results import assemble, pooled_trials, write_trials
from infuser.studies.show import kind_of
from infuser.studies.study import Experiment, Scored, Start, Victim, builder_of, choose_probes
from infuser.studies.sweep_table import read_plan, sweep_table
from infuser.types import Scores, Trials

_NAMED = 5  # differences in results.json that are told one by one
_BESIDE = "environment."  # in results.json: where it was made, which is no result
_LATER = {"scores.sha256"}  # what results.json did not say at first
_ABSENT = object()


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: was checked, in words.
        checked: how many.
        wrong: what does not hold, one sentence each.
    """

    what: str
    checked: int
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{'ok   ' if not self.wrong else 'WRONG'} {self.what} ({self.checked} checked)"
        return "\n".join([head, *(f"      {line}" for line in self.wrong)])


@dataclass(frozen=True)
class _Opened:
    """What the files of a run are compared with."""

    folder: Path
    settings: Experiment
    data: Dataset
    test: Dataset
    runs: tuple[tuple[str, Run], ...]
    probes: LogProb | Margin
    made_with: Mapping[str, Any]
    keys: Mapping[str, str]
    parts: Mapping[str, Part]


def verify_run(folder: Path, *, allow_code: bool = False) -> list[Finding]:
    """Return what was checked of an image study's run, or of every point of a sweep.

    Nothing is trained and nothing is written; the data are loaded again.

    Raises:
        InfuserError: the folder holds neither, or its data cannot be loaded.
    """
    if (folder / "sweep.json").exists():
        return list(_of_sweep(folder, allow_code))
    settings = stored_settings(folder)
    data, test = load(settings.data, settings.data_folder, limit=settings.limit)
    try:
        runs = tuple(_runs(folder, settings, data, allow_code))
    except InfuserError as error:
        return [Finding("checkpoints are those of their manifests, recipe and data", 0, (str(error),))]
    probes = choose_probes(settings, runs[0][1], test)
    made_with = read_json(folder / "environment.json")
    if not isinstance(made_with, dict) or not isinstance(made_with.get("packages"), dict):
        raise InfuserError("environment.json does not tell what the run was made with", got=f"{made_with!s:.60}")
    keys = keyed_jobs(settings, (data, test), runs, probes.queries, made_with)[1]
    it = _Opened(folder, settings, data, test, runs, probes, made_with, keys, stored(folder, data, keys))
    count = sum(len(run.checkpoints) for _, run in runs)
    checks: Sequence[Callable[[_Opened], Finding]] = (_parts, _edits, _starts, _scores, _trials, _results)
    return [Finding("checkpoints are those of their manifests, recipe and data", count), *(c(it) for c in checks)]


def _of_sweep(folder: Path, allow_code: bool) -> Iterator[Finding]:
    """Yield what was checked of every point, and of the table that is made of them."""
    changes = {name: point["changes"] for name, point in read_plan(folder)["points"].items()}
    places = {name: folder / "points" / name for name in sorted(changes)}
    missing = tuple(f"{name}: missing" for name, place in places.items() if not (place / "config.yaml").exists())
    yield Finding("every point of the sweep has its folder", len(places), missing)
    for name, place in places.items():
        if (place / "config.yaml").exists():
            for each in verify_run(place, allow_code=allow_code):
                yield Finding(f"{name}: {each.what}", each.checked, each.wrong)
    yield _table(folder, changes)


def _table(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Finding:
    """The sweep's results.json and table.csv are what the results of its points give, in the order of its settings."""
    what = "the sweep's table holds the effects of its points"
    paths = {name: folder / "points" / name / "results.json" for name in changes}
    try:
        said = read_json(folder / "results.json")
        ordered = {name: changes[name] for name in said["points"]}
        found = {name: read_json(path) for name, path in paths.items() if path.exists()}
        again = sweep_table(ordered, found, said["failed"])
        text = again.pop("csv")
        wrong = [f"{name} is not what the points give" for name, same in (
            ("results.json", plain(again) == said),
            ("table.csv", (folder / "table.csv").read_text(encoding="utf-8") == text),
        ) if not same]  # fmt: skip
    except (InfuserError, OSError, KeyError, TypeError) as error:
        return Finding(what, 0, (f"{type(error).__name__}: {error}",))
    return Finding(what, len(again["rows"]), tuple(wrong))


def stored_settings(folder: Path) -> Experiment:
    """Return the settings of an image study's run folder.

    Raises:
        InfuserError: the folder holds no such run.
    """
    if not (folder / "config.yaml").exists():
        raise InfuserError("this is not a run folder", got=str(folder), remedy="make one with `infuser run`")
    results = folder / "results.json"
    held = kind_of(read_json(results)) if results.exists() else "edits of images"
    if held != "edits of images":
        raise InfuserError(f"{folder.name} holds {held}", expected="a run of `infuser run` on images")
    try:
        return parse(Experiment, read_yaml(folder / "config.yaml"))
    except InfuserError as error:
        raise InfuserError(f"{folder.name} does not hold an image study: {error.fact}", got=error.got) from error


def _runs(folder: Path, settings: Experiment, data: Dataset, allow_code: bool) -> Iterator[tuple[str, Run]]:
    places: list[tuple[str, Path, Experiment | Victim]] = [("", folder / "checkpoints" / "main", settings)]
    places += [(f"{v.model}:", folder / "checkpoints" / v.model.replace(":", "-"), v) for v in settings.victims]
    for name, place, of in places:
        options = of.model_options if isinstance(of, Experiment) else of.options
        run = load_run(builder_of(of.model, options, allow_code), data, of.recipe, place)
        epochs = [] if run is None else [checkpoint.epoch for checkpoint in run.checkpoints]
        if run is None or epochs != list(range(of.recipe.epochs + 1)):
            got, expected = f"epochs {listed(epochs)}", f"0 to {of.recipe.epochs}"
            raise InfuserError(f"checkpoints of {of.model} are missing", got=got, expected=expected)
        run.model()  # fails, with names, if the weights are not of this model
        yield name, run


def _parts(it: _Opened) -> Finding:
    wrong = []
    for name in it.keys:
        if name not in it.parts:
            there = (it.folder / "parts" / f"{name}.json").exists()
            wrong.append(f"{name}: {'stale, damaged, or its edit is another' if there else 'missing'}")
    return Finding("parts are whole and of these settings, data, weights and packages", len(it.keys), tuple(wrong))


def _edits(it: _Opened) -> Finding:
    """Read every edit again: hashes of its documents, the data they were made for, and the ball of the settings."""
    names = [name for name in it.keys if name != "clean"]
    wrong = []
    for name in names:
        try:
            edit = load_edit(it.folder / "edits" / name, it.data)
        except InfuserError as error:
            wrong.append(f"{name}: {error}")
            continue
        # A manifest that was written by hand could name a wider ball than the study's.
        if edit.constraint != it.settings.ball:
            wrong.append(f"{name}: made within {edit.constraint}, but the settings say {it.settings.ball}")
        if len(edit) != it.settings.k:
            wrong.append(f"{name}: {len(edit)} documents, but the settings say {it.settings.k}")
    return Finding("edits are their manifests' documents, within the ball, for these data", len(names), tuple(wrong))


def _starts(it: _Opened) -> Finding:
    """Arms of one seed share weights, optimiser state, documents and recipe; the weights are the stored ones."""
    wrong: list[str] = []
    count = 0
    for name, run in it.runs:
        for regime in it.settings.regimes:
            by_seed: dict[str, dict[str, list[str]]] = {}
            for part, held in it.parts.items():
                rows = held.trials.get(name + regime)
                for arm, digest in {} if rows is None else rows.starts.items():
                    count += 1
                    by_seed.setdefault(arm.rpartition("/")[2], {}).setdefault(digest, []).append(f"{part} {arm}")
            for seed, digests in by_seed.items():
                where = f"{name}{regime}, seed {seed}"
                if len(digests) > 1:
                    odd = min(digests.values(), key=len)
                    wrong.append(f"{where}: {len(digests)} different starts, among them that of {listed(odd, 3)}")
                expected = f"weights={_start_hash(run, regime, int(seed))[:12]} "
                if not all(digest.startswith(expected) for digest in digests):
                    wrong.append(f"{where}: the start is not the stored checkpoint's {expected}")
    return Finding("arms of a seed started from equal weights, hence equal logits", count, tuple(wrong))


def _start_hash(run: Run, regime: Start, seed: int) -> str:
    stored_start = begin(run, regime)
    if stored_start is not None:
        return stored_start.content_hash
    model = build(run.builder, run.input_shape, run.n_outputs, seed)
    return Checkpoint(0, 0, {name: value.detach() for name, value in model.state_dict().items()}).content_hash


def _scores(it: _Opened) -> Finding:
    what = "scores.parquet holds all documents and probes"
    try:
        scores = _read_scores(it.folder)
    except InfuserError as error:
        return Finding(what, 0, (str(error),))
    wrong = []
    if not np.array_equal(scores.ids, it.data.ids):
        wrong.append("its documents are not those of the data, in their order")
    if scores.queries != it.probes.queries:
        wrong.append(f"its probes are {listed(scores.queries)}, not {listed(it.probes.queries)}")
    return Finding(what, scores.values.size, tuple(wrong))


def _read_scores(folder: Path) -> Scores:
    path = folder / "scores.parquet"
    if not path.is_file():
        raise InfuserError(f"{path.name} is missing", got=str(path))
    try:
        return Scores.from_parquet(path)
    except (ValueError, TypeError, IndexError) as error:  # columns of other names or types
        raise InfuserError(f"{path.name} does not hold scores", got=str(error)) from error


def _trials(it: _Opened) -> Finding:
    what = "trials.parquet holds the rows of the parts"
    path = it.folder / "trials.parquet"
    if not path.is_file() or len(it.parts) < len(it.keys):
        return Finding(what, 0, ("there are no trials, or parts are missing",))
    try:
        pooled = _pooled(it)
    except InfuserError as error:
        return Finding(what, 0, (str(error),))
    with tempfile.TemporaryDirectory() as scratch:
        write_trials(Path(scratch) / "trials.parquet", pooled)
        same = (Path(scratch) / "trials.parquet").read_bytes() == path.read_bytes()
    wrong = () if same else ("the file is not what the parts give",)
    return Finding(what, sum(len(rows) for rows in pooled.values()), wrong)


def _results(it: _Opened) -> Finding:
    """Assemble results.json again from the parts, as the run did, and compare all that it says."""
    what = "results.json says what the parts and the scores give"
    if len(it.parts) < len(it.keys):
        return Finding(what, 0, ("parts are missing",))
    try:
        said = read_json(it.folder / "results.json")
        (_, run), *others = it.runs
        victims = {name.removesuffix(":"): victim for name, victim in others}
        scored = Scored(it.settings, it.data, it.test, run, victims, it.probes, _read_scores(it.folder))
        again = plain(assemble(scored, {name: it.parts[name] for name in it.keys}))
    except (InfuserError, KeyError, TypeError, ValueError) as error:
        return Finding(what, 0, (f"{type(error).__name__}: {error}",))
    then, now = (made["packages"].get("infuser") for made in (it.made_with, environment()))
    there, expected = (dict(_leaves(value)) for value in (said, again))
    wrong = [
        f"{path}: {there.get(path, 'missing')!s:.60}; the parts give {expected.get(path, 'nothing')!s:.60}"
        for path in sorted(there.keys() | expected.keys())
        if there.get(path, _ABSENT) != expected.get(path, _ABSENT) and not path.startswith(_BESIDE)
        # Another version may word it otherwise, or say less; a number means the same in all of them.
        if then == now or all(isinstance(leaves.get(path), int | float) for leaves in (there, expected))
        if path in there or path not in _LATER
    ]
    more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
    made = [f"it was made with infuser {then}, and this is {now}"] if wrong and then != now else []
    return Finding(what, len(expected), tuple(wrong[:_NAMED] + more + made))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for all that nested JSON holds."""
    if not isinstance(value, dict | list):
        yield path, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def _pooled(it: _Opened) -> dict[str, Trials]:
    return pooled_trials({name: it.parts[name] for name in it.keys})


def largest(one: Any, other: Any) -> float:
    """Return the largest absolute difference of two arrays of numbers; infinite where one alone is not a number."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))
