import gzip
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from infuser.data.mnist import fashion_mnist, mnist, read_idx, read_npz
from infuser.errors import InfuserError
from tests.data.files import idx, mnist_arrays, npy_header, npz, npz_of_raw, write_idx_folder

ARRAYS = mnist_arrays()
ZEROS = np.zeros((2, 3, 3), np.uint8)


def assert_is_the_data(train, test):
    np.testing.assert_array_equal(train.inputs[:, 0], ARRAYS["x_train"])
    np.testing.assert_array_equal(train.targets, ARRAYS["y_train"])
    np.testing.assert_array_equal(test.inputs[:, 0], ARRAYS["x_test"])
    np.testing.assert_array_equal(test.targets, ARRAYS["y_test"])
    assert train.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert test.ids.tolist() == [6, 7, 8]
    assert train.n_outputs == test.n_outputs == 10
    assert train.input_shape == (1, 5, 4)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_keeps_split_and_order(tmp_path, compressed):
    (tmp_path / "mnist.npz").write_bytes(npz(ARRAYS, compressed))
    assert_is_the_data(*mnist(tmp_path / "mnist.npz"))
    assert_is_the_data(*mnist(tmp_path))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_folder_keeps_split_and_order(tmp_path, zipped, dot):
    write_idx_folder(tmp_path, ARRAYS, zipped, dot)
    assert_is_the_data(*mnist(tmp_path))


def test_fortran_order_is_read_as_stored(tmp_path):
    arrays = ARRAYS | {"x_train": np.asfortranarray(ARRAYS["x_train"])}
    (tmp_path / "a.npz").write_bytes(npz(arrays))
    assert_is_the_data(*mnist(tmp_path / "a.npz"))


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(idx(ARRAYS["x_train"]), mtime=0))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), ARRAYS["x_train"])


def test_fashion_mnist_names_its_classes(tmp_path):
    write_idx_folder(tmp_path, ARRAYS, zipped=True)
    train, test = fashion_mnist(tmp_path)
    assert train.classes[9] == test.classes[9] == "Ankle boot"
    assert train.name == "fashion_mnist train"


@pytest.mark.skipif("INFUSER_DATA" not in os.environ, reason="INFUSER_DATA is not set")
def test_real_mnist():
    train, test = mnist(os.environ["INFUSER_DATA"])
    assert train.inputs.shape == (60000, 1, 28, 28)
    assert test.inputs.shape == (10000, 1, 28, 28)
    # The first labels and class counts that the literature gives.
    assert train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(train.targets).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


FASHION = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_real_fashion_mnist():
    train, test = fashion_mnist(FASHION)
    assert len(train) == 60000
    assert len(test) == 10000
    assert np.bincount(train.targets).tolist() == [6000] * 10


# --- damaged and hostile files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x00\x00\x0d\x01" + b"\x00" * 8, "not an IDX file of uint8"),  # 0x0d: floats
        (b"\x00\x00\x08\x05" + b"\x00" * 40, "not an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "ends within its header"),
        (idx(ZEROS)[:-1], "another size than its header says"),
        (idx(ZEROS) + b"\x00", "more than 18 bytes"),
        (b"\x00\x00\x08\x04" + b"\xff" * 16, "too large"),
        (idx(ZEROS[:0]), "is empty"),
        (gzip.compress(idx(ZEROS), mtime=0)[:-12], "cannot be read to its end"),
        (b"\x1f\x8b" + b"\x00" * 20, "cannot be read to its end"),
    ],
)
def test_damaged_idx(tmp_path, raw, message):
    (tmp_path / "images").write_bytes(raw)
    with pytest.raises(InfuserError, match=message):
        read_idx(tmp_path / "images")


def test_a_gzip_bomb_expands_no_further_than_its_header(tmp_path, monkeypatch):
    bomb = gzip.compress(idx(ZEROS) + bytes(2**26))
    (tmp_path / "bomb.gz").write_bytes(bomb)
    read: list[int] = []
    whole = gzip.GzipFile.read

    def counted(self, size=-1):
        part = whole(self, size)
        read.append(len(part))
        return part

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(InfuserError, match="more than 18 bytes"):
        read_idx(tmp_path / "bomb.gz")
    assert sum(read) == 4 + 12 + 18 + 1


def test_an_npz_bomb_expands_no_further_than_its_header(tmp_path):
    raw = npy_header((2, 3, 3)) + bytes(2**26)
    (tmp_path / "bomb.npz").write_bytes(npz_of_raw({"x.npy": raw}, zipfile.ZIP_DEFLATED))
    with pytest.raises(InfuserError, match="more than 18 bytes"):
        read_npz(tmp_path / "bomb.npz", ["x"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not a zip", "not a whole npz file"),
        (npz(ARRAYS)[:300], "not a whole npz file"),
        (npz({"x_train": ZEROS}), "lacks arrays"),
        (npz_of_raw({"x.npy": npy_header((2**40,))}), "too large"),
        (npz_of_raw({"x.npy": npy_header((5,)) + b"123"}), "another size than its header says"),
        (npz_of_raw({"x.npy": b"\x93NUMPY\x03\x00"}), "unknown npy version"),
        (npz_of_raw({"x.npy": b"\x93NUMPY\x01\x00\x10\x00__import__('os')"}), "cannot be read"),
        (npz_of_raw({"x.npy": b""}), "cannot be read"),
    ],
)
def test_damaged_npz(tmp_path, raw, message):
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(InfuserError, match=message):
        read_npz(tmp_path / "a.npz", ["x"])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    np.savez(file, x=np.array([Hostile()], dtype=object), allow_pickle=True)
    (tmp_path / "a.npz").write_bytes(file.getvalue())
    with pytest.raises(InfuserError, match="Python objects"):
        read_npz(tmp_path / "a.npz", ["x"])
    assert not (tmp_path / "unpickled").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["x"]  # the file does what it is meant to, if one lets it
    assert (tmp_path / "unpickled").exists()


def test_missing_files(tmp_path):
    with pytest.raises(InfuserError, match=r"mnist\.npz is missing"):
        mnist(tmp_path / "mnist.npz")
    with pytest.raises(InfuserError, match="train-images-idx3-ubyte is missing"):
        mnist(tmp_path)
    write_idx_folder(tmp_path, ARRAYS)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InfuserError, match="t10k-labels-idx1-ubyte is missing"):
        mnist(tmp_path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InfuserError, match="not a regular file"):
        read_idx(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.array([0, 1, 2, 3, 4, 10], np.uint8)}, r"1 labels are out of range.*10 at documents 5"),
        ({"y_train": np.array([0, 1, 2, 3, 4, -1], np.int8)}, "out of range"),
        ({"y_train": np.zeros(5, np.uint8)}, "labels do not match the images"),
        ({"y_train": np.zeros(6, np.float32)}, "labels do not match the images"),
        ({"x_train": np.zeros((6, 20), np.uint8)}, "another shape or type"),
        ({"x_train": np.zeros((6, 5, 4), np.float32)}, "another shape or type"),
        ({"x_train": np.zeros((6, 7, 4), np.uint8)}, "differ in size"),
    ],
)
def test_arrays_that_do_not_belong_together(tmp_path, change, message):
    (tmp_path / "a.npz").write_bytes(npz(ARRAYS | change))
    with pytest.raises(InfuserError, match=message):
        mnist(tmp_path / "a.npz")
