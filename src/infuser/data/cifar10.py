"""CIFAR-10: parquet files with encoded images, or the official binary version."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from infuser.data.dataset import Dataset
from infuser.data.parquet import parquet
from infuser.data.untrusted import MAX_BYTES, open_regular, read_array
from infuser.errors import InfuserError, listed
from infuser.types import Array

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PARQUET = (
    ("cifar10-train.parquet", "cifar10-test.parquet"),
    ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    ("train.parquet", "test.parquet"),
)
_BINARY = (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",))
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # a label and red, green and blue planes


def cifar10(folder: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """Return (train, test): colour images (N, 3, 32, 32) in ten classes, in the order of the files.

    Ids count over both parts, so that none repeats.

    Args:
        folder: holds cifar10-train.parquet and cifar10-test.parquet (or train and test as the Hugging Face hub names
            them, also in a plain_text folder), or the official data_batch_1.bin to data_batch_5.bin and test_batch.bin
            (also in cifar-10-batches-bin).

    Raises:
        InfuserError: files are missing, truncated or of another format, images are not 32 x 32, or labels out of range.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    folder = Path(folder)
    for place in (folder, folder / "plain_text"):
        for train, test in _PARQUET:
            if (place / train).exists():
                return _both(_parquet(place / train, "cifar10 train"), _parquet(place / test, "cifar10 test"))
    for place in (folder, folder / "cifar-10-batches-bin"):
        if any((place / name).exists() for names in _BINARY for name in names):
            return _both(_binary(place, _BINARY[0], "cifar10 train"), _binary(place, _BINARY[1], "cifar10 test"))
    raise InfuserError(
        "no CIFAR-10 files were found",
        got=str(folder),
        expected=f"{' and '.join(_PARQUET[0])}, or {_BINARY[0][0]} to {_BINARY[0][-1]} and {_BINARY[1][0]}",
    )


def read_binary(path: str | os.PathLike[str]) -> tuple[Array, Array]:
    """Return (images (N, 3, 32, 32) uint8, labels (N,) uint8) of one file of the binary version.

    Raises:
        InfuserError: the file is empty or its length is not a multiple of 3,073.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0 or size % _RECORD or size > MAX_BYTES:
            raise InfuserError(
                f"{path.name} is not a whole CIFAR-10 batch",
                got=f"{size} bytes",
                expected=f"a multiple of {_RECORD} (official files: {10_000 * _RECORD})",
                causes=["it was truncated", "it is the python (pickle) version, which is not read"],
                remedy="fetch the binary version again",
            )
        records = read_array(file, (size // _RECORD, _RECORD), np.dtype(np.uint8), path.name)
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0]


def _parquet(path: Path, name: str) -> Dataset:
    data = parquet(path, classes=CLASSES, mode="RGB", name=name)
    if data.input_shape != _SHAPE:
        raise InfuserError(f"{path.name} does not hold CIFAR-10 images", got=data.input_shape, expected=_SHAPE)
    return data


def _binary(folder: Path, names: tuple[str, ...], name: str) -> Dataset:
    if missing := [file for file in names if not (folder / file).exists()]:
        raise InfuserError(f"files of {name} are missing", got=f"no {listed(missing)} in {folder}")
    parts = [read_binary(folder / file) for file in names]
    images, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Dataset(images, labels.astype(np.int64), "classification", len(CLASSES), classes=CLASSES, name=name)


def _both(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    return train, replace(test, ids=test.ids + len(train))
