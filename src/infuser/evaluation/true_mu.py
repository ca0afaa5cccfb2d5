"""The true influence of documents, by paired retraining: what f-INE estimates from one run, measured from many."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call

from infuser.attribution.estimators import Estimator, Mu, TradeOff, estimate, trade_off
from infuser.attribution.null_tests import checked_group
from infuser.checkpoints import build
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.evaluation.batched import can_be_stacked, stacked_forward, train_together
from infuser.tasks import task_of
from infuser.types import Array, Builder, Params, Recipe

Randomness = Literal["order", "init+order"]


@dataclass(frozen=True)
class TrueInfluence:
    """Test statistics of models trained with and without each subset, seed by seed.

    Attributes:
        names: (K,) of the subsets.
        queries: (Q,) of the fixed test points.
        seeds: (R,) of the trainings; with and without a subset they are paired.
        with_all: (R, Q) statistic of the test points after training on all documents.
        without: (R, K, Q) the same, trained with the subset's weight at 0.
        self_with: (R, K) statistic of each subset itself (mean over its documents), trained on all documents.
        self_without: (R, K) trained without it.
        randomness: what the seeds vary.
        statistic: in words.
        seconds: that the trainings took.
    """

    names: tuple[str, ...]
    queries: tuple[str, ...]
    seeds: tuple[int, ...]
    with_all: Array
    without: Array
    self_with: Array
    self_without: Array
    randomness: Randomness
    statistic: str
    seconds: float = 0.0

    def mu(self, estimator: Estimator = "gauss", seed: int = 0) -> Array:
        """Return the true mu of each subset on each test point, shape (K, Q); positive = the subset lowers the loss."""
        count, points = len(self.names), len(self.queries)
        a = np.repeat(self.with_all[:, None], count, axis=1).reshape(len(self.seeds), -1)
        b = self.without.reshape(len(self.seeds), -1)
        return _values(estimate(a, b, estimator, seed)).reshape(count, points)

    def self_mu(self, estimator: Estimator = "gauss", seed: int = 0) -> Array:
        """Return the true mu of each subset on itself, shape (K,)."""
        return _values(estimate(self.self_with, self.self_without, estimator, seed))

    def curve(self, subset: int) -> TradeOff:
        """Return the empirical trade-off between the errors of telling the two kinds of training apart, on itself."""
        return trade_off(self.self_with[:, subset], self.self_without[:, subset])

    def take(self, seeds: Sequence[int] | Array) -> TrueInfluence:
        """Return the part of these positions among the seeds."""
        at = np.asarray(seeds)
        return replace(
            self,
            seeds=tuple(np.array(self.seeds)[at].tolist()),
            with_all=self.with_all[at],
            without=self.without[at],
            self_with=self.self_with[at],
            self_without=self.self_without[at],
        )

    def split_half(self, estimator: Estimator = "gauss") -> tuple[float, float]:
        """Return (Spearman of self mu between the halves of the seeds, the same for all seeds by Spearman-Brown)."""
        halves = [self.take(np.arange(start, len(self.seeds), 2)).self_mu(estimator) for start in (0, 1)]
        r = float(spearmanr(*halves).statistic)
        return r, 2 * r / (1 + r)

    @property
    def models(self) -> int:
        """How many models were trained."""
        return len(self.seeds) * (1 + len(self.names))

    @classmethod
    def concat(cls, parts: Sequence[TrueInfluence]) -> TrueInfluence:
        """Return the pooled seeds of several measurements of the same subsets and test points.

        Raises:
            InfuserError: they are not of the same subsets, test points or randomness, or share a seed.
        """
        if len({(part.names, part.queries, part.randomness, part.statistic) for part in parts}) != 1:
            raise InfuserError(
                "the parts measure different things", expected="the same subsets, queries and randomness"
            )
        seeds = tuple(seed for part in parts for seed in part.seeds)
        if len(set(seeds)) != len(seeds):
            raise InfuserError("a seed was measured twice", got=listed([s for s in seeds if seeds.count(s) > 1]))
        names = ("with_all", "without", "self_with", "self_without")
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], seeds=seeds, seconds=sum(part.seconds for part in parts), **columns)


def true_influence(
    builder: Builder,
    data: Dataset,
    recipe: Recipe,
    subsets: Mapping[str, Sequence[int] | Array],
    queries: Dataset,
    seeds: Sequence[int],
    randomness: Randomness = "init+order",
) -> TrueInfluence:
    """Return the test statistics of models trained with and without each subset, paired by seed.

    A seed's model on all documents and its models without a subset (whose weight is 0, so that batches keep their size
    and order) start from one initialisation and see one order: what differs is the subset's, and far fewer seeds do
    than with unpaired models. The statistic is the logit-scaled loss log(e^l - 1) for classification, which is close
    to normal, else the loss.

    Args:
        builder: (input_shape, n_outputs) -> nn.Module.
        data: D.
        recipe: its seed is the initialisation where only the order varies.
        subsets: name -> ids of S.
        queries: fixed test points, one statistic each.
        seeds: of the trainings; the spread over them is what mu is measured in.
        randomness: `order` varies the data order alone; `init+order` the initialisation too. The two give
            different values, for test points above all: always state which.

    Raises:
        InfuserError: a subset is empty, all of the data or names a document twice; seeds repeat; a loss is not finite.

    Source: arXiv 2510.10510 (definition); pairing and the logit scale are ours (the scale after Carlini et al., 2022).
    """
    if not subsets:
        raise InfuserError("no subset was given", expected="name -> ids")
    if len(set(seeds)) != len(seeds) or not len(seeds):
        raise InfuserError("seeds must be given, each once", got=listed(list(seeds)))
    if randomness not in ("order", "init+order"):
        raise InfuserError("unknown randomness", got=randomness, expected="order or init+order")
    groups = [checked_group(data, ids, f"subset {name}") for name, ids in subsets.items()]
    places = [data.positions(group) for group in groups]
    weights = np.repeat(data.weights[None], 1 + len(groups), axis=0)
    for k, at in enumerate(places):
        weights[1 + k, at] = 0
    own = np.unique(np.concatenate(places))
    row_of = {int(position): row for row, position in enumerate(own)}
    rows = [[row_of[int(p)] for p in at] for at in places]
    begun = time.perf_counter()
    at_queries, at_own = [], []
    for seed in seeds:
        init = int(seed) if randomness == "init+order" else recipe.seed
        trained = train_together(builder, data, recipe.with_(seed=int(seed)), weights, init_seed=init)
        # By the same seed, for what is drawn and not trained.
        model = build(builder, data.input_shape, data.n_outputs, init).eval()
        at_queries.append(_statistics(model, recipe, trained, queries))
        at_own.append(_statistics(model, recipe, trained, data[data.ids[own]]))
    on_queries, on_own = np.stack(at_queries), np.stack(at_own)
    self_with = np.stack([on_own[:, 0][:, row].mean(1) for row in rows], axis=1)
    self_without = np.stack([on_own[:, 1 + k][:, row].mean(1) for k, row in enumerate(rows)], axis=1)
    return TrueInfluence(
        tuple(subsets),
        tuple(str(i) for i in queries.ids.tolist()),
        tuple(int(seed) for seed in seeds),
        on_queries[:, 0],
        on_queries[:, 1:],
        self_with,
        self_without,
        randomness,
        "log(e^loss - 1)" if data.kind == "classification" else "loss",
        time.perf_counter() - begun,
    )


def _statistics(model: nn.Module, recipe: Recipe, trained: Params, documents: Dataset) -> Array:
    """Return the statistic of every model and document, shape (M, N), in float64."""
    task = task_of(documents)
    if can_be_stacked(model, recipe):
        forward = stacked_forward(model)
    else:

        def forward(params: Params, inputs: Tensor) -> Tensor:
            each = ({name: value[m] for name, value in params.items()} for m in range(len(next(iter(params.values())))))
            return torch.stack([functional_call(model, one, (inputs,)) for one in each])

    parts = []
    with torch.no_grad():
        for batch in documents.batches(256):
            outputs = forward(trained, task.feed(batch.inputs)).double()
            if documents.kind == "classification":
                # log(e^l - 1) with l = -log p is the log-odds against the label, taken from logits: no cancellation.
                column = batch.targets.expand(len(outputs), -1)[..., None]
                others = outputs.scatter(-1, column, float("-inf")).logsumexp(-1)
                parts.append(others - outputs.gather(-1, column)[..., 0])
            else:
                parts.append(torch.stack([task.loss(output, batch.targets) for output in outputs]))
    return cast(Array, torch.cat(parts, dim=1).numpy())


def _values(mu: Mu) -> Array:
    return np.asarray(mu.values, dtype=np.float64)
