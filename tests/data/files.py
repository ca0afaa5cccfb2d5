"""Small files of every format that the readers know, and ways to damage them."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Return uint8 (H, W) or (H, W, 3 or 4) pixels as an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def pixels(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (4, 5, 3), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_arrays(train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (train, 5, 4), dtype=np.uint8),
        "y_train": rng.integers(0, 10, train, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (test, 5, 4), dtype=np.uint8),
        "y_test": rng.integers(0, 10, test, dtype=np.uint8),
    }


def write_idx_folder(folder: Path, arrays: dict[str, np.ndarray], zipped: bool = False, dot: str = "-") -> None:
    names = {"x_train": "train-images", "y_train": "train-labels", "x_test": "t10k-images", "y_test": "t10k-labels"}
    for key, stem in names.items():
        raw, kind = idx(arrays[key]), "idx3" if key.startswith("x") else "idx1"
        name = f"{stem}{dot}{kind}-ubyte" + (".gz" if zipped else "")
        (folder / name).write_bytes(gzip.compress(raw, mtime=0) if zipped else raw)


def npz(arrays: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npz_of_raw(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return file.getvalue()


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def image_table(
    images: list[bytes | None], labels: list[object], struct_column: bool = True, **more: object
) -> pa.Table:
    if struct_column:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": raw, "path": "/etc/passwd"} for raw in images], kind)
    else:
        column = pa.array(images, pa.binary())
    return pa.table({"image": column, "label": labels, **more})


def parquet_bytes(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return `whole` with some bytes overwritten, then perhaps cut, lengthened or with a part removed."""
    raw = bytearray(whole)
    # Headers and footers decide what a reader believes, so that they are hit more often than the bulk between them.
    ends = st.integers(0, min(64, len(raw) - 1)) | st.integers(max(0, len(raw) - 400), len(raw) - 1)
    for position in draw(st.lists(ends | st.integers(0, len(raw) - 1), max_size=6)):
        raw[position] = draw(st.integers(0, 255) | st.sampled_from([0, 1, 127, 128, 255]))
    how = draw(st.sampled_from(["none", "none", "cut", "append", "remove"]))
    if how == "cut":
        del raw[draw(st.integers(0, len(raw))) :]
    elif how == "append":
        raw += draw(st.binary(min_size=1, max_size=40))
    elif how == "remove":
        start = draw(st.integers(0, len(raw)))
        del raw[start : start + draw(st.integers(1, 50))]
    return bytes(raw)
