from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, Linf
from infuser.types import Edit

QUICK = settings(max_examples=60, deadline=None)
BALLS = st.one_of(
    st.builds(Linf, st.one_of(st.integers(1, 255), st.floats(0.5, 255))),
    st.builds(L2, st.one_of(st.integers(1, 600), st.floats(0.5, 600))),
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))


@st.composite
def stored_and_wanted(draw, dtype=np.uint8):
    shape = draw(SHAPES)
    values = hnp.arrays(np.float64, shape, elements=st.floats(-1, 2))
    if dtype == np.uint8:
        before = draw(hnp.arrays(np.uint8, shape))
    else:
        before = draw(hnp.arrays(dtype, shape, elements=st.floats(0, 1, width=np.dtype(dtype).itemsize * 8)))
    return before, draw(values)


def _exact_distance(ball, before: np.ndarray, after: np.ndarray) -> float:
    """The distance of one 8-bit document in whole numbers, without numpy's types."""
    differences = [int(b) - int(a) for a, b in zip(before.ravel(), after.ravel(), strict=True)]
    return max(map(abs, differences)) if isinstance(ball, Linf) else math.sqrt(sum(d * d for d in differences))


@QUICK
@given(BALLS, stored_and_wanted())
def test_stored_documents_lie_inside_after_rounding(ball, pair):
    before, wanted = pair
    after = ball.store(wanted, before)
    assert after.dtype == np.uint8
    assert after.shape == before.shape
    for a, b in zip(before, after, strict=True):
        assert _exact_distance(ball, a, b) <= ball.radius
    np.testing.assert_allclose(
        ball.distance(before, after), [_exact_distance(ball, a, b) for a, b in zip(before, after, strict=True)]
    )
    ids = np.arange(len(before))
    Edit(ids, before, after, ids, ids, ball, "test")  # accepted by the check of its own


@QUICK
@given(BALLS, stored_and_wanted())
def test_what_is_inside_and_whole_is_stored_as_it_is(ball, pair):
    before, wanted = pair
    inside = ball.store(wanted, before)
    assert np.array_equal(ball.store(inside / 255, before), inside)


@QUICK
@given(st.one_of(st.integers(1, 255), st.floats(1, 255)), stored_and_wanted())
def test_linf_stores_the_nearest_level(radius, pair):
    before, wanted = pair
    after = Linf(radius).store(wanted, before)
    for b, a, w in zip(before.ravel(), after.ravel(), wanted.ravel(), strict=True):
        allowed = [level for level in range(256) if abs(level - int(b)) <= radius]
        assert abs(int(a) - 255 * w) == pytest.approx(min(abs(level - 255 * w) for level in allowed), abs=1e-9)


@QUICK
@given(st.one_of(st.integers(1, 600), st.floats(1, 600)), stored_and_wanted())
def test_l2_is_never_further_than_cutting(radius, pair):
    before, wanted = pair
    center = before / 255
    aimed = L2(radius).project(torch.tensor(wanted).clamp(0, 1), torch.tensor(center)).numpy()
    cut = before + np.trunc(np.round((aimed - center) * 255, 9))
    after = L2(radius).store(aimed, before)
    for c, a, w in zip(cut, after, aimed, strict=True):
        assert np.linalg.norm(a - 255 * w) <= np.linalg.norm(c - 255 * w) + 1e-6


def test_plain_rounding_would_leave_the_l2_ball():
    before = np.full((1, 1, 10, 10), 100, np.uint8)
    wanted = (before + 0.6) / 255  # a norm of 6, exactly the radius
    rounded = np.rint(wanted * 255).astype(np.uint8)
    ball = L2(6)
    assert ball.distance(before, rounded)[0] == 10
    with pytest.raises(InfuserError, match=r"edit leaves its ball: 1 of 1 documents exceed L2 6/255.*id 4: 10"):
        Edit(np.array([4]), before, rounded, np.array([0]), np.array([0]), ball, "rounded")
    kept = ball.store(wanted, before)
    # 36 values have room for one step each.
    assert (kept != before).sum() == 36


def test_a_bound_that_is_itself_rounded_keeps_the_document_inside():
    before, ball = np.array([[[[1.0]]]], np.float32), Linf(254.99999999999997)
    assert 1.0 + ball.radius / 255 == 2.0  # in float64, so that the bound admits what the ball does not
    after = ball.store(np.array([[[[2.0]]]]), before)
    assert ball.distance(before, after)[0] <= ball.radius
    assert after[0, 0, 0, 0] == np.nextafter(np.float32(2), np.float32(1))


