"""EK-FAC: Kronecker eigenvectors with eigenvalues measured along them.

Source: George et al., Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, arXiv 1806.03884;
Grosse et al., Studying large language model generalization with influence functions, arXiv 2308.03296.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from infuser.checkpoints import Run
from infuser.curvature.collect import full_precision, verify
from infuser.curvature.factors import (
    DOCUMENTS,
    POSITIONS,
    Pass,
    covariances,
    kronecker_blocks,
    reduce_covariances,
    reduce_squares,
    squares,
)
from infuser.curvature.find import find_layers
from infuser.curvature.layers import Layer
from infuser.curvature.operator import KroneckerEigen, Origin
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.executors import Executor, Local
from infuser.params import trainable
from infuser.tasks import Labels, task_of
from infuser.types import Array


@full_precision()
def fit_ekfac(
    run: Run,
    data: Dataset,
    *,
    labels: Labels = "sampled",
    seed: int = 0,
    documents: int | None = DOCUMENTS,
    batch_size: int = 64,
    positions: int | None = POSITIONS,
    executor: Executor | None = None,
    shards: int = 1,
) -> KroneckerEigen:
    """Return the EK-FAC approximation of the Fisher matrix (the Gauss-Newton matrix) at the run's last checkpoint.

    Per layer, with G_n = sum_t g_t a_t^T the gradient of a document's summed loss: A = sum a a^T and S = sum g g^T give
    eigenvectors Q_A and Q_S, and lambda_ij = mean_n (q_Si^T G_n q_Aj)^2.

    Args:
        run: whose last checkpoint is evaluated, in eval mode.
        data: the documents; their weights multiply their terms.
        labels: `sampled` from the model (true Fisher), `exact` (expectation over labels), `empirical` (true labels).
        seed: of the labels and of the sample of documents.
        documents: at most so many, drawn without replacement; None for all.
        batch_size: documents a forward pass; changes nothing beyond rounding.
        positions: at most so many of a convolution's positions per document in A; lambda uses all. None for all.
        executor: where the shards are read.
        shards: parts that the documents are cut into; their sums add up.

    Raises:
        InfuserError: no layer is supported, or a factor is not finite.
    """
    how, chosen, layers = prepare(run, data, Pass(labels, seed, batch_size, positions), documents)
    mapped = executor or Local()
    parts = np.array_split(chosen, max(1, min(shards, len(chosen))))
    first = reduce_covariances(mapped.map(partial(covariances, run, data, how), parts))
    blocks = kronecker_blocks(layers, first, trainable(run.model()))
    second = reduce_squares(mapped.map(partial(squares, run, data, how, blocks), parts))
    fitted = tuple(block.with_eigenvalues(second.mean(block.layer)) for block in blocks)
    return KroneckerEigen(fitted, origin_of("ekfac", run, data, how, len(chosen)))


def prepare(run: Run, data: Dataset, how: Pass, documents: int | None) -> tuple[Pass, Array, tuple[Layer, ...]]:
    """Return how to read, the positions of the documents to read and the layers, checked against autograd on a few."""
    for name, value in (("documents", documents), ("batch_size", how.batch_size), ("positions", how.positions)):
        if value is not None and value < 1:
            raise InfuserError(f"{name} is out of range", got=value, expected="at least 1")
    chosen = np.arange(len(data))
    if documents is not None and documents < len(data):
        chosen = np.sort(np.random.default_rng(how.seed).choice(len(data), documents, replace=False))
    model = run.model()
    layers = find_layers(model)
    verify(model, trainable(model), task_of(data), data.batch(chosen[:2], run.device), layers)
    return how, chosen, layers


def origin_of(method: str, run: Run, data: Dataset, how: Pass, documents: int) -> Origin:
    """Return what a fit was made from."""
    weights = run.checkpoints[-1].content_hash
    return Origin(method, weights, data.content_hash, how.labels, how.seed, documents, how.positions)
