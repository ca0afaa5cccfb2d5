"""Metasmoothness, against training whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from infuser.errors import InfuserError
from infuser.evaluation.smoothness import metasmoothness, part_of
from infuser.evaluation.stats import Bootstrap
from infuser.perturbation.balls import Linf
from infuser.types import Edit


def _edit(before, after) -> Edit:
    ids, labels = np.arange(len(before)), np.zeros(len(before), dtype=np.int64)
    return Edit(ids, before, after, labels, labels, Linf(40), "a test", np.ones(len(before)))


def test_a_part_lies_between():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 200, (3, 1, 2, 2)).astype(np.uint8)
    after = before + rng.integers(0, 40, before.shape).astype(np.uint8)
    half = part_of(_edit(before, after), 0.5)
    middle = (before.astype(float) + after) / 2
    assert half.after.dtype == np.uint8
    assert np.abs(half.after - middle).max() <= 0.5
    assert half.gains is None  # those of the whole are not its own
    assert np.array_equal(part_of(_edit(before, after), 1.0).after, after)
    assert np.array_equal(part_of(_edit(before, after), 0.0).after, before)
    assert not np.array_equal(half.after, after)


def test_floats_are_not_rounded():
    before = np.zeros((1, 2), dtype=np.float32)
    half = part_of(_edit(before, np.array([[0.1, 0.05]], dtype=np.float32)), 0.5)
    np.testing.assert_allclose(half.after, [[0.05, 0.025]], rtol=1e-6)


def test_token_ids_have_no_parts():
    tokens = np.zeros((1, 3), dtype=np.int64)
    edit = Edit(np.arange(1), tokens, tokens + 1, np.zeros((1, 3), dtype=np.int64), tokens, None, "a test")
    with pytest.raises(InfuserError, match="not defined"):
        part_of(edit, 0.5)
    with pytest.raises(InfuserError, match="share"):
        part_of(_edit(np.zeros((1, 2), dtype=np.uint8), np.ones((1, 2), dtype=np.uint8)), 1.5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([1.0, -2.0], [0.5, -9.0], 1.0), ([1.0, -2.0], [-1.0, 1.0], -1.0), ([1.0, -3.0], [1.0, 1.0], -0.5)],
)
def test_values_in_closed_form(first, second, expected):
    assert metasmoothness(np.array(first), np.array(second)).value == pytest.approx(expected)


def test_a_line_is_smooth_and_a_rough_function_is_not():
    rng = np.random.default_rng(1)
    slopes = rng.normal(size=200)
    smooth = metasmoothness(slopes, slopes * rng.uniform(0.5, 2, 200))
    rough = metasmoothness(rng.normal(size=200), rng.normal(size=200))
    assert smooth.value == pytest.approx(1.0)
    low, high = rough.interval
    assert low < 0 < high
    assert high < 0.4


def test_noise_alone_is_at_minus_a_half():
    clean, half, whole = np.random.default_rng(3).normal(size=(3, 4000))
    low, high = metasmoothness(half - clean, whole - half, Bootstrap(resamples=200)).interval
    assert low < -0.5 < high
    assert high < -0.4


def test_intervals_cover_the_truth():
    """P(same sign) = 3/4 whatever |a|, so that the truth is .5."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        a = rng.normal(size=30)
        b = np.where(rng.random(30) < 0.75, a, -a)
        low, high = metasmoothness(a, b).interval
        covered += low <= 0.5 <= high
    # 95 % nominal; the percentile bootstrap of a ratio at n = 30 is known to fall a little short.
    assert 0.88 <= covered / 300 <= 0.99


def test_where_all_probes_agree_there_is_no_interval():
    a = np.arange(1.0, 11.0)
    assert metasmoothness(a, a).interval is None
    assert metasmoothness(a, np.append(a[:-1], -1.0)).interval is not None


def test_few_probes_and_wrong_values():
    assert metasmoothness(np.ones(3), np.ones(3)).interval is None
    with pytest.raises(InfuserError, match="did not change"):
        metasmoothness(np.zeros(3), np.ones(3))
    with pytest.raises(InfuserError, match="two changes"):
        metasmoothness(np.ones(3), np.ones(4))
