from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.pgd import PGD, document_scores, predicted_effect
from infuser.training import train
from infuser.types import Recipe
from tests.perturbation import small

BALLS = [Linf(8), L2(24), Linf(1), L2(300.5)]


def _gains(edit, data, n):
    v = small.direction().single()
    after = replace(data[edit.ids], inputs=edit.after)
    scored = [small.score_by_autograd(small.run(), d, v, n) for d in (data[edit.ids], after)]
    return scored[1] - scored[0]


def _floats() -> tuple[Dataset, Run]:
    """The same images as floats, and a run on them."""
    data = replace(small.images(), inputs=small.images().inputs.astype(np.float32) / 255)
    return data, Run.from_weights(small.smooth, small.run().checkpoints[-1].weights, data)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_edits_are_storable_and_gain_what_they_say(ball):
    data = small.images()
    ids = data.ids[[7, 3, 20, 11, 0]]
    edit = PGD(ball, steps=12).edit(small.direction(), small.run(), data, ids)
    assert edit.after.dtype == np.uint8
    assert edit.ids.tolist() == ids.tolist()
    assert (ball.distance(edit.before, edit.after) <= ball.radius).all()
    assert np.array_equal(edit.targets_before, edit.targets_after)
    assert np.array_equal(edit.before, data[ids].inputs)
    expected = _gains(edit, data, len(data))
    np.testing.assert_allclose(edit.gains, expected, rtol=1e-3, atol=1e-7)
    assert (expected > 0).all()
    # Another N, or another document's gain, would not pass.
    assert not np.allclose(edit.gains * 2, expected, rtol=0.1)
    assert not np.allclose(np.roll(edit.gains, 1), expected, rtol=0.1)


def test_random_signs_gain_far_less():
    data = small.images()
    edit = PGD(Linf(8), steps=20).edit(small.direction(), small.run(), data, data.ids[:12])
    signs = np.random.default_rng(0).choice([-8, 8], edit.before.shape)
    noise = replace(edit, after=np.clip(edit.before.astype(int) + signs, 0, 255).astype(np.uint8))
    assert _gains(noise, data, len(data)).sum() < 0.2 * edit.gains.sum()


@pytest.mark.parametrize("ball", [Linf(40), L2(200)], ids=str)
@pytest.mark.parametrize("step_size", [0.01, 3.0, 255.0])
def test_never_worse_than_its_start(ball, step_size):
    data, run, v = small.images(), small.run(small.wavy), small.direction(0, small.wavy)
    edit = PGD(ball, steps=3, step_size=step_size).edit(v, run, data, data.ids)
    assert (edit.gains >= 0).all()
    before, after = (small.score_by_autograd(run, d, v.single(), 36) for d in (data, data.apply(edit)))
    assert (after >= before - 1e-7).all()


def test_without_the_guard_a_step_too_long_would_be_worse():
    """The case that the guard is for: the last iterate of a huge step lowers s for some documents."""
    data, run, v = small.images(), small.run(small.wavy), small.direction(0, small.wavy)
    effect = predicted_effect(v, run, data, via="forward")
    method = PGD(Linf(90), steps=1, step_size=90.0)
    last, _ = method._ascend(effect, data.batch(np.arange(len(data))), data.inputs, "")
    gained = document_scores(effect, replace(data, inputs=last)) - document_scores(effect, data)
    assert (gained < 0).any()
    edit = method.edit(v, run, data, data.ids)
    kept = (edit.after == edit.before).reshape(len(data), -1).all(1)
    assert kept[gained < 0].all()
    assert (edit.gains[kept] == 0).all()


def test_a_small_ball_gains_the_dual_norm():
    """To first order the best edit gains radius times the dual norm of the document gradient."""
    data = replace(small.images(), inputs=small.images().inputs.clip(30, 220))
    run = Run.from_weights(small.smooth, small.run().checkpoints[-1].weights, data)
    method = PGD(Linf(1), steps=3)
    edit = method.edit(small.direction(), run, data, data.ids)
    bound = method.potential(small.direction(), run, data, data.ids)
    assert bound.shape == (len(data),)
    strong = bound > np.median(bound)
    np.testing.assert_allclose(edit.gains[strong], bound[strong], rtol=0.05)


def test_the_gradient_is_taken_anew_at_every_step():
    data, run, v = small.images(), small.run(small.wavy), small.direction(0, small.wavy)
    methods = {steps: PGD(Linf(20), steps=steps, step_size=20 / steps, via="forward") for steps in (1, 20)}
    gained = {steps: method.edit(v, run, data, data.ids).gains.sum() for steps, method in methods.items()}
    assert gained[20] > 1.3 * gained[1]


def test_central_and_exact_gradients_lead_to_the_same_gain():
    data = small.images()
    made = [
        PGD(Linf(8), steps=10, via=via).edit(small.direction(), small.run(), data, data.ids)
        for via in ("central", "forward")
    ]
    np.testing.assert_allclose(made[0].gains, made[1].gains, rtol=1e-3, atol=1e-7)
    assert "via central" in made[0].made_by
    assert "via forward" in made[1].made_by


def test_the_same_call_gives_the_same_bits_and_batches_do_not_matter():
    data = small.images()
    first, second, cut = (
        PGD(L2(40), steps=5, via="forward", batch_size=size).edit(small.direction(), small.run(), data, data.ids)
        for size in (128, 128, 5)
    )
    assert np.array_equal(first.after, second.after)
    assert np.array_equal(first.gains, second.gains)
    np.testing.assert_allclose(first.gains, cut.gains, rtol=1e-4, atol=1e-7)
    assert (first.after == cut.after).mean() > 0.99


