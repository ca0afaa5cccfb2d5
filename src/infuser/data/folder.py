"""A folder of images, one subfolder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infuser.data.dataset import Dataset
from infuser.data.untrusted import Mode, decode_images, open_regular, require_inside
from infuser.errors import InfuserError, listed

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".pgm", ".ppm"})
_MAX_FILE = 2**27  # bytes of one encoded image


def folder(
    path: str | os.PathLike[str], *, classes: Sequence[str] = (), mode: Mode | None = None, name: str | None = None
) -> Dataset:
    """Return the images of `path`, whose subfolders are the classes.

    Documents are ordered by class, then by file name, both by code point, so that the ids 0..N-1 are the same on every
    machine. Hidden files are passed over. Nothing is resized: images of different sizes are an error.

    Args:
        path: holds one subfolder per class, each holding image files.
        classes: the subfolders to expect, in the order of their labels; all, sorted, by default.
        mode: "L" refuses colour, "RGB" makes grey images colour; None keeps grey if all images are grey, else RGB.
        name: for tables; the folder's name by default.

    Raises:
        InfuserError: no classes, a class without images, a file that is not an image or leads out of the folder, or
            images of several sizes (all are listed).
    """
    root = Path(path)
    names, files, labels = listing(root, classes)
    items = ((str(file.relative_to(root)), _read(file)) for file in files)
    images = decode_images(items, len(files), root.name, mode)
    targets = np.array(labels, dtype=np.int64)
    return Dataset(images, targets, "classification", len(names), classes=names, name=name or root.name)


def folder_files(path: str | os.PathLike[str], *, classes: Sequence[str] = ()) -> tuple[Path, ...]:
    """Return the file of every document of `folder(path)`: the one of document i stands at i.

    Raises:
        InfuserError: as for `folder`, of which no image is read here.
    """
    return tuple(listing(Path(path), classes)[1])


def listing(root: Path, classes: Sequence[str] = ()) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Return (class names, files, labels) of a folder; see `folder`."""
    if not root.is_dir():
        raise InfuserError(f"the image folder {root.name} is missing", got=str(root), remedy="check the path")
    found = [entry.name for entry in _entries(root) if entry.is_dir()]
    names = tuple(classes) or tuple(found)
    if not found or not set(found) <= set(names):
        raise InfuserError(
            f"{root.name} does not hold one subfolder per class",
            got=f"subfolders {listed(found)}" if found else "no subfolders",
            expected=listed(names) if names else "one subfolder per class",
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        if class_name in found:
            mine = _images(root, root / class_name)
            files += mine
            labels += [label] * len(mine)
    return names, files, labels


def _entries(path: Path) -> list[Path]:
    try:
        return sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InfuserError(f"the folder {path.name} cannot be read", got=str(error)) from error


def _images(root: Path, subfolder: Path) -> list[Path]:
    files = _entries(subfolder)
    require_inside(root, (subfolder, *files))
    other = [f.name for f in files if f.suffix.lower() not in SUFFIXES or not f.is_file()]
    if other or not files:
        raise InfuserError(
            f"class {subfolder.name} of {root.name} holds files that are not images"
            if other
            else f"class {subfolder.name} of {root.name} holds no images",
            got=listed(other) if other else None,
            expected=f"files ending in {', '.join(sorted(SUFFIXES))}",
            remedy="move them elsewhere" if other else "remove the subfolder or put images there",
        )
    return files


def _read(file: Path) -> bytes:
    with open_regular(file) as opened:
        raw = opened.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise InfuserError(f"{file.name} is too large for an image", expected=f"at most {_MAX_FILE // 2**20} MiB")
    return raw
