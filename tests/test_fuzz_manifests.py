"""Whatever stands in a configuration, a manifest, a checkpoint or a part: it is read, or refused with our own error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infuser.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.perturbation.balls import Linf
from infuser.perturbation.manifest import load_edit, save_edit
from infuser.studies.parts import Part, keep, stored
from infuser.studies.presets import commented, settings_of
from infuser.studies.sweep import read_sweep
from infuser.types import Edit, Trials
from tests.data.files import damaged

DATA = Dataset.from_arrays(np.full((4, 1, 3, 3), 100, np.uint8), np.array([0, 1, 0, 1]))
CONFIG = "\n".join(line for line in commented("digits")[0].splitlines() if not line.startswith("#")).encode()
SWEEP = b"like: digits\nk: 3\nrecipe: {epochs: 2, lr: 0.1}\ngrid:\n  radius: [4, 8]\nlist:\n- {k: 3}\n- {k: 4}\n"


def _edit() -> Edit:
    chosen = DATA[[1, 3]]
    after = chosen.inputs + np.uint8(3)
    return Edit(chosen.ids, chosen.inputs, after, chosen.targets, chosen.targets, Linf(8), "by hand", np.ones(2))


def _part() -> Part:
    rows = [("edit", 1, "0->1", "log_odds", 0.5), ("noise", 1, "0->1", "log_odds", 0.25)]
    trials = Trials.from_rows(rows, "last_epoch", {"edit/1": "weights=a", "noise/1": "weights=a"})
    return Part({"last_epoch": trials}, _edit(), {"predicted": 0.5})


def _save_edit(folder: Path) -> Path:
    return save_edit(_edit(), folder, DATA)


def _save_checkpoint(folder: Path) -> Path:
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return save_checkpoint(Checkpoint(1, 4, {"w": torch.arange(3.0)}, optimizer), folder, data="x")


def _save_part(folder: Path) -> Path:
    keep(folder, DATA, "probe", "key", _part())
    return folder / "parts" / "probe.json"


def _write(raw: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "config.yaml").write_bytes(raw)
        return folder / "config.yaml"

    return write


def _stored(folder: Path) -> None:
    if not stored(folder, DATA, {"probe": "key"}):
        raise InfuserError("not used")


def _epoch(folder: Path) -> None:
    load_checkpoint(folder / "epoch-0001", data="x")


# What is written, which of its files is damaged, and what reads it.
READERS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], object]]] = {
    "config": (_write(CONFIG), "config.yaml", lambda folder: settings_of(str(folder / "config.yaml"))),
    "sweep": (_write(SWEEP), "config.yaml", lambda folder: read_sweep(folder / "config.yaml")),
    "edit": (_save_edit, "manifest.json", lambda folder: load_edit(folder, DATA)),
    "edited document": (_save_edit, "after/00000001.png", lambda folder: load_edit(folder, DATA)),
    "checkpoint": (_save_checkpoint, "epoch-0001/manifest.json", _epoch),
    "weights": (_save_checkpoint, "epoch-0001/weights.safetensors", _epoch),
    "optimizer": (_save_checkpoint, "epoch-0001/optimizer.pt", _epoch),
    "part": (_save_part, "parts/probe.json", _stored),
}
# Words that mean something to a reader do more harm than bytes that mean nothing.
WORDS = [
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"true",
    b'"x"',
    b"[]",
    b"{}",
    b"[[1]]",
    b"../../x",
    b"!!python/none",
    b"&a *a",
]
WORDS += [
    b"9" * 400,
    b"2024-13-45",
    b"0x1F",
    b"\xff\xfe",
    b"\x00",
    b"[" * 200,
    b": ",
    b"\n- ",
    b"? ",
    b"module:function",
]


@st.composite
def with_words(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return `whole` with values replaced by words."""
    raw = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 12)))
        raw = raw[:start] + draw(st.sampled_from(WORDS)) + raw[end:]
    return raw


def _fuzz(folder: Path, reader: str, examples: int) -> None:
    write, name, read = READERS[reader]
    write(folder)
    path = folder / name
    whole = path.read_bytes()
    outcomes = {"read": 0, "refused": 0}
    # A part that is as it was must be read, so that a reader that refuses everything is noticed.
    read(folder)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(whole) | with_words(whole))
    def run(raw: bytes) -> None:
        path.write_bytes(raw)
        with suppress(InfuserError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes["refused"] += 1
            read(folder)
            outcomes["refused"] -= 1
            outcomes["read"] += 1

    run()
    assert outcomes["refused"] > examples / 20
    # What is hashed can hardly be changed and still be read.
    assert outcomes["read"] > 0 or reader in ("weights", "optimizer", "edited document")


@pytest.mark.parametrize("reader", READERS)
def test_readers_raise_nothing_but_their_own_error(tmp_path: Path, reader: str) -> None:
    _fuzz(tmp_path, reader, 60)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_readers_raise_nothing_but_their_own_error_thousands_of_times(tmp_path: Path, reader: str) -> None:
    _fuzz(tmp_path, reader, 3_000 if reader in ("config", "sweep") else 10_000)


def test_the_fuzzer_would_notice_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(folder: Path) -> object:
        return (folder / "config.yaml").read_text().splitlines()[4].split(":")[1]

    monkeypatch.setitem(READERS, "naive", (_write(CONFIG), "config.yaml", naive))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        _fuzz(tmp_path, "naive", 300)
    assert not isinstance(caught.value, InfuserError | AssertionError)
