"""What any detector lies between: chance, and knowing the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.types import Array, Measurement, Suspicion


@dataclass(frozen=True)
class RandomOrder:
    """Independent uniform numbers: what a detector that knows nothing gives. Assumes nothing, finds nothing.

    Args:
        seed: of the numbers.
    """

    seed: int = 0

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the numbers."""
        return Suspicion(np.random.default_rng(self.seed).random(len(data)), data.ids, f"random, seed {self.seed}")


@dataclass(frozen=True)
class Perfect:
    """1 for the edited documents, else 0: what removal of all of them, and of nothing else, is worth.

    It is told the answer, and so has no place outside of a benchmark.

    Args:
        ids: the edited documents.
    """

    ids: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[int] | Array) -> Perfect:
        """Return the bound for these documents."""
        return cls(tuple(int(i) for i in ids))

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return 1 at the edited documents.

        Raises:
            InfuserError: an id is not in the data.
        """
        values = np.zeros(len(data))
        values[data.positions(self.ids)] = 1
        return Suspicion(values, data.ids, "perfect", "the edited documents")
