"""Handwritten digits, 8 x 8, that ship with scikit-learn: the data set that needs no download."""

from __future__ import annotations

import numpy as np

from infuser.data.dataset import Dataset


def digits(test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return (train, test): 1,797 grey images of 8 x 8, ten classes, split once by `seed`.

    The stored 17 grey levels (0 to 16) are spread over 0 to 255. Ids count over both parts, so that none repeats.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.default_rng(seed).permutation(len(images))
    cut = len(images) - round(len(images) * test_fraction)
    everything = Dataset.from_arrays(images, raw.target.astype(np.int64), name="digits")
    return everything[order[:cut]], everything[order[cut:]]
