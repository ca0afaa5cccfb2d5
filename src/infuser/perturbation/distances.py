"""How far an edit moves its documents, for people and for reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, STEPS, Linf
from infuser.types import Array, Edit

_WINDOW = 7  # scikit-image's default, of Wang et al.'s uniform window


def edit_distances(edit: Edit) -> dict[str, Array]:
    """Return the distances of every edited document, each of shape (k,) float64.

    - linf_255: the largest change of a value, in steps of 1/255.
    - l2: the Euclidean norm of the change, in units of the pixel range (1.0 = from black to white).
    - l2_255: the same in steps of 1/255.
    - changed: the share of values that changed.
    - ssim: the mean structural similarity of before and after, 1 = equal; NaN for documents that are not images of at
      least 3 x 3. The window is 7 x 7, or the largest odd one that fits.

    Raises:
        InfuserError: the edit is not one of pixels.

    Source: Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 13 (2004), for SSIM.
    """
    floats = np.issubdtype(edit.before.dtype, np.floating)
    if edit.before.dtype != np.uint8 and not floats:
        raise InfuserError("only edits of pixels have these distances", got=str(edit.before.dtype), expected="uint8")
    l2_255 = L2(1).distance(edit.before, edit.after)
    differs = (edit.before != edit.after).reshape(len(edit), -1)
    return {
        "linf_255": Linf(1).distance(edit.before, edit.after),
        "l2": l2_255 / STEPS,
        "l2_255": l2_255,
        "changed": differs.mean(axis=1) if differs.size else np.zeros(len(edit)),
        "ssim": np.array([_ssim(a, b, 1.0 if floats else STEPS) for a, b in zip(edit.before, edit.after, strict=True)]),
    }


def distance_summary(edit: Edit) -> dict[str, float]:
    """Return linf_255_max, l2_mean (pixel range 1.0) and ssim_mean of an edit."""
    distances = edit_distances(edit)
    return {
        "linf_255_max": float(distances["linf_255"].max(initial=0.0)),
        "l2_mean": float(distances["l2"].mean()) if len(edit) else 0.0,
        "ssim_mean": float(distances["ssim"].mean()) if len(edit) else 1.0,
    }


def _ssim(before: Array, after: Array, data_range: float) -> float:
    if before.ndim != 3 or min(before.shape[1:]) < 3:
        return float("nan")
    from skimage.metrics import structural_similarity

    smallest = min(before.shape[1:])
    window = min(_WINDOW, smallest - 1 + smallest % 2)
    measured: Any = structural_similarity  # it has no annotations
    return float(measured(before, after, win_size=window, data_range=data_range, channel_axis=0))