@QUICK
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(data=st.data())
def test_float_documents_lie_inside_as_numbers_of_their_type(dtype, data):
    ball = data.draw(st.one_of(st.builds(Linf, st.floats(1, 255)), st.builds(L2, st.floats(1, 600))))
    before, wanted = data.draw(stored_and_wanted(dtype))
    after = ball.store(wanted, before)
    assert after.dtype == dtype
    assert (ball.distance(before, after) <= ball.radius).all()


def test_float32_addition_leaves_the_linf_ball():
    """The reason why floats are stored with care: z + r is rounded up in about half of all cases."""
    before = np.random.default_rng(0).random((1, 1000)).astype(np.float32)
    plain = before + np.float32(0.05)
    ball = Linf(12.75)
    assert ball.distance(before, plain)[0] > 12.75
    assert ball.distance(before, ball.store(plain, before))[0] <= 12.75


@QUICK
@given(BALLS, stored_and_wanted())
def test_projection(ball, pair):
    before, wanted = pair
    center, z = torch.tensor(before / 255), torch.tensor(wanted)
    for box in (True, False):
        inside = ball.project(z, center, box)
        change = ((inside - center) * 255).flatten(1)
        length = change.abs().amax(1) if isinstance(ball, Linf) else change.norm(dim=1)
        assert (length <= ball.radius * (1 + 1e-9)).all()
        if box:
            assert inside.min() >= 0
            assert inside.max() <= 1
        assert torch.allclose(ball.project(inside, center, box), inside, rtol=0, atol=1e-12)


@QUICK
@given(hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(-1e3, 1e3)), st.integers(0, 1000))
def test_steepest_moves_gain_the_dual_norm_and_no_other_move_more(gradient, seed):
    g = torch.tensor(gradient)
    noise = torch.randn(g.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for ball, unit in ((Linf(1), lambda x: x.flatten(1).abs().amax(1)), (L2(1), lambda x: x.flatten(1).norm(dim=1))):
        move = ball.steepest(g)
        assert (unit(move) <= 1 + 1e-12).all()
        gained = (g * move).flatten(1).sum(1)
        assert torch.allclose(gained, ball.dual_norm(g), rtol=1e-9, atol=1e-9)
        other = noise / unit(noise)[:, None, None]
        assert ((g * other).flatten(1).sum(1) <= gained + 1e-9).all()


def test_l2_moves_survive_tiny_gradients():
    g = torch.full((1, 4), 1e-30)
    assert torch.allclose(L2(1).steepest(g), torch.full((1, 4), 0.5))
    assert not L2(1).steepest(torch.zeros(1, 4)).any()


def test_samples_fill_the_ball():
    center = torch.full((400, 9), 0.5)
    for ball in (Linf(51), L2(51)):
        points = ball.sample(center, torch.Generator().manual_seed(0))
        change = (points - center) * 255
        length = change.abs().amax(1) if isinstance(ball, Linf) else change.norm(dim=1)
        assert length.max() <= 51 * (1 + 1e-5)
        # In 9 dimensions the mean radius of a uniform ball is 9/10 of the whole, in either norm.
        assert length.mean() / 51 == pytest.approx(0.9, abs=0.01)
        assert torch.equal(points, ball.sample(center, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("radius", [0, -1, 256, float("nan"), float("inf")])
def test_linf_radii_out_of_range(radius):
    with pytest.raises(InfuserError, match="Linf radius is out of range"):
        Linf(radius)


@pytest.mark.parametrize("radius", [0, -1, float("nan"), float("inf")])
def test_l2_radii_out_of_range(radius):
    with pytest.raises(InfuserError, match="L2 radius is out of range"):
        L2(radius)


def test_names():
    assert str(Linf(8)) == "Linf 8/255"
    assert str(L2(127.5)) == "L2 127.5/255"
    assert eval(repr(L2(3))) == L2(3)  # noqa: S307
    assert Linf(8).limit == 8


def test_documents_that_are_not_finite():
    with pytest.raises(InfuserError, match="not finite"):
        Linf(8).store(np.array([[np.nan]]), np.zeros((1, 1), np.uint8))
