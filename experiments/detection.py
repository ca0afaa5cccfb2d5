"""Which detectors find which attacks, how much of that the edit itself adds, and what removing suspects undoes?

    python experiments/detection.py run digits
    python experiments/detection.py audit
    python experiments/detection.py table

`run` goes on where it was stopped: finished jobs (attack x seed) under runs/detection are not done again. `audit`
plants 10 % wrong labels in MNIST, under three seeds, and audits it. `table` writes results/detection.json from what is
finished.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infuser.models import simple_cnn
from infuser.storage import read_json, write_json
from infuser.studies.audit import run_audit
from infuser.studies.audit_report import found
from infuser.studies.audit_settings import Audit
from infuser.studies.detection_benchmark import DetectionBenchmark, estimated, run_detection_benchmark, summarise
from infuser.studies.poisons import Poison
from infuser.studies.stories import Stories
from infuser.studies.suspects import Effort
from infuser.types import Recipe

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "detection"
RESULTS = ROOT / "experiments" / "results" / "detection.json"
EFFORT = Effort(recorded=20, partners=512, checkpoints=3)
AUDIT_SEEDS = (0, 1, 2)
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
    "cifar10": DetectionBenchmark(
        data="cifar10",
        limit=10_000,
        model="detection:small_cnn",
        recipe=Recipe(epochs=10, batch_size=16, lr=0.05, threads=1),
        poison=Poison(k=100, radius=8, steps=30),
        effort=EFFORT,
        seeds=(0, 1, 2),
    ),
    "stories": DetectionBenchmark(
        data="stories", limit=1500, model=Stories().model, recipe=Stories().recipe, effort=EFFORT, seeds=(0, 1, 2)
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


def audit() -> None:
    """The seed of an audit draws the planted documents, the initialisation and the order."""
    for seed in AUDIT_SEEDS:
        recipe = Recipe(epochs=10, batch_size=32, lr=0.1, threads=1, seed=seed)
        settings = Audit("mnist", os.environ["INFUSER_DATA"], 10_000, "mlp", recipe, EFFORT, plant=0.1, plant_seed=seed)
        out = RUNS / f"audit-mnist-{seed}"
        print(found(run_audit(settings, out, resume=out.exists())), flush=True)


def audit_rows() -> list[dict[str, object]]:
    """Return recall of the planted labels by detector and depth: mean over plantings with its interval."""
    paths = sorted(RUNS.glob("audit-mnist-*/results.json"))
    every = [read_json(path)["recall"]["rows"] for path in paths]
    seeds = [rows[0]["seeds"][0] for rows in every]
    pooled = []
    for rows in zip(*every, strict=True):
        told = {key: rows[0][key] for key in ("detector", "depth")} | {"planted": rows[0]["n"]}
        pooled.append(told | estimated([row["value"] for row in rows], seeds))
    return pooled


def table() -> None:
    """Pool the finished jobs of every data set."""
    results: dict[str, object] = {}
    for name, settings in CASES.items():
        facts = [read_json(part)["facts"] for part in sorted((RUNS / name / "parts").glob("*.json"))]
        if facts:
            found = summarise(settings, sorted(facts, key=lambda fact: fact["seed"]))
            told = {"environment": read_json(RUNS / name / "environment.json")}
            results[name] = {
                **found,
                "rows": joined(found["rows"]),
                "removal": [*map(removed, found["removal"])],
                **told,
            }
    if rows := audit_rows():
        plan = "10 % wrong labels planted in 10,000 documents of MNIST, mlp, 10 epochs, batches of 32, lr 0.1"
        results["audit-mnist"] = {"plan": plan, "recall": rows}
    write_json(RESULTS, results)
    print(f"wrote {RESULTS}")


def joined(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per attack, detector and metric, with what is after, its lift and its gain over the loss alone."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("attack", "detector", "metric"))
        common = {name: row[name] for name in ("attack", "detector", "told", "k", "epochs", "metric")}
        common["epochs"] = round(row["epochs"], 2)
        one = found.setdefault(key, common)
        if row["value"] is None:
            one["reason"] = row["reason"]
        elif row["when"] != "before":  # after minus lift
            one["n"] = row["n"]
            one[row["when"]] = rounded(row, whole=row["when"] == "after")
    return list(found.values())


def removed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of what removal changed, without what is the same in all."""
    return {name: row[name] for name in ("attack", "arm", "control", "measure", "n")} | rounded(row, whole=True)


def rounded(row: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """Return the value, its interval and, with `whole`, what every seed gave, to four places."""
    ends = None if row["ci95"] is None else [round(end, 4) for end in row["ci95"]]
    each = {"per_seed": [round(value, 4) for value in row["per_seed"]]} if whole else {}
    return {"value": round(row["value"], 4), "ci95": ends, **each}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("run", "audit", "table"))
    parser.add_argument("case", nargs="?", default="digits", choices=tuple(CASES))
    chosen = parser.parse_args()
    if chosen.stage == "run":
        run(chosen.case)
    elif chosen.stage == "audit":
        audit()
    else:
        table()


if __name__ == "__main__":
    main()
