"""Activation clustering: does a class consist of two?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.features import groups_of, penultimate
from infuser.errors import InfuserError
from infuser.types import Array, Measurement, Suspicion

_LEAST = 4  # documents that two clusters are looked for among


@dataclass(frozen=True)
class ActivationClustering:
    """How far a document lies on the side of the smaller of the two clusters of its class. Blind.

    The features of a class (inputs of the last Linear layer) are reduced by PCA and split by 2-means. With the squared
    distances d_large, d_small to the two centres and D^2 between them, the value is
    (1 - 2 share of the small cluster) (d_large - d_small) / D^2: from about -1 (in the middle of the large cluster) to
    1 (of the small), and 0 in a class that splits in halves. The published method flags whole clusters by their size;
    the continuous value, and PCA for ICA, are our reading.

    Assumes that bad documents are a minority of their class and form a cluster apart: a trigger, inserted copies. Fails
    for few or scattered edits, where 2-means splits the class along an honest axis.

    Args:
        components: of the PCA.
        restarts: of 2-means.
        seed: of 2-means.

    Source: Chen et al., arXiv 1811.03728.
    """

    components: int = 10
    restarts: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.components < 1 or self.restarts < 1:
            got = f"{self.components}, {self.restarts}"
            raise InfuserError("components or restarts is out of range", got=got, expected="at least 1")

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the side of every document; 0 in classes too small to split."""
        features = penultimate(run, data)
        values = np.zeros(len(data))
        for rows in groups_of(data):
            values[rows] = self.sides(features[rows])
        return Suspicion(values, data.ids, f"activation clustering, {self.components} components, seed {self.seed}")

    def sides(self, features: Array) -> Array:
        """Return the value of each document of one class, (n,)."""
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        if len(features) < _LEAST or np.ptp(features, axis=0).max() == 0:
            return np.zeros(len(features))
        reduced = PCA(min(self.components, *features.shape), svd_solver="full").fit_transform(features)
        fitted = KMeans(2, n_init=self.restarts, random_state=self.seed).fit(reduced)
        sizes = np.bincount(fitted.labels_, minlength=2)
        small = int(np.argmin(sizes))
        distances = fitted.transform(reduced) ** 2
        apart = float(((fitted.cluster_centers_[0] - fitted.cluster_centers_[1]) ** 2).sum())
        weight = 1 - 2 * sizes[small] / len(features)
        return np.asarray(weight * (distances[:, 1 - small] - distances[:, small]) / apart)
