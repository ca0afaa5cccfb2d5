from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from infuser.errors import InfuserError
from infuser.perturbation.distances import distance_summary, edit_distances
from infuser.types import Edit


def _edit(before, after) -> Edit:
    n = np.arange(len(before))
    return Edit(n, before, after, n, n, None, "test")


def _ssim_by_formula(a: np.ndarray, b: np.ndarray, window: int, data_range: float) -> float:
    """Wang et al. 2004, equation 13, over the windows that lie inside; one channel."""
    a, b = a.astype(float), b.astype(float)
    size = window * window

    def mean(x):
        inner = uniform_filter(x, window)
        return inner[window // 2 : x.shape[0] - window // 2, window // 2 : x.shape[1] - window // 2]

    scale = size / (size - 1)
    va, vb = scale * (mean(a * a) - mean(a) ** 2), scale * (mean(b * b) - mean(b) ** 2)
    covariance = scale * (mean(a * b) - mean(a) * mean(b))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = ((2 * mean(a) * mean(b) + c1) * (2 * covariance + c2)) / (
        (mean(a) ** 2 + mean(b) ** 2 + c1) * (va + vb + c2)
    )
    return float(values.mean())


@pytest.mark.parametrize(("size", "window"), [(3, 3), (6, 5), (8, 7), (28, 7)])
def test_values(size, window):
    rng = np.random.default_rng(size)
    before = rng.integers(0, 256, (3, 2, size, size)).astype(np.uint8)
    after = np.clip(before.astype(int) + rng.integers(-16, 17, before.shape), 0, 255).astype(np.uint8)
    after[2] = before[2]
    found = edit_distances(_edit(before, after))
    for i in range(3):
        moved = [int(y) - int(x) for x, y in zip(before[i].ravel(), after[i].ravel(), strict=True)]
        assert found["linf_255"][i] == max(map(abs, moved))
        assert found["l2_255"][i] == pytest.approx(math.sqrt(sum(d * d for d in moved)))
        assert found["l2"][i] == pytest.approx(found["l2_255"][i] / 255)
        assert found["changed"][i] == pytest.approx(sum(d != 0 for d in moved) / len(moved))
        expected = np.mean([_ssim_by_formula(before[i, c], after[i, c], window, 255) for c in range(2)])
        assert found["ssim"][i] == pytest.approx(expected, abs=1e-9)
        # Another range of values is another similarity, so that the oracle can fail.
        other = np.mean([_ssim_by_formula(before[i, c], after[i, c], window, 1) for c in range(2)])
        assert i == 2 or abs(found["ssim"][i] - other) > 1e-6
    assert found["ssim"][2] == 1.0
    summary = distance_summary(_edit(before, after))
    assert summary == {
        "linf_255_max": found["linf_255"].max(),
        "l2_mean": pytest.approx(found["l2"].mean()),
        "ssim_mean": pytest.approx(found["ssim"].mean()),
    }


def test_floats_have_a_range_of_one():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 240, (1, 1, 8, 8)).astype(np.uint8)
    after = before + rng.integers(0, 9, before.shape).astype(np.uint8)
    stored = edit_distances(_edit(before, after))
    floats = edit_distances(_edit((before / 255).astype(np.float32), (after / 255).astype(np.float32)))
    for name in ("linf_255", "l2", "l2_255", "ssim"):
        assert floats[name][0] == pytest.approx(stored[name][0], rel=1e-5)


def test_documents_without_a_similarity():
    vectors = np.zeros((2, 5), np.uint8)
    assert np.isnan(edit_distances(_edit(vectors, vectors))["ssim"]).all()
    small = np.zeros((2, 1, 2, 8), np.uint8)
    assert np.isnan(edit_distances(_edit(small, small))["ssim"]).all()
    tokens = np.zeros((2, 5), np.int64)
    with pytest.raises(InfuserError, match="only edits of pixels"):
        edit_distances(_edit(tokens, tokens))
