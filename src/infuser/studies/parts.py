"""What one job gave, and where it is kept: a finished job is never run again, a stale one never used again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.executors import Executor
from infuser.perturbation.manifest import load_edit, save_edit
from infuser.progress import track
from infuser.storage import hash_arrays, read_json, write_json
from infuser.types import Edit, Trials

_COLUMNS = ("arm", "seed", "probe", "measure", "value")


@dataclass(frozen=True)
class Part:
    """What one job gave.

    Attributes:
        trials: regime -> rows.
        edit: the edit of the probe; None for the job of the clean arm.
        facts: numbers that belong into results.json, the same in every run.
        seconds: wall time, which is not.
    """

    trials: Mapping[str, Trials]
    edit: Edit | None
    facts: Mapping[str, Any]
    seconds: float = 0.0


def key_of(determinants: Mapping[str, Any]) -> str:
    """Return a hash of everything that determines a job's result."""
    return hashlib.sha256(json.dumps(determinants, sort_keys=True).encode()).hexdigest()[:16]


def completed(
    folder: Path,
    data: Dataset,
    jobs: Mapping[str, Any],
    keys: Mapping[str, str],
    executor: Executor,
    fn: Callable[[Any], Part],
) -> dict[str, Part]:
    """Return the part of every job by name, running those that `folder` does not hold under the same key.

    Args:
        folder: of the run; parts lie in parts/, their edits in edits/.
        data: that the edits were made for.
        jobs: name -> what `fn` takes.
        keys: name -> hash of what determines the result.
        executor: where the jobs run; the driver alone writes files.
        fn: makes a part of a job.
    """
    parts = stored(folder, data, keys)
    todo = [name for name in jobs if name not in parts]
    made: Iterable[Part] = executor.map(fn, [jobs[name] for name in todo]) if todo else ()
    for name, part in track(zip(todo, made, strict=True), "jobs", total=len(todo)):
        keep(folder, data, name, keys[name], part)
        parts[name] = part
    return {name: parts[name] for name in jobs}


def stored(folder: Path, data: Dataset, keys: Mapping[str, str]) -> dict[str, Part]:
    """Return the parts that `folder` holds whole and under these keys, by name."""
    read = {name: _read(folder, data, name, key) for name, key in keys.items()}
    return {name: part for name, part in read.items() if part is not None}


def keep(folder: Path, data: Dataset, name: str, key: str, part: Part) -> None:
    """Write a part under its key; until its last file is there, the job counts as not done."""
    if part.edit is not None:
        # What lies there belongs to a part that was stale or damaged, else it would have been read.
        shutil.rmtree(folder / "edits" / name, ignore_errors=True)
        save_edit(part.edit, folder / "edits" / name, data)
    trials = {
        regime: {
            **{column: getattr(rows, column).tolist() for column in _COLUMNS},
            "start": rows.start,
            "starts": dict(rows.starts),
        }
        for regime, rows in part.trials.items()
    }
    # Last, since it is by this file that a part is there.
    value = {"key": key, "trials": trials, "facts": dict(part.facts), "seconds": part.seconds}
    write_json(folder / "parts" / f"{name}.json", {**value, "edit": _edit_hash(part.edit)})


def _read(folder: Path, data: Dataset, name: str, key: str) -> Part | None:
    path = folder / "parts" / f"{name}.json"
    if not path.exists():
        return None
    try:
        held = read_json(path)
        if held["key"] != key:
            return None
        trials = {
            regime: Trials(
                **{column: np.array(rows[column]) for column in _COLUMNS}, start=rows["start"], starts=rows["starts"]
            )
            for regime, rows in held["trials"].items()
        }
        edit = load_edit(folder / "edits" / name, data) if held["edit"] else None
        if _edit_hash(edit) != held["edit"]:
            return None
        return Part(trials, edit, held["facts"], held["seconds"])
    except (InfuserError, KeyError, TypeError, AttributeError, ValueError):
        return None  # a damaged part is made again


def _edit_hash(edit: Edit | None) -> str | None:
    return None if edit is None else hash_arrays({"ids": edit.ids, "after": edit.after, "targets": edit.targets_after})


def determinants(settings: Any, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the results of all jobs of a study depend on besides their own number."""
    plain = asdict(settings)
    plain.pop("workers", None)  # where a job runs does not change what it gives
    # Folders of earlier versions do not tell their processor.
    machine = {name: environment[name] for name in ("packages", "system", "processor") if name in environment}
    return {"settings": plain, **machine}
