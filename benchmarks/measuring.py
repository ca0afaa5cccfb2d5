"""What the benchmarks share: arguments, documents to time on, interleaved timings in CPU seconds, and results.json."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import infuser as inf
from infuser.storage import read_json, write_json
from infuser.studies.environment import environment
from infuser.tasks import task_of

RESULTS = Path(__file__).parent / "results.json"


def arguments(about: str, documents: int, repeats: int = 5) -> argparse.ArgumentParser:
    """Return the arguments that most benchmarks have; torch is told to use one thread, as all of them do."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--documents", type=int, default=documents)
    return parser


def documents(n: int) -> inf.Dataset:
    """Return n images with labels: of CIFAR-10 where INFUSER_DATA is set, random pixels elsewhere.

    What is timed does not depend on the pixels.
    """
    folder = os.environ.get("INFUSER_DATA")
    if folder:
        return inf.data.load("cifar10", folder, limit=n)[0]
    rng = np.random.default_rng(0)
    return inf.Dataset.from_arrays(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, n))


def trained(n: int, epochs: int) -> tuple[inf.Run, inf.Dataset]:
    """Return a TinyResNet of width 32 after some epochs on n documents, and the documents."""
    data = documents(n)
    return inf.train(inf.models.tiny_resnet, data, inf.Recipe(epochs=epochs, batch_size=16, threads=1)), data


def forward_pass(run: inf.Run, data: inf.Dataset) -> Callable[[], None]:
    """Return the unit: the model over all documents, without a graph."""
    model, x = run.model(), task_of(data).feed(torch.from_numpy(np.array(data.inputs)))

    def forward() -> None:
        with torch.no_grad():
            for part in x.split(32):
                model(part)

    return forward


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every call in every round; a first round, which pays for imports, is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if repeat:
                taken[name].append(time.process_time() - begun)
    return taken


def ratios(taken: Mapping[str, list[float]], unit: str) -> dict[str, dict[str, float]]:
    """Return median, lowest and highest of every call in units of the median of one of them, and print them."""
    one = float(np.median(taken[unit]))
    rows = {}
    for name, values in taken.items():
        parts = (float(np.median(values)), min(values), max(values))
        rows[name] = dict(zip(("forward_passes", "lowest", "highest"), (x / one for x in parts), strict=True))
        print(f"{name:<44} {rows[name]['forward_passes']:8.2f}  [{parts[1] / one:.2f}, {parts[2] / one:.2f}]")
    return rows


def keep(name: str, found: Mapping[str, Any]) -> None:
    """Put one benchmark's block into results.json, with its environment."""
    stored = read_json(RESULTS) if RESULTS.exists() else {}
    write_json(RESULTS, {**stored, name: {**found, "environment": environment()}})


def keep_costs(name: str, given: argparse.Namespace, taken: Mapping[str, list[float]], model: str, **more: Any) -> None:
    """Keep what every call took, in forward passes of a model over the same documents."""
    found = {
        "unit": f"one forward pass of {model} over the same documents, CPU seconds",
        "documents": given.documents,
        "repeats": given.repeats,
        "forward_seconds": float(np.median(taken["forward"])),
        **more,
        "rows": ratios(taken, "forward"),
    }
    keep(f"{name}, {given.documents} documents", found)


def queries_of(count: int) -> str:
    """Return how many queries there are, in words."""
    return f"{count} {'query' if count == 1 else 'queries'}"
