"""What do the EK-FAC fit and the scores cost, beside kronfluence, in forward passes over the same documents?

    python benchmarks/attribution_cost.py --repeats 5 --documents 256

One process, one thread, CPU seconds, repetitions interleaved, medians. The model is TinyResNet of width 32 on 32 x 32
images (CIFAR-10 where INFUSER_DATA is set, random pixels elsewhere: the cost does not depend on them). Both sides use
sampled labels and their defaults, kronfluence in batches of 32. That the scores agree is tested in
tests/attribution/test_against_kronfluence.py. Written to benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.params import trainable
from infuser.storage import read_json, write_json
from infuser.studies.environment import environment

HERE = Path(__file__).parent


def documents(n: int) -> inf.Dataset:
    """Return n images with labels."""
    folder = os.environ.get("INFUSER_DATA")
    if folder:
        return inf.data.load("cifar10", folder, limit=n)[0]
    rng = np.random.default_rng(0)
    return inf.Dataset.from_arrays(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, n))


def kronfluence_calls(model, data, folder):
    """Return (fit, score two queries) as functions without arguments."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from torch.utils.data import TensorDataset

    class Images(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            labels = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0] if sample else batch[1]
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    train = TensorDataset(torch.from_numpy(data.inputs / np.float32(255)), torch.from_numpy(np.array(data.targets)))
    query = torch.utils.data.Subset(train, [0, 1])
    analyzer = Analyzer(
        "a",
        prepare_model(copy.deepcopy(model), Images()),
        Images(),
        cpu=True,
        output_dir=folder,
        log_level=logging.ERROR,
        disable_tqdm=True,
    )

    def fit():
        arguments = FactorArguments(strategy="ekfac")
        analyzer.fit_all_factors("f", train, per_device_batch_size=32, factor_args=arguments, overwrite_output_dir=True)

    def score():
        arguments = ScoreArguments(damping_factor=None)
        analyzer.compute_pairwise_scores(
            "s",
            "f",
            query,
            train,
            per_device_query_batch_size=2,
            per_device_train_batch_size=32,
            score_args=arguments,
            overwrite_output_dir=True,
        )

    return fit, score


def our_calls(run, data):
    """Return name -> function without arguments."""
    curvature = inf.fit_ekfac(run, data)
    influence = inf.Influence(curvature, 0.1)
    model = run.model()
    params = trainable(model)
    calls = {"fit, every document and position": lambda: inf.fit_ekfac(run, data)}
    for q in (1, 2, 64, 1000):
        q = min(q, len(data))
        probes = inf.measure.LogProb(data[data.ids[:q]])
        direction = influence.direction(run, probes).params
        calls[f"scores, {q} {'query' if q == 1 else 'queries'}"] = lambda v=direction: inner_products(
            model, params, data, v
        )
    return calls


def seconds(call) -> float:
    """Return the CPU seconds of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main() -> None:
    """Measure and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--ours-only", action="store_true", help="leave kronfluence out, for larger data sets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = documents(args.documents)
    run = inf.train(inf.models.tiny_resnet, data, inf.Recipe(epochs=1, batch_size=16, threads=1))
    model = run.model()
    x = torch.from_numpy(data.inputs / np.float32(255))

    def forward():
        with torch.no_grad():
            for part in x.split(32):
                model(part)

    calls = {"forward": forward, **our_calls(run, data)}
    with tempfile.TemporaryDirectory() as folder:
        if not args.ours_only:
            fit, score = kronfluence_calls(model, data, folder)
            calls |= {"kronfluence: fit": fit, "kronfluence: scores, 2 queries": score}
            fit()
        taken = {name: [] for name in calls}
        for repeat in range(args.repeats + 1):
            for name, call in calls.items():
                spent = seconds(call)
                if repeat:  # the first round pays for lazy imports and allocations
                    taken[name].append(spent)
    unit = float(np.median(taken["forward"]))
    rows = {
        name: {
            "forward_passes": float(np.median(values)) / unit,
            "lowest": min(values) / unit,
            "highest": max(values) / unit,
        }
        for name, values in taken.items()
    }
    for name, row in rows.items():
        print(f"{name:<36} {row['forward_passes']:8.2f}  [{row['lowest']:.2f}, {row['highest']:.2f}]")
    path = HERE / "results.json"
    stored = read_json(path) if path.exists() else {}
    stored[f"attribution_cost, {len(data)} documents"] = {
        "unit": "one forward pass of TinyResNet-32 over the same documents, CPU seconds",
        "documents": len(data),
        "repeats": args.repeats,
        "forward_seconds": unit,
        "rows": rows,
        "environment": environment(),
    }
    write_json(path, stored)


if __name__ == "__main__":
    main()
