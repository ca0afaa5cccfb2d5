"""Spectral signatures: documents that stick out along the main axis of their class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.features import groups_of, penultimate
from infuser.errors import InfuserError
from infuser.types import Array, Measurement, Suspicion


@dataclass(frozen=True)
class SpectralSignatures:
    """Sum over the top singular vectors of a class of the squared projection of each centred feature. Blind.

    Features are the inputs of the last Linear layer. Documents of a class of one, and texts, which have no class, are
    compared with what there is: 0 for the former, all texts for the latter.

    Assumes that the bad documents of a class share a direction of large variance in feature space: a trigger. Fails
    where they are few or do not share one (small edits spread over classes), where the class has a larger honest axis
    of its own, and where they are most of their class. The published filter removes a share of *every* class; here the
    raw statistics of all classes are ranked together, so that a class of larger variance comes first.

    Args:
        components: singular vectors.

    Source: Tran, Li and Madry, arXiv 1811.00636, algorithm 1 (with one component).
    """

    components: int = 1

    def __post_init__(self) -> None:
        if self.components < 1:
            raise InfuserError("components is out of range", got=self.components, expected="at least 1")

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the squared projections."""
        features = penultimate(run, data)
        values = np.zeros(len(data))
        for rows in groups_of(data):
            values[rows] = projections(features[rows], self.components)
        return Suspicion(values, data.ids, f"spectral signatures, {self.components} components")


def projections(features: Array, components: int) -> Array:
    """Return sum_c <x_i - mean, v_c>^2 over the top right singular vectors of the centred features, (n,)."""
    from sklearn.decomposition import PCA

    count = min(components, *features.shape)
    # Of one document, or of equal ones, nothing sticks out; PCA would divide by 0.
    if len(features) < 2 or np.ptp(features, axis=0).max() == 0:
        return np.zeros(len(features))
    return np.asarray((PCA(count, svd_solver="full").fit_transform(features) ** 2).sum(1))
