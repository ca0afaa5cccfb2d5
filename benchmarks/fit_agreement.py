"""How few documents and positions does the EK-FAC fit need? Its scores against those of the whole fit, and its cost.

    python benchmarks/fit_agreement.py --documents 4000 --queries 20

TinyResNet of width 32, trained for three epochs on CIFAR-10. The reference uses every document and position; beside the
samples stands a second whole fit, whose sampled labels differ: two fits of the same size agree no better than that.
Spearman correlations of the scores of all documents, per query, at damping 0.1. Costs are in forward passes over all
documents. How fits on fewer documents foretell retraining is in experiments/lds.py.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from measuring import forward_pass, keep, trained
from scipy.stats import spearmanr

import infuser as inf

REFERENCE = "every document and position"


def samples(n: int) -> dict[str, dict[str, int | None]]:
    """Return name -> arguments of the fit."""
    found: dict[str, dict[str, int | None]] = {REFERENCE: {}, "the same, other labels": {"seed": 1}}
    for positions in (4, 16, 64):
        found[f"every document, {positions} positions"] = {"positions": positions}
    for count in (n // 2, n // 4, n // 8, n // 16, n // 32):
        for positions in (None, 16):
            name = f"{count} documents, " + ("every position" if positions is None else f"{positions} positions")
            found[name] = {"documents": count, "positions": positions}
    return found


def main() -> None:
    """Measure and write the agreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, data = trained(args.documents, epochs=3)
    probes = inf.measure.Margin(data[data.ids[: args.queries]])
    forward = forward_pass(run, data)
    forward()
    units, directions, costs = [], [], {}
    for name, chosen in samples(len(data)).items():
        begun = time.process_time()
        forward()
        fitted = time.process_time()
        curvature = inf.fit_ekfac(run, data, **{"documents": None, "positions": None, **chosen})
        costs[name] = time.process_time() - fitted
        units.append(fitted - begun)
        directions.append(inf.Influence(curvature, 0.1).direction(run, probes))
    unit = float(np.median(units))
    # One pass over the documents for the directions of all fits.
    together = inf.Direction(
        {key: torch.cat([d.params[key] for d in directions]) for key in directions[0].params},
        tuple(f"{i} {q}" for i, d in enumerate(directions) for q in d.names),
        "all fits",
    )
    scores = inf.Influence(curvature, 0.1).score_direction(run, data, together).values
    parts = scores.reshape(len(directions), len(probes), len(data))
    rows = {}
    for name, part in zip(costs, parts, strict=True):
        agreement = [float(spearmanr(one, other).statistic) for one, other in zip(part, parts[0], strict=True)]
        rows[name] = {
            "forward_passes": costs[name] / unit,
            "spearman": float(np.mean(agreement)),
            "lowest_query": min(agreement),
        }
        print(f"{name:<36} {costs[name] / unit:7.2f}  {np.mean(agreement):.4f}  lowest {min(agreement):.4f}")
    keep(
        f"fit_agreement, {len(data)} documents",
        {"queries": len(probes), "reference": REFERENCE, "forward_seconds": unit, "rows": rows},
    )


if __name__ == "__main__":
    main()
