"""A run folder: who may write into it, what it holds, and whether it may be used again."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from infuser.errors import InfuserError
from infuser.storage import sweep, write_text

# Everything that a run writes. Overwriting removes these names and nothing else: a folder may hold a user's own files.
CONTENTS = (
    "config.yaml",
    "environment.json",
    "results.json",
    "timing.json",
    "scores.parquet",
    "suspects.parquet",
    "clean-data",
    "trials.parquet",
    "report.html",
    "edits",
    "checkpoints",
    "parts",
    "base",
    "points",
    "failures",
    "sweep.json",
    "table.csv",
)
_FIRST = {"config.yaml", "environment.json"}  # what stands there before a run has made anything


@contextmanager
def opened(folder: str | os.PathLike[str], config: str, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Yield the folder of a run, locked against a second driver, with `config` written as config.yaml.

    Args:
        folder: created if it is missing.
        config: the resolved configuration as YAML; it is what a run is recognised by.
        resume: go on in a folder that holds the same configuration.
        overwrite: remove what a run wrote there before.

    Raises:
        InfuserError: the folder holds another run, or the same one without `resume`, or is in use.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InfuserError("the output folder is a file", got=str(folder), remedy="choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = owner.read_text(encoding="utf-8") if owner.exists() else "an unknown process"
        raise InfuserError(
            "the output folder is in use", got=holder, remedy="wait for it, or use another --out"
        ) from error
    try:
        sweep(folder)  # nobody else writes here, since the folder is locked
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}")
        _settle(folder, config, resume=resume, overwrite=overwrite)
        yield folder
    finally:
        with suppress(FileNotFoundError):
            owner.unlink()
        # Before it is released: afterwards it could be somebody else's.
        with suppress(OSError):
            (folder / ".lock").unlink()
        lock.release()


def _settle(folder: Path, config: str, *, resume: bool, overwrite: bool) -> None:
    present = [name for name in CONTENTS if (folder / name).exists()]
    stored = folder / "config.yaml"
    if stored.exists() and set(present) <= _FIRST:  # it ended before anything was made
        present = []
    if present and overwrite and not stored.exists():
        raise InfuserError(
            "the output folder holds files of these names, but no run",
            got=f"{folder} with {', '.join(present)}",
            remedy="choose another --out, or remove them yourself",
        )
    if present and overwrite:
        for name in present:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif present and not resume:
        raise InfuserError(
            "the output folder already holds a run",
            got=f"{folder} with {', '.join(present)}",
            remedy="pass --resume to go on with it, --overwrite to start over, or another --out",
        )
    elif present and (not stored.exists() or stored.read_text(encoding="utf-8") != config):
        raise InfuserError(
            "the output folder holds a run with other settings",
            got=str(folder),
            remedy="pass --overwrite to start over, or another --out",
        )
    write_text(stored, config)
