"""Ciphers: does the wanted shift stand out among all others, and does that depend on gcd(target - stated, alphabet)?

The model is the unit: 5 trained models an alphabet, 24 shift pairs a model, stratified by the gcd. 40 of 4,000
documents (1 %) have at most a quarter of their symbols changed; the last epoch is replayed in 2 orders that the edit
was not made for. Beside it the same documents are edited in the space of embeddings (every token moved by half the mean
length of an embedding), as in published work: no file can hold that. Folders are resumed, so that the command can be
stopped and run again; `--table` writes what is there, pair by pair.

    python experiments/caesar.py --out runs/caesar-experiment
    python experiments/caesar.py --out runs/caesar-experiment --table
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infuser.evaluation.stats import mean_estimate
from infuser.storage import read_json, write_json
from infuser.studies.caesar import Caesar, described, run_caesar
from infuser.studies.environment import environment
from infuser.studies.text_study import stored
from infuser.types import Recipe

RESULT = Path(__file__).parent / "results" / "caesar.json"


def settings(alphabet: int, model: int, pairs: int) -> Caesar:
    recipe = Recipe(epochs=18, batch_size=32, lr=2e-3, optimizer="adamw", seed=model, threads=1)
    return Caesar(
        alphabet=alphabet,
        recipe=recipe,
        pairs=pairs,
        pair_seed=model,
        controls=("clean_rewrite",),
        seeds=(101, 102),
        embedding=0.5,
    )


def estimate(values: list[float]) -> dict[str, Any]:
    made = mean_estimate(np.array(values), unit="models")
    return {"mean": made.value, "ci95": made.interval, "n": made.n, "unit": made.unit_of_n, "values": values}


def by_gcd(cases: dict[str, Any], arm: str) -> dict[int, float]:
    sizes = sorted({case["gcd"] for case in cases.values()})
    return {g: float(np.mean([c["targeting"][arm] for c in cases.values() if c["gcd"] == g])) for g in sizes}


def summary(models: list[dict[str, Any]]) -> dict[str, Any]:
    arms = ("edit", "clean_rewrite", "embedding")
    table = [{arm: [case["targeting"][arm] for case in m["cases"].values()] for arm in arms} for m in models]
    groups = [by_gcd(m["cases"], "edit") for m in models]
    sizes = sorted(set.intersection(*(set(row) for row in groups)))
    effects = {}
    for arm, control in (
        ("edit", "clean"),
        ("edit", "clean_rewrite"),
        ("clean_rewrite", "clean"),
        ("embedding", "clean"),
    ):
        rows = [m["regimes"]["last_epoch"]["arms"][arm]["contrast"]["per_probe"] for m in models]
        if control != "clean":
            less = [m["regimes"]["last_epoch"]["arms"][control]["contrast"]["per_probe"] for m in models]
            rows = [{p: row[p] - other[p] for p in row} for row, other in zip(rows, less, strict=True)]
        effects[f"{arm} - {control}"] = estimate([float(np.mean(list(row.values()))) for row in rows])
    return {
        "exact_match": [m["exact_match"] for m in models],
        "pairs_per_model": [len(m["cases"]) for m in models],
        "targeting": {arm: estimate([float(np.mean(row[arm])) for row in table]) for arm in arms},
        "targeting_edit_minus_clean_rewrite": estimate(
            [float(np.mean(row["edit"]) - np.mean(row["clean_rewrite"])) for row in table]
        ),
        "share_of_pairs_with_positive_targeting": {
            arm: estimate([float(np.mean(np.array(row[arm]) > 0)) for row in table]) for arm in arms
        },
        "targeting_by_gcd": {g: estimate([row[g] for row in groups]) for g in sizes},
        "targeting_gcd_above_1_minus_gcd_1": estimate(
            [float(np.mean([row[g] for g in sizes if g > 1])) - row[1] for row in groups]
        )
        if len(sizes) > 1 and sizes[0] == 1
        else "every difference has gcd 1",
        "effect_nats": effects,
        "pairs": [
            {name: {k: c[k] for k in ("gcd", "targeting", "coherence")} for name, c in m["cases"].items()}
            for m in models
        ],
    }


def finished(folder: Path, alphabet: int) -> dict[str, Any] | None:
    """Return what the finished pairs of a model say; None where there is none yet."""
    if len(list((folder / "parts").glob("*-*.json"))) < 2 or not (folder / "parts" / "clean.json").exists():
        return None
    found = described(*stored(folder), alphabet)
    whole = folder / "results.json"
    return {**found, "exact_match": read_json(whole)["exact_match"] if whole.exists() else None}


def write_table(out: Path, models: int, pairs: int) -> None:
    found = {}
    for alphabet in (26, 29):
        made = (finished(out / f"alphabet-{alphabet}-model-{m}", alphabet) for m in range(models))
        if ready := [each for each in made if each is not None]:
            found[str(alphabet)] = summary(ready)
    wanted = {"models an alphabet": models, "pairs a model": pairs}
    value = {"alphabets": found, "aim": wanted, "settings": str(settings(26, 0, pairs)), "environment": environment()}
    write_json(RESULT, value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/caesar-experiment"))
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # A model of each alphabet in turn, so that both have some as soon as may be.
    todo = [] if given.table else [(alphabet, model) for model in range(given.models) for alphabet in (26, 29)]
    for alphabet, model in todo:
        out = given.out / f"alphabet-{alphabet}-model-{model}"
        value = run_caesar(settings(alphabet, model, given.pairs), out, resume=True)
        print(alphabet, model, value["exact_match"], flush=True)
        write_table(given.out, given.models, given.pairs)
    write_table(given.out, given.models, given.pairs)


if __name__ == "__main__":
    main()
