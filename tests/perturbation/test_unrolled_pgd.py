"""Edits along the exact derivative of training, against training on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from infuser.attribution.unrolled import Unrolled
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.gradient_matching import GradientMatching
from infuser.perturbation.perturb import Hinting, Perturber, perturb
from infuser.perturbation.pgd import PGD
from infuser.perturbation.unrolled_pgd import UnrolledPGD
from infuser.testing import check_perturber
from infuser.training import train
from infuser.types import Recipe
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


def given():
    return small.direction(), small.run(), small.images()


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


@pytest.mark.parametrize("averaged", [True, False])
def test_seeds_move_along_the_mean_of_the_derivatives_so_far(averaged):
    seeds, ball, data, run = (5, 6), Linf(20), small.images(), small.run()
    got = edited(UnrolledPGD(ball, PROBE, "scratch", seeds, steps=3, step_size=6))
    center = data[IDS].inputs.astype(np.float64)
    z, after, total, gains = center.copy(), data[IDS].inputs, 0.0, 0.0

    def slope_at(t):
        there = data.apply(replace(got, after=after, gains=None))
        return Unrolled("scratch", (seeds[t % 2],)).document_gradient(run, there, PROBE, IDS)[0].double().numpy()

    slope = slope_at(0)
    for t in range(3):
        unit = slope / np.abs(slope).sum((1, 2, 3), keepdims=True)
        total = total + unit if averaged else unit
        z = np.clip(np.clip(z + 6 * np.sign(total), center - 20, center + 20), 0, 255)
        move = (np.rint(z) - after) / 255
        after = np.rint(z).astype(np.uint8)
        slope = slope_at(t + 1)
        gains = gains + (slope * move).sum((1, 2, 3))
    # Steps along the latest derivative alone end elsewhere.
    assert np.array_equal(got.after, after) == averaged
    assert np.allclose(got.gains, gains, rtol=1e-4) == averaged


def test_gains_over_seeds_are_those_of_orders_that_no_move_has_seen():
    # Batches of one and few documents: orders disagree, and what an order holds by chance must not count as a gain.
    recipe = Recipe(epochs=3, batch_size=1, lr=0.1)
    data = small.images()
    run = train(small.smooth, data, recipe)
    steps = 8
    method = UnrolledPGD(Linf(2), PROBE, "last_epoch", tuple(range(1, steps + 2)), steps)
    edit = method.edit(small.direction(), run, data, IDS)
    unseen = [f_of(run, data.apply(edit), seed) - f_of(run, data, seed) for seed in range(100, 140)]
    error = np.std(unseen) / np.sqrt(len(unseen))
    assert abs(edit.gains.sum() - np.mean(unseen)) < 3 * error
    # Counted by the very slopes that they were made along, the first move alone promises more than all of them give.
    first = UnrolledPGD(Linf(2), PROBE, "last_epoch", (1,), 1, step_size=2)
    promised = first.potential(small.direction(), run, data, IDS).sum()
    assert promised - np.mean(unseen) > 3 * error


def f_of(run, data, seed):
    model = train(small.smooth, data, run.recipe.with_(seed=seed), start=run.at(run.recipe.epochs - 1)).model()
    with torch.no_grad():
        return float(PROBE(model, dict(model.named_parameters()))[0])


def test_potential_is_the_first_order_bound_of_the_mean_over_three_seeds():
    seeds, run, data = (5, 6, 7, 8), small.run(), small.images()
    method = UnrolledPGD(Linf(20), PROBE, "scratch", seeds)
    assert isinstance(method, Hinting)
    slopes = [Unrolled("scratch", (s,)).document_gradient(run, data, PROBE, IDS)[0].numpy() for s in seeds[:3]]
    bound = np.abs(np.mean(slopes, 0)).sum((1, 2, 3)) * 20 / 255
    np.testing.assert_allclose(method.potential(small.direction(), run, data, IDS), bound, rtol=1e-4)
    assert np.abs(np.abs(slopes[0]).sum((1, 2, 3)) * 20 / 255 / bound - 1).max() > 0.05


def test_it_keeps_the_contract_of_perturbers():
    method = UnrolledPGD(Linf(8), PROBE, "scratch", (5, 6), steps=1)
    check_perturber(method, small.direction(), small.run(), small.images(), IDS)


def weighted(ids, weight):
    """Return the images with another weight for some of them, and a model trained on them."""
    data = small.images()
    weights = np.ones(len(data))
    weights[data.positions(ids)] = weight
    heavy = replace(data, weights=weights)
    return heavy, train(small.smooth, heavy, small.run().recipe)


def test_a_weight_is_counted_once():
    heavy, run = weighted(IDS[:2], 3.0)
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
    bounds = method.potential(small.direction(), run, heavy, IDS) * heavy.weights[heavy.positions(IDS)]
    np.testing.assert_allclose(bounds, edit.gains, rtol=0.05)


def test_a_document_of_weight_zero_gains_nothing():
    light, run = weighted(IDS[:1], 0.0)
    method = UnrolledPGD(Linf(8), PROBE, "scratch", steps=1)
    gains = method.edit(small.direction(), run, light, IDS).gains
    bounds = method.potential(small.direction(), run, light, IDS)
    assert gains[0] == 0
    assert bounds[0] == 0
    assert (gains[1:] != 0).all()
    assert (bounds[1:] > 0).all()


def test_its_documents_are_those_of_the_highest_potential():
    method = UnrolledPGD(Linf(8), PROBE, "scratch", (5, 6, 7), steps=2)
    data, run, v = small.images(), small.run(), small.direction()
    edit = perturb(method, v, run, data, 3)
    bounds = method.potential(v, run, data, data.ids)
    assert edit.ids.tolist() == data.ids[np.argsort(-bounds, kind="stable")[:3]].tolist()
    np.testing.assert_array_equal(edit.after, method.edit(v, run, data, edit.ids).after)
    assert edit.made_by.startswith("unrolled PGD Linf 8/255, 2 steps of 10/255, from scratch, 3 other orders")
    assert edit.made_by.endswith("3 of 36 documents, potential")
    # Methods along a direction have a potential too, and another one.
    plain = perturb(PGD(Linf(8), steps=2), v, run, data, 3, select="potential")
    bounds = PGD(Linf(8)).potential(v, run, data, data.ids)
    assert plain.ids.tolist() == data.ids[np.argsort(-bounds, kind="stable")[:3]].tolist() != edit.ids.tolist()


def test_several_queries_count_as_their_mean():
    both, v = small.probes(), small.direction(None)
    data, run = small.images(), small.run()
    method = UnrolledPGD(Linf(4), both, "scratch", (5,), steps=1)
    edit = method.edit(v, run, data, IDS)
    np.testing.assert_array_equal(edit.after, method.edit(v.mean(), run, data, IDS).after)
    slopes = Unrolled("scratch", (5,)).document_gradient(run, data, both, IDS)
    moved = edit.after.astype(int) - edit.before
    np.testing.assert_array_equal(np.sign(moved[moved != 0]), np.sign(slopes.mean(0).numpy())[moved != 0])
    assert (np.sign(slopes[0].numpy())[moved != 0] != np.sign(moved[moved != 0])).any()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: UnrolledPGD(Linf(8), PROBE, steps=0), r"steps is out of range.*0.*at least 1"),
        (lambda: UnrolledPGD(Linf(0.03), PROBE), "8 bits can store.*radius was given in units"),
        (
            lambda: UnrolledPGD(Linf(8), PROBE, seeds=(1, 2, 3, 4), steps=2),
            "more seeds than replays.*4 seeds.*at most 3",
        ),
        (lambda: perturb(UnrolledPGD(Linf(8), PROBE), *given(), 3, select="post_edit"), "edits documents jointly"),
        (lambda: perturb(GradientMatching(Linf(8)), *given(), 3, select="potential"), "no potential"),
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
