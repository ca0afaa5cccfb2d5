from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from infuser import params as algebra
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.document_gradient import PredictedEffect, choose_step, document_gradient
from infuser.tasks import Classification, Regression, task_of
from infuser.types import Batch
from tests.perturbation import small

WAYS = ("central", "forward", "double")


def _effect(builder=small.smooth, dtype=torch.float64, seed=0) -> tuple[PredictedEffect, torch.Tensor, torch.Tensor]:
    """An effect with a random v, 5 documents and their labels."""
    torch.manual_seed(seed)
    model = builder((2, 5, 5), 3).to(dtype).eval()
    params = trainable(model)
    v = {name: torch.randn_like(value) for name, value in params.items()}
    z = torch.rand(5, 2, 5, 5, dtype=dtype)
    return PredictedEffect(model, params, Classification(), v, 40, "forward"), z, torch.tensor([0, 1, 2, 0, 1])


def _by_pixel(effect: PredictedEffect, z: torch.Tensor, targets: torch.Tensor, i: int, step: float = 1e-6):
    """The slope of s at document i, pixel by pixel, s by one plain backward pass: the oracle."""

    def score(x: torch.Tensor) -> float:
        loss = nn.functional.cross_entropy(effect.model(x[None]), targets[i : i + 1])
        rows = torch.autograd.grad(loss, list(effect.model.parameters()))
        return -float(sum((row * w).sum() for row, w in zip(rows, effect.v.values(), strict=True))) / effect.n

    slope = torch.empty_like(z[i])
    for at in np.ndindex(*z[i].shape):
        up, down = z[i].clone(), z[i].clone()
        up[at] += step
        down[at] -= step
        slope[at] = (score(up) - score(down)) / (2 * step)
    return slope


class Encoder(nn.Module):
    """Rows as tokens of torch's own encoder layer, whose fast path has no derivative; smooth."""

    def __init__(self, input_shape, n_outputs):
        super().__init__()
        width = 2 * input_shape[-1]
        self.layer = nn.TransformerEncoderLayer(width, 2, 8, activation="gelu", batch_first=True)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x):
        return self.head(self.layer(x.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("builder", [small.smooth, Encoder])
@pytest.mark.parametrize("via", WAYS)
def test_every_way_equals_the_slope_by_pixel(via, builder):
    effect, z, targets = _effect(builder)
    found = replace(effect, via=via, step=1e-3).at(z, targets)[1]
    for i in (0, 3):
        expected = _by_pixel(effect, z, targets, i)
        assert torch.allclose(found[i], expected, rtol=1e-5, atol=1e-9)
        # The oracle tells a wrong sign, a wrong N and another document apart.
        assert not torch.allclose(-found[i], expected, rtol=1e-2)
        assert not torch.allclose(found[i] * 2, expected, rtol=1e-2)
        assert not torch.allclose(found[i + 1], expected, rtol=1e-2)


@pytest.mark.parametrize("via", WAYS)
def test_scores_come_along(via):
    effect, z, targets = _effect()
    found = replace(effect, via=via, step=1e-3).at(z, targets)[0]
    for i in range(len(z)):
        loss = nn.functional.cross_entropy(effect.model(z[i : i + 1]), targets[i : i + 1])
        rows = torch.autograd.grad(loss, list(effect.model.parameters()))
        expected = -sum((row * w).sum() for row, w in zip(rows, effect.v.values(), strict=True)) / 40
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-5)


def test_central_is_of_second_order():
    effect, z, targets = _effect()
    exact = effect.at(z, targets)[1]

    def error(step: float) -> float:
        return float((replace(effect, via="central", step=step).at(z, targets)[1] - exact).norm() / exact.norm())

    assert error(0.05) / error(0.025) == pytest.approx(4, rel=0.05)
    assert error(0.05) < 1e-3


def test_with_kinks_only_a_tiny_step_equals_the_exact_ways():
    effect, z, targets = _effect(small.kinked)
    exact = effect.at(z, targets)[1]
    double = replace(effect, via="double").at(z, targets)[1]
    tiny = replace(effect, via="central", step=1e-6).at(z, targets)[1]
    coarse = replace(effect, via="central", step=0.4).at(z, targets)[1]
    assert torch.allclose(exact, double, rtol=1e-9, atol=1e-15)
    assert torch.allclose(exact, tiny, rtol=1e-4, atol=1e-9)
    # Units that switch between theta + h v and theta - h v count for the central difference alone.
    assert float((coarse - exact).norm() / exact.norm()) > 0.02


def test_function_reads_stored_pixels():
    data, run = small.images(), small.run()
    model = run.model()
    batch = data.batch(np.arange(4))
    v = small.direction().single()
    found = document_gradient(model, trainable(model), task_of(data), batch, v, n=len(data), via="forward")
    effect = PredictedEffect(model, trainable(model), task_of(data), v, len(data), "double")
    assert found.shape == (4, 1, 6, 6)
    assert torch.allclose(found, effect.at(batch.inputs.float() / 255, batch.targets)[1], rtol=1e-3, atol=1e-7)
    central = document_gradient(model, trainable(model), task_of(data), batch, v, n=len(data))
    assert float((central - found).norm() / found.norm()) < 0.01


def test_ridge_regression_equals_the_retrained_optimum():
    """d f(theta*) / d z in closed form: with the exact H, moving a document and solving again is what G predicts."""
    rng = np.random.default_rng(0)
    n, d, ridge = 12, 3, 0.3
    X, y, probe = rng.normal(size=(n, d)), rng.normal(size=n), rng.normal(size=d)

    def optimum(inputs: np.ndarray) -> np.ndarray:
        return np.linalg.solve(inputs.T @ inputs / n + ridge * np.eye(d), inputs.T @ y / n)

    model = nn.Linear(d, 1, bias=False).double()
    model.weight.data = torch.tensor(optimum(X))[None]
    H = X.T @ X / n + ridge * np.eye(d)
    v = {"weight": torch.tensor(np.linalg.solve(H, probe))[None]}
    batch = Batch(torch.tensor(X), torch.tensor(y)[:, None], torch.arange(n), torch.ones(n))

    expected = np.empty_like(X)
    for i, j in np.ndindex(n, d):
        up, down = X.copy(), X.copy()
        up[i, j] += 1e-5
        down[i, j] -= 1e-5
        expected[i, j] = (probe @ optimum(up) - probe @ optimum(down)) / 2e-5
    for via in WAYS:
        found = document_gradient(model, trainable(model), Regression(), batch, v, n=n, via=via, step=1e-3)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)
    # Without curvature the same formula is another number: the oracle can fail.
    plain = {"weight": torch.tensor(probe)[None]}
    wrong = document_gradient(model, trainable(model), Regression(), batch, plain, n=n, via="forward")
    assert np.abs(wrong.numpy() - expected).max() > 0.1 * np.abs(expected).max()


