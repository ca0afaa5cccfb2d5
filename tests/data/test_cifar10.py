import os

import numpy as np
import pyarrow as pa
import pytest

from infuser.data.cifar10 import CLASSES, cifar10, read_binary
from infuser.errors import InfuserError
from tests.data.files import encoded, image_table, parquet_bytes, pixels


def binary(labels, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    records = np.concatenate([np.array(labels, np.uint8)[:, None], images.reshape(len(labels), -1)], axis=1)
    return records.tobytes(), images


@pytest.fixture
def binary_folder(tmp_path):
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(binary([i, i + 1], i)[0])
    (tmp_path / "test_batch.bin").write_bytes(binary([0, 9], 6)[0])
    return tmp_path


def test_binary_version(binary_folder):
    train, test = cifar10(binary_folder)
    assert train.targets.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    np.testing.assert_array_equal(train.inputs[2:4], binary([2, 3], 2)[1])
    np.testing.assert_array_equal(test.inputs, binary([0, 9], 6)[1])
    assert test.ids.tolist() == [10, 11]
    assert train.n_outputs == test.n_outputs == 10
    assert train.classes == CLASSES


def test_binary_version_in_its_own_folder(binary_folder):
    inner = binary_folder / "cifar-10-batches-bin"
    inner.mkdir()
    for file in binary_folder.glob("*.bin"):
        file.rename(inner / file.name)
    assert len(cifar10(binary_folder)[0]) == 10


@pytest.mark.parametrize("names", [("cifar10-train", "cifar10-test"), ("train-00000-of-00001", "test-00000-of-00001")])
def test_parquet_version(tmp_path, names):
    images = [pixels(i, 32, 32, 3) for i in range(3)]
    for name, part in zip(names, (images[:2], images[2:]), strict=True):
        table = image_table([encoded(image) for image in part], list(range(len(part)))).rename_columns(["img", "label"])
        (tmp_path / f"{name}.parquet").write_bytes(parquet_bytes(table))
    train, test = cifar10(tmp_path)
    np.testing.assert_array_equal(train.inputs, np.stack(images[:2]).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(test.inputs[0], images[2].transpose(2, 0, 1))
    assert test.ids.tolist() == [2]
    assert train.n_outputs == test.n_outputs == 10


def test_damaged_binary(tmp_path, binary_folder):
    for raw in (b"", binary([1])[0][:-1], binary([1])[0] + b"\x00"):
        (tmp_path / "a.bin").write_bytes(raw)
        with pytest.raises(InfuserError, match="not a whole CIFAR-10 batch"):
            read_binary(tmp_path / "a.bin")
    (binary_folder / "data_batch_3.bin").write_bytes(binary([1, 10])[0])
    with pytest.raises(InfuserError, match=r"1 labels are out of range.*10 at documents 5"):
        cifar10(binary_folder)
    (binary_folder / "data_batch_3.bin").unlink()
    (binary_folder / "data_batch_4.bin").unlink()
    with pytest.raises(InfuserError, match=r"missing.*data_batch_3\.bin, data_batch_4\.bin"):
        cifar10(binary_folder)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(InfuserError, match="no CIFAR-10 files were found"):
        cifar10(tmp_path)
    table = image_table([encoded(pixels(0, 32, 32, 3))], [0])
    (tmp_path / "cifar10-train.parquet").write_bytes(parquet_bytes(table))
    with pytest.raises(InfuserError, match=r"cifar10-test\.parquet is missing"):
        cifar10(tmp_path)
    (tmp_path / "cifar10-test.parquet").write_bytes(parquet_bytes(table.set_column(1, "label", pa.array([10]))))
    with pytest.raises(InfuserError, match="labels of cifar10 test are out of range"):
        cifar10(tmp_path)
    (tmp_path / "cifar10-test.parquet").write_bytes(parquet_bytes(image_table([encoded(pixels(0, 28, 28, 3))], [0])))
    with pytest.raises(InfuserError, match="does not hold CIFAR-10 images"):
        cifar10(tmp_path)


@pytest.mark.skipif("INFUSER_DATA" not in os.environ, reason="INFUSER_DATA is not set")
def test_real_cifar10_is_whole():
    train, test = cifar10(os.environ["INFUSER_DATA"])
    assert train.inputs.shape == (50000, 3, 32, 32)
    assert np.bincount(train.targets).tolist() == [5000] * 10
    assert np.bincount(test.targets).tolist() == [1000] * 10
    assert len(set(train.ids.tolist()) | set(test.ids.tolist())) == 60000
