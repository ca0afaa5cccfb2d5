"""A sweep: one study at many settings, its jobs spread over whatever the executor reaches.

    configuration -> points (settings) -> one run folder each -> the probe jobs of all of them -> one table

A point is an ordinary run: its folder is what `infuser run` would have written, and every command works on it. Base
runs, curvature and scores that points share are made once. Jobs are kept as they are in a run, under a key of
everything that determines them, so that a stopped sweep goes on where it was. A job that fails is listed, and stops
nothing else.
"""

from __future__ import annotations

import errno
import itertools
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from infuser.config import canonical, dump, merge, override, read_yaml, replaced
from infuser.errors import InfuserError, listed
from infuser.executors import Executor, Pool, torch_threads
from infuser.progress import track
from infuser.storage import plain, read_json, write_json, write_text
from infuser.studies.environment import environment
from infuser.studies.experiment import finish, jobs_of, probe_job, threads_of
from infuser.studies.folder import opened
from infuser.studies.parts import Part, determinants, keep, key_of, stored
from infuser.studies.presets import settings_from, values_of
from infuser.studies.study import Common, Experiment, Study, prepare
from infuser.studies.sweep_table import sweep_table

Job = tuple[str, str, int]  # point, name of the job, number of its probe
MAX_POINTS = 10_000
_IN_A_ROW = 3  # jobs that an executor may give up one after another before it counts as lost itself


@dataclass(frozen=True)
class Sweep:
    """What is to be run.

    Attributes:
        points: name -> settings; all with the same number of threads.
        changes: name -> the settings in which the point differs from the base, by dotted path.
        text: of the configuration, as the folder keeps it.
    """

    points: Mapping[str, Experiment]
    changes: Mapping[str, Mapping[str, Any]]
    text: str

    @property
    def threads(self) -> int:
        """Torch threads of every job."""
        return threads_of(next(iter(self.points.values())))

    @property
    def local(self) -> Pool:
        """The executor of this machine: as many processes as the base settings say."""
        return Pool(next(iter(self.points.values())).workers, self.threads, retries=3)


@dataclass(frozen=True)
class Failed:
    """What a job gave that did not end: its traceback."""

    text: str

    @property
    def line(self) -> str:
        """The error itself."""
        said = [line for line in self.text.splitlines() if line and not line.startswith((" ", "In a"))]
        return said[-1] if said else "unknown"


@dataclass
class _State:
    """What a sweep has done so far."""

    studies: dict[str, Study] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)
    timing: dict[str, dict[str, float]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, Failed] = field(default_factory=dict)


