"""How well do scores read in bfloat16 agree with those read in single precision, and what do they cost?

    python benchmarks/half_precision.py --repeats 5 --documents 512

TinyResNet of width 32; forward and backward passes run under torch.autocast, per-document gradients are formed in
single precision. One thread, CPU seconds, interleaved. Written to benchmarks/results.json.
"""

from __future__ import annotations

import numpy as np
import torch
from measuring import arguments, forward_pass, interleaved, keep_costs, trained
from scipy.stats import spearmanr

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.params import trainable


def main() -> None:
    """Measure and write agreement and cost."""
    args = arguments(__doc__, documents=512).parse_args()
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
    told = {"mean": float(np.mean(agreement)), "lowest": float(np.min(agreement))}
    print(f"Spearman of the scores: {told}")
    taken = interleaved(calls, args.repeats)
    keep_costs("half_precision", args, taken, "TinyResNet-32", queries=len(queries), spearman=told)


if __name__ == "__main__":
    main()
