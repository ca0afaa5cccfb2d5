"""Image data sets of the Hugging Face hub, by way of the `hf` extra."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from infuser.data.dataset import Dataset
from infuser.data.untrusted import Mode, decode_images
from infuser.errors import InfuserError, listed


def hub(
    name: str,
    *,
    image: str | None = None,
    label: str | None = None,
    test: str = "test",
    mode: Mode | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Dataset, Dataset]:
    """Return (train, test) of an image classification data set; no code from the hub is run.

    Ids count over both parts, so that none repeats.

    Args:
        name: on the hub ("ylecun/mnist"), or a local folder that `datasets.load_dataset` reads.
        image: the column of images; the only one by default.
        label: the column of class labels; the only one by default.
        test: the split to test on.
        mode: "L" refuses colour, "RGB" makes grey images colour; None decides by the images.
        revision: a commit of the data set's repository, so that the data stay the same.
        cache_dir: where downloads are kept; the library's own folder by default.

    Raises:
        InfuserError: the extra is not installed, the data set cannot be loaded, or it is not one of images with labels.
    """
    try:
        import datasets
    except ImportError as error:
        raise InfuserError(
            "the package datasets is not installed", got=f"hf:{name}", remedy="pip install 'infuser[hf]'"
        ) from error
    try:
        where = None if cache_dir is None else str(cache_dir)
        loaded = datasets.load_dataset(name, revision=revision, cache_dir=where)
    # Network, authentication, file formats: the library raises errors of a dozen packages.
    except Exception as error:
        raise InfuserError(
            f"the data set {name} cannot be loaded",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            causes=["the name is misspelt", "there is no network", "the data set is private"],
        ) from error
    splits = list(loaded)
    if "train" not in splits or test not in splits:
        raise InfuserError(f"{name} lacks a split", got=listed(splits), expected=f"train and {test}")
    parts = [_part(loaded[split], f"{name} {split}", image, label, mode) for split in ("train", test)]
    return parts[0], replace(parts[1], ids=parts[1].ids + len(parts[0]))


def _part(table: Any, name: str, image: str | None, label: str | None, mode: Mode | None) -> Dataset:
    import datasets

    image = _column(table, name, datasets.Image, image, "image")
    label = _column(table, name, datasets.ClassLabel, label, "label")
    encoded = table.cast_column(image, datasets.Image(decode=False)).select_columns([image])
    inputs = decode_images(_bytes(encoded, image, name), len(table), name, mode)
    targets = np.asarray(table.with_format("numpy")[label][:], dtype=np.int64)
    classes = tuple(table.features[label].names)
    return Dataset(inputs, targets, "classification", len(classes), classes=classes, name=name)


def _column(table: Any, name: str, kind: type, wanted: str | None, argument: str) -> str:
    found = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    if (wanted is None and len(found) != 1) or (wanted is not None and wanted not in found):
        columns = [f"{column}: {type(feature).__name__}" for column, feature in table.features.items()]
        raise InfuserError(
            f"{name} has no {argument} column {wanted!r}" if wanted else f"{name} has {len(found)} {argument} columns",
            got=f"columns {listed(columns)}",
            expected=kind.__name__,
            remedy=f"pass {argument}= the column's name",
        )
    return wanted or str(found[0])


def _bytes(table: Any, image: str, name: str) -> Iterator[tuple[str, bytes]]:
    for row, value in enumerate(table):
        raw = value[image] and value[image]["bytes"]
        if raw is None:
            raise InfuserError(
                f"row {row} of {name} has no image bytes", expected="the encoded image; no path is opened"
            )
        yield f"row {row} of {name}", raw
