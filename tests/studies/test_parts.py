"""Finished jobs are read back, and damaged or stale ones made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from infuser.data import Dataset
from infuser.executors import Local
from infuser.perturbation.balls import Linf
from infuser.studies.environment import environment
from infuser.studies.parts import Part, completed, determinants, key_of
from infuser.studies.study import Experiment
from infuser.types import Edit, Trials

DATA = Dataset.from_arrays(np.full((4, 1, 3, 3), 100, np.uint8), np.array([0, 1, 0, 1]))


def _part(step: int) -> Part:
    chosen = DATA[[1, 3]]
    after = chosen.inputs + np.uint8(step)
    edit = Edit(chosen.ids, chosen.inputs, after, chosen.targets, chosen.targets, Linf(8), "by hand")
    trials = Trials.from_rows([("edit", 1, "0->1", "log_odds", float(step))], "last_epoch", {"edit/1": "weights=a"})
    return Part({"last_epoch": trials}, edit, {"predicted": 0.5})


def _completed(folder: Path, step: int, key: str = "a") -> tuple[Part, int]:
    made: list[int] = []

    def job(q: int) -> Part:
        made.append(q)
        return _part(step)

    return completed(folder, DATA, {"probe": 0}, {"probe": key}, Local(), job)["probe"], len(made)


def test_a_finished_part_is_not_made_again(tmp_path: Path) -> None:
    assert _completed(tmp_path, 3)[1] == 1
    part, made = _completed(tmp_path, 5)
    assert made == 0
    assert part.edit is not None
    assert (part.edit.after == 103).all()
    assert part.trials["last_epoch"].value.tolist() == [3.0]


def test_a_stale_part_gives_way_to_another_edit(tmp_path: Path) -> None:
    _completed(tmp_path, 3)
    part, made = _completed(tmp_path, 5, key="b")
    assert made == 1
    assert part.edit is not None
    assert (part.edit.after == 105).all()
    assert _completed(tmp_path, 7, key="b")[1] == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("edits/probe/manifest.json", "{"),
        ("edits/probe/manifest.json", "{}"),
        ("edits/probe/after/00000001.png", ""),
        ("parts/probe.json", "{"),
        ("parts/probe.json", "[]"),
    ],
)
def test_a_damaged_part_is_made_again(tmp_path: Path, name: str, text: str) -> None:
    _completed(tmp_path, 3)
    (tmp_path / name).write_text(text)
    assert _completed(tmp_path, 3)[1] == 1
    assert _completed(tmp_path, 3)[1] == 0


def test_a_part_of_torn_columns_is_made_again(tmp_path: Path) -> None:
    _completed(tmp_path, 3)
    path = tmp_path / "parts" / "probe.json"
    stored = json.loads(path.read_text())
    stored["trials"]["last_epoch"]["value"] = [[1.0], [1.0, 2.0]]
    path.write_text(json.dumps(stored))
    assert _completed(tmp_path, 3)[1] == 1


def test_parts_of_another_processor_or_version_are_stale() -> None:
    here = environment()
    own = key_of(determinants(Experiment(), here))
    assert own == key_of(determinants(Experiment(), {**here, "threads": 7, "cores": 96}))
    assert own != key_of(determinants(Experiment(), {**here, "processor": "another one"}))
    assert own != key_of(determinants(Experiment(), {**here, "packages": {**here["packages"], "torch": "1.0"}}))
    older = {name: value for name, value in here.items() if name != "processor"}
    assert own != key_of(determinants(Experiment(), older))


def test_the_processor_is_told() -> None:
    told = environment()["processor"]
    assert torch.backends.cpu.get_cpu_capability() in told
    assert len(told) > len(torch.backends.cpu.get_cpu_capability())
