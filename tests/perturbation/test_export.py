from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infuser.data import folder
from infuser.errors import InfuserError
from infuser.perturbation.balls import Linf
from infuser.perturbation.export import undo_images, write_images
from infuser.perturbation.manifest import save_edit
from infuser.types import Edit
from tests.perturbation import small


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _edit(data, ids) -> Edit:
    chosen = data[ids]
    args = (chosen.ids, chosen.inputs, np.minimum(chosen.inputs, 250) + 5, chosen.targets, chosen.targets)
    return Edit(*args, Linf(5), "by hand")


@pytest.mark.parametrize("channels", [1, 3])
def test_undo_is_byte_for_byte(tmp_path, channels):
    data = small.images(18, channels)
    edit = _edit(data, data.ids[[4, 1, 17]])
    save_edit(edit, tmp_path / "edits", data)
    clean, released = write_images(data, tmp_path / "clean"), write_images(data.apply(edit), tmp_path / "released")
    differ = {name for name, content in _tree(clean).items() if _tree(released)[name] != content}
    assert {int(Path(name).stem) for name in differ} == set(edit.ids.tolist())
    assert sorted(undo_images(released, tmp_path / "edits")) == sorted(edit.ids.tolist())
    assert _tree(released) == _tree(clean)
    assert undo_images(released, tmp_path / "edits") == []
    assert _tree(released) == _tree(clean)


def test_every_document_is_written_the_same_way(tmp_path):
    data = replace(small.images(), classes=("cat", "dog", "T-shirt+ 2"))
    write_images(data, tmp_path / "out")
    tree = _tree(tmp_path / "out")
    assert len(tree) == len(data)
    for row, i in enumerate(data.ids):
        path = tmp_path / "out" / data.classes[data.targets[row]] / f"{i:08d}.png"
        with Image.open(path) as image:
            assert (image.format, image.mode, image.info) == ("PNG", "L", {})
            assert np.array_equal(np.asarray(image), data.inputs[row, 0])
    write_images(data, tmp_path / "again")
    assert _tree(tmp_path / "again") == tree


def test_a_class_without_documents_has_no_folder_and_the_others_keep_their_labels(tmp_path):
    data = replace(small.images(), classes=("cat", "dog", "owl"))
    left = data.without(data.ids[data.targets == 1])
    written = write_images(left, tmp_path / "out")
    assert sorted(path.name for path in written.iterdir()) == ["cat", "owl"]
    back = folder(written, classes=data.classes)
    order = np.argsort(left.targets, kind="stable")  # a folder is read class by class
    np.testing.assert_array_equal(back.targets, left.targets[order])
    np.testing.assert_array_equal(back.inputs, left.inputs[order])
    assert len(folder(written)) == len(left)


def test_nothing_is_undone_when_one_document_is_foreign(tmp_path):
    data = small.images()
    edit = _edit(data, data.ids[:3])
    save_edit(edit, tmp_path / "edits")
    released = write_images(data.apply(edit), tmp_path / "released")
    foreign = next(released.glob("*/00000102.png"))
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(foreign)
    before = _tree(released)
    with pytest.raises(InfuserError, match=r"1 documents are neither edited nor original.*ids 102"):
        undo_images(released, tmp_path / "edits")
    assert _tree(released) == before
    foreign.unlink()
    with pytest.raises(InfuserError, match="document 102 is missing from the folder"):
        undo_images(released, tmp_path / "edits")


def test_label_changes_cannot_be_undone_in_a_folder(tmp_path):
    data = small.images()
    edit = replace(_edit(data, data.ids[:2]), targets_after=(data.targets[:2] + 1) % 3)
    save_edit(edit, tmp_path / "edits")
    write_images(data.apply(edit), tmp_path / "released")
    with pytest.raises(InfuserError, match="the edit changes labels"):
        undo_images(tmp_path / "released", tmp_path / "edits")


def test_folders_in_use_are_left_alone(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    with pytest.raises(InfuserError, match="the folder is not empty"):
        write_images(small.images(), tmp_path / "used")
    assert _tree(tmp_path / "used") == {"thesis.txt": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InfuserError, match="the folder is not empty"):
        write_images(small.images(), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert len(_tree(write_images(small.images(), tmp_path / "empty"))) == 36


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", ".hidden", "a\x00b", "a\\b", " x", "x ", "one"])
def test_class_names_that_are_no_folder_names(tmp_path, name):
    data = replace(small.images(), classes=("One", "two", name))
    with pytest.raises(InfuserError, match="class names cannot be folder names"):
        write_images(data, tmp_path / "sub" / "out")
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_no_images(tmp_path):
    data = small.images()
    floats = replace(data, inputs=data.inputs.astype(np.float32))
    for other in (floats, small.images(12, 2), replace(data, kind="regression", targets=np.zeros((36, 1), np.float32))):
        with pytest.raises(InfuserError, match="only labelled 8-bit images"):
            write_images(other, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    written = []
    real = Path.write_bytes

    def full(self, content):
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(self)
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InfuserError, match="could not be written; nothing was kept"):
        write_images(small.images(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
