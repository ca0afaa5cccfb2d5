"""MNIST and its relatives (Fashion-MNIST, KMNIST): an npz file, or IDX files, plain or gzipped."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from infuser.data.dataset import Dataset
from infuser.data.untrusted import open_regular, read_array, require_memory
from infuser.errors import InfuserError
from infuser.types import Array

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_DIGITS = tuple("0123456789")
_IDX = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_NPZ = ("x_train", "y_train", "x_test", "y_test")


def mnist(
    path: str | os.PathLike[str], *, classes: Sequence[str] = _DIGITS, name: str = "mnist"
) -> tuple[Dataset, Dataset]:
    """Return (train, test) in the original split and order: grey images (N, 1, H, W).

    Ids count over both parts, so that none repeats.

    Args:
        path: an npz file with x_train, y_train, x_test, y_test; or a folder that holds one (mnist.npz), or that holds
            the four IDX files (train-images-idx3-ubyte and so on, plain or .gz).
        classes: their names; labels run from 0 to len(classes) - 1.
        name: for tables.

    Raises:
        InfuserError: a file is missing, truncated, of another format or larger than its header says, images and
            labels disagree, or a label is out of range.

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits, 1998.
    """
    path = Path(path)
    if path.is_dir():
        npz = path / "mnist.npz"
        if npz.exists() and not any(_candidates(path, _IDX[0])):
            arrays = read_npz(npz, _NPZ)
        else:
            arrays = tuple(read_idx(_find(path, stem)) for stem in _IDX)
    else:
        arrays = read_npz(path, _NPZ)
    train = _part(arrays[0], arrays[1], f"{name} train", classes, 0)
    test = _part(arrays[2], arrays[3], f"{name} test", classes, len(train))
    if train.input_shape != test.input_shape:
        raise InfuserError("train and test images differ in size", got=test.input_shape, expected=train.input_shape)
    return train, test


def fashion_mnist(path: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """Return (train, test) of Fashion-MNIST from its IDX files or an npz, as `mnist` does.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv 1708.07747.
    """
    return mnist(path, classes=FASHION, name="fashion_mnist")


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Return the uint8 array of an IDX file, plain or gzipped (told by its first bytes).

    The format: two zero bytes, 0x08 for uint8, the number of dimensions, each dimension as a big-endian uint32, data.

    Raises:
        InfuserError: another magic number or type, or a length that disagrees with the header.
    """
    what = Path(path).name
    with open_regular(path) as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if not zipped:
                return _idx(raw, what)
            with gzip.GzipFile(fileobj=raw) as file:
                return _idx(cast("IO[bytes]", file), what)
        except (EOFError, OSError, zlib.error) as error:
            raise InfuserError(
                f"{what} cannot be read to its end", got=str(error), causes=["it is truncated or damaged"]
            ) from error


def read_npz(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[Array, ...]:
    """Return the named arrays of an npz file; arrays of Python objects are refused and nothing is unpickled.

    Raises:
        InfuserError: not a zip of npy files, an array is missing or damaged, or has another size than its header says.
    """
    what = Path(path).name
    with open_regular(path) as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                held = sorted(member.removesuffix(".npy") for member in archive.namelist())
                missing = [name for name in names if name not in held]
                if missing:
                    raise InfuserError(f"{what} lacks arrays", got=held[:12], expected=f"{', '.join(names)}")
                return tuple(_npy(archive, name, f"{name} in {what}") for name in names)
        except InfuserError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error) as error:
            raise InfuserError(f"{what} is not a whole npz file", got=str(error), causes=["truncated"]) from error
        # zipfile and numpy's header parser: encrypted members, unknown compression, headers that are no Python literal
        except (RuntimeError, ValueError, SyntaxError, TypeError, KeyError, MemoryError, IndexError) as error:
            raise InfuserError(f"{what} cannot be read", got=f"{type(error).__name__}: {error}") from error


def _npy(archive: zipfile.ZipFile, name: str, what: str) -> Array:
    # Not np.load, which allocates what the header claims before it reads.
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise InfuserError(f"{what} has an unknown npy version", got=version, expected="1.0 or 2.0")
        if dtype.hasobject:
            raise InfuserError(f"{what} holds Python objects", got=str(dtype), expected="numbers; nothing is unpickled")
        if any(n < 0 for n in shape):
            raise InfuserError(f"{what} has an impossible shape", got=shape)
        array = read_array(file, shape[::-1] if fortran else shape, dtype, what)
        return array.T if fortran else array


def _idx(file: IO[bytes], what: str) -> Array:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
        raise InfuserError(
            f"{what} is not an IDX file of uint8", got=f"first bytes {magic.hex(' ')}", expected="00 00 08 and 01 to 04"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InfuserError(f"{what} ends within its header", got=f"{4 + len(sizes)} bytes")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    return read_array(file, shape, np.dtype(np.uint8), what)


def _candidates(folder: Path, stem: str) -> list[Path]:
    kind = "idx3" if stem.endswith("images") else "idx1"
    names = (f"{stem}{dot}{kind}-ubyte{gz}" for gz in ("", ".gz") for dot in "-.")
    return [folder / name for name in names if (folder / name).exists()]


def _find(folder: Path, stem: str) -> Path:
    found = _candidates(folder, stem)
    if not found:
        kind = "idx3" if stem.endswith("images") else "idx1"
        raise InfuserError(
            f"{stem}-{kind}-ubyte is missing",
            got=str(folder),
            expected=f"mnist.npz, or the four files {', '.join(_IDX)} in IDX format, plain or .gz",
        )
    return found[0]


def _part(images: Array, labels: Array, name: str, classes: Sequence[str], first: int) -> Dataset:
    if images.ndim != 3 or images.dtype != np.uint8:
        raise InfuserError(f"{name} images have another shape or type", got=f"{images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise InfuserError(
            f"{name} labels do not match the images",
            got=f"{labels.dtype} {labels.shape}",
            expected=f"integers ({len(images)},)",
            causes=["the files belong to different data sets"],
        )
    require_memory(8 * len(labels), name)
    ids = np.arange(first, first + len(images), dtype=np.int64)
    targets = labels.astype(np.int64)
    return Dataset(images[:, None], targets, "classification", len(classes), ids, classes=tuple(classes), name=name)