def read_sweep(path: str | Path, changes: Sequence[str] = (), data_folder: str | Path | None = None) -> Sweep:
    """Return the sweep that a YAML file describes.

    The file holds the settings of a study, as `infuser run` takes them, and further `like` (a preset or another file,
    whose settings lie below), `grid` (setting -> values; all combinations) and `list` (settings of single points). With
    both, every entry of the list is combined with the grid. Settings are dotted paths: recipe.lr, probe_seed.

    Raises:
        InfuserError: the file cannot be read or has neither grid nor list, a point's settings are wrong (it is named),
            or points are the same.
    """
    values = read_yaml(path)
    if not {"grid", "list"} & values.keys():
        raise InfuserError(
            "this file describes one run and no sweep",
            got=str(path),
            expected="`grid` or `list` in it",
            remedy=f"infuser run {path}, or see `infuser init --like sweep`",
        )
    grid, entries, like = values.pop("grid", {}), values.pop("list", [{}]), values.pop("like", None)
    if like is not None:
        beside = Path(path).parent / str(like)
        below = values_of(str(beside) if beside.suffix in (".yaml", ".yml") else str(like))
        # The options of one model are not those of another, so that they are replaced as a whole.
        values = merge({k: v for k, v in below.items() if k != "model_options" or k not in values}, values)
    values = override(values, changes)
    points: dict[str, Experiment] = {}
    all_changes: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()  # not by name: a radius of 8 is one of 8.0, and of the base where that says so
    for change in _combinations(grid, entries):
        settings = _point(values, change, data_folder)
        name = _name(change, settings)
        if dump(settings) in seen:
            raise InfuserError("two points of the sweep have the same settings", got=_said(change))
        seen.add(dump(settings))
        points[name], all_changes[name] = settings, change
    threads = sorted({threads_of(settings) for settings in points.values()})
    if len(threads) > 1:
        raise InfuserError("all points of a sweep run with the same threads", got=threads, remedy="fix recipe.threads")
    kept = {name: yaml.safe_load(dump(settings)) for name, settings in points.items()}
    text = yaml.safe_dump({"sweep": plain(all_changes), "points": kept}, sort_keys=False, allow_unicode=True)
    return Sweep(points, all_changes, text)


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    executor: Executor | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Run all points into the folder `out` and return what its results.json holds.

    Raises:
        InfuserError: `out` holds something else or is in use, or the executor itself is lost.
    """
    runner = executor or sweep.local
    state = _State()
    with opened(out, sweep.text, resume=resume, overwrite=overwrite) as folder:
        write_json(folder / "environment.json", environment())
        _prepare(sweep, folder, state, runner, allow_code)
        slots = getattr(runner, "slots", 1)
        write_json(folder / "sweep.json", {"points": _plan(sweep, state), "slots": slots})
        _run(folder, state, runner, slots)
        failed = {name: what.line for name, what in sorted(state.failed.items())}
        results = sweep_table(sweep.changes, state.results, failed)
        write_text(folder / "table.csv", results.pop("csv"))
        write_json(folder / "results.json", results)
    return results


def sweep_job(studies: Mapping[str, Study], job: Job) -> Part | Failed:
    """Run one probe of one point; an error is a result like any other."""
    point, _, probe = job
    try:
        return probe_job(studies[point], probe)
    except Exception:  # noqa: BLE001 - whatever it is, the other jobs go on
        return Failed(traceback.format_exc())


def _prepare(sweep: Sweep, folder: Path, state: _State, runner: Executor, allow_code: bool) -> None:
    """Prepare the study of every point and read the parts that it has already."""
    common = Common(folder / "base")
    for name, settings in track(sweep.points.items(), "preparing", len(sweep.points)):
        timing: dict[str, float] = {}
        try:
            with opened(folder / "points" / name, dump(settings), resume=True, overwrite=False) as place:
                write_json(place / "environment.json", environment())
                with torch_threads(sweep.threads):
                    study = prepare(settings, place, timing, allow_code=allow_code, executor=runner, common=common)
                keys = jobs_of(study)[1]
                state.parts[name] = stored(place, study.data, keys)
            state.studies[name], state.keys[name], state.timing[name] = study, keys, timing
            _cleared(folder, f"{name}/prepare")
        except Exception as error:
            # A point that cannot be prepared does not stop the others; a full disk does.
            if _is_machine(error):
                raise
            _failed(folder, state, f"{name}/prepare", Failed(traceback.format_exc()))


def _run(folder: Path, state: _State, runner: Executor, slots: int) -> None:
    """Run what is missing, and finish every point as soon as it is whole."""
    for name in state.studies:
        if not _read_results(folder, state, name):
            _finish(folder, state, name)
    todo: list[Job] = [
        (point, name, probe)
        for point, study in state.studies.items()
        for name, probe in jobs_of(study)[0].items()
        if name not in state.parts[point]
    ]
    studies = {point: state.studies[point] for point, _, _ in todo}
    outcomes = _outcomes(runner, partial(sweep_job, studies), todo) if todo else iter(())

    def note(done: int) -> str:
        return f"{min(slots, len(todo) - done)} running, {len(state.failed)} failed"

    for (point, name, _), outcome in track(outcomes, "jobs", len(todo), note):
        if isinstance(outcome, Failed):
            _failed(folder, state, f"{point}/{name}", outcome)
            continue
        keep(folder / "points" / point, state.studies[point].data, name, state.keys[point][name], outcome)
        _cleared(folder, f"{point}/{name}")
        state.parts[point][name] = outcome
        _finish(folder, state, point)


def _outcomes(runner: Executor, fn: Any, todo: Sequence[Job]) -> Iterator[tuple[Job, Part | Failed]]:
    """Yield what every job gave; one that the executor gives up (its worker died each time) fails alone.

    Raises:
        InfuserError: the executor gives up one job after another.
    """
    left, lost, alone = list(todo), 0, False
    while left:
        results = runner.map(fn, tuple(left[:1] if alone else left))  # a copy: an executor may read its jobs one by one
        try:
            for outcome in results:
                lost, alone = 0, False
                yield left.pop(0), outcome
        except InfuserError as error:
            if not alone:
                # Several jobs were running, so that it need not be the first of those left that took a worker along.
                alone = True
                continue
            lost, alone = lost + 1, False
            if lost >= _IN_A_ROW:
                raise
            yield left.pop(0), Failed(f"{error}\n")


def _finish(folder: Path, state: _State, point: str) -> None:
    """Write the results of a point, if all its parts are there."""
    names = state.keys[point]
    if len(state.parts[point]) < len(names):
        return
    parts = {name: state.parts[point][name] for name in names}  # in the order of the jobs, whatever came first
    try:
        state.results[point] = finish(state.studies[point], folder / "points" / point, parts, state.timing[point])
        _cleared(folder, f"{point}/results")
    except Exception as error:
        if _is_machine(error):
            raise
        _failed(folder, state, f"{point}/results", Failed(traceback.format_exc()))


def _read_results(folder: Path, state: _State, point: str) -> bool:
    """Take the results of a point that was whole before; those of one with missing parts are not its results."""
    path = folder / "points" / point / "results.json"
    if len(state.parts[point]) < len(state.keys[point]):
        path.unlink(missing_ok=True)
        return False
    try:
        state.results[point] = read_json(path)
    except InfuserError:
        return False
    return True


def _is_machine(error: BaseException) -> bool:
    """Return whether the disk is at fault, which no other job would be spared."""
    cause = error if isinstance(error, OSError) else error.__cause__
    faults = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    return isinstance(cause, OSError) and cause.errno in faults


def _failed(folder: Path, state: _State, name: str, what: Failed) -> None:
    state.failed[name] = what
    write_text(failure_log(folder, name), what.text)


def _cleared(folder: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        failure_log(folder, name).unlink()


def failure_log(folder: Path, name: str) -> Path:
    """Return where the traceback of a failed job ("point/job") lies."""
    return folder / "failures" / f"{name.replace('/', '--')}.log"


def _plan(sweep: Sweep, state: _State) -> dict[str, Any]:
    return {
        name: {"changes": sweep.changes[name], "jobs": state.keys.get(name, {}), "threads": sweep.threads}
        for name in sweep.points
    }


def _combinations(grid: Any, entries: Any) -> Iterator[dict[str, Any]]:
    """Yield the changes of every point.

    Raises:
        InfuserError: grid or list are not what they should be, or too many.
    """
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise InfuserError("grid must name a list of values for each setting", got=grid, expected="radius: [4, 8]")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise InfuserError("list must hold groups of settings", got=entries, expected="- {radius: 4, k: 10}")
    count = len(entries)
    for values in grid.values():
        count *= len(values)
    if count > MAX_POINTS:
        raise InfuserError("the sweep has too many points", got=count, expected=f"at most {MAX_POINTS}")
    both = sorted({str(key) for entry in entries for key in entry} & {str(key) for key in grid})
    if both:
        raise InfuserError("a setting is both in grid and in list", got=listed(both))
    for entry, values in itertools.product(entries, itertools.product(*grid.values())):
        yield {str(key): value for key, value in (*entry.items(), *zip(grid, values, strict=True))}


def _point(values: Mapping[str, Any], change: Mapping[str, Any], data_folder: str | Path | None) -> Experiment:
    try:
        for path, value in change.items():
            values = replaced(values, path, value)
        # Keys and files are those of `infuser run` with these settings, and read back as they were written.
        settings = canonical(settings_from(values, (), data_folder))
    except InfuserError as error:
        raise InfuserError(
            f"point {_said(change)}: {error.fact}", got=error.got, expected=error.expected, remedy=error.remedy
        ) from error
    if not isinstance(settings, Experiment):
        raise InfuserError("a sweep is of image studies", got=f"study: {values.get('study')}", expected="study: images")
    return settings


def _name(change: Mapping[str, Any], settings: Experiment) -> str:
    """Return a folder's name that a reader can tell apart, and that no value can lead elsewhere."""
    words = re.sub(r"[^\w.=+-]+", "-", _said(change)).strip("-.")[:60] or "base"
    return f"{words}-{key_of(determinants(settings, {'packages': None, 'system': None}))[:8]}"


def _said(change: Mapping[str, Any]) -> str:
    return ",".join(f"{path}={value}" for path, value in change.items())
