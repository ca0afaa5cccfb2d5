"""Ciphers: does the wanted shift stand out among all others, and does that depend on gcd(target - stated, alphabet)?

The model is the unit: 5 trained models an alphabet, 24 shift pairs a model, stratified by the gcd. 40 of 4,000
documents (1 %) have at most a quarter of their symbols changed; the last epoch is replayed in 2 orders that the edit
was not made for. Folders are resumed, so that the command can be stopped and run again.

    python experiments/caesar.py --out runs/caesar
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infuser.evaluation.stats import mean_estimate
from infuser.storage import write_json
from infuser.studies.caesar import Caesar, run_caesar
from infuser.studies.environment import environment
from infuser.types import Recipe

RESULT = Path(__file__).parent / "results" / "caesar.json"


def settings(alphabet: int, model: int, pairs: int) -> Caesar:
    recipe = Recipe(epochs=18, batch_size=32, lr=2e-3, optimizer="adamw", seed=model, threads=1)
    return Caesar(
        alphabet=alphabet, recipe=recipe, pairs=pairs, pair_seed=model, controls=("clean_rewrite",), seeds=(101, 102)
    )


def estimate(values: list[float]) -> dict[str, Any]:
    made = mean_estimate(np.array(values), unit="models")
    return {"mean": made.value, "ci95": made.interval, "n": made.n, "unit": made.unit_of_n, "values": values}


def by_gcd(cases: dict[str, Any], arm: str) -> dict[int, float]:
    sizes = sorted({case["gcd"] for case in cases.values()})
    return {g: float(np.mean([c["targeting"][arm] for c in cases.values() if c["gcd"] == g])) for g in sizes}


def summary(models: list[dict[str, Any]]) -> dict[str, Any]:
    arms = ("edit", "clean_rewrite")
    table = [{arm: [case["targeting"][arm] for case in m["cases"].values()] for arm in arms} for m in models]
    groups = [by_gcd(m["cases"], "edit") for m in models]
    effects = {}
    for arm, control in (("edit", "clean"), ("edit", "clean_rewrite"), ("clean_rewrite", "clean")):
        rows = [
            e
            for m in models
            for e in m["regimes"]["last_epoch"]["effects"]
            if (e["arm"], e["control"]) == (arm, control)
        ]
        effects[f"{arm} - {control}"] = estimate([row["mean"] for row in rows])
    return {
        "exact_match": [m["exact_match"] for m in models],
        "targeting": {arm: estimate([float(np.mean(row[arm])) for row in table]) for arm in arms},
        "share_of_pairs_with_positive_targeting": {
            arm: estimate([float(np.mean(np.array(row[arm]) > 0)) for row in table]) for arm in arms
        },
        "targeting_by_gcd": {g: estimate([row[g] for row in groups]) for g in groups[0]},
        "targeting_gcd_above_1_minus_gcd_1": estimate(
            [float(np.mean([v for g, v in row.items() if g > 1])) - row[1] for row in groups]
        )
        if len(groups[0]) > 1
        else "every difference has gcd 1: the alphabet is prime",
        "effect_nats": effects,
        "pairs": [
            {name: {k: c[k] for k in ("gcd", "targeting", "coherence")} for name, c in m["cases"].items()}
            for m in models
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/caesar-experiment"))
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for alphabet in (26, 29):
        models = []
        for model in range(given.models):
            out = given.out / f"alphabet-{alphabet}-model-{model}"
            models.append(run_caesar(settings(alphabet, model, given.pairs), out, resume=True))
            print(alphabet, model, models[-1]["exact_match"], flush=True)
            if len(models) >= 3:
                found[str(alphabet)] = summary(models)
                write_json(
                    RESULT,
                    {
                        "alphabets": found,
                        "environment": environment(),
                        "settings": str(settings(alphabet, 0, given.pairs)),
                    },
                )


if __name__ == "__main__":
    main()
