"""An edit on disk: its documents before and after as lossless files, and a manifest that can be checked and undone."""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.perturbation.balls import L2, Linf
from infuser.storage import atomic_path, hash_arrays, plain, read_json, write_json
from infuser.types import Array, Constraint, Edit

NAME = "manifest.json"
# What damaged files make Pillow and numpy raise; the last comes from numpy's reading of a torn header.
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError, tokenize.TokenError)
_SCHEMA = 1
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_MAX_VALUES = 2**28  # of one document; a manifest that asks for more is not one of ours


def save_edit(edit: Edit, folder: str | os.PathLike[str], data: Dataset | None = None) -> Path:
    """Write an edit into `folder` and return the path of its manifest.

    before/ID.png and after/ID.png hold the documents without loss (.npy where PNG cannot: floats, token ids, channels
    other than 1, 3 or 4), manifest.json ids, labels, constraint, made_by, and per document the SHA-256 of its values
    before and after, its distance and its predicted gain. The manifest is written last: a folder with one is whole.

    Args:
        edit: what to write.
        folder: of the edit alone; writing the same edit again changes nothing.
        data: what the edit was made for, to be checked; its name and hash go into the manifest.

    Raises:
        InfuserError: `folder` holds another edit, the edit was not made for `data`, or the disk is full.
    """
    folder = Path(folder)
    if data is not None:
        data.apply(edit)
    manifest = plain(_describe(edit, data))
    if (folder / NAME).exists() and read_json(folder / NAME) != manifest:
        raise InfuserError(
            "the folder holds another edit", got=str(folder), remedy="choose another folder, or remove this one first"
        )
    suffix = manifest["format"]
    for part, documents in (("before", edit.before), ("after", edit.after)):
        for i, document in zip(edit.ids.tolist(), documents, strict=True):
            with atomic_path(_document_path(folder, part, i, suffix)) as temporary:
                temporary.write_bytes(encode(document, suffix))
    write_json(folder / NAME, manifest)
    return folder / NAME


def load_edit(
    folder: str | os.PathLike[str], data: Dataset | None = None, *, constraints: Sequence[type] = (Linf, L2)
) -> Edit:
    """Return the edit that `save_edit` wrote, read back from its files and checked.

    Checked are the hash of every document, the constraint (by building it anew), and, with `data`, that each document
    is the one that the edit was made for. File names are made from the ids, so that a manifest cannot point elsewhere.

    Args:
        folder: as given to save_edit.
        data: the data set to be edited.
        constraints: the dataclasses that the manifest may name.

    Raises:
        InfuserError: a file is missing, truncated, changed or a link, a document leaves the constraint, or the edit was
            not made for `data`.
    """
    folder = Path(folder)
    manifest = read_json(folder / NAME)
    ids, rows, suffix, shape, dtype = _checked_manifest(manifest)
    columns: dict[str, list[Array]] = {"before": [], "after": []}
    wrong: list[str] = []
    for i, row in zip(ids, rows, strict=True):
        for part, documents in columns.items():
            path = _document_path(folder, part, i, suffix)
            document = decode(path, suffix, shape, dtype)
            if hash_arrays({"document": document}) != row[f"{part}_sha256"]:
                wrong.append(f"{part} {i}")
            documents.append(document)
    if wrong:
        raise InfuserError(
            f"{len(wrong)} edited documents are not what the manifest says",
            got=listed(wrong),
            expected="the SHA-256 in the manifest",
            causes=["a file was changed or re-encoded with loss", "files of two edits were mixed"],
            remedy="write the edit again, or restore the folder from a backup",
        )
    targets = manifest["targets"]
    gains = [row.get("gain") for row in rows]
    empty = np.empty((0, *shape), dtype)
    edit = Edit(
        np.array(ids, dtype=np.int64),
        np.stack(columns["before"]) if ids else empty,
        np.stack(columns["after"]) if ids else empty,
        np.array(targets["before"], dtype=targets["dtype"]),
        np.array(targets["after"], dtype=targets["dtype"]),
        _constraint(manifest["constraint"], constraints),
        str(manifest["made_by"]),
        np.array([np.nan if g is None else g for g in gains]) if manifest["has_gains"] else None,
    )
    if data is not None:
        data.apply(edit)
    return edit


