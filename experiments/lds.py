"""How well do scores foretell retraining? Linear datamodeling scores on digits and MNIST, 60 halves, 3 seeds each.

    INFUSER_DATA=... python experiments/lds.py truth digits
    INFUSER_DATA=... python experiments/lds.py scores digits
    python experiments/lds.py table

`truth` retrains on 60 random halves of the documents under three seeds (initialisation and order) and goes on where it
was stopped; `scores` scores the documents of one run on all of them, by every method; `table` writes results/lds.json.
f is the log-odds of the true label on 50 test documents. The runs that are scored have seeds of their own.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from infuser.attribution.attribute import Attributor, attribute
from infuser.attribution.influence import Influence
from infuser.attribution.similarity import GradientSimilarity
from infuser.attribution.tracin import TracIn
from infuser.attribution.trak import TRAK
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.identity import identity
from infuser.curvature.kfac import fit_kfac
from infuser.data import Dataset
from infuser.data.source import load
from infuser.evaluation.truth import Truth, lds, leave_some_out, random_subsets
from infuser.measure import Margin
from infuser.models import mlp, tiny_resnet
from infuser.storage import atomic_path, read_json, write_json
from infuser.studies.environment import environment
from infuser.training import train
from infuser.types import Builder, Damping, Recipe, Scores

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "lds", ROOT / "experiments" / "results" / "lds.json"
SUBSETS, SEEDS, QUERIES, SLICE = 60, (0, 1, 2), 50, 6
DAMPINGS = (0.001, 0.01, 0.1, 1.0, 10.0)
FITTED = (100, 300, 1000, 3000)
POSITIONS = (4, 16)  # of a convolution, in the input factor
WHOLE = {"documents": None, "positions": None}
SCORED = (10, 11, 12, 13, 14)  # seeds of the run that is scored and of further ones for TRAK, none of them the truth's
REFERENCE = "EK-FAC, damping 0.1"


@dataclass(frozen=True)
class Case:
    """Data, model and recipe."""

    data: str
    limit: int | None
    builder: Builder
    told: str
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=32, lr=0.02, threads=1))

    def load(self) -> tuple[Dataset, Margin]:
        train_set, test = load(self.data, os.environ.get("INFUSER_DATA"), limit=self.limit)
        chosen = test[np.random.default_rng(0).permutation(test.ids)[:QUERIES]]
        return train_set, Margin(chosen, chosen.targets)


CASES = {
    "digits": Case("digits", None, partial(tiny_resnet, width=16), "TinyResNet of width 16"),
    "mnist": Case("mnist", 5_000, partial(mlp, hidden=(64, 64)), "MLP 64-64", Recipe(batch_size=50, lr=0.2, threads=1)),
}


def truth(name: str) -> Truth:
    """Return the measured f of every subset and seed, retraining what is missing."""
    case = CASES[name]
    data, queries = case.load()
    subsets = random_subsets(data, SUBSETS)
    run = train(case.builder, data, case.recipe)
    parts = []
    for start in range(0, SUBSETS, SLICE):
        path = RUNS / name / f"truth-{start:02d}.npy"
        some = subsets[slice(start, start + SLICE)]
        if path.exists():
            values = np.load(path, allow_pickle=False)
            parts.append(Truth(some, values, queries.queries, SEEDS, queries.name, "scratch"))
            continue
        parts.append(leave_some_out(run, data, queries, some, SEEDS))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, parts[-1].values)
        print(f"{name}: {start + SLICE} of {SUBSETS} subsets", flush=True)
    return Truth.concat(parts)


def methods(run: Run, data: Dataset, ensemble: tuple[Run, ...]) -> Iterator[tuple[str, Callable[[], Attributor]]]:
    """Yield the name of a row and how its method is made."""
    fits = {"EK-FAC": fit_ekfac, "K-FAC": fit_kfac}
    for kind, fit in fits.items():
        for damping in DAMPINGS:
            yield (
                f"{kind}, damping {damping:g}",
                lambda fit=fit, damping=damping: Influence(fit(run, data, **WHOLE), damping),
            )
    for count in FITTED:
        if count < len(data):
            fitted = partial(fit_ekfac, documents=count, positions=None)
            yield f"EK-FAC, damping 0.1, fitted on {count}", lambda f=fitted: Influence(f(run, data), 0.1)
    for count in POSITIONS if any(isinstance(module, nn.Conv2d) for module in run.model().modules()) else ():
        sampled = partial(fit_ekfac, documents=None, positions=count)
        yield f"EK-FAC, damping 0.1, {count} positions", lambda f=sampled: Influence(f(run, data), 0.1)
    yield "EK-FAC, damping 0.1, the defaults", lambda: Influence(fit_ekfac(run, data), 0.1)
    yield "identity", lambda: Influence(identity(run), Damping(0.0, "absolute"))
    yield "TracIn, all checkpoints", TracIn
    yield "TracIn, cosine", lambda: TracIn(cosine=True)
    yield "gradient cosine, last checkpoint", GradientSimilarity
    yield "TRAK, 1 run", TRAK
    yield f"TRAK, {1 + len(ensemble)} runs", lambda: TRAK(ensemble=ensemble)
    yield "random", Random


@dataclass(frozen=True)
class Random:
    """Scores without any information."""

    seed: int = 0

    def score(self, run: Run, data: Dataset, probes: Any) -> Scores:
        values = np.random.default_rng(self.seed).normal(size=(len(probes), len(data)))
        return Scores(values, data.ids, "random", "none", probes.queries)


def score(name: str) -> None:
    """Score by every method that has no file yet."""
    case = CASES[name]
    data, queries = case.load()
    runs = [train(case.builder, data, case.recipe.with_(seed=seed)) for seed in SCORED]
    for row, make in methods(runs[0], data, tuple(runs[1:])):
        path = RUNS / name / f"scores {row}.parquet"
        if not path.exists():
            attribute(make(), runs[0], data, queries).to_parquet(path)
            print(f"{name}: {row}", flush=True)
    write_json(RUNS / name / "environment.json", environment())


def table() -> None:
    """Write what is finished."""
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        paths = sorted((RUNS / name).glob("scores *.parquet"))
        if len(list((RUNS / name).glob("truth-*.npy"))) < SUBSETS // SLICE or not paths:
            continue
        measured, rows = truth(name), []
        reference = Scores.from_parquet(RUNS / name / f"scores {REFERENCE}.parquet")
        for path in paths:
            scores = Scores.from_parquet(path)
            estimate, method = lds(scores, measured), path.stem.removeprefix("scores ")
            row = {"method": method, "lds": estimate.value, "ci95": estimate.interval, "minus_ekfac": None}
            if method != REFERENCE:
                # On the same resamples: intervals of two methods overlap long after their difference is clear.
                difference = lds(scores, measured, reference)
                row["minus_ekfac"] = {"value": difference.value, "ci95": difference.interval}
            rows.append(row)
        rows.sort(key=lambda row: -row["lds"])
        results[name] = {
            "model": case.told,
            "recipe": vars(case.recipe),
            "n_documents": len(measured.subsets.ids),
            "n_subsets": SUBSETS,
            "kept": 0.5,
            "seeds": SEEDS,
            "scored_seeds": SCORED,
            "n_queries": QUERIES,
            "measure": measured.measure,
            "split_half": split_half(measured),
            "rows": rows,
            "environment": read_json(RUNS / name / "environment.json"),
        }
        print(f"\n{name}: one seed foretold by the others {results[name]['split_half']:.2f}")
        for row in rows:
            low, high = row["ci95"]
            print(f"{row['method']:42s} {row['lds']:+.3f} [{low:+.3f}, {high:+.3f}]")
    write_json(RESULTS, results)


def split_half(measured: Truth) -> float:
    """Return how well two seeds foretell the third over subsets, by Spearman: how clean the truth is."""
    values = measured.values
    found = []
    for left in range(values.shape[1]):
        others = np.delete(values, left, 1).mean(1)
        found += [spearmanr(values[:, left, q], others[:, q]).statistic for q in range(values.shape[2])]
    return float(np.mean(found))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("truth", "scores", "table"))
    parser.add_argument("cases", nargs="*", default=list(CASES))
    args = parser.parse_args()
    if args.stage == "table":
        table()
    for name in args.cases if args.stage != "table" else ():
        truth(name) if args.stage == "truth" else score(name)


if __name__ == "__main__":
    main()
