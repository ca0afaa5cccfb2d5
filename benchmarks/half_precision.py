"""How well do scores read in bfloat16 agree with those read in single precision, and what do they cost?

    python benchmarks/half_precision.py --repeats 5 --documents 512

TinyResNet of width 32; forward and backward passes run under torch.autocast, per-document gradients are formed in
single precision. One thread, CPU seconds, interleaved. Written to benchmarks/results.json.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from measuring import forward_pass, interleaved, keep, ratios, trained
from scipy.stats import spearmanr

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.params import trainable


def main() -> None:
    """Measure and write agreement and cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, data = trained(args.documents, epochs=2)
    model = run.model()
    params = trainable(model)
    queries = data[data.ids[:64]]
    vectors = inf.Influence(inf.fit_ekfac(run, data), 0.1).direction(run, inf.measure.LogProb(queries)).params

    def single() -> torch.Tensor:
        return inner_products(model, params, data, vectors, "captured")

    def half() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return single()

    agreement = [spearmanr(a, b).statistic for a, b in zip(single(), half(), strict=True)]
    calls = {"forward": forward_pass(run, data), "single precision": single, "bfloat16": half}
    found = {
        "documents": len(data),
        "queries": len(queries),
        "repeats": args.repeats,
        "spearman": {"mean": float(np.mean(agreement)), "lowest": float(np.min(agreement))},
        "rows": ratios(interleaved(calls, args.repeats), "forward"),
    }
    print(found["spearman"])
    keep(f"half_precision, {len(data)} documents", found)


if __name__ == "__main__":
    main()
