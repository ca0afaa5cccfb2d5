"""Edits for several models at once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from infuser import measure
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.balls import Linf
from infuser.perturbation.document_gradient import MeanEffect
from infuser.perturbation.pgd import PGD, View, predicted_effect
from infuser.training import train
from infuser.types import Direction, Recipe
from tests.perturbation import small

BALL = Linf(8)


@cache
def view(builder=small.smooth, seed: int = 5) -> View:
    """Another seed or architecture, with its own direction of the same f."""
    run = train(builder, small.images(), Recipe(epochs=4, batch_size=6, lr=0.1, seed=seed))
    model = run.model()
    rows, names = measure.gradients(small.probes(), model, trainable(model))
    return View(run, Direction(rows, names, "identity")[0])


def scored(a_run, direction, data) -> np.ndarray:
    return small.score_by_autograd(a_run, data, direction.single(), len(small.images()))


def scales(ids) -> list[float]:
    """1 and the ratio of summed absolute document gradients of the run to those of the view, by autograd."""
    sums = []
    for a_run, direction in ((small.run(), small.direction()), (view().run, view().direction)):
        effect = replace(predicted_effect(direction, a_run, small.images()), via="double")
        batch = small.images().batch(small.images().positions(ids), "cpu")
        sums.append(float(effect.at(effect.task.feed(batch.inputs), batch.targets)[1].abs().sum()))
    return [1.0, sums[0] / sums[1]]


def test_gains_are_those_of_the_scaled_mean():
    data, ids = small.images(), small.images().ids[[7, 3, 20, 11]]
    edit = PGD(BALL, steps=12, views=(view(),), via="forward").edit(small.direction(), small.run(), data, ids)
    after, before = replace(data[ids], inputs=edit.after), data[ids]
    each = [
        scored(a_run, v, after) - scored(a_run, v, before)
        for a_run, v in ((small.run(), small.direction()), (view().run, view().direction))
    ]
    factors = scales(ids)
    expected = sum(factor * gain for factor, gain in zip(factors, each, strict=True)) / 2
    np.testing.assert_allclose(edit.gains, expected, rtol=2e-3, atol=1e-7)
    # Unscaled, or of the run alone, they would not pass.
    assert not np.allclose(edit.gains, (each[0] + each[1]) / 2, rtol=0.02)
    assert not np.allclose(edit.gains, each[0], rtol=0.02)
    assert "mean of 2 models" in edit.made_by


def test_an_edit_for_two_models_does_more_to_the_second_and_less_to_the_first():
    data, ids = small.images(), small.images().ids[:12]
    made = {
        name: PGD(BALL, steps=12, views=views).edit(small.direction(), small.run(), data, ids)
        for name, views in {"one": (), "two": (view(),)}.items()
    }
    gains = {
        (name, which): (scored(a_run, v, replace(data[ids], inputs=edit.after)) - scored(a_run, v, data[ids])).sum()
        for name, edit in made.items()
        for which, a_run, v in (("own", small.run(), small.direction()), ("other", view().run, view().direction))
    }
    assert gains["two", "other"] > 1.2 * gains["one", "other"]
    assert gains["one", "own"] > gains["two", "own"] > 0


def test_a_view_equal_to_the_run_changes_nothing():
    data, ids = small.images(), small.images().ids[:5]
    same = View(small.run(), small.direction())
    plain = PGD(BALL, steps=6).edit(small.direction(), small.run(), data, ids)
    doubled = PGD(BALL, steps=6, views=(same,)).edit(small.direction(), small.run(), data, ids)
    assert np.array_equal(plain.after, doubled.after)
    np.testing.assert_allclose(plain.gains, doubled.gains, rtol=1e-5)
    other = PGD(BALL, steps=6, views=(view(),)).edit(small.direction(), small.run(), data, ids)
    assert not np.array_equal(plain.after, other.after)


def test_slope_and_value_belong_together():
    effect = MeanEffect(
        ((1.0, replace(predicted_effect(small.direction(), small.run(), small.images()), via="double")),
         (3.0, replace(predicted_effect(view().direction, view().run, small.images()), via="double")))
    )  # fmt: skip
    batch = small.images().batch(np.arange(4), "cpu")
    z = effect.task.feed(batch.inputs)
    move = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    score, slope = effect.at(z, batch.targets)
    step = 1e-2
    ahead, back = (effect.at(z + sign * step * move, batch.targets)[0].double() for sign in (1, -1))
    expected = (ahead - back) / (2 * step)
    torch.testing.assert_close((slope.double() * move).flatten(1).sum(1), expected, rtol=5e-3, atol=1e-6)
    assert not torch.allclose((slope.double() * move).flatten(1).sum(1), 2 * expected, rtol=0.1)
    parts = [factor * own.at(z, batch.targets)[0] / 2 for factor, own in effect.parts]
    torch.testing.assert_close(score, parts[0] + parts[1])


def test_another_architecture_may_be_a_view():
    data, ids = small.images(), small.images().ids[:4]
    edit = PGD(BALL, steps=6, views=(view(small.kinked),)).edit(small.direction(), small.run(), data, ids)
    assert (edit.gains > 0).all()


def test_a_view_of_other_data_is_refused():
    other = small.images(n=30)
    run = train(small.smooth, other, Recipe(epochs=1, batch_size=6, lr=0.1))
    with pytest.raises(InfuserError, match="a view was trained on other data than the run"):
        PGD(BALL, steps=2, views=(View(run, view().direction),)).edit(
            small.direction(), small.run(), small.images(), small.images().ids[:3]
        )
