"""Any parquet file with a column of encoded images and a column of labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infuser.data.dataset import Dataset
from infuser.data.untrusted import Mode, decode_images, open_regular
from infuser.errors import InfuserError, listed
from infuser.types import Array

_ROWS = 256  # rows decoded at a time


def parquet(
    path: str | os.PathLike[str],
    *,
    image: str | None = None,
    label: str = "label",
    ids: str | None = None,
    classes: Sequence[str] = (),
    mode: Mode | None = None,
    name: str | None = None,
) -> Dataset:
    """Return the images and labels of a parquet file, in its order.

    Args:
        path: the file.
        image: its column of encoded images, as struct {bytes, path} or as plain bytes; the only such column by default.
            `path` in the struct is never opened.
        label: its column of labels: integers, or strings, which are numbered in sorted order (or in that of `classes`).
        ids: its column of integer ids; 0..N-1 by default.
        classes: names of the classes; labels beyond them are an error.
        mode: "L" refuses colour, "RGB" makes grey images colour; None decides by the images.
        name: for tables; the file's name by default.

    Raises:
        InfuserError: not a parquet file, wrong or ambiguous columns, missing values, images that cannot be decoded or
            differ in size, or labels out of range.
    """
    name = name or Path(path).stem
    with open_regular(path) as source:
        file = _guarded(name, lambda: _open(source))
        wanted = [label] if ids is None else [label, ids]
        leaf = _guarded(name, lambda: _bytes_column(file.schema_arrow, image, wanted, name))
        inputs = decode_images(_image_bytes(file, leaf, name), file.metadata.num_rows, name, mode)
        columns = _guarded(name, lambda: file.read(columns=wanted, use_threads=False))
    targets, found = _labels(columns, label, tuple(classes), name)
    numbers = np.arange(len(inputs)) if ids is None else _integers(columns, ids, name)
    if len(targets) != len(inputs) or len(numbers) != len(inputs):
        raise InfuserError(f"the columns of {name} differ in length", got=len(targets), expected=len(inputs))
    n_outputs = len(found) or int(targets.max()) + 1
    return Dataset(inputs, targets, "classification", n_outputs, numbers, classes=found, name=name)


def _guarded(name: str, call: Any) -> Any:
    """Return call(), with what pyarrow raises on a damaged file turned into one error."""
    import pyarrow as pa

    try:
        return call()
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise InfuserError(
            f"{name} is not a parquet file that can be read",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            causes=["it is truncated or damaged", "it is another format"],
        ) from error


def _open(source: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, memory_map=False, pre_buffer=False)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_column(schema: Any, image: str | None, others: Sequence[str], name: str) -> str:
    """Return the path of the column of encoded bytes, once all wanted columns are known to be there."""
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        if not pa.types.is_struct(kind):
            return _is_bytes(kind)
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)

    if len(set(schema.names)) != len(schema.names):
        raise InfuserError(f"{name} names a column twice", got=listed(schema.names))
    found = [field.name for field in schema if holds(field.type)]
    if (image is None and len(found) != 1) or (image is not None and image not in found):
        columns = [f"{field.name}: {field.type}" for field in schema]
        raise InfuserError(
            f"{name} has no image column {image!r}" if image else f"{name} has {len(found)} columns of images",
            got=f"columns {listed(columns)}",
            expected="struct {bytes, path} or binary",
            remedy="pass image= the column's name",
        )
    if unknown := [column for column in others if column not in schema.names]:
        raise InfuserError(f"{name} has no column {listed(unknown)}", got=f"columns {listed(schema.names)}")
    image = image or str(found[0])
    return f"{image}.bytes" if pa.types.is_struct(schema.field(image).type) else image


def _image_bytes(file: Any, leaf: str, name: str) -> Iterator[tuple[str, bytes]]:
    batches = _guarded(name, lambda: file.iter_batches(_ROWS, columns=[leaf], use_threads=False))
    row = 0
    while (column := _guarded(name, lambda: _next_column(batches))) is not None:
        for raw in column:
            if raw is None:
                raise InfuserError(
                    f"row {row} of {name} has no image bytes",
                    expected="the encoded image in the file; a path beside it is never opened",
                )
            yield f"row {row} of {name}", raw
            row += 1


def _next_column(batches: Any) -> list[bytes | None] | None:
    batch = next(batches, None)
    if batch is None:
        return None
    column = batch.column(0)
    column.validate(full=True)  # offsets of a hostile file could point anywhere
    values = column.to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


def _labels(columns: Any, label: str, classes: tuple[str, ...], name: str) -> tuple[Array, tuple[str, ...]]:
    import pyarrow as pa

    kind = columns.schema.field(label).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        targets = _integers(columns, label, name)
        # Without names a label decides how wide the model's head is, so one absurd label must not pass.
        top = len(classes) or max(len(targets), 1000)
        bad = (targets < 0) | (targets >= top)
        if bad.any():
            raise InfuserError(
                f"{int(bad.sum())} labels of {name} are out of range",
                got=f"{listed(sorted(set(targets[bad].tolist())))} at rows {listed(np.flatnonzero(bad).tolist())}",
                expected=f"0 to {top - 1}",
            )
        return targets, classes
    words = _guarded(name, lambda: _whole(columns, label, name).to_pylist())
    classes = classes or tuple(sorted(set(words)))
    number = {word: i for i, word in enumerate(classes)}
    if unknown := sorted(set(words) - number.keys()):
        raise InfuserError(f"labels of {name} are out of range", got=listed(unknown), expected=listed(classes))
    return np.array([number[word] for word in words], dtype=np.int64), classes


def _integers(columns: Any, column: str, name: str) -> Array:
    import pyarrow as pa

    if not pa.types.is_integer(columns.schema.field(column).type):
        kind = columns.schema.field(column).type
        raise InfuserError(f"column {column} of {name} has the wrong type", got=str(kind), expected="integers")
    values = _guarded(name, lambda: _whole(columns, column, name).cast(pa.int64()).to_numpy())
    return np.asarray(values, dtype=np.int64)


def _whole(columns: Any, column: str, name: str) -> Any:
    values = columns[column]
    values.validate(full=True)
    if values.null_count:
        raise InfuserError(f"column {column} of {name} lacks values", got=f"{values.null_count} of {len(values)} rows")
    return values
