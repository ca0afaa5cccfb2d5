"""What do the EK-FAC fit and the scores of a transformer cost, beside bergson, in forward passes?

    INFUSER_DATA=... python benchmarks/language_peers.py --repeats 5 --documents 256

One process, one thread, CPU seconds, repetitions interleaved, medians. The model is the Llama stories260K (5 layers of
width 64, 512 tokens), the documents are stories of 128 tokens. bergson knows linear layers alone and leaves out the
last one; so both sides fit and score the 35 linear layers inside the blocks. Labels of the fits are sampled for each
token. Scores are timed from directions that are at hand, the same for both: of the log-probabilities of other stories.
bergson has its defaults: 2048 tokens a batch, that is 16 documents. Its way with many queries, a store of gradients
that are projected to 16 x 16 for each layer, is timed until the gradients are stored; queries then cost next to
nothing, and the scores are those of the projections. The functions called are those that its commands run once the
model is loaded.

That both compute the same is checked: scores by Pearson's r over all queries and documents, fits with the true labels
by the relative differences of trace and Frobenius norm (bergson leaves the last token, which predicts nothing, out of
the input factor, so that the eigenvectors are not quite the same). Written to benchmarks/results.json.

bergson comes without its dependencies (see the Makefile), since it names torchvision, which it does not import; what it
does import is in the extra `bench`.
"""

from __future__ import annotations

import io
import logging
import tempfile
from contextlib import redirect_stderr
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from language import linear_alone, linear_names, stories
from measuring import arguments, forward_pass, interleaved, keep_costs, queries_of
from safetensors.torch import load_file

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.params import trainable

QUERIES = (1, 64)
BATCH = 16
SAME = 0.9999  # the least Pearson correlation of scores that have everything in common but rounding
TOLERANCE = 0.02  # of the relative differences of the fits


class Bergson:
    """Gradients, scores and fits of the linear layers, through files in temporary folders."""

    def __init__(self, run, data):
        from datasets import Dataset

        model = run.model()
        self.weights = [f"{name}.weight" for name in linear_names(model)]
        self.model = model.inner
        # As its commands do, so that no gradient of a weight is formed beside those that it collects.
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().requires_grad_(True)
        self.model.config.use_cache = False  # of keys and values, which nothing reads here
        self.data = Dataset.from_dict({"input_ids": data.inputs.tolist()})
        self.batches = [list(range(i, min(i + BATCH, len(data)))) for i in range(0, len(data), BATCH)]

    def collect(self, scorer=None, projection=0):
        """Read the documents once, for a scorer or for a store of projected gradients."""
        from bergson import GradientProcessor, IndexConfig, collect_gradients

        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):  # progress bars
            settings = IndexConfig(run_path=f"{folder}/run", projection_dim=projection, drop_columns=False)
            Path(settings.partial_run_path).mkdir()
            collect_gradients(
                self.model,
                self.data,
                GradientProcessor(projection_dim=projection),
                settings,
                batches=self.batches,
                scorer=scorer,
            )

    def score(self, directions):
        """Return the scores (Q, N) of directions, tensors (Q, O, I) by parameter name."""
        from bergson import Scorer
        from bergson.score.score_writer import InMemorySequenceScoreWriter

        rows = {name_in_base(name): directions[name].flatten(1) for name in self.weights}
        writer = InMemorySequenceScoreWriter(len(self.data), len(next(iter(rows.values()))))
        self.collect(Scorer(rows, list(rows), writer, torch.device("cpu"), torch.float32))
        return writer.scores.T

    def fit(self, true_labels=False):
        """Return the eigenvalues of an EK-FAC fit by bergson's layer name."""
        from bergson import IndexConfig
        from bergson.config.config import HessianConfig
        from bergson.hessians.hessian_approximations import fit_factored_hessians

        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):  # progress bars
            settings = IndexConfig(run_path=f"{folder}/run")
            path = Path(settings.partial_run_path)
            path.mkdir()
            fit_factored_hessians(
                self.model,
                self.data,
                settings,
                HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=true_labels),
                target_modules=None,
                attention_cfgs={},
                batches=self.batches,
                path=str(path),
                do_eigendecomposition=True,
            )
            return load_file(path / "eigenvalue_correction_sharded" / "shard_0.safetensors")


def name_in_base(name):
    """Return bergson's name of the layer of a weight: it looks at the model without its last layer."""
    return name.removeprefix("inner.model.").removesuffix(".weight")


def agreement(run, data, directions, peer):
    """Return how scores and fits agree.

    Raises:
        AssertionError: they are not the same scores, or not fits of the same matrix.
    """
    model = run.model()
    scores = inner_products(model, trainable(model), data, directions)
    r = float(np.corrcoef(scores.flatten().numpy(), peer.score(directions).flatten().numpy())[0, 1])
    assert r > SAME, r
    ours = inf.fit_ekfac(run, data, labels="empirical", documents=None).blocks
    theirs = peer.fit(true_labels=True)
    assert {name_in_base(block.layer.names[0]) for block in ours} == theirs.keys()
    both = [[block.eigenvalues.flatten() for block in ours], [values.flatten() for values in theirs.values()]]
    mine, other = (torch.cat(values).double() for values in both)
    differences = {
        "trace": abs(float(mine.sum() / other.sum()) - 1),
        "frobenius": abs(float(mine.norm() / other.norm()) - 1),
    }
    assert max(differences.values()) < TOLERANCE, differences
    return {"pearson_of_scores": r, "relative_differences_of_fits": differences}


def main() -> None:
    """Measure and write the ratios."""
    args = arguments(__doc__, documents=256).parse_args()
    logging.disable(logging.INFO)  # bergson names its 35 layers in every call
    whole, data, others = stories(args.documents, max(QUERIES))
    run = linear_alone(whole, data)
    fit = partial(inf.fit_ekfac, run, data, documents=None)
    most = inf.Influence(fit(), 0.1).direction(run, inf.measure.Losses(others)).params
    peer = Bergson(run, data)
    found = agreement(run, data, most, peer)
    print(f"agreement: {found}")
    model = run.model()
    params = trainable(model)
    calls = {"forward": forward_pass(run, data), "fit": fit, "bergson: fit": peer.fit}
    for q in QUERIES:
        some = {name: value[:q] for name, value in most.items()}
        named = f"scores, {queries_of(q)}"
        calls[named] = partial(inner_products, model, params, data, some)
        calls[f"bergson: {named}"] = partial(peer.score, some)
    calls["bergson: projected gradients"] = partial(peer.collect, projection=16)
    taken = interleaved(calls, args.repeats)
    keep_costs(
        "language_peers",
        args,
        taken,
        "stories260K on 128 tokens",
        layers="the 35 linear layers inside the blocks, on both sides",
        peer=f"bergson {version('bergson')}",
        **found,
    )


if __name__ == "__main__":
    main()
