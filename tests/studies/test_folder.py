"""Run folders are locked, recognised by their settings, and cleared of nothing but a run's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from infuser.errors import InfuserError
from infuser.studies.folder import opened


def _open(folder: Path, config: str = "k: 1\n", resume: bool = False, overwrite: bool = False) -> None:
    with opened(folder, config, resume=resume, overwrite=overwrite):
        pass


def test_a_new_folder_gets_its_configuration_and_no_lock_stays(tmp_path: Path) -> None:
    _open(tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    _open(tmp_path, "k: 3\n")
    _open(tmp_path)  # what ended before anything was made is nobody's run
    (tmp_path / "parts").mkdir()
    with pytest.raises(InfuserError, match=r"already holds a run.*--resume.*--overwrite"):
        _open(tmp_path)
    with pytest.raises(InfuserError, match="other settings"):
        _open(tmp_path, "k: 2\n", resume=True)
    _open(tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_text() == "k: 1\n"


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    _open(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "x.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("mine")
    _open(tmp_path, "k: 2\n", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "thesis.tex"]


def test_what_a_killed_driver_was_writing_is_removed(tmp_path: Path) -> None:
    _open(tmp_path)
    (tmp_path / "parts").mkdir()
    half = tmp_path / "parts" / ".probe.json.0123456789abcdef.tmp"
    half.write_text('{"key"')
    (tmp_path / ".mine.tmp").write_text("not infuser's")
    _open(tmp_path, resume=True)
    assert not half.exists()
    assert (tmp_path / ".mine.tmp").exists()


def test_overwriting_spares_a_folder_that_no_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InfuserError, match="but no run"):
        _open(tmp_path, overwrite=True)
    assert (tmp_path / "checkpoints").is_dir()


def test_two_drivers_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        opened(tmp_path, "k: 1\n", resume=False, overwrite=False),
        pytest.raises(InfuserError, match=r"in use.*process"),
    ):
        _open(tmp_path, resume=True)
    _open(tmp_path, resume=True)


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InfuserError, match="is a file"):
        _open(tmp_path / "out")
