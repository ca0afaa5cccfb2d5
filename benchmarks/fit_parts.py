"""Where do the passes of the EK-FAC fit and of the scores go?

    python benchmarks/fit_parts.py --repeats 5 --documents 256

Every document and position, TinyResNet of width 32, freed memory kept, one process, one thread, CPU seconds, rounds
interleaved. Both of the fit's passes over the documents run the model forwards and backwards to the activations; what
else a pass costs is the difference to that alone. Written to benchmarks/results.json.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from measuring import arguments, forward_pass, interleaved, keep_costs, trained

import infuser as inf
from infuser.allocator import keep_freed_memory
from infuser.attribution.scoring import inner_products
from infuser.curvature.collect import captures
from infuser.curvature.factors import Pass, covariances, kronecker_blocks, reduce_covariances, squares
from infuser.curvature.find import find_layers
from infuser.params import trainable
from infuser.tasks import task_of


def main() -> None:
    """Measure and write the parts."""
    args = arguments(__doc__, documents=256).parse_args()
    keep_freed_memory()
    run, data = trained(args.documents, epochs=1)
    model, how, positions = run.model(), Pass(positions=None), np.arange(len(data))
    params, layers, task = trainable(model), find_layers(model), task_of(data)
    sums = reduce_covariances([covariances(run, data, how, positions)])
    blocks = kronecker_blocks(layers, sums, params)
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(64, *p.shape, generator=generator) for name, p in params.items()}

    def both_ways(size: int) -> None:
        for cut in np.array_split(positions, max(1, len(data) // size)):
            batch = data.batch(cut, "cpu")
            for _ in captures(model, params, task, batch, layers, lambda _: (None,)):
                pass

    calls = {
        "forward": forward_pass(run, data),
        "forwards and backwards to the activations": partial(both_ways, how.batch_size),
        "first pass": partial(covariances, run, data, how, positions),
        "eigenvectors": partial(kronecker_blocks, layers, sums, params),
        "second pass": partial(squares, run, data, how, blocks, positions),
        "the whole fit": partial(inf.fit_ekfac, run, data, documents=None, positions=None),
        "the same in batches of the scores": partial(both_ways, 32),
        "scores of 64 queries": partial(inner_products, model, params, data, vectors),
    }
    taken = interleaved(calls, args.repeats)
    pairs = {
        "covariances, in the first pass": ("first pass", "forwards and backwards to the activations"),
        "gradients in the eigenbasis, in the second": ("second pass", "forwards and backwards to the activations"),
        "products with 64 queries, in the scores": ("scores of 64 queries", "the same in batches of the scores"),
    }
    differences = {
        name: [x - y for x, y in zip(*(taken[k] for k in pair), strict=True)] for name, pair in pairs.items()
    }
    keep_costs("fit_parts", args, {**taken, **differences}, "TinyResNet-32")


if __name__ == "__main__":
    main()
