"""Real runs in processes of their own, to be killed: how they are started, watched and compared."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

TINY = {
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "limit": 200,
    "recipe": {"epochs": 4, "batch_size": 8, "lr": 0.1, "momentum": 0.9, "threads": 1},
    "probes": 4,
    "judged": 50,
    "k": 3,
    "steps": 3,
    "seeds": [1, 2],
    "controls": ["noise", "random_docs"],
    "regimes": ["last_epoch", "scratch"],
    "workers": 1,
}
SWEEP = {**TINY, "probes": 3, "workers": 2, "regimes": ["last_epoch"], "grid": {"radius": [4, 8], "select": ["random"]}}


def write_config(path: Path, values: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


class Started:
    """An `infuser` of its own, and what is below it."""

    def __init__(self, *arguments: str, log: Path, limits: Callable[[], None] | None = None) -> None:
        self.log = log
        # Ray's workers are nice by 15, which on a busy machine is for ever.
        own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_worker_niceness": "0"}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infuser.cli", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                preexec_fn=limits,  # noqa: PLW1509 - pytest runs no threads here
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 300) -> int:
        return self.process.wait(seconds)

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait until something has happened; False if the process ended before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.running:
            if happened():
                return True
            time.sleep(0.01)
        return False

    def kill(self) -> bool:
        """Kill the driver; whether it was still running."""
        if not self.running:
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        self.wait()
        return True

    def below(self, *names: str) -> list[int]:
        """Return the processes below whose command holds one of these names."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    if any(name in " ".join(child.cmdline()) for name in names):
                        found.append(child.pid)
        return found

    def kill_below(self, rng: random.Random, *names: str) -> bool:
        """Kill one of the processes below whose command holds one of these names; whether there was one."""
        found = self.below(*names)
        if not found:
            return False
        try:
            os.kill(rng.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def once_killed(folder: Path, job: int) -> int:
    """Return the square of the job; kill the own process the first time that it is run."""
    mark = folder / str(job)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a run or a sweep says, by file: results, trials, scores, tables, edits and checkpoints' weights."""
    names = ("results.json", "trials.parquet", "scores.parquet", "table.csv", "weights.safetensors")
    kept = [path for path in folder.rglob("*") if path.is_file() and (path.name in names or "edits" in path.parts)]
    return {str(path.relative_to(folder)): _read(path) for path in kept}


def _read(path: Path) -> bytes:
    # A picture that lost its closing mark still shows every pixel, and its pixels are what is hashed.
    return np.asarray(Image.open(path)).tobytes() if path.suffix == ".png" else path.read_bytes()


def leftovers(folder: Path) -> list[str]:
    """Return what no finished run should hold."""
    return [str(path) for path in folder.rglob(".*") if path.name.endswith((".tmp", ".lock", ".owner", ".old"))]
