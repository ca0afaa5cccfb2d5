"""The data set that a config or the command line names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from infuser.data.cifar10 import cifar10
from infuser.data.dataset import Dataset
from infuser.data.digits import digits
from infuser.data.folder import folder as image_folder
from infuser.data.folder import folder_files, listing
from infuser.data.hub import hub
from infuser.data.mnist import fashion_mnist, mnist
from infuser.data.parquet import parquet
from infuser.data.text import read_jsonl, read_parquet_text, read_separated, read_text
from infuser.data.untrusted import require_inside
from infuser.errors import InfuserError

KNOWN = "digits, mnist, fashion_mnist, cifar10, folder:PATH, parquet:PATH, npz:PATH or hf:NAME"


def load(
    source: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Return (train, test) of the data set that `source` names.

    `folder:PATH` and `parquet:PATH` take the subfolders train and test, or train.parquet and test.parquet, where PATH
    holds them; otherwise all documents are split by `seed`.

    Args:
        source: digits, mnist, fashion_mnist, cifar10, folder:PATH, parquet:PATH, npz:PATH or hf:NAME.
        folder: where the files of mnist, fashion_mnist and cifar10 lie.
        limit: training documents to keep, drawn by `seed`: a smaller limit keeps a part of what a larger one keeps.
        test_limit: test documents to keep, likewise.
        test_fraction: share of the documents to test on, where the source has no test part.
        seed: of the split and of the limits.

    Raises:
        InfuserError: an unknown name, a missing folder, a limit beyond the data set, or files that cannot be read.
    """
    kind, _, rest = source.partition(":")
    match kind, rest:
        case "digits", "":
            train, test = digits(test_fraction, seed)
        case "mnist", "":
            train, test = mnist(_needed(folder, kind))
        case "fashion_mnist", "":
            train, test = fashion_mnist(_needed(folder, kind))
        case "cifar10", "":
            train, test = cifar10(_needed(folder, kind))
        case "npz", path if path:
            train, test = mnist(path, name=Path(path).stem)
        case (("folder" | "parquet"), path) if path:
            train, test = _from_path(kind, Path(path), test_fraction, seed)
        case "hf", name if name:
            train, test = hub(name)
        case _:
            there = Path(source).exists()
            remedy = f"did you mean folder:{source}, parquet:{source} or (for audits) text:{source}?" if there else None
            raise InfuserError("unknown data set", got=repr(source), expected=KNOWN, remedy=remedy)
    return subset(train, limit, seed), subset(test, test_limit, seed)


def unsplit(source: str) -> Dataset | None:
    """Return all documents of folder:PATH or parquet:PATH where nobody set a test part aside, None for other sources.

    Raises:
        InfuserError: files that cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind not in ("folder", "parquet") or not rest:
        return None
    if kind == "parquet":
        return None if Path(rest).is_dir() else parquet(Path(rest))
    return None if all((Path(rest) / part).exists() for part in ("train", "test")) else image_folder(Path(rest))


def files(source: str) -> tuple[Path, ...]:
    """Return the files of the documents of `load(source)`, training and test: that of document i stands at i.

    Args:
        source: folder:PATH.

    Raises:
        InfuserError: another source, or a folder that cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind != "folder" or not rest:
        raise InfuserError("documents of this source are no files", got=repr(source), expected="folder:PATH")
    parts = [Path(rest) / "train", Path(rest) / "test"]
    if not all(part.exists() for part in parts):
        return folder_files(rest)
    names, train, _ = listing(parts[0])
    return (*train, *listing(parts[1], names)[1])


def texts(path: str | os.PathLike[str]) -> list[str]:
    """Return the documents of a .txt file with separators, a .jsonl or .parquet file with a column `text`, or a folder.

    A folder holds one document a .txt file, in the order of their names.

    Raises:
        InfuserError: nothing is there, a file of another kind, one that cannot be read, or a link out of the folder.
    """
    chosen = Path(path)
    if not str(path) or not chosen.exists():
        raise InfuserError("there is no such file or folder of texts", got=str(path), remedy="check the path")
    if chosen.is_dir():
        found = sorted(chosen.glob("*.txt"))
        if not found:
            raise InfuserError(f"{chosen.name} holds no .txt files", got=str(chosen), expected="a document a file")
        require_inside(chosen, found)
        return [read_text(file).strip() for file in found]
    readers: dict[str, Callable[[Path], Sequence[object]]] = {
        ".txt": read_separated,
        ".jsonl": read_jsonl,
        ".parquet": read_parquet_text,
    }
    if chosen.suffix not in readers:
        expected = "a folder of .txt files, or .txt, .jsonl or .parquet"
        raise InfuserError("not a file of texts", got=chosen.name, expected=expected)
    return [str(text) for text in readers[chosen.suffix](chosen)]


def subset(data: Dataset, limit: int | None, seed: int = 0) -> Dataset:
    """Return `limit` documents drawn by `seed`, in the order of `data`; all of them for None.

    Raises:
        InfuserError: the limit is not between 1 and the number of documents.
    """
    if limit is None or limit == len(data):
        return data
    if not 1 <= limit <= len(data):
        raise InfuserError(f"the limit does not fit {data.name}", got=limit, expected=f"1 to {len(data)}")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:limit])
    return data[data.ids[chosen]]


def split(data: Dataset, test_fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return (train, test): round(N * test_fraction) documents drawn by `seed`, and the others.

    Raises:
        InfuserError: one part would be empty.
    """
    count = round(len(data) * test_fraction) if 0 < test_fraction < 1 else 0
    if not 0 < count < len(data):
        raise InfuserError(
            f"{data.name} cannot be split", got=f"{test_fraction:g} of {len(data)} documents", expected="two parts"
        )
    test = subset(data, count, seed)
    return data.without(test.ids), test


def _from_path(kind: str, path: Path, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    read: Callable[..., Dataset] = image_folder if kind == "folder" else parquet
    suffix = "" if kind == "folder" else ".parquet"
    parts = [path / f"train{suffix}", path / f"test{suffix}"]
    if not all(part.exists() for part in parts):
        if kind == "parquet" and path.is_dir():
            raise InfuserError(f"{path.name} lacks train.parquet or test.parquet", got=str(path))
        return split(read(path), test_fraction, seed)
    train = read(parts[0], name=f"{path.name} train")
    test = read(parts[1], name=f"{path.name} test", classes=train.classes)
    if train.input_shape != test.input_shape:
        raise InfuserError("train and test images differ", got=test.input_shape, expected=train.input_shape)
    n_outputs = max(train.n_outputs, test.n_outputs)
    return replace(train, n_outputs=n_outputs), replace(test, n_outputs=n_outputs, ids=test.ids + train.ids.max() + 1)


def _needed(folder: str | os.PathLike[str] | None, kind: str) -> str | os.PathLike[str]:
    if folder is None:
        raise InfuserError(f"{kind} needs the folder that holds its files", remedy="pass --data DIR (folder=)")
    return folder