def test_a_document_does_not_feel_its_batch():
    effect, z, targets = _effect()
    for via in WAYS:
        each = replace(effect, via=via)
        together = each.at(z, targets)[1]
        alone = torch.cat([each.at(z[i : i + 1], targets[i : i + 1])[1] for i in range(len(z))])
        assert torch.allclose(together, alone, rtol=1e-9, atol=1e-14)


def test_a_missing_parameter_counts_as_zero():
    effect, z, targets = _effect()
    partial = {name: value for name, value in effect.v.items() if name.startswith("3")}
    padded = {name: value if name in partial else torch.zeros_like(value) for name, value in effect.v.items()}
    for via in WAYS:
        found = replace(effect, v=partial, via=via).at(z, targets)[1]
        assert torch.allclose(found, replace(effect, v=padded, via=via).at(z, targets)[1], rtol=1e-9, atol=1e-14)


def test_a_zero_direction_gives_zeros():
    effect, z, targets = _effect()
    score, slope = replace(effect, v=algebra.zeros(effect.v), via="central").at(z, targets)
    assert not score.any()
    assert not slope.any()


def test_the_model_is_left_as_it_was():
    effect, z, targets = _effect()
    before = {name: value.clone() for name, value in effect.model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for via in WAYS:
        with torch.no_grad():
            replace(effect, via=via).at(z, targets)
        assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in effect.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in effect.model.parameters())
    assert z.grad is None
    assert not z.requires_grad


def test_the_chosen_step_keeps_its_promise():
    effect, z, targets = _effect(dtype=torch.float32)
    step, error = choose_step(effect, z, targets)
    exact = effect.at(z, targets)[1]

    def off(h: float) -> float:
        return float((replace(effect, via="central", step=h).at(z, targets)[1] - exact).norm() / exact.norm())

    assert off(step) < 2 * error < 1e-3
    # It is no better at the ends, where truncation and rounding rule.
    assert off(step) < off(1.0) / 10
    assert off(step) < off(1e-5) / 10


def test_auto_falls_back_and_central_complains():
    effect, z, targets = _effect()
    assert replace(effect, via="auto").checked(z, targets).via == "central"
    assert replace(effect, via="auto").checked(z, targets, tolerance=0.0).via == "forward"
    assert replace(effect, via="double").checked(z, targets, tolerance=0.0).via == "double"
    with pytest.raises(InfuserError, match="no step makes the central difference"):
        replace(effect, via="central").checked(z, targets, tolerance=0.0)


def test_bad_directions_and_documents():
    effect, z, targets = _effect()
    with pytest.raises(InfuserError, match=r"does not fit .*0.weight: \(1, 4, 2, 3, 3\)"):
        replace(effect, v={"0.weight": effect.v["0.weight"][None]})
    with pytest.raises(InfuserError, match=r"does not fit .*ghost"):
        replace(effect, v={"ghost": torch.ones(2)})
    with pytest.raises(InfuserError, match="does not fit"):
        replace(effect, v={})
    with pytest.raises(InfuserError, match=r"carry no gradient.*int64"):
        effect.at(z.long(), targets)
    with pytest.raises(InfuserError, match="unknown way"):
        replace(effect, via="sideways")
    with pytest.raises(InfuserError, match="must be positive"):
        replace(effect, n=0)


def test_attention_needs_no_special_kernel():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))

    torch.manual_seed(0)
    model = Attention().eval()
    params = trainable(model)
    data = Dataset(np.random.default_rng(0).random((4, 5, 4), np.float32), np.array([0, 1, 2, 0]), "classification", 3)
    v = {name: torch.randn_like(value) for name, value in params.items()}
    found = [document_gradient(model, params, task_of(data), data.batch(np.arange(4)), v, n=4, via=w) for w in WAYS]
    assert torch.allclose(found[1], found[2], rtol=1e-4, atol=1e-7)
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 2e-3
