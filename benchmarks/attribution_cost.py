"""What do the EK-FAC fit and the scores cost, beside kronfluence, in forward passes over the same documents?

    python benchmarks/attribution_cost.py --repeats 5 --documents 256
    python benchmarks/attribution_cost.py --repeats 5 --documents 256 --keep-memory

One process, one thread, CPU seconds, repetitions interleaved, medians. The model is TinyResNet of width 32 on 32 x 32
images. Both sides use sampled labels and their defaults, kronfluence in batches of 32. That the scores agree is tested
in tests/attribution/test_against_kronfluence.py. Scores are timed from directions that are at hand; kronfluence's also
contain the gradients of the queries, which is little beside many documents. Written to benchmarks/results.json.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from functools import partial

import numpy as np
import torch
from measuring import arguments, forward_pass, interleaved, keep_costs, queries_of, trained

import infuser as inf
from infuser.allocator import keep_freed_memory
from infuser.attribution.scoring import inner_products
from infuser.params import trainable


def kronfluence_calls(model, data, folder):
    """Return (fit, function of a number of queries that returns how to score them) as functions without arguments."""
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

    def scoring(queries):
        query = torch.utils.data.Subset(train, range(queries))

        def score():
            analyzer.compute_pairwise_scores(
                f"s{queries}",
                "f",
                query,
                train,
                per_device_query_batch_size=queries,
                per_device_train_batch_size=32,
                score_args=ScoreArguments(damping_factor=None),
                overwrite_output_dir=True,
            )

        return score

    return fit, scoring


def our_calls(run, data):
    """Return name -> function without arguments."""
    whole = partial(inf.fit_ekfac, run, data, documents=None, positions=None)
    curvature = whole()
    influence = inf.Influence(curvature, 0.1)
    model = run.model()
    params = trainable(model)
    calls = {
        "fit, every document and position": whole,
        "fit, every document, 16 positions": partial(whole, positions=16),
        "fit, a quarter of the documents, 16 positions": partial(whole, documents=len(data) // 4, positions=16),
    }
    for q in (1, 2, 64, 1000):
        q = min(q, len(data))
        probes = inf.measure.LogProb(data[data.ids[:q]])
        direction = influence.direction(run, probes).params
        calls[f"scores, {queries_of(q)}"] = lambda v=direction: inner_products(model, params, data, v)
    return calls


def main() -> None:
    """Measure and write the ratios."""
    parser = arguments(__doc__, documents=256)
    parser.add_argument("--ours-only", action="store_true", help="leave kronfluence out, for larger data sets")
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays with the process, for both")
    args = parser.parse_args()
    if args.keep_memory:
        keep_freed_memory()
    run, data = trained(args.documents, epochs=1)
    model = run.model()
    calls = {"forward": forward_pass(run, data), **our_calls(run, data)}
    with tempfile.TemporaryDirectory() as folder:
        if not args.ours_only:
            fit, scoring = kronfluence_calls(model, data, folder)
            fit()
            calls["kronfluence: fit"] = fit
            for queries in sorted({2, 64, min(1000, len(data))}):
                calls[f"kronfluence: scores, {queries_of(queries)}"] = scoring(queries)
        taken = interleaved(calls, args.repeats)
    keep_costs("attribution_cost" + " with kept memory" * args.keep_memory, args, taken, "TinyResNet-32")


if __name__ == "__main__":
    main()
