"""Does a run come out again? It is run anew from its stored settings, and both are compared bit by bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from infuser.config import parse, read_yaml
from infuser.errors import InfuserError
from infuser.storage import read_json
from infuser.studies.environment import environment
from infuser.studies.presets import STUDIES, Settings, run_study
from infuser.studies.sweep_table import refuse_sweep
from infuser.studies.verify import largest

_FILES = ("results.json", "trials.parquet", "scores.parquet")
_BESIDE = ("environment",)  # what results.json says about the machine is not a result


@dataclass(frozen=True)
class Replay:
    """How a second run differs from the stored one.

    Attributes:
        files: name -> whether both are equal, byte for byte; results.json without what it says about the machine.
        largest: measure -> largest absolute difference, where there is any; infinite where rows do not correspond.
        changed: package or machine -> (then, now).
    """

    files: Mapping[str, bool]
    largest: Mapping[str, float]
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def bitwise(self) -> bool:
        """Whether everything is equal."""
        return all(self.files.values())

    def __str__(self) -> str:
        head = "bitwise equal" if self.bitwise else "NOT bitwise equal"
        lines = [
            f"{head}: " + ", ".join(f"{name} {'same' if same else 'differs'}" for name, same in self.files.items())
        ]
        lines += [f"  {name}: largest difference {value:.3g}" for name, value in self.largest.items()]
        lines += [f"  {name} was {then}, is {now}" for name, (then, now) in self.changed.items()]
        return "\n".join(lines)


def replay_run(folder: Path, *, allow_code: bool = False) -> Replay:
    """Run the study of a finished run again in a temporary folder, and return how the two differ.

    Raises:
        InfuserError: the folder holds no finished run.
    """
    refuse_sweep(folder, "replay")
    for name in ("config.yaml", "results.json"):
        if not (folder / name).exists():
            raise InfuserError("this is not a finished run", got=f"{folder} without {name}", remedy="`infuser run`")
    settings = _settings(folder)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "run"
        run_study(settings, again, allow_code=allow_code)
        files = {name: _same(folder / name, again / name) for name in _FILES if (folder / name).exists()}
        far = dict(_differences(folder, again, files))
    return Replay(files, far, _changes(read_json(folder / "environment.json"), environment()))


def _settings(folder: Path) -> Settings:
    """Return the stored settings: of the one kind of study whose settings these are."""
    values, refused = read_yaml(folder / "config.yaml"), []
    for kind, cls in STUDIES.items():
        try:
            settings: Settings = parse(cls, values)
            return settings
        except InfuserError as error:
            refused.append(f"{kind}: {error.fact}")
    raise InfuserError("these are the settings of no study that can be replayed", got="; ".join(refused))


def _same(one: Path, other: Path) -> bool:
    if one.suffix != ".json":
        return other.exists() and one.read_bytes() == other.read_bytes()
    return _results(one) == _results(other)


def _results(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if key not in _BESIDE}


def _differences(one: Path, other: Path, files: Mapping[str, bool]) -> Iterator[tuple[str, float]]:
    """Yield (measure, largest difference) of what is not equal."""
    if not files.get("trials.parquet", True):
        rows, again = (pq.read_table(folder / "trials.parquet") for folder in (one, other))
        names = [name for name in rows.column_names if name != "value"]
        if rows.select(names) != again.select(names):
            yield "rows of the trials", float("inf")
        else:
            measures = np.array(rows["measure"].to_pylist())
            values = [np.array(table["value"].to_pylist()) for table in (rows, again)]
            for name in dict.fromkeys(measures.tolist()):
                yield name, largest(*(column[measures == name] for column in values))
    if not files.get("scores.parquet", True):
        tables = [pq.read_table(folder / "scores.parquet") for folder in (one, other)]
        numbers = [
            n for n, kind in zip(tables[0].column_names, tables[0].schema.types, strict=True) if "f" in str(kind)
        ]
        for name in numbers:
            if name in tables[1].column_names:
                yield f"scores.{name}", largest(*(table[name].to_pylist() for table in tables))
    if not files["results.json"]:
        yield from _by_path(_results(one / "results.json"), _results(other / "results.json"), "results")


def _by_path(one: Any, other: Any, path: str) -> Iterator[tuple[str, float]]:
    """Yield the largest difference under each key of the top two levels."""
    if isinstance(one, dict) and isinstance(other, dict) and path.count(".") < 2:
        for key in dict.fromkeys([*one, *other]):
            yield from _by_path(one.get(key), other.get(key), f"{path}.{key}")
        return
    if one != other:
        a, b = _numbers(one), _numbers(other)
        yield path, largest(a, b) if len(a) == len(b) else float("inf")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in _numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else [float("nan")] if value is None else []


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    flat = [{**{k: v for k, v in e.items() if k != "packages"}, **e.get("packages", {})} for e in (then, now)]
    return {key: (flat[0].get(key), flat[1].get(key)) for key in flat[1] if flat[0].get(key) != flat[1].get(key)}
