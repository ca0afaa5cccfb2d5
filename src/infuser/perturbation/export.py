"""A data set as a folder of images, class by class, and the way back from an edited one."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.perturbation.manifest import decode, encode, load_edit, suffix_of
from infuser.progress import track
from infuser.storage import atomic_path

_SAFE = re.compile(r"[^\W.][\w .+-]*", re.UNICODE)  # no separators, no leading dot or blank


def write_images(data: Dataset, folder: str | os.PathLike[str]) -> Path:
    """Write every document to folder/CLASS/ID.png and return the folder.

    All files are written by the same encoder with the same settings, so that equal pixels give equal bytes and the
    format of a file says nothing about whether its document was edited. The folder appears once it is whole. A class
    without documents gets no folder: `data.folder(folder, classes=data.classes)` reads the others under their labels.

    Raises:
        InfuserError: the documents are not 8-bit images with one label each, the folder exists and is not empty, a
            class name cannot be a folder name, or the disk is full.
    """
    folder = Path(folder)
    if data.kind != "classification" or suffix_of(data.inputs) != "png":
        raise InfuserError(
            "only labelled 8-bit images can be written as a folder of images",
            got=repr(data),
            expected="uint8 (N, C, H, W) with 1, 3 or 4 channels and one label each",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InfuserError("the folder is not empty", got=str(folder), remedy="choose a new folder")
    classes = _folder_names(data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for label in np.unique(data.targets):
            (temporary / classes[label]).mkdir()
        for row in track(range(len(data)), f"writing {len(data)} images"):
            path = temporary / classes[int(data.targets[row])] / _file_name(int(data.ids[row]))
            path.write_bytes(encode(data.inputs[row], "png"))
        if folder.exists():
            folder.rmdir()
        temporary.chmod(0o755)
        temporary.replace(folder)
    except OSError as error:
        raise InfuserError(
            "the images could not be written; nothing was kept", got=str(error), remedy="free some space and try again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def undo_images(folder: str | os.PathLike[str], edit_folder: str | os.PathLike[str]) -> list[int]:
    """Put the original bytes of every edited document back into a folder of images; return the ids put back.

    `folder` was written by write_images from the edited data set, `edit_folder` by save_edit. All documents are checked
    before the first is written; those that hold their original already are left alone: a second call is harmless.

    Raises:
        InfuserError: a document is missing from the folder, or is neither the edited nor the original one.
    """
    folder, edit_folder = Path(folder), Path(edit_folder)
    edit = load_edit(edit_folder)
    if suffix_of(edit.before) != "png":
        raise InfuserError("the edit is not one of images", got=f"{edit.before.dtype} {edit.before.shape[1:]}")
    if not np.array_equal(edit.targets_before, edit.targets_after):
        raise InfuserError("the edit changes labels, which a folder of images cannot undo", got=str(edit_folder))
    restored: dict[int, Path] = {}
    wrong = []
    for row, i in enumerate(edit.ids.tolist()):
        path = _find(folder, i)
        held = decode(path, "png", edit.before.shape[1:], edit.before.dtype)
        if np.array_equal(held, edit.before[row]):
            continue
        if np.array_equal(held, edit.after[row]):
            restored[i] = path
        else:
            wrong.append(i)
    if wrong:
        raise InfuserError(
            f"{len(wrong)} documents are neither edited nor original; nothing was changed",
            got=f"ids {listed(wrong)}",
            causes=["the folder was written from another edit", "the files were changed since"],
        )
    for i, path in restored.items():
        original = (edit_folder / "before" / _file_name(i)).read_bytes()
        with atomic_path(path) as temporary:
            temporary.write_bytes(original)
    return list(restored)


def _file_name(document_id: int) -> str:
    return f"{document_id:08d}.png"


def _find(folder: Path, document_id: int) -> Path:
    found = [path for path in folder.glob(f"*/{_file_name(document_id)}") if not path.parent.is_symlink()]
    if len(found) != 1:
        raise InfuserError(
            f"document {document_id} is {'missing from' if not found else 'more than once in'} the folder",
            got=str(folder),
            expected=f"one file CLASS/{_file_name(document_id)}",
            remedy="pass a folder that write_images wrote",
        )
    return found[0]


def _folder_names(data: Dataset) -> list[str]:
    names = list(data.classes) or [str(c) for c in range(data.n_outputs)]
    bad = [name for name in names if not _SAFE.fullmatch(name) or name.endswith((" ", "."))]
    if bad or len({name.casefold() for name in names}) != len(names):
        raise InfuserError(
            "class names cannot be folder names",
            got=listed(bad or names),
            expected="distinct names of letters, digits, blanks and - + . _",
            remedy="give the data set other class names",
        )
    return names
