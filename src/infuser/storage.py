"""Files that are either whole or absent, and hashes of what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from infuser.errors import InfuserError

_LEFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>tmp|old)")
_DAY = 24 * 60 * 60.0  # seconds; no checkpoint takes as long to write


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name once the block has ended without an error.

    The bytes are flushed to disk before the rename, so that a crash leaves the old file or the new one, never a part.

    Raises:
        InfuserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    with _clear_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # O_EXCL: never through a link that somebody else put there. The mode is what open() would give.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _flush(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name once the block has ended without an error.

    An older folder of that name is replaced; of several writers at once, each leaves a whole folder, and the last one's
    stays. If a process was killed between moving the older folder away and putting its own there, the next call begins
    by putting the older one back. Half-written folders are removed a day after they were touched last.

    Raises:
        InfuserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    with _clear_errors(path):
        try:
            _sweep(path.parent.glob(".*"), idle=_DAY)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            _put(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _sweep(path.parent.glob(".*"), idle=_DAY)


def _put(temporary: Path, path: Path) -> None:
    """Give a folder its name, in the place of what has it."""
    while True:
        # Moved away rather than deleted: a crash while deleting would leave a part of it under its name.
        with suppress(FileNotFoundError):
            path.replace(_beside(path, "old"))
        try:
            temporary.replace(path)
            return
        except OSError as error:  # another writer came between the two
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def sweep(folder: str | os.PathLike[str]) -> None:
    """Put right what killed processes left anywhere in `folder`; only for whoever alone writes there.

    What they had moved away and not replaced takes its name again; what they were writing is removed.
    """
    _sweep(Path(folder).rglob(".*"), idle=-math.inf)


def _sweep(paths: Iterable[Path], idle: float) -> None:
    """Put right what was left among `paths`, sparing what was written to in the last `idle` seconds."""
    left = [(path, found) for path in paths if (found := _LEFT.fullmatch(path.name))]
    # The newest first: should several older versions have been left, it is the one to put back.
    for path, found in sorted(left, key=lambda each: _changed(each[0]), reverse=True):
        name = path.with_name(found["name"])
        if found["kind"] == "old" and not name.exists():
            with suppress(OSError):
                path.replace(name)
        elif found["kind"] == "old" or time.time() - _changed(path) >= idle:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # a file, or a link, which rmtree does not follow
                path.unlink()


def _beside(path: Path, kind: str) -> Path:
    """Return a name beside `path` that nobody else takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def _changed(path: Path) -> float:
    """Return when a file or folder was written to last, in seconds; infinity if it is gone."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return math.inf


def _flush(path: Path) -> None:
    with open(path, "rb") as written:
        os.fsync(written.fileno())


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InfuserError(
                f"the disk is full while writing {path.name}; nothing half-written was kept",
                got=str(path),
                remedy="free some space and run the same command again: finished parts are kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InfuserError(f"cannot write {path.name}", got=str(path), remedy="choose a writable folder") from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; NaN and infinity become null."""
    write_text(path, json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        InfuserError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InfuserError(f"{path.name} is missing", got=str(path), remedy="check the folder's name") from error
    except OSError as error:
        raise InfuserError(f"cannot read {path.name}", got=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise InfuserError(
            f"{path.name} is not valid JSON", got=str(error), causes=["the file was truncated or edited by hand"]
        ) from error


def plain(value: Any) -> Any:
    """Return `value` built of JSON's own types: arrays become lists, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)  # a set of words has another order in every process
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def hash_arrays(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of named arrays: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
