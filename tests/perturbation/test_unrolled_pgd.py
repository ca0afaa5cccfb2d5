"""Edits along the exact derivative of training, against training on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from infuser.attribution.unrolled import Unrolled
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.perturb import Hinting, Perturber, perturb
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import PostEdit
from infuser.perturbation.unrolled_pgd import UnrolledPGD
from infuser.training import train
from tests.perturbation import small

PROBE = small.probes()[0]
IDS = np.array([103, 121, 130, 108])


def trained(data, start="last_epoch", seed=None):
    """Return f of the probe after training on `data`."""
    run = small.run()
    recipe = run.recipe if seed is None else run.recipe.with_(seed=seed)
    begin = None if start == "scratch" else run.at(recipe.epochs - 1)
    model = train(small.smooth, data, recipe, start=begin).model()
    with torch.no_grad():
        return float(PROBE(model, dict(model.named_parameters()))[0])


def moved(edit, start="last_epoch", seed=None):
    data = small.images()
    return trained(data.apply(edit), start, seed) - trained(data, start, seed)


def edited(method):
    return perturb(method, small.direction(), small.run(), small.images(), ids=IDS)


@pytest.mark.parametrize("ball", [Linf(1), L2(6)], ids=str)
@pytest.mark.parametrize("start", ["last_epoch", "scratch"])
def test_small_edits_move_f_by_their_gains(start, ball):
    method = UnrolledPGD(ball, PROBE, start, steps=1)
    assert isinstance(method, Perturber)
    edit = edited(method)
    assert edit.ids.tolist() == IDS.tolist()
    assert edit.after.dtype == np.uint8
    assert (edit.gains > 0).all()
    measured = moved(edit, start)
    assert edit.gains.sum() == pytest.approx(measured, rel=0.05)
    # What the direction promises of these very documents is another number, so that the agreement says something.
    predicted = edited(PGD(ball, steps=1)).gains.sum()
    assert abs(predicted - measured) > 0.2 * abs(measured)


def test_gains_follow_the_path_of_a_large_edit():
    method = UnrolledPGD(Linf(60), PROBE, "scratch", steps=15)
    edit = edited(method)
    measured = moved(edit, "scratch")
    first_order = method.potential(small.direction(), small.run(), small.images(), IDS).sum()
    assert edit.gains.sum() == pytest.approx(measured, rel=0.1)
    assert abs(first_order - measured) > 2 * abs(edit.gains.sum() - measured)


def test_it_moves_the_order_that_it_was_made_for_further_than_the_direction_does():
    exact, plain = edited(UnrolledPGD(Linf(30), PROBE, steps=10)), edited(PGD(Linf(30), steps=10))
    assert moved(exact) > moved(plain) > 0
    assert moved(exact) > moved(edited(UnrolledPGD(Linf(30), PROBE, "scratch", seeds=(7,), steps=10)))


def test_seeds_move_along_the_mean_of_the_derivatives_so_far():
    seeds, ball, data, run = (5, 6), Linf(20), small.images(), small.run()
    got = edited(UnrolledPGD(ball, PROBE, "scratch", seeds, steps=3, step_size=6))
    center = data[IDS].inputs.astype(np.float64)
    z, after, total = center.copy(), data[IDS].inputs, 0.0
    for t in range(3):
        there = data.apply(replace(got, after=after, gains=None))
        slope = Unrolled("scratch", (seeds[t % 2],)).document_gradient(run, there, PROBE, IDS)[0].double().numpy()
        total = total + slope / np.abs(slope).sum((1, 2, 3), keepdims=True)
        z = np.clip(np.clip(z + 6 * np.sign(total), center - 20, center + 20), 0, 255)
        after = np.rint(z).astype(np.uint8)
    np.testing.assert_array_equal(got.after, after)
    # Steps along the latest derivative alone end elsewhere.
    assert (edited(UnrolledPGD(ball, PROBE, "scratch", steps=3, step_size=6)).after != after).any()


def test_potential_is_the_first_order_bound_of_the_mean_over_three_seeds():
    seeds, run, data = (5, 6, 7, 8), small.run(), small.images()
    method = UnrolledPGD(Linf(20), PROBE, "scratch", seeds)
    assert isinstance(method, Hinting)
    slopes = [Unrolled("scratch", (s,)).document_gradient(run, data, PROBE, IDS)[0].numpy() for s in seeds[:3]]
    bound = np.abs(np.mean(slopes, 0)).sum((1, 2, 3)) * 20 / 255
    np.testing.assert_allclose(method.potential(small.direction(), run, data, IDS), bound, rtol=1e-4)
    assert np.abs(np.abs(slopes[0]).sum((1, 2, 3)) * 20 / 255 / bound - 1).max() > 0.05


def test_a_weight_is_counted_once():
    data = small.images()
    weights = np.ones(len(data))
    weights[data.positions(IDS[:2])] = 3.0
    heavy = replace(data, weights=weights)
    run = train(small.smooth, heavy, small.run().recipe)
    method = UnrolledPGD(Linf(1), PROBE, "scratch", steps=1)
    edit = perturb(method, small.direction(), run, heavy, ids=IDS)

    def f(documents):
        model = train(small.smooth, documents, run.recipe).model()
        with torch.no_grad():
            return float(PROBE(model, dict(model.named_parameters()))[0])

    measured = f(heavy.apply(edit)) - f(heavy)
    assert edit.gains.sum() == pytest.approx(measured, rel=0.05)
    bare = method.edit(small.direction(), run, heavy, IDS).gains.sum()
    assert abs(bare - measured) > 0.2 * abs(measured)
    bounds = method.potential(small.direction(), run, heavy, IDS) * weights[data.positions(IDS)]
    np.testing.assert_allclose(bounds, edit.gains, rtol=0.05)


def test_post_edit_keeps_the_documents_that_gained_most():
    method = UnrolledPGD(Linf(8), PROBE, "scratch", (5, 6), steps=2)
    edit = perturb(method, small.direction(), small.run(), small.images(), 3, select=PostEdit(12, "gain"))
    whole = perturb(method, small.direction(), small.run(), small.images(), 36, select=PostEdit(1, "gain"))
    assert edit.ids.tolist() == whole.ids[np.argsort(-whole.gains)[:3]].tolist()
    assert "unrolled PGD Linf 8/255, 2 steps of 10/255, from scratch, 2 other orders" in edit.made_by


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: UnrolledPGD(Linf(8), PROBE, steps=0), r"steps is out of range.*0.*at least 1"),
        (lambda: UnrolledPGD(Linf(0.03), PROBE), "8 bits can store.*radius was given in units"),
        (lambda: UnrolledPGD(Linf(8), PROBE, seeds=(1, 2, 3), steps=2), "fewer steps than seeds.*2 steps.*3 or more"),
        (lambda: edited(UnrolledPGD(Linf(8), small.probes()[1], steps=1)), "direction is of other queries"),
        (lambda: edited(UnrolledPGD(Linf(8), PROBE, "middle", steps=1)), "unknown start"),
    ],
)
def test_errors(made, message):
    with pytest.raises(InfuserError, match=message):
        made()


def test_floats_are_no_documents_of_it():
    data = small.images()
    floats = replace(data, inputs=data.inputs.astype(np.float32) / 255)
    with pytest.raises(InfuserError, match="storable edits need 8-bit"):
        UnrolledPGD(Linf(8), PROBE, steps=1).edit(small.direction(), small.run(), floats, IDS)
