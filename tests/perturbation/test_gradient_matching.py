from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from infuser import params as algebra
from infuser.errors import InfuserError
from infuser.perturbation.balls import L2, Linf
from infuser.perturbation.gradient_matching import GradientMatching
from infuser.perturbation.perturb import Perturber, perturb
from infuser.perturbation.pgd import predicted_effect
from infuser.perturbation.select import of_class
from tests.perturbation import small

METHOD = GradientMatching(Linf(16), steps=12, restarts=2)


def _ids():
    return of_class(small.images(), 1, 5)


def _cosine(inputs: np.ndarray, targets: np.ndarray) -> float:
    """cos(sum of the documents' gradients, -grad f), by one backward pass a document: the oracle."""
    model = small.run().model()
    target = torch.cat([-x.flatten() for x in small.direction().single().values()]).double()
    total = torch.zeros_like(target)
    for z, y in zip(inputs, targets, strict=True):
        loss = torch.nn.functional.cross_entropy(model(torch.as_tensor(z[None] / np.float32(255))), torch.tensor([y]))
        total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()
    return float(total @ target / total.norm() / target.norm())


@pytest.mark.parametrize("ball", [Linf(16), L2(60)], ids=str)
def test_the_cosine_rises_more_than_by_chance(ball):
    data, ids = small.images(), _ids()
    edit = replace(METHOD, ball=ball).edit(small.direction(), small.run(), data, ids)
    start, reached = (_cosine(x, edit.targets_before) for x in (edit.before, edit.after))
    assert f"cosine {reached:.3f}" in edit.made_by
    generator = torch.Generator().manual_seed(0)
    center = torch.as_tensor(edit.before / np.float32(255))
    by_chance = [
        _cosine(
            ball.store(ball.project(ball.sample(center, generator), center).numpy(), edit.before), edit.targets_before
        )
        for _ in range(20)
    ]
    assert reached > max(start, *by_chance) + 0.01
    assert edit.after.dtype == np.uint8
    assert edit.ids.tolist() == ids.tolist()
    assert (edit.targets_after == 1).all()


def test_the_slope_of_the_cosine_equals_double_backward():
    """grad_z of the cosine through both of its gradients by autograd, against the document gradient along w."""
    data = small.images()[_ids()]
    effect = predicted_effect(small.direction(), small.run(), small.images())
    target = algebra.scale(effect.v, -1 / float(algebra.norm(effect.v)))
    batch = data.batch(np.arange(len(data)))
    z = (batch.inputs.float() / 255).requires_grad_()
    point = {name: value.clone().requires_grad_() for name, value in effect.params.items()}
    loss = torch.nn.functional.cross_entropy(functional_call(effect.model, point, (z,)), batch.targets, reduction="sum")
    rows = torch.autograd.grad(loss, list(point.values()), create_graph=True)
    g = torch.cat([row.flatten() for row in rows])
    cosine = torch.nn.functional.cosine_similarity(g, algebra.flatten(target), dim=0)
    (expected,) = torch.autograd.grad(cosine, z)

    found, w = METHOD._cosine(effect, target, z.detach(), batch.targets)
    assert found == pytest.approx(cosine.item(), rel=1e-5)
    along = replace(effect, v=algebra.scale(w, -1), n=1, via="forward")
    slope = METHOD._slopes(along, z.detach(), batch.targets)
    assert float((slope - expected).norm() / expected.norm()) < 1e-3
    # Without the part that keeps the length of g out of the slope it would be another one.
    plain = METHOD._slopes(replace(effect, v=algebra.scale(target, -1), n=1, via="forward"), z.detach(), batch.targets)
    scaled = plain * (expected.norm() / plain.norm())
    assert float((scaled - expected).norm() / expected.norm()) > 0.05


def test_restarts_keep_the_best_and_seeds_fix_the_start():
    data, ids = small.images(), _ids()
    made = [
        replace(METHOD, restarts=r, seed=s, steps=4).edit(small.direction(), small.run(), data, ids)
        for r, s in ((1, 0), (3, 0), (3, 0), (1, 1))
    ]
    reached = [_cosine(edit.after, edit.targets_before) for edit in made]
    assert reached[1] >= reached[0]
    assert np.array_equal(made[1].after, made[2].after)
    assert not np.array_equal(made[0].after, made[3].after)


def test_gains_are_those_of_the_oracle_and_signed():
    data, ids = small.images(), _ids()
    edit = METHOD.edit(small.direction(), small.run(), data, ids)
    v = small.direction().single()
    before, after = (small.score_by_autograd(small.run(), d, v, len(data)) for d in (data[ids], data.apply(edit)[ids]))
    np.testing.assert_allclose(edit.gains, after - before, rtol=1e-3, atol=1e-7)


def test_it_is_a_perturber():
    assert isinstance(METHOD, Perturber)
    assert eval(repr(METHOD)) == METHOD  # noqa: S307
    data = small.images()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    edit = perturb(METHOD, small.direction(), small.run(), data, ids=_ids())
    assert torch.equal(torch.rand(2), expected)
    assert data.apply(edit).content_hash != data.content_hash


def test_wrong_settings_and_targets():
    data = small.images()
    with pytest.raises(InfuserError, match="restarts is out of range"):
        replace(METHOD, restarts=0)
    with pytest.raises(InfuserError, match="step_size is out of range"):
        replace(METHOD, step_size=-1.0)
    with pytest.raises(InfuserError, match="holds no edit that 8 bits can store"):
        replace(METHOD, ball=Linf(0.5))
    nothing = replace(small.direction(), params=algebra.zeros(small.direction().params))
    with pytest.raises(InfuserError, match="the target gradient is zero"):
        METHOD.edit(nothing, small.run(), data, _ids())
    floats = replace(data, inputs=data.inputs.astype(np.float32) / 255)
    with pytest.raises(InfuserError, match="storable edits need 8-bit documents"):
        METHOD.edit(small.direction(), small.run(), floats, _ids())
