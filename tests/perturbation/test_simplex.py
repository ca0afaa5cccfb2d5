import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from infuser.errors import InfuserError
from infuser.perturbation.perturb import perturb
from infuser.perturbation.simplex import RelaxedPGD, TokenGradient, one_hot, project_simplex, sharpen
from infuser.perturbation.token_edits import GreedyTokens
from infuser.perturbation.token_effect import TokenEffect
from tests.perturbation import small_text as small
from tests.perturbation.test_token_effect import exact


def row_loop(x: torch.Tensor) -> torch.Tensor:
    """One row at a time, by the definition of the threshold."""
    rows = []
    for row in x:
        ordered = sorted(row.tolist(), reverse=True)
        total, threshold = 0.0, 0.0
        for j, value in enumerate(ordered, 1):
            total += value
            if value - (total - 1) / j > 0:
                threshold = (total - 1) / j
        rows.append((row - threshold).clamp(min=0))
    return torch.stack(rows)


def test_projection_equals_the_row_loop_and_a_numerical_optimum() -> None:
    x = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = project_simplex(x)
    torch.testing.assert_close(got, row_loop(x))
    torch.testing.assert_close(got.sum(-1), torch.ones(20, dtype=torch.float64))
    for row, mine in zip(x[:3].numpy(), got[:3].numpy(), strict=True):
        best = minimize(
            lambda z, row=row: ((z - row) ** 2).sum(), np.full(7, 1 / 7), bounds=[(0, 1)] * 7,
            constraints={"type": "eq", "fun": lambda z: z.sum() - 1}, options={"ftol": 1e-14},
        )  # fmt: skip
        np.testing.assert_allclose(mine, best.x, atol=1e-5)
    softmax = x.softmax(-1)  # the negative: on the simplex, but not the nearest point
    assert ((softmax - x).norm(dim=1) > (got - x).norm(dim=1)).all()


def test_projection_of_a_vocabulary_equals_the_row_loop() -> None:
    x = torch.randn(4, 50_257, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project_simplex(x), row_loop(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impurity", [0.0, 0.1, 0.5])
def test_sharpening_reaches_its_limit_and_keeps_the_order(impurity: float) -> None:
    x = torch.randn(30, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).mul(0.3).softmax(-1)
    before, got = 1 - x.square().sum(-1), sharpen(x, impurity)
    after = 1 - got.square().sum(-1)
    assert (before > 0.8).all()
    assert (after <= impurity + 1e-6).all()
    if impurity:  # no sharper than asked
        torch.testing.assert_close(after, torch.full_like(after, impurity), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.sum(-1), torch.ones(30, dtype=torch.float64))
    assert torch.equal(got.argmax(-1), x.argmax(-1))
    assert torch.equal(sharpen(x, 1.0), x)


def test_a_tied_row_becomes_a_token_and_bad_limits_are_named() -> None:
    assert sharpen(torch.full((1, 4), 0.25), 0.1).tolist() == [[1, 0, 0, 0]]
    with pytest.raises(InfuserError, match="impurity is out of range"):
        sharpen(torch.full((1, 4), 0.25), -1)


def test_ascent_raises_the_relaxed_score_and_ends_sharp() -> None:
    effect = TokenEffect.of(small.direction(), small.run(), small.data())
    row, target = small.data().inputs[0], small.data().targets[0]
    x, weight = one_hot(effect, row, target)
    before = effect.soft(x, weight)[0]
    table = RelaxedPGD(steps=8, impurity=1.0).table(effect, row, target)
    relaxed = torch.tensor(table[: x.shape[1]])[None]
    end = relaxed + x * (1 - relaxed.sum(-1, keepdim=True))
    assert effect.soft(end, weight)[0] > before + 0.1
    sharp = RelaxedPGD(steps=8, impurity=0.0).table(effect, row, target)
    assert set(np.unique(sharp.round(6))) <= {0.0, 1.0}
    assert ((table > 0.01) & (table < 0.99)).any()  # without sharpening the rows stay mixed


def test_the_token_gradient_table_is_the_slope_towards_each_token() -> None:
    effect = TokenEffect.of(small.direction(), small.run(), small.data())
    row, target = small.data().inputs[1], small.data().targets[1]
    table = TokenGradient().table(effect, row, target)
    x, weight = one_hot(effect, row, target)
    for t, w in ((3, 5), (7, 2), (1, 9)):
        moved = x.clone()
        h = 1e-4
        moved[0, t] *= 1 - h
        moved[0, t, w] += h
        slope = float((effect.soft(moved, weight)[0] - effect.soft(x, weight)[0]) / h)
        assert table[t, w] == pytest.approx(slope, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("proposer", [TokenGradient(), RelaxedPGD(steps=4)])
def test_proposers_serve_the_greedy_method(proposer) -> None:
    method = GreedyTokens(small.CODEC, share=0.2, mode="token", pool=16, rounds=1, proposer=proposer)
    edit = perturb(method, small.direction(), small.run(), small.data(), ids=[0])
    gain = exact(edit.after, edit.targets_after) - exact(edit.before, edit.targets_before)
    np.testing.assert_allclose(edit.gains, gain, rtol=1e-4)
    assert gain[0] > 0
    assert str(proposer) in edit.made_by
