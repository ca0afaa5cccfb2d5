"""Which detectors find which attacks, how much of that the edit itself adds, and what removing suspects undoes?

    python experiments/detection.py run digits
    python experiments/detection.py table

`run` goes on where it was stopped: finished jobs (attack x seed) under runs/detection are not done again. `table`
writes results/detection.json from the finished jobs alone.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from infuser.models import simple_cnn
from infuser.storage import read_json, write_json
from infuser.studies.detection_benchmark import DetectionBenchmark, run_detection_benchmark, summarise
from infuser.studies.poisons import Poison
from infuser.studies.suspects import Effort
from infuser.types import Recipe

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "detection"
RESULTS = ROOT / "experiments" / "results" / "detection.json"
EFFORT = Effort(recorded=20, partners=512, checkpoints=3)
CASES = {
    "digits": DetectionBenchmark(
        model="detection:small_cnn",
        recipe=Recipe(epochs=10, batch_size=16, lr=0.05, threads=1),
        poison=Poison(k=28, radius=16, steps=30),
        effort=EFFORT,
    ),
    "mnist": DetectionBenchmark(
        data="mnist",
        limit=10_000,
        model="detection:small_cnn",
        recipe=Recipe(epochs=5, batch_size=16, lr=0.05, threads=1),
        poison=Poison(k=100, radius=16, steps=30),
        effort=EFFORT,
        seeds=(0, 1, 2),
    ),
}


def small_cnn(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """SimpleCNN at a quarter of its width: 30 s a job instead of minutes."""
    return _narrow(input_shape, n_outputs)


_narrow = partial(simple_cnn, width=8)


def run(name: str) -> None:
    settings = CASES[name]
    if name != "digits":
        settings = replace(settings, data_folder=os.environ["INFUSER_DATA"])
    run_detection_benchmark(settings, RUNS / name, resume=(RUNS / name).exists(), allow_code=True)


def table() -> None:
    """Pool the finished jobs of every data set."""
    found = {}
    for name, settings in CASES.items():
        facts = [read_json(part)["facts"] for part in sorted((RUNS / name / "parts").glob("*.json"))]
        if facts:
            rows = summarise(settings, sorted(facts, key=lambda fact: fact["seed"]))
            found[name] = {**rows, "environment": read_json(RUNS / name / "environment.json")}
    write_json(RESULTS, found)
    print(f"wrote {RESULTS}")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("case", nargs="?", default="digits", choices=tuple(CASES))
    chosen = parser.parse_args()
    if chosen.stage == "run":
        run(chosen.case)
    else:
        table()


if __name__ == "__main__":
    main()
