"""Isolation in gradient space: documents whose gradient has no company within their class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.features import groups_of, penultimate_and_outputs
from infuser.errors import InfuserError
from infuser.types import Array, Measurement, Suspicion


@dataclass(frozen=True)
class GradientIsolation:
    """The mean distance of a document's last-layer gradient to its k nearest of the same label. Blind.

    The gradient of the last Linear layer is (p - e_y) a^T with probabilities p and inputs a; distances come from the
    inner products <p - e_y, p' - e_y'> <a, a'>, the gradients are never formed. Averaged over the last checkpoints.

    Assumes that effective edits are few and pull in directions of their own. Fails once the model has fitted everything
    (all gradients vanish), and for copies of one document, which keep each other company.

    Args:
        k: neighbours.
        checkpoints: how many of the last ones are averaged over; the initialisation is never among them.

    Source: after EPIc, Yang et al., arXiv 2210.09671, which drops isolated documents of a k-medoids clustering during
        training; the distance to neighbours, once training is over, is our reading.
    """

    k: int = 5
    checkpoints: int = 5

    def __post_init__(self) -> None:
        if self.k < 1 or self.checkpoints < 1:
            raise InfuserError(
                "k or checkpoints is out of range", got=f"{self.k}, {self.checkpoints}", expected="at least 1"
            )

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the mean distances; 0 in a class of one.

        Raises:
            InfuserError: the documents have no labels.
        """
        if data.kind != "classification":
            raise InfuserError("isolation compares within labels", got=data.kind, expected="classification")
        have = len(run.checkpoints)
        chosen = range(max(have - self.checkpoints, min(1, have - 1)), have)
        total = np.zeros(len(data))
        for checkpoint in chosen:
            features, outputs = penultimate_and_outputs(run, data, checkpoint)
            residual = softmax(outputs, axis=1)
            residual[np.arange(len(data)), data.targets] -= 1
            for rows in groups_of(data):
                total[rows] += isolation(residual[rows], features[rows], self.k)
        told = f"gradient isolation, k = {self.k}, {len(chosen)} checkpoints"
        return Suspicion(total / len(chosen), data.ids, told)


def isolation(left: Array, right: Array, k: int) -> Array:
    """Return the mean distance of left_i right_i^T (as a vector) to its k nearest others, (n,)."""
    if len(left) < 2:
        return np.zeros(len(left))
    # The bias of the layer is a last column of ones.
    products = (left @ left.T) * (right @ right.T + 1)
    size = np.diag(products)
    squared = np.clip(size[:, None] + size[None] - 2 * products, 0, None)
    np.fill_diagonal(squared, np.inf)
    count = min(k, len(left) - 1)
    return np.asarray(np.sqrt(np.partition(squared, count - 1, axis=1)[:, :count]).mean(1))
