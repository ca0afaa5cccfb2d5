"""Wrong labels found, and agreement over runs, by f-INE and everything that it has to be read beside.

    INFUSER_DATA=... python experiments/f_ine_consistency.py runs --noise 20 --epochs 10 --data-seeds 0 1 2
    python experiments/f_ine_consistency.py table

5,000 MNIST documents (means over 2 x 2 pixels), five runs a data seed that differ in initialisation and order. A
finished run under runs/f_ine_consistency is not trained again. `table` writes results/f_ine_consistency.json.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from f_ine_cases import Table, mislabelled, pooled

from infuser import models
from infuser.attribution import TRAK
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.influence import self_influence
from infuser.attribution.loss_trace import LossTrace
from infuser.attribution.scoring import squared_norms
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.data.dataset import Dataset
from infuser.data.mnist import mnist
from infuser.params import trainable
from infuser.training import train
from infuser.types import Recipe

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "f_ine_consistency"
SNR, PAPER = FInfluence(), FInfluence(mode="paper", estimator="gauss")
RUN_SEEDS = range(5)


def documents(noise: int, seed: int) -> tuple[Dataset, np.ndarray]:
    """Return 5,000 documents and whether each one's label is wrong."""
    rng = np.random.default_rng([seed, 23])
    whole = mnist(os.environ["INFUSER_DATA"])[0]
    data, wrong = mislabelled(pooled(whole[rng.choice(whole.ids, 5000, replace=False)]), noise / 100, rng)
    return data, np.isin(data.ids, wrong)


def observe(noise: int, epochs: int, data_seed: int, seed: int) -> None:
    path = RUNS / f"noise{noise}-epochs{epochs}-data{data_seed}-run{seed}.npz"
    if path.exists():
        return
    begun = time.perf_counter()
    data, wrong = documents(noise, data_seed)
    table = Table(SNR.observer(data))
    recipe = Recipe(epochs=epochs, batch_size=50, lr=0.2, seed=seed)
    run = train(partial(models.mlp, hidden=(64, 64)), data, recipe, observers=[table, PAPER.observer(data)])
    found = {
        "f-INE snr": SNR.score(run, data).values[0],
        "f-INE paper, gauss": PAPER.score(run, data).values[0],
        "TracIn, all steps": SNR.tracin(run, data).values[0],
        **at_checkpoints(run, data),
        **{f"training loss, {s}": LossTrace(s).score(run, data).values[0] for s in ("mean", "final", "aum")},
        "random": np.random.default_rng(seed).random(len(data)),
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial.npz")
    np.savez(temporary, wrong=wrong, **{f"score {name}": values for name, values in found.items()}, **table.arrays())
    temporary.rename(path)
    print(f"{path.stem}: {time.perf_counter() - begun:.0f} s", flush=True)


def at_checkpoints(run: Run, data: Dataset) -> dict[str, np.ndarray]:
    """Return self-influence by the methods that need checkpoints only."""
    norms = []
    for checkpoint in run.checkpoints[1:]:
        model = run.model(checkpoint)
        norms.append(squared_norms(model, trainable(model), data).numpy())
    ekfac = self_influence(fit_ekfac(run, data, documents=None, positions=None), 0.1, run, data).values[0]
    return {
        "TracIn, last": norms[-1],
        "TracIn, checkpoints": np.sum(norms, axis=0),
        "EK-FAC at the end": ekfac,
        "TRAK, one model": trak(run, data),
    }


def trak(run: Run, data: Dataset, dim: int = 512) -> np.ndarray:
    """Return TRAK's score of every document on itself: phi^T (Phi^T Phi + ridge)^-1 phi (1 - p)^2."""
    from infuser.attribution.trak import sparse_projection

    method = TRAK(dim=dim)
    model = run.model()
    params = trainable(model)
    projection = sparse_projection(sum(value.numel() for value in params.values()), dim, method.seed)
    features, residual = method._features(model, params, data, projection)
    kernel = features.T @ features
    kernel += method.ridge * np.trace(kernel) / dim * np.eye(dim)
    return np.einsum("nd,nd->n", features @ np.linalg.inv(kernel), features) * residual**2


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "table"))
    parser.add_argument("--noise", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data-seeds", type=int, nargs="*", default=[0, 1, 2])
    chosen = parser.parse_args()
    if chosen.stage == "table":
        from f_ine_consistency_table import write

        write(RUNS, ROOT / "experiments" / "results" / "f_ine_consistency.json")
        return
    for data_seed in chosen.data_seeds:
        for seed in RUN_SEEDS:
            observe(chosen.noise, chosen.epochs, data_seed, seed)


if __name__ == "__main__":
    main()
