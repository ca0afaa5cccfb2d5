"""Deep k-NN: documents whose neighbours in feature space carry other labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.features import penultimate
from infuser.errors import InfuserError
from infuser.types import Array, Measurement, Suspicion


@dataclass(frozen=True)
class DeepKNN:
    """The share of a document's k nearest neighbours in feature space that carry another label. Blind.

    Features are the inputs of the last Linear layer, distances Euclidean, the document itself left out. Many documents
    tie at 0; ties count as random order in the metrics.

    Assumes that the features put a document among those that it resembles: wrong labels, and feature collisions. Fails
    for edits that keep a label which fits, for features that have memorised the labels, and where copies of a bad
    document vouch for each other (k must exceed their number).

    Args:
        k: neighbours; at most N - 1 are taken.

    Source: Peri et al., arXiv 1909.13374.
    """

    k: int = 50

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InfuserError("k is out of range", got=self.k, expected="at least 1")

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the shares.

        Raises:
            InfuserError: the documents have no labels.
        """
        if data.kind != "classification":
            raise InfuserError("deep k-NN compares labels", got=data.kind, expected="classification")
        features = penultimate(run, data)
        near = neighbours(features, min(self.k, len(data) - 1))
        other = data.targets[near] != data.targets[:, None]
        return Suspicion(other.mean(1), data.ids, f"deep k-NN, k = {self.k}")


def neighbours(features: Array, k: int) -> Array:
    """Return the positions of the k nearest others of each row, nearest first, (N, k)."""
    from sklearn.neighbors import NearestNeighbors

    # Without an argument kneighbors leaves each row itself out, copies of it stay.
    return np.asarray(NearestNeighbors(n_neighbors=k).fit(features).kneighbors(return_distance=False))
