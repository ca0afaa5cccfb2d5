from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.manifest import load_edit, save_edit
from infuser.types import Edit
from tests.perturbation import small


def _edit(data: Dataset, ids, ball=None, step: int = 3) -> Edit:
    chosen = data[ids]
    up = chosen.inputs < 128
    after = np.where(up, chosen.inputs + step, chosen.inputs - step).astype(chosen.inputs.dtype)
    gains = np.linspace(-0.1, 0.4, len(chosen))
    return Edit(chosen.ids, chosen.inputs, after, chosen.targets, chosen.targets, ball or Linf(step), "by hand", gains)


def _same(a: Edit, b: Edit) -> bool:
    arrays = ("ids", "before", "after", "targets_before", "targets_after", "gains")
    pairs = [(getattr(a, name), getattr(b, name)) for name in arrays]
    return (a.constraint, a.made_by) == (b.constraint, b.made_by) and all(
        x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("ball", [Linf(3), L2(100.5)], ids=str)
def test_round_trip_of_images(tmp_path, channels, ball):
    data = small.images(12, channels)
    edit = _edit(data, data.ids[[5, 0, 9]], ball)
    path = save_edit(edit, tmp_path / "edits", data)
    assert path == tmp_path / "edits" / "manifest.json"
    assert _same(load_edit(tmp_path / "edits", data), edit)
    suffix = "npy" if channels == 2 else "png"
    assert sorted(p.name for p in (tmp_path / "edits" / "after").iterdir()) == [
        f"{i:08d}.{suffix}" for i in sorted(edit.ids)
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_round_trip_of_what_no_image_holds(tmp_path, dtype):
    rng = np.random.default_rng(0)
    before = rng.integers(0, 50, (3, 7)).astype(dtype)
    if dtype == np.float32:
        before = (before / 7).astype(dtype)
    after = before.copy()
    after[:, 2] += dtype(1)
    targets = before if dtype == np.int64 else np.zeros((3, 1), np.float32)
    changed = after if dtype == np.int64 else targets + np.float32(0.5)
    edit = Edit(np.array([4, -1, 9]), before, after, targets, changed, None, "labels too", np.array([1, np.nan, 2]))
    save_edit(edit, tmp_path)
    assert _same(load_edit(tmp_path), edit)
    without = replace(edit, gains=None)
    save_edit(without, tmp_path / "other")
    assert load_edit(tmp_path / "other").gains is None


def test_the_manifest_says_what_was_done(tmp_path):
    data = small.images()
    edit = _edit(data, data.ids[:2], L2(50))
    manifest = json.loads(save_edit(edit, tmp_path, data).read_text())
    assert manifest["constraint"] == {"kind": "L2", "radius": 50}
    assert manifest["made_by"] == "by hand"
    assert manifest["data"] == {"name": "data", "documents": 36, "sha256": data.content_hash}
    first = manifest["documents"][0]
    assert first["id"] == 100
    assert first["distance"] == pytest.approx(18.0)  # 36 pixels by 3 steps
    assert first["gain"] == pytest.approx(-0.1)
    assert first["before_sha256"] != first["after_sha256"]


def test_an_image_viewer_sees_the_same_pixels(tmp_path):
    data = small.images(12, 3)
    edit = _edit(data, data.ids[:1])
    save_edit(edit, tmp_path)
    seen = np.asarray(Image.open(tmp_path / "after" / "00000100.png"))
    assert np.array_equal(np.moveaxis(seen, -1, 0), edit.after[0])


def test_undo_after_the_trip_over_the_disk(tmp_path):
    data = small.images()
    edit = _edit(data, data.ids[3:9])
    save_edit(edit, tmp_path, data)
    poisoned = data.apply(load_edit(tmp_path, data))
    assert poisoned.content_hash != data.content_hash
    assert poisoned.apply(load_edit(tmp_path).undo()).content_hash == data.content_hash


def test_writing_twice(tmp_path):
    data = small.images()
    edit = _edit(data, data.ids[:2])
    save_edit(edit, tmp_path)
    save_edit(edit, tmp_path)
    with pytest.raises(InfuserError, match="the folder holds another edit"):
        save_edit(_edit(data, data.ids[1:3]), tmp_path)
    assert _same(load_edit(tmp_path), edit)


def test_other_data(tmp_path):
    data = small.images()
    edit = _edit(data, data.ids[:2])
    with pytest.raises(InfuserError, match="2 of 2 documents are not what the edit was made for"):
        save_edit(edit, tmp_path, data.apply(edit))
    assert not (tmp_path / "manifest.json").exists()
    save_edit(edit, tmp_path, data)
    with pytest.raises(InfuserError, match="not what the edit was made for"):
        load_edit(tmp_path, data.apply(edit))


def _written(tmp_path: Path) -> tuple[Path, Edit]:
    data = small.images()
    edit = _edit(data, data.ids[:3])
    save_edit(edit, tmp_path)
    return tmp_path, edit


def test_a_changed_document_is_noticed(tmp_path):
    folder, edit = _written(tmp_path)
    other = edit.after[1].copy()
    other[0, 0, 0] ^= 1
    Image.fromarray(other[0]).save(folder / "after" / "00000101.png")
    with pytest.raises(InfuserError, match=r"1 edited documents are not what the manifest says.*after 101"):
        load_edit(folder)


def test_a_lossy_copy_is_noticed(tmp_path):
    folder, edit = _written(tmp_path)
    path = folder / "after" / "00000101.png"
    Image.fromarray(edit.after[1][0]).save(path, "JPEG")
    with pytest.raises(InfuserError, match=r"after/00000101.png cannot be read"):
        load_edit(folder)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_document_is_noticed(tmp_path, keep):
    folder, _ = _written(tmp_path)
    path = folder / "before" / "00000102.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InfuserError, match=r"before/00000102.png cannot be read.*truncated"):
        load_edit(folder)


@pytest.mark.parametrize("keep", [0, 20, -3])
def test_a_truncated_array_is_noticed(tmp_path, keep):
    data = small.images(12, 2)
    save_edit(_edit(data, data.ids[:1]), tmp_path)
    path = tmp_path / "after" / "00000100.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InfuserError, match=r"after/00000100.npy cannot be read"):
        load_edit(tmp_path)


def test_an_array_that_claims_gigabytes_is_refused(tmp_path):
    data = small.images(12, 2)
    save_edit(_edit(data, data.ids[:1]), tmp_path)
    with open(tmp_path / "after" / "00000100.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2, 10**7, 10**7)})
    with pytest.raises(InfuserError, match=r"cannot be read.*it holds uint8 \(2, 10000000, 10000000\)"):
        load_edit(tmp_path)


def test_a_torn_array_header_is_noticed(tmp_path):
    data = small.images(12, 2)
    save_edit(_edit(data, data.ids[:1]), tmp_path)
    path = tmp_path / "after" / "00000100.npy"
    path.write_bytes(path.read_bytes().replace(b"(2, 6, 6)", b"(2, 6, 6("))
    with pytest.raises(InfuserError, match="cannot be read"):
        load_edit(tmp_path)


def test_a_missing_document_and_a_link(tmp_path):
    folder, _ = _written(tmp_path)
    path = folder / "after" / "00000100.png"
    moved = tmp_path / "elsewhere.png"
    path.rename(moved)
    with pytest.raises(InfuserError, match=r"00000100.png is missing"):
        load_edit(folder)
    path.symlink_to(moved)
    with pytest.raises(InfuserError, match="is not a file"):
        load_edit(folder)


def _forged(tmp_path: Path, change) -> Path:
    folder, _ = _written(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", 1.5, True, None, [1]])
def test_a_manifest_cannot_name_files(tmp_path, name):
    folder = _forged(tmp_path, lambda m: m["documents"][0].update(id=name))
    with pytest.raises(InfuserError, match=r"does not describe an edit.*is not a whole number"):
        load_edit(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(schema=2),
        lambda m: m.update(format="../png"),
        lambda m: m.update(dtype="O"),
        lambda m: m.update(shape=[1, 10**9, 10**9]),
        lambda m: m.update(shape="abc"),
        lambda m: m.pop("documents"),
        lambda m: m["targets"].update(before=[1]),
        lambda m: m["targets"].update(dtype="V8"),
        lambda m: m["documents"][0].pop("after_sha256"),
        lambda m: m.pop("constraint"),
        lambda m: m["targets"].update(before="abc"),
        lambda m: m["targets"].update(before=["0", "1", "2"]),
        lambda m: m["targets"].update(before=[0, 1, 0.5]),
        lambda m: m["targets"].update(after=[0, 1, 10**30]),
        lambda m: m["targets"].update(after=[[0], [1, 2], [3]]),
        lambda m: m["targets"].update(after=[0, 1, None]),
        lambda m: m["documents"][0].update(gain="high"),
        lambda m: m["documents"][0].update(gain=[0.1]),
        lambda m: m["documents"][0].update(id=10**30),
        lambda m: m["documents"][0].update(id=10**400),
    ],
)
def test_a_manifest_that_was_edited(tmp_path, change):
    with pytest.raises(InfuserError, match=r"manifest.json does not describe an edit"):
        load_edit(_forged(tmp_path, change))


def test_manifests_that_are_no_manifests(tmp_path):
    with pytest.raises(InfuserError, match=r"manifest.json is missing"):
        load_edit(tmp_path)
    for text in ("[]", "null", "3"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InfuserError, match="does not describe an edit"):
            load_edit(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 1,')
    with pytest.raises(InfuserError, match="is not valid JSON"):
        load_edit(tmp_path)


def test_the_ball_is_checked_again(tmp_path):
    folder = _forged(tmp_path, lambda m: m["constraint"].update(radius=2))
    with pytest.raises(InfuserError, match=r"edit leaves its ball: 3 of 3 documents exceed Linf 2/255"):
        load_edit(folder)


@pytest.mark.parametrize("forged", [{"kind": "Anything"}, {"kind": "Linf", "radius": 3, "extra": 1}, {"kind": "Linf"}])
def test_unknown_constraints(tmp_path, forged):
    folder = _forged(tmp_path, lambda m: m.update(constraint=forged))
    with pytest.raises(InfuserError, match="a constraint that is not known here"):
        load_edit(folder)


@dataclass(frozen=True)
class Free:
    """A constraint of somebody else."""

    limit: float = 1e9

    def distance(self, before, after):
        return np.zeros(len(before))


def test_constraints_of_others(tmp_path):
    data = small.images()
    edit = replace(_edit(data, data.ids[:2]), constraint=Free())
    save_edit(edit, tmp_path)
    with pytest.raises(InfuserError, match=r"not known here.*Linf, L2"):
        load_edit(tmp_path)
    assert load_edit(tmp_path, constraints=(Free,)).constraint == Free()


def test_a_full_disk_leaves_no_manifest(tmp_path, monkeypatch):
    data = small.images()

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InfuserError, match="the disk is full"):
        save_edit(_edit(data, data.ids[:2]), tmp_path)
    assert not (tmp_path / "manifest.json").exists()
