import os

import numpy as np
import pytest

from infuser.data import Dataset, digits, load, split, subset, texts
from infuser.errors import InfuserError
from tests.data.files import encoded, image_table, mnist_arrays, npz, parquet_bytes, pixels, write_idx_folder


def test_digits_need_no_folder():
    train, test = load("digits")
    assert train.content_hash == digits()[0].content_hash
    assert test.content_hash == digits()[1].content_hash


def test_named_data_sets_lie_in_a_folder(tmp_path):
    write_idx_folder(tmp_path, mnist_arrays())
    assert load("mnist", tmp_path)[0].name == "mnist train"
    assert load("fashion_mnist", tmp_path)[0].classes[0] == "T-shirt/top"
    for name in ("mnist", "fashion_mnist", "cifar10"):
        with pytest.raises(InfuserError, match=f"{name} needs the folder"):
            load(name)
    (tmp_path / "own.npz").write_bytes(npz(mnist_arrays()))
    assert load(f"npz:{tmp_path}/own.npz")[1].name == "own test"


def image_folder(path, classes="ab", count=5):
    for i, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for j in range(count):
            (path / name / f"{j}.png").write_bytes(encoded(pixels(10 * i + j, 3, 3)))


def test_a_folder_with_parts_or_split_by_seed(tmp_path):
    image_folder(tmp_path / "whole")
    train, test = load(f"folder:{tmp_path}/whole", test_fraction=0.3)
    assert (len(train), len(test)) == (7, 3)
    assert sorted(train.ids.tolist() + test.ids.tolist()) == list(range(10))
    assert load(f"folder:{tmp_path}/whole", test_fraction=0.3)[1].ids.tolist() == test.ids.tolist()
    others = {tuple(load(f"folder:{tmp_path}/whole", test_fraction=0.3, seed=s)[1].ids.tolist()) for s in range(5)}
    assert len(others) > 1
    image_folder(tmp_path / "parts" / "train", "abc")
    image_folder(tmp_path / "parts" / "test", "bc", 2)
    train, test = load(f"folder:{tmp_path}/parts")
    assert test.targets.tolist() == [1, 1, 2, 2]  # numbered as in the training part
    assert train.n_outputs == test.n_outputs == 3
    assert test.ids.tolist() == [15, 16, 17, 18]


def test_parquet_with_parts_or_split_by_seed(tmp_path):
    raw = [encoded(pixels(i, 3, 3)) for i in range(6)]
    (tmp_path / "train.parquet").write_bytes(parquet_bytes(image_table(raw, [0, 1, 2, 0, 1, 4])))
    with pytest.raises(InfuserError, match=r"lacks train\.parquet or test\.parquet"):
        load(f"parquet:{tmp_path}")
    train, test = load(f"parquet:{tmp_path}/train.parquet", test_fraction=0.5)
    assert (len(train), len(test)) == (3, 3)
    assert train.n_outputs == test.n_outputs == 5  # of the whole, whatever labels a part holds
    (tmp_path / "test.parquet").write_bytes(parquet_bytes(image_table(raw[:2], [0, 7])))
    train, test = load(f"parquet:{tmp_path}")
    assert train.n_outputs == test.n_outputs == 8
    assert not set(train.ids.tolist()) & set(test.ids.tolist())


@pytest.mark.parametrize("source", ["", "cifar", "digits:x", "folder:", "mnist:/tmp", "file:///etc/passwd", "hf:"])
def test_unknown_sources_list_the_known(source):
    with pytest.raises(InfuserError, match=r"unknown data set.*digits, mnist.*folder:PATH.*hf:NAME"):
        load(source)


def test_limits_are_nested_and_keep_order_and_ids():
    train, test = load("digits", limit=100, test_limit=20, seed=3)
    assert (len(train), len(test)) == (100, 20)
    whole = load("digits", seed=3)[0]
    positions = whole.positions(train.ids)
    assert (np.diff(positions) > 0).all()
    assert train.content_hash == whole[train.ids].content_hash
    assert set(load("digits", limit=50, seed=3)[0].ids.tolist()) < set(train.ids.tolist())
    assert set(subset(whole, 100, seed=4).ids.tolist()) != set(train.ids.tolist())
    for limit in (0, -1, 10**6):
        with pytest.raises(InfuserError, match=f"limit does not fit.*Got: {limit}"):
            load("digits", limit=limit)


@pytest.mark.parametrize("fraction", [0, 1, 0.05, float("nan"), -0.1])
def test_a_split_has_two_parts(fraction):
    with pytest.raises(InfuserError, match="cannot be split"):
        split(Dataset.from_arrays(np.zeros((4, 2)), np.zeros(4, int)), fraction)


def test_a_folder_of_texts_is_read_within_itself(tmp_path):
    (tmp_path / "secret.txt").write_text("outside")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("in\r\nside")
    (folder / "same.txt").symlink_to(folder / "a.txt")
    assert texts(folder) == ["in\nside", "in\nside"]
    (folder / "b.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InfuserError, match=r"links in texts lead out of it.*b\.txt"):
        texts(folder)
    (folder / "b.txt").unlink()
    os.mkfifo(folder / "c.txt")
    with pytest.raises(InfuserError, match=r"c\.txt is not a regular file"):
        texts(folder)
