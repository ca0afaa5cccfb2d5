"""Pixel noise: images rougher than images that look like them. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.deep_knn import neighbours
from infuser.errors import InfuserError
from infuser.types import Array, Measurement, Suspicion


@dataclass(frozen=True)
class PixelNoise:
    """How much rougher an image is than its k nearest images: log of local noise, less the mean over neighbours. Blind.

    The local noise is the median over pixels of |x - median of its 3 x 3 surroundings|, plus a thousandth of its mean
    so that images with flat backgrounds differ; neighbours are those of the smoothed images. It looks at the files
    alone, whatever the model.

    Assumes that an edit adds high frequencies to an image that is otherwise like the others. Fails for smooth edits,
    for labels, for whole images put in, and where honest images are as noisy as the edit. On scans with a flat
    background (MNIST, digits) it is much stronger than it would be on photographs: the attacker could leave it alone.

    Args:
        k: neighbours.
    """

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InfuserError("k is out of range", got=self.k, expected="at least 1")

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the excess noise.

        Raises:
            InfuserError: the documents are not 8-bit images.
        """
        if data.inputs.dtype != np.uint8 or data.inputs.ndim != 4:
            raise InfuserError("pixel noise is of 8-bit images", got=repr(data), expected="uint8 (N, C, H, W)")
        noise, smooth = local_noise(data.inputs)
        near = neighbours(smooth.reshape(len(data), -1).astype(np.float32), min(self.k, len(data) - 1))
        return Suspicion(noise - noise[near].mean(1), data.ids, f"pixel noise, k = {self.k}")


def local_noise(images: Array) -> tuple[Array, Array]:
    """Return (log of the local noise (N,), images after a 3 x 3 median filter (N, C, H, W)) of uint8 images."""
    from scipy.ndimage import median_filter

    smooth = median_filter(images, size=(1, 1, 3, 3), mode="nearest")
    rough = np.abs(images.astype(np.int16) - smooth).reshape(len(images), -1)
    # 1/255: the smallest difference that pixels can have, so that the logarithm of a flat image exists.
    return np.log(np.median(rough, axis=1) + 1e-3 * rough.mean(1) + 1 / 255), smooth
