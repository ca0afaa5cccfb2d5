import numpy as np
import pytest
from PIL import Image

from infuser.data.folder import folder, folder_files
from infuser.data.source import files, load
from infuser.errors import InfuserError
from tests.data.files import encoded, pixels


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(["dog/b.png", "dog/a.png", "cat/10.png", "cat/9.png", "Ant/x.PNG"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(pixels(i, 6, 5, 3)))
    return tmp_path


def test_order_is_by_class_then_name(root):
    (root / ".hidden").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"junk")
    (root / "README.txt").write_text("beside the classes")
    data = folder(root)
    assert data.classes == ("Ant", "cat", "dog")
    assert data.targets.tolist() == [0, 1, 1, 2, 2]
    wanted = np.stack([pixels(i, 6, 5, 3) for i in (4, 2, 3, 1, 0)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.inputs, wanted)


def test_order_does_not_depend_on_the_file_system(root, monkeypatch):
    hash_before = folder(root).content_hash
    listing = type(root).iterdir
    monkeypatch.setattr(type(root), "iterdir", lambda self: sorted(listing(self), reverse=True))
    assert folder(root).content_hash == hash_before


def test_given_classes_fix_the_labels(root):
    assert folder(root, classes=("dog", "cat", "Ant", "bee")).targets.tolist() == [0, 0, 1, 1, 2]
    assert folder(root, classes=("dog", "cat", "Ant", "bee")).n_outputs == 4
    with pytest.raises(InfuserError, match="one subfolder per class"):
        folder(root, classes=("dog", "cat"))


def test_grey_images_stay_grey_unless_others_are_in_colour(tmp_path):
    (tmp_path / "a").mkdir()
    grey = pixels(0, 4, 4)
    (tmp_path / "a" / "1.png").write_bytes(encoded(grey))
    np.testing.assert_array_equal(folder(tmp_path).inputs, grey[None, None])
    assert folder(tmp_path, mode="RGB").input_shape == (3, 4, 4)
    colour = pixels(1, 4, 4, 3)
    (tmp_path / "a" / "2.png").write_bytes(encoded(colour))
    (tmp_path / "a" / "3.png").write_bytes(encoded(grey))
    wanted = np.stack([np.stack([grey] * 3), colour.transpose(2, 0, 1), np.stack([grey] * 3)])
    np.testing.assert_array_equal(folder(tmp_path).inputs, wanted)
    with pytest.raises(InfuserError, match=r"2\.png is in colour"):
        folder(tmp_path, mode="L")


def test_sizes_are_listed_and_nothing_is_resized(root):
    (root / "dog" / "c.png").write_bytes(encoded(pixels(0, 8, 7, 3)))
    with pytest.raises(InfuserError, match=r"images of 2 sizes.*5 x 6: 5 \(.*7 x 8: 1 \(dog/c\.png\)"):
        folder(root)


def test_what_is_not_an_image_is_named(root):
    (root / "dog" / "notes.txt").write_text("x")
    with pytest.raises(InfuserError, match=r"class dog.*not images.*notes\.txt"):
        folder(root)
    (root / "dog" / "notes.txt").unlink()
    (root / "dog" / "c.png").write_bytes(b"")
    with pytest.raises(InfuserError, match=r"dog/c\.png is not an image"):
        folder(root)
    (root / "dog" / "c.png").unlink()
    (root / "empty").mkdir()
    with pytest.raises(InfuserError, match=r"class empty.*no images"):
        folder(root)


def test_links_out_of_the_folder_are_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(encoded(pixels(9, 6, 5, 3)))
    (root / "dog" / "inside.png").symlink_to(root / "dog" / "a.png")
    assert len(folder(root)) == 6
    (root / "dog" / "z.png").symlink_to(outside)
    with pytest.raises(InfuserError, match=r"links.*lead out of it.*dog/z\.png"):
        folder(root)
    (root / "dog" / "z.png").unlink()
    (root / "elk").symlink_to(outside.parent)
    with pytest.raises(InfuserError, match=r"links.*lead out of it.*elk"):
        folder(root)


def test_missing_or_empty_folder(tmp_path):
    with pytest.raises(InfuserError, match="is missing"):
        folder(tmp_path / "none")
    with pytest.raises(InfuserError, match="one subfolder per class"):
        folder(tmp_path)


def test_the_file_of_every_document_is_known(tmp_path):
    for i, (name, level) in enumerate((("b", 30), ("a", 10), ("b", 20))):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 2), level, np.uint8)).save(tmp_path / name / f"{9 - i}.png")
    found, data = folder_files(tmp_path), folder(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["a/8.png", "b/7.png", "b/9.png"]
    for i in data.ids.tolist():
        assert np.array_equal(np.array(Image.open(found[i])), data[[i]].inputs[0, 0])


def test_training_and_test_files_go_by_the_ids_of_load(tmp_path):
    for i, part in enumerate(("train/b", "test/a", "train/a", "test/b", "train/b")):
        (tmp_path / part).mkdir(exist_ok=True, parents=True)
        (tmp_path / part / f"{i}.png").write_bytes(encoded(pixels(i, 4, 4, 3)))
    found = files(f"folder:{tmp_path}")
    for data in load(f"folder:{tmp_path}"):
        for i in data.ids.tolist():
            assert np.array_equal(np.array(Image.open(found[i])).transpose(2, 0, 1), data[[i]].inputs[0])
    assert [file.parent.name for file in found] == ["a", "b", "b", "a", "b"]
    with pytest.raises(InfuserError, match="are no files"):
        files("digits")