def test_several_queries_count_as_their_mean():
    data = small.images()
    both = small.direction(None)
    assert len(both) == 2
    method = PGD(Linf(8), steps=4)
    assert np.array_equal(
        method.edit(both, small.run(), data, data.ids[:4]).after,
        method.edit(both.mean(), small.run(), data, data.ids[:4]).after,
    )
    first = method.edit(both[0], small.run(), data, data.ids[:4]).after
    assert not np.array_equal(method.edit(both, small.run(), data, data.ids[:4]).after, first)


def test_the_original_setting_without_storage():
    """50 steps of 0.001 by the sign of the gradient, unclipped: written out by hand as the oracle."""
    data, run = _floats()
    ids = data.ids[:6]
    method = PGD(Linf(12.75), steps=50, step_size=0.255, storable=False, via="forward")
    edit = method.edit(small.direction(), run, data, ids)
    effect = predicted_effect(small.direction(), run, data, via="forward")
    z = torch.as_tensor(data[ids].inputs.copy())
    targets = torch.as_tensor(data[ids].targets.copy())
    for _ in range(50):
        z = z + 0.001 * effect.at(z, targets)[1].sign()
    by_hand = replace(data[ids], inputs=z.numpy())
    gained = document_scores(effect, by_hand) - document_scores(effect, data[ids])
    np.testing.assert_allclose(edit.gains, gained, rtol=1e-3)
    assert edit.after.dtype == np.float32
    assert 12.7 < edit.constraint.distance(edit.before, edit.after).max() <= 12.75
    # There is no clip to [0, 1]: a dark document may go below black.
    dark = replace(data, inputs=np.zeros_like(data.inputs))
    dark_run = Run.from_weights(small.smooth, run.checkpoints[-1].weights, dark)
    assert method.edit(small.direction(), dark_run, dark, ids).after.min() < -0.04
    assert PGD(Linf(12.75), steps=5).ball.store(z.numpy(), data[ids].inputs).dtype == np.float32


def test_nothing_of_the_run_or_the_random_state_changes():
    data, run, v = small.images(), small.run(), small.direction()
    hashes = run.checkpoints[-1].content_hash, data.content_hash
    values = {name: value.clone() for name, value in v.params.items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    PGD(Linf(4), steps=2).edit(v, run, data, data.ids[:3])
    assert torch.equal(torch.rand(2), expected)
    assert (run.checkpoints[-1].content_hash, data.content_hash) == hashes
    assert all(torch.equal(values[name], value) for name, value in v.params.items())


def test_the_method_is_a_value():
    method = PGD(Linf(8), steps=7, step_size=2.0)
    assert pickle.loads(pickle.dumps(method)) == method  # noqa: S301
    assert eval(repr(method)) == method  # noqa: S307
    assert str(method) == "PGD Linf 8/255, 7 steps of 2/255"
    assert str(PGD(L2(100))) == "PGD L2 100/255, 50 steps of 5/255"


def test_wrong_settings():
    with pytest.raises(InfuserError, match="Linf radius is out of range"):
        PGD(Linf(0))
    with pytest.raises(InfuserError, match=r"holds no edit that 8 bits can store.*did you mean 7.99"):
        PGD(Linf(0.03135))
    with pytest.raises(InfuserError, match="steps is out of range"):
        PGD(Linf(8), steps=0)
    with pytest.raises(InfuserError, match="step_size is out of range"):
        PGD(Linf(8), step_size=0)
    with pytest.raises(InfuserError, match="batch_size is out of range"):
        PGD(Linf(8), batch_size=0)


def test_documents_that_are_not_pixels():
    data, run = _floats()
    with pytest.raises(InfuserError, match="storable edits need 8-bit documents"):
        PGD(Linf(8)).edit(small.direction(), run, data, data.ids[:2])
    with pytest.raises(InfuserError, match="edits that are not storable need float documents"):
        PGD(Linf(8), storable=False).edit(small.direction(), small.run(), small.images(), small.images().ids[:2])
    tokens = np.zeros((4, 5), np.int64)
    texts = Dataset(tokens, tokens, "causal_lm", 7, name="stories")
    with pytest.raises(InfuserError, match=r"pixel edits need images.*stories"):
        PGD(Linf(8)).edit(small.direction(), replace(small.run(), kind="causal_lm"), texts, [0])


def test_directions_that_do_not_fit():
    data, run = small.images(), small.run()
    v = small.direction()
    broken = {name: torch.full_like(value, float("nan")) for name, value in v.params.items()}
    with pytest.raises(InfuserError, match="the direction is not finite"):
        PGD(Linf(8)).edit(replace(v, params=broken), run, data, data.ids[:2])
    other = train(small.kinked, small.images(size=7), Recipe(epochs=1))
    with pytest.raises(InfuserError, match="direction does not fit"):
        PGD(Linf(8)).edit(v, other, small.images(size=7), data.ids[:2])
    diverged = {name: value * 1e30 for name, value in run.checkpoints[-1].weights.items()}
    with pytest.raises(InfuserError, match=r"document gradient is not finite.*documents 10"):
        PGD(Linf(8)).edit(v, Run.from_weights(small.smooth, diverged, data), data, data.ids[:2])
    with pytest.raises(InfuserError, match="1 ids are not in"):
        PGD(Linf(8)).edit(v, run, data, [5])
