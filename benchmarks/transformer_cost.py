"""What do the EK-FAC fit and the scores of a transformer cost, beside kronfluence, in forward passes?

    INFUSER_DATA=... python benchmarks/transformer_cost.py --repeats 5 --documents 256

One process, one thread, CPU seconds, repetitions interleaved, medians. The model is the Llama stories260K (5 layers of
width 64, 512 tokens), the documents are stories of 128 tokens; the queries are log-probabilities of other stories.
kronfluence knows linear layers alone, and the last one shares its weight with the embedding; so both sides fit and
score the 35 linear layers inside the blocks. The first rows are ours with every parameter: embedding and RMSNorm as
well. Labels are sampled for each token; kronfluence has its defaults, in batches of 32.

Scores are timed from directions that are at hand, and once more together with the gradients of the queries and their
solves, which kronfluence's contain too. That both compute the same scores is checked with the true labels, where
nothing is random: Pearson's r over all queries and documents. Written to benchmarks/results.json.
"""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from language import linear_alone, linear_names, stories
from measuring import arguments, forward_pass, interleaved, keep_costs, queries_of
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.data.dataset import IGNORED
from infuser.params import trainable

QUERIES = (1, 2, 64, 1000)
BESIDE = (2, 64)  # numbers of queries that kronfluence scores too
COMPARED = 8  # queries of the check
SAME = 0.99  # the least Pearson correlation of scores that have everything in common but rounding


def tokens_of(data):
    """Return the documents as kronfluence reads them: (tokens, labels)."""
    return TensorDataset(
        torch.from_numpy(data.inputs.astype(np.int64)), torch.from_numpy(data.targets.astype(np.int64))
    )


class Kronfluence:
    """Fits and scores of the 35 linear layers, in files under `folder`."""

    def __init__(self, run, data, others, folder):
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.task import Task

        model = run.model()
        tracked = linear_names(model)

        class Texts(Task):
            def compute_train_loss(self, batch, model, sample=False):
                logits, labels = model(batch[0].clamp(min=0))[:, :-1].flatten(0, 1), batch[1][:, 1:].flatten()
                if sample:
                    drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
                    labels = torch.where(labels == IGNORED, labels, drawn)
                return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")

            def compute_measurement(self, batch, model):
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self):
                return tracked

            def get_attention_mask(self, batch):
                return (batch[0] >= 0).long()

        self.train, self.others = tokens_of(data), tokens_of(others)
        self.analyzer = Analyzer(
            "a",
            prepare_model(model, Texts()),
            Texts(),
            cpu=True,
            output_dir=folder,
            log_level=logging.ERROR,
            disable_tqdm=True,
        )

    def fit(self, name="sampled"):
        """Fit with sampled or `empirical` labels."""
        from kronfluence.arguments import FactorArguments

        self.analyzer.fit_all_factors(
            name,
            self.train,
            per_device_batch_size=32,
            factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=name == "empirical"),
            overwrite_output_dir=True,
        )

    def score(self, queries, name="sampled"):
        """Write the scores of the first other stories, with 0.1 of the mean eigenvalue as damping."""
        from kronfluence.arguments import ScoreArguments

        self.analyzer.compute_pairwise_scores(
            f"{name}, {queries}",
            name,
            torch.utils.data.Subset(self.others, range(queries)),
            self.train,
            per_device_query_batch_size=queries,
            per_device_train_batch_size=32,
            score_args=ScoreArguments(damping_factor=None),
            overwrite_output_dir=True,
        )


def agreement(run, data, others, peer):
    """Return Pearson's r of our scores and kronfluence's, both with the true labels.

    Raises:
        AssertionError: they are not the same scores.
    """
    queries = min(COMPARED, len(others))
    curvature = inf.fit_ekfac(run, data, labels="empirical", documents=None)
    ours = inf.Influence(curvature, 0.1).score(run, data, inf.measure.Losses(others[others.ids[:queries]])).values
    peer.fit("empirical")
    peer.score(queries, "empirical")
    theirs = peer.analyzer.load_pairwise_scores(f"empirical, {queries}")["all_modules"].double().numpy()
    # f is minus the loss here and the loss there, and ours count a document up.
    r = float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])
    assert r > SAME, r
    return r


def our_calls(run, data, others, queries):
    """Return name -> function without arguments."""
    fit = partial(inf.fit_ekfac, run, data, documents=None)
    influence = inf.Influence(fit(), 0.1)
    model = run.model()
    params = trainable(model)
    calls = {"fit": fit}
    most = influence.direction(run, inf.measure.Losses(others[others.ids[: max(queries)]])).params
    for q in queries:
        some = {name: value[:q] for name, value in most.items()}
        calls[f"scores, {queries_of(q)}"] = partial(inner_products, model, params, data, some)
    for q in BESIDE:
        probes = inf.measure.Losses(others[others.ids[:q]])
        calls[f"directions and scores, {queries_of(q)}"] = partial(influence.score, run, data, probes)
    return calls


def main() -> None:
    """Measure and write the ratios."""
    parser = arguments(__doc__, documents=256)
    parser.add_argument("--queries", type=int, nargs="+", default=QUERIES)
    parser.add_argument("--ours-only", action="store_true", help="leave kronfluence out, for larger data sets")
    args = parser.parse_args()
    whole, data, others = stories(args.documents, max(*args.queries, *BESIDE))
    part = linear_alone(whole, data)
    calls = {"forward": forward_pass(whole, data)}
    calls |= {f"every parameter: {name}": call for name, call in our_calls(whole, data, others, args.queries).items()}
    calls |= {f"linear layers: {name}": call for name, call in our_calls(part, data, others, args.queries).items()}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if not args.ours_only:
            peer = Kronfluence(part, data, others, folder)
            found["peer"] = f"kronfluence {version('kronfluence')}"
            found["pearson_with_kronfluence"] = agreement(part, data, others, peer)
            print(f"Pearson's r with kronfluence, true labels: {found['pearson_with_kronfluence']:.6f}")
            peer.fit()
            calls["kronfluence: fit"] = peer.fit
            calls |= {f"kronfluence: scores, {queries_of(q)}": partial(peer.score, q) for q in BESIDE}
        taken = interleaved(calls, args.repeats)
    keep_costs("transformer_cost", args, taken, "stories260K on 128 tokens", **found)


if __name__ == "__main__":
    main()
