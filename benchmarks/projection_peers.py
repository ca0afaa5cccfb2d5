"""What do TRAK scores cost, beside traker, in forward passes over the same documents?

    python benchmarks/projection_peers.py --repeats 5 --documents 256

One process, one thread, CPU seconds, repetitions interleaved, medians. The model is TinyResNet of width 32 on 32 x 32
images, the projection has 512 dimensions, the queries are log-odds of the first documents. Scores are timed whole: the
projection, features of all documents, the kernel, features of the queries; features, where a row says so, until they
are stored. traker computes in float32 and batches of 64. Its projections are dense: the one that it takes on a CPU
draws the matrix anew, in blocks, for every batch; with a single block the matrix is kept (630 MB here). Ours is sparse.
traker with our projection shows what of the difference is due to that.

That both compute the same scores is checked with our projection in traker: Pearson's r over all queries and documents.
How far scores agree when only the projection differs is reported for traker's own and for another seed of ours. Written
to benchmarks/results.json. traker comes with the extra `bench`; it needs no CUDA.
"""

from __future__ import annotations

import io
import logging
import tempfile
from contextlib import redirect_stderr
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from measuring import arguments, forward_pass, interleaved, keep_costs, queries_of, trained

import infuser as inf
from infuser.attribution.trak import sparse_projection

DIM = 512
BATCH = 64
SAME = 0.999  # the least Pearson correlation of scores that have everything in common but rounding


def projectors(size):
    """Return name -> maker of a traker projector from gradients of `size` numbers."""
    from trak.projectors import AbstractProjector, BasicProjector
    from trak.utils import vectorize

    class Kept(BasicProjector):
        def free_memory(self):
            """Keep the matrix: with a single block, the queries' features fail without it (traker 0.3.2)."""

    class Sparse(AbstractProjector):
        def __init__(self):
            super().__init__(size, DIM, 0, "normal", "cpu")
            self.matrix = sparse_projection(size, DIM, seed=0)

        def project(self, grads, model_id):
            flat = vectorize(grads, device="cpu").numpy()
            return torch.from_numpy((self.matrix @ flat.T).T.copy())

    return {
        "blocks": lambda: BasicProjector(size, DIM, 0, "normal", "cpu"),
        "one block": lambda: Kept(size, DIM, 0, "normal", "cpu", block_size=DIM),
        "our projection": Sparse,
    }


def traker_scores(run, data, projector, queries):
    """Return traker's scores (Q, N), with the ridge of ours; None where `queries` is 0: features alone."""
    from trak import TRAKer

    x, y = torch.from_numpy(data.inputs / np.float32(255)), torch.from_numpy(np.array(data.targets))
    model = run.model()
    weights = model.state_dict()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):  # progress bars
        traker = TRAKer(
            model=model,
            task="image_classification",
            train_set_size=len(x),
            save_dir=folder,
            device="cpu",
            projector=projector(),
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(weights, model_id=0)
        for batch in zip(x.split(BATCH), y.split(BATCH), strict=True):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        if not queries:
            return None
        # Its ridge is absolute, ours a multiple of the mean of the kernel's diagonal.
        squares = np.square(traker.saver.current_store["grads"]).sum()
        traker.score_computer.lambda_reg = inf.TRAK().ridge * float(squares) / DIM
        traker.finalize_features()
        traker.start_scoring_checkpoint("queries", weights, model_id=0, num_targets=queries)
        for batch in zip(x[:queries].split(BATCH), y[:queries].split(BATCH), strict=True):
            traker.score(batch=batch, num_samples=len(batch[0]))
        return np.array(traker.finalize_scores("queries")).T


def agreements(run, data, queries, makers):
    """Return Pearson's r of our scores with others.

    Raises:
        AssertionError: traker's scores with our projection are not ours.
    """
    probes = inf.measure.Margin(data[data.ids[:queries]])
    ours = inf.TRAK(DIM).score(run, data, probes).values
    others = {
        f"traker, {name}": traker_scores(run, data, makers[name], queries) for name in ("our projection", "one block")
    }
    others["ours, another seed"] = inf.TRAK(DIM, seed=1).score(run, data, probes).values
    found = {name: float(np.corrcoef(ours.ravel(), values.ravel())[0, 1]) for name, values in others.items()}
    assert found["traker, our projection"] > SAME, found
    return found


def main() -> None:
    """Measure and write the ratios."""
    args = arguments(__doc__, documents=256).parse_args()
    run, data = trained(args.documents, epochs=1)
    several = min(64, len(data))
    makers = projectors(sum(parameter.numel() for parameter in run.model().parameters()))
    found = agreements(run, data, several, makers)
    print(f"Pearson's r with our scores of {several} queries: {found}")
    calls = {"forward": forward_pass(run, data)}
    for queries in (1, several):
        probes = inf.measure.Margin(data[data.ids[:queries]])
        calls[f"scores, {queries_of(queries)}"] = partial(inf.TRAK(DIM).score, run, data, probes)
    for name, maker in makers.items():
        calls[f"traker, {name}: features"] = partial(traker_scores, run, data, maker, 0)
        calls[f"traker, {name}: scores, {several} queries"] = partial(traker_scores, run, data, maker, several)
    taken = interleaved(calls, args.repeats)
    keep_costs(
        "projection_peers",
        args,
        taken,
        "TinyResNet-32",
        dimensions=DIM,
        peer=f"traker {version('traker')}",
        queries=several,
        pearson_with_ours=found,
    )


if __name__ == "__main__":
    main()
