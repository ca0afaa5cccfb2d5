import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from infuser.errors import InfuserError
from infuser.storage import (
    atomic_folder,
    atomic_path,
    hash_arrays,
    hash_file,
    plain,
    read_json,
    sweep,
    write_json,
    write_text,
)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename across disks would copy
    assert path.read_text() == "new"
    assert files(tmp_path) == ["new", "new/a.txt"]


def test_the_mode_is_that_of_an_ordinary_file(tmp_path):
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, failure):
    write_text(tmp_path / "a.txt", "old")

    def fail():
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.write_text", "os.open"])
def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, monkeypatch, where, number):
    write_json(tmp_path / "a.json", {"old": 1})

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(InfuserError, match=r"disk is full while writing a\.json"):
            write_json(tmp_path / "a.json", {"new": 2})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert files(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InfuserError, match=r"cannot write a\.txt.*writable folder"):
        write_text(tmp_path / "a.txt", "x")


def test_other_errors_of_the_system_are_not_hidden(tmp_path):
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "a"):
        tmp_path.read_bytes()


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "epoch"
    for text in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / text).write_text(text)
            assert path.exists() == (text == "two")
        assert files(tmp_path) == ["epoch", f"epoch/{text}"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_keeps_the_old_folder(tmp_path, failure):
    with atomic_folder(tmp_path / "epoch") as temporary:
        (temporary / "old").write_text("old")

    def fail():
        with atomic_folder(tmp_path / "epoch") as temporary:
            (temporary / "new").write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert files(tmp_path) == ["epoch", "epoch/old"]


def put(path, text):
    with atomic_folder(path) as temporary:
        (temporary / text).write_text(text)


def test_what_a_killed_process_was_writing_is_removed_when_it_is_surely_dead(tmp_path):
    names = (f".epoch.{'0' * 16}.tmp", f".epoch.{'1' * 16}.tmp", f".epoch.{'2' * 16}.old")
    living, dead, old = (tmp_path / name for name in names)
    put(tmp_path / "epoch", "one")
    for stale in (living, dead, old):
        stale.mkdir()
        (stale / "half").write_text("x")
    os.utime(dead, (0, 0))
    put(tmp_path / "epoch", "two")
    assert files(tmp_path) == [living.name, f"{living.name}/half", "epoch", "epoch/two"]


class Killed(BaseException):
    pass


@pytest.fixture
def killed_between_the_renames(tmp_path, monkeypatch):
    """A folder whose second writer got as far as moving the first version away, and cleaned nothing up."""
    put(tmp_path / "epoch", "one")
    rename = Path.replace

    def last(self, target):
        rename(self, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", last)
        patch.setattr("infuser.storage.shutil.rmtree", lambda *_, **__: None)
        patch.setattr("infuser.storage._sweep", lambda *_, **__: None)
        with pytest.raises(Killed):
            put(tmp_path / "epoch", "two")
    assert not (tmp_path / "epoch").exists()
    return tmp_path


def test_what_was_moved_away_for_nothing_is_put_back(killed_between_the_renames):
    path = killed_between_the_renames / "epoch"

    def fail():
        with atomic_folder(path) as temporary:
            assert files(path) == ["one"]
            (temporary / "three").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files(path) == ["one"]
    put(path, "four")
    assert files(path) == ["four"]


def test_whoever_alone_writes_to_a_folder_removes_everything_that_was_left(killed_between_the_renames):
    write_text(killed_between_the_renames / "a.txt", "mine")
    (killed_between_the_renames / ".mine.tmp").write_text("of another program")
    sweep(killed_between_the_renames.parent)
    assert files(killed_between_the_renames) == [".mine.tmp", "a.txt", "epoch", "epoch/one"]


def test_a_rename_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    put(tmp_path / "epoch", "one")
    rename = Path.replace

    def refused(self, target):
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        with pytest.raises(OSError, match="no"):
            put(tmp_path / "epoch", "two")
    assert files(tmp_path) == ["epoch", "epoch/one"]


def test_two_writers_of_one_folder_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "epoch"
    with atomic_folder(path) as one:
        (one / "one").write_text("one")
        with atomic_folder(path) as other:
            (other / "other").write_text("other")
        assert files(path) == ["other"]
    assert files(tmp_path) == ["epoch", "epoch/one"]


def test_a_writer_that_comes_between_the_renames_of_another(tmp_path, monkeypatch):
    path, rename = tmp_path / "epoch", Path.replace
    put(path, "one")

    def interleaved(self, target):
        moved = rename(self, target)
        if Path(target).suffix == ".old":
            monkeypatch.setattr(Path, "replace", rename)
            put(path, "other")
        return moved

    monkeypatch.setattr(Path, "replace", interleaved)
    put(path, "two")
    assert files(tmp_path) == ["epoch", "epoch/two"]


def test_json_round_trip_is_deterministic(tmp_path):
    value = {
        "b": np.float32(0.5),
        "a": np.arange(3),
        "nan": float("nan"),
        "nested": [(1, np.bool_(True)), np.array([np.inf])],
        "set": {"z", "y", "x"},
        "path": Path("x/y"),
        3: None,
    }
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {
        "b": 0.5,
        "a": [0, 1, 2],
        "nan": None,
        "nested": [[1, True], [None]],
        "set": ["x", "y", "z"],
        "path": "x/y",
        "3": None,
    }
    assert list(read_json(tmp_path / "a.json")) == sorted(map(str, value))
    assert plain(np.float64("nan")) is None


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_damaged_json(tmp_path, raw):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(InfuserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_missing_json(tmp_path):
    with pytest.raises(InfuserError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InfuserError, match="cannot read"):
        read_json(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InfuserError, match="cannot read"):
        read_json(tmp_path / "file" / "a.json")


def test_hashes_tell_names_types_shapes_and_values_apart():
    x = np.arange(6, dtype=np.int32)
    different = [
        {"x": x},
        {"y": x},
        {"x": x.astype(np.int64)},
        {"x": x.view(np.uint32)},
        {"x": x.reshape(2, 3)},
        {"x": x + 1},
        {"x": x, "y": x},
        {"x": x[:0]},
    ]
    assert len({hash_arrays(arrays) for arrays in different}) == len(different)
    assert hash_arrays({"x": x, "y": 2 * x}) == hash_arrays({"y": 2 * x, "x": x})
    assert hash_arrays({"x": np.arange(12, dtype=np.int32)[::2]}) == hash_arrays({"x": 2 * x})


def test_file_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
