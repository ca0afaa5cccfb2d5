"""K-FAC: the Fisher matrix of each layer as one Kronecker product.

Source: Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, arXiv 1503.05671;
for shared weights the "expand" setting of Eschenhagen et al., arXiv 2311.00636.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from infuser.checkpoints import Run
from infuser.curvature.collect import full_precision
from infuser.curvature.ekfac import origin_of, prepare
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
from infuser.curvature.operator import KroneckerEigen
from infuser.data.dataset import Dataset
from infuser.executors import Executor, Local
from infuser.params import trainable
from infuser.tasks import Labels


@full_precision()
def fit_kfac(
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
    """Return the K-FAC approximation (1/N) sum g g^T (x) (1/NT) sum a a^T at the run's last checkpoint.

    Normalisation layers, which have no such structure, get the diagonal of their Fisher matrix as in EK-FAC.
    Arguments and errors are those of `fit_ekfac`.
    """
    how, chosen, layers = prepare(run, data, Pass(labels, seed, batch_size, positions), documents)
    mapped = executor or Local()
    parts = np.array_split(chosen, max(1, min(shards, len(chosen))))
    sums = reduce_covariances(mapped.map(partial(covariances, run, data, how), parts))
    blocks = kronecker_blocks(layers, sums, trainable(run.model()))
    diagonal = [block for block in blocks if block.layer.diagonal]
    if diagonal:
        second = reduce_squares(mapped.map(partial(squares, run, data, how, diagonal), parts))
        measured = {b.layer.names[0]: b.with_eigenvalues(second.mean(b.layer)) for b in diagonal}
        blocks = [measured.get(block.layer.names[0], block) for block in blocks]
    return KroneckerEigen(tuple(blocks), origin_of("kfac", run, data, how, len(chosen)))