def encode(document: Array, suffix: str) -> bytes:
    """Return the bytes of a document (C, H, W) as PNG, or of any array as NPY; equal documents give equal bytes."""
    buffer = io.BytesIO()
    if suffix == "npy":
        np.lib.format.write_array(buffer, np.ascontiguousarray(document), version=(1, 0), allow_pickle=False)
        return buffer.getvalue()
    pixels = document[0] if len(document) == 1 else np.moveaxis(document, 0, -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def decode(path: Path, suffix: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the document that `encode` wrote to `path`.

    Raises:
        InfuserError: the file is missing, a link, truncated, or holds another shape or type.
    """
    if path.is_symlink() or not path.is_file():
        raise InfuserError(f"{path.name} is missing or is not a file", got=str(path), remedy="write the edit again")
    try:
        document = _read_png(path, shape) if suffix == "png" else _read_npy(path, shape, dtype)
    except _UNREADABLE as error:
        raise InfuserError(
            f"{path.parent.name}/{path.name} cannot be read",
            got=str(error),
            causes=["the file was truncated", "it was re-encoded"],
            remedy="write the edit again, or restore the folder from a backup",
        ) from error
    if document.shape != shape or document.dtype != dtype:
        got = f"{document.dtype} {document.shape}"
        raise InfuserError(f"{path.name} holds another document", got=got, expected=f"{dtype} {shape}")
    return document


def suffix_of(documents: Array) -> str:
    """Return png for 8-bit images (k, C, H, W) with 1, 3 or 4 channels, else npy."""
    image = documents.dtype == np.uint8 and documents.ndim == 4 and documents.shape[1] in _CHANNELS.values()
    return "png" if image and 0 not in documents.shape[2:] else "npy"


def _read_png(path: Path, shape: tuple[int, ...]) -> Array:
    with Image.open(path, formats=["PNG"]) as image:
        # The header is compared before anything is unpacked.
        if image.mode not in _CHANNELS or (_CHANNELS[image.mode], image.height, image.width) != shape:
            raise ValueError(f"it is a {image.mode} image of {image.height} x {image.width}, not {shape}")
        image.load()
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _read_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    # Read by hand rather than by np.load: the header is compared before memory is set aside for what it claims.
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is not an NPY file of version 1.0")
        held, fortran, kind = np.lib.format.read_array_header_1_0(file)
        if held != shape or kind != dtype or fortran:
            raise ValueError(f"it holds {kind} {held}, not {dtype} {shape}")
        return np.frombuffer(file.read(), dtype=dtype).reshape(shape)


def _document_path(folder: Path, part: str, document_id: int, suffix: str) -> Path:
    return folder / part / f"{document_id:08d}.{suffix}"


def _describe(edit: Edit, data: Dataset | None) -> dict[str, Any]:
    distances = None if edit.constraint is None else edit.constraint.distance(edit.before, edit.after)
    rows = []
    for row, i in enumerate(edit.ids.tolist()):
        rows.append(
            {
                "id": i,
                "before_sha256": hash_arrays({"document": edit.before[row]}),
                "after_sha256": hash_arrays({"document": edit.after[row]}),
                "distance": None if distances is None else float(distances[row]),
                "gain": None if edit.gains is None else float(edit.gains[row]),
            }
        )
    return {
        "schema": _SCHEMA,
        "made_by": edit.made_by,
        "constraint": _settings(edit.constraint),
        "format": suffix_of(edit.before),
        "shape": list(edit.before.shape[1:]),
        "dtype": edit.before.dtype.str,
        "targets": {
            "dtype": edit.targets_before.dtype.str,
            "before": edit.targets_before,
            "after": edit.targets_after,
        },
        "has_gains": edit.gains is not None,
        "data": None if data is None else {"name": data.name, "documents": len(data), "sha256": data.content_hash},
        "documents": rows,
    }


def _settings(constraint: Any) -> dict[str, Any] | None:
    if constraint is None:
        return None
    if not is_dataclass(constraint) or isinstance(constraint, type):
        raise InfuserError("only constraints that are dataclasses can be written", got=repr(constraint))
    return {"kind": type(constraint).__name__, **asdict(constraint)}


def _checked_manifest(
    manifest: Any,
) -> tuple[list[int], list[Mapping[str, Any]], str, tuple[int, ...], np.dtype[Any]]:
    """Return (ids, rows, file suffix, shape, dtype), each of the type that it must have."""
    try:
        if manifest["schema"] != _SCHEMA:
            raise ValueError(f"schema {manifest['schema']!r}")
        rows = list(manifest["documents"])
        ids = [_whole(row["id"]) for row in rows]
        suffix = str(manifest["format"])
        shape = tuple(_whole(size) for size in manifest["shape"])
        dtype = np.dtype(str(manifest["dtype"]))
        labels = np.dtype(str(manifest["targets"]["dtype"]))
        np.array(ids, dtype=np.int64)  # raises where one does not fit
        if suffix not in ("png", "npy") or dtype.kind not in "uif" or labels.kind not in "uif":
            raise ValueError(f"format {suffix!r} of {dtype}, labels {labels}")
        if min(shape, default=0) < 0 or np.prod(shape, dtype=np.float64) > _MAX_VALUES:
            raise ValueError(f"shape {shape}")
        for name in ("before", "after"):
            held = manifest["targets"][name]
            if not isinstance(held, list) or len(held) != len(ids):
                raise ValueError(f"{len(ids)} documents, labels {listed(held) if isinstance(held, list) else held!r}")
            if np.array(held, dtype=labels).tolist() != held:
                raise ValueError(f"labels that are not {labels}: {listed(held)}")
        for row in rows:
            if not isinstance(row["before_sha256"], str) or not isinstance(row["after_sha256"], str):
                raise TypeError("a hash is not text")
            if not isinstance(row.get("gain"), int | float | None):
                raise TypeError(f"a gain is not a number: {row['gain']!r}")
        _ = manifest["constraint"], manifest["made_by"], manifest["has_gains"]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InfuserError(
            f"{NAME} does not describe an edit",
            got=f"{type(error).__name__}: {error}",
            expected=f"schema {_SCHEMA} as written by save_edit",
            causes=["it was edited by hand", "it comes from another version"],
        ) from error
    return ids, rows, suffix, shape, dtype


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _constraint(described: Any, known: Sequence[type]) -> Constraint | None:
    if described is None:
        return None
    kinds = {each.__name__: each for each in known}
    try:
        settings = dict(described)
        return cast(Constraint, kinds[settings.pop("kind")](**settings))
    except (KeyError, TypeError, ValueError) as error:
        raise InfuserError(
            "the manifest names a constraint that is not known here",
            got=described,
            expected=", ".join(kinds),
            remedy="pass its class in constraints=",
        ) from error
