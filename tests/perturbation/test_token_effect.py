import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from infuser.data.text import PAD
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.token_effect import TokenEffect, relaxed_loss, substitution_gains
from infuser.tasks import losses, task_of
from infuser.types import Direction, Edit
from tests.perturbation import small_text as small


def effect() -> TokenEffect:
    return TokenEffect.of(small.direction(), small.run(), small.data())


def exact(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-(1/N) <v, grad L> by vmap(grad), the sum over parameters written out."""
    model, v = small.run().model(), small.vector()

    def loss(p, row, target):
        log_p = functional_call(model, p, (row[None].clamp(min=0),))[0, :-1].log_softmax(-1)
        kept = target[1:] >= 0
        return -(log_p.gather(1, target[1:].clamp(min=0)[:, None])[:, 0] * kept).sum()

    rows_, targets_ = (torch.from_numpy(np.array(x)).long() for x in (rows, targets))
    gradients = vmap(grad(loss), (None, 0, 0))(trainable(model), rows_, targets_)
    total = sum((gradients[k] * v[k]).flatten(1).sum(1) for k in v)
    return (-total / len(small.data())).numpy()


def test_scores_are_inner_products_with_the_documents_gradients() -> None:
    ds = small.data()
    scores, loss = effect().scores(ds.inputs, ds.targets)
    np.testing.assert_allclose(scores, exact(ds.inputs, ds.targets), rtol=2e-5, atol=1e-5)
    model = small.run().model()
    with torch.no_grad():
        wanted = losses(task_of(ds), model, trainable(model), ds.batch(np.arange(len(ds))))
    np.testing.assert_allclose(loss, wanted.numpy(), rtol=1e-5)
    # The negative: scores of other documents are far from these.
    assert np.abs(scores - np.roll(scores, 1)).max() > 0.1


def test_scores_do_not_depend_on_padding_or_batching() -> None:
    ds = small.data()
    lengths = (ds.inputs != PAD).sum(1)
    scores, loss = effect().scores(ds.inputs, ds.targets)
    for i in (0, 5):
        alone = effect().scores(ds.inputs[i : i + 1, : lengths[i]], ds.targets[i : i + 1, : lengths[i]])
        np.testing.assert_allclose([alone[0][0], alone[1][0]], [scores[i], loss[i]], rtol=1e-9)


def test_label_gains_are_exact_for_the_last_token_and_only_there() -> None:
    ds = small.data()
    row, target = ds.inputs[0], ds.targets[0]
    last = int((row != PAD).sum()) - 1
    table = effect().label_gains(row, target)
    for t, exactly in ((last, True), (3, False)):
        put = np.repeat(row[None], CODEC_SIZE, 0)
        put[:, t] = np.arange(CODEC_SIZE)
        labels = np.where(target == -100, -100, put)
        gains = exact(put, labels) - exact(row[None], target[None])
        assert np.allclose(table[t], gains, rtol=1e-4, atol=1e-6) is exactly
    assert (table[np.arange(last + 1), row[: last + 1]] == 0).all()
    assert not table[0].any()
    assert not table[last + 1 :].any()


CODEC_SIZE = small.CODEC.size


def test_tokens_without_a_loss_gain_nothing_on_the_label_side() -> None:
    row, target = small.data().inputs[0], small.data().targets[0].copy()
    target[:6] = -100
    table = effect().label_gains(row, target)
    assert not table[:6].any()
    assert table[6].any()


def one_hot(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.from_numpy(np.array(rows)).long()
    return F.one_hot(tokens.clamp(min=0), CODEC_SIZE).double(), (tokens >= 0).double()


def test_the_relaxed_loss_at_one_hot_rows_is_the_loss() -> None:
    ds, model = small.data(), small.run().model()
    x, weight = one_hot(ds.inputs)
    with torch.no_grad():
        relaxed = relaxed_loss(model, trainable(model), x, weight)
        wanted = losses(task_of(ds), model, trainable(model), ds.batch(np.arange(len(ds))))
    torch.testing.assert_close(relaxed, wanted)


def test_the_gradient_over_simplices_equals_finite_differences_of_the_exact_score() -> None:
    made, model, v = effect(), small.run().model(), small.vector()
    x, weight = one_hot(small.data().inputs[:2])
    generator = torch.Generator().manual_seed(0)
    x = 0.9 * x + 0.1 * torch.rand(x.shape, generator=generator, dtype=x.dtype).softmax(-1)  # inside the simplex
    _, slope = made.soft(x, weight)
    params = trainable(model)

    def score(z: torch.Tensor) -> torch.Tensor:
        tangent = torch.func.jvp(lambda p: relaxed_loss(model, p, z, weight), (params,), (v,))[1]
        return -tangent / len(small.data())

    for seed in range(3):
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        h = 1e-5
        wanted = (score(x + h * u) - score(x - h * u)) / (2 * h)
        torch.testing.assert_close((slope * u).flatten(1).sum(1), wanted, rtol=2e-4, atol=1e-6)
        assert not torch.allclose((slope * u.flip(0)).flatten(1).sum(1), wanted, rtol=0.1)


def test_bad_input_is_named() -> None:
    zero = Direction({k: torch.zeros_like(x)[None] for k, x in small.vector().items()}, ("zero",), "zero")
    with pytest.raises(InfuserError, match="the direction is zero"):
        TokenEffect.of(zero, small.run(), small.data()).scores(small.data().inputs, small.data().targets)


def test_a_substitution_gains_what_taking_it_back_loses() -> None:
    ds = small.data()
    after, targets = ds.inputs[:2].copy(), ds.targets[:2].copy()
    for i, t in ((0, 3), (0, 6), (1, 4)):
        after[i, t] = (after[i, t] + 1) % 5 + 3
        targets[i, t] = after[i, t]
    edit = Edit(ds.ids[:2], ds.inputs[:2], after, ds.targets[:2], targets, None, "by hand")
    got = substitution_gains(effect(), edit)
    assert got.shape == after.shape
    assert sorted(zip(*map(np.ndarray.tolist, np.nonzero(~np.isnan(got))), strict=True)) == [(0, 3), (0, 6), (1, 4)]
    back, labels = after[:1].copy(), targets[:1].copy()
    back[0, 3], labels[0, 3] = ds.inputs[0, 3], ds.targets[0, 3]
    wanted = exact(after[:1], targets[:1])[0] - exact(back, labels)[0]
    assert got[0, 3] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert (after != ds.inputs[:2]).any()  # the edit itself is as it was given
    # The negative: what both substitutions gain together is not what one of them does.
    assert abs(got[0, 3] - got[0, 6]) > 1e-3
