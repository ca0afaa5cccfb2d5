import math

import numpy as np
import pytest
import torch
from torch import nn

from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.tasks import CausalLM, Classification, Regression, draw, losses, task_of
from infuser.types import Batch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def second_moment(cotangents):
    """Sum over the cotangents of c c^T, per document: (B, O, O)."""
    return sum(torch.einsum("bi,bj->bij", c, c) for c in cotangents)


LOGITS = torch.randn(3, 4, generator=generator(1), dtype=torch.float64) * 2
LABELS = torch.tensor([2, 0, 3])


def softmax_fisher(logits):
    p = logits.softmax(-1)
    return torch.diag_embed(p) - torch.einsum("bi,bj->bij", p, p)


# --- losses -----------------------------------------------------------------------------------------------------------


def batch_of(inputs, targets, weights=None):
    n = len(inputs)
    return Batch(inputs, targets, torch.arange(n), torch.ones(n) if weights is None else torch.tensor(weights))


def test_classification_loss():
    wanted = [
        -math.log(math.exp(row[y]) / sum(math.exp(v) for v in row))
        for row, y in zip(LOGITS.tolist(), LABELS, strict=True)
    ]
    assert Classification().loss(LOGITS, LABELS).tolist() == pytest.approx(wanted, rel=1e-12)


def test_regression_loss():
    f, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [3.0, 4.0]])
    assert Regression().loss(f, y).tolist() == [2.5, 12.5]
    with pytest.raises(InfuserError, match=r"differ in shape.*\(2,\).*\(2, 1\)"):
        Regression().loss(torch.zeros(2), torch.zeros(2, 1))


@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_the_objective_is_the_weighted_mean_over_all_documents(task):
    each = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    batch = batch_of(torch.zeros(3, 1), LABELS, [1.0, 0.0, 0.1])
    value = task.objective(each, batch)
    value.backward()
    assert value.item() == pytest.approx((1 + 0.1 * 5) / 3, rel=1e-7)
    assert each.grad.tolist() == pytest.approx([1 / 3, 0, 0.1 / 3], rel=1e-7)


def test_pixels_are_fed_between_0_and_1():
    for task in (Classification(), Regression()):
        assert task.feed(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
        floats = torch.tensor([-3.0, 7.0])
        assert task.feed(floats) is floats
        assert task.mask(batch_of(torch.zeros(2, 1), torch.zeros(2))) is None


# --- cotangents -------------------------------------------------------------------------------------------------------


def test_exact_labels_give_the_softmax_fisher():
    total = second_moment(Classification().cotangents(LOGITS, LABELS, "exact", None))
    torch.testing.assert_close(total, softmax_fisher(LOGITS), rtol=1e-12, atol=1e-14)
    # The oracle can fail: the true labels give another matrix.
    empirical = second_moment(Classification().cotangents(LOGITS, LABELS, "empirical", None))
    assert (empirical - softmax_fisher(LOGITS)).abs().max() > 0.1


def test_sampled_labels_give_the_softmax_fisher_on_average():
    n = 40_000
    mean = (
        sum(
            second_moment(
                Classification().cotangents(LOGITS.repeat(n, 1), LABELS.repeat(n), "sampled", generator())
            ).view(n, 3, 4, 4)
        )
        / n
    )
    # Entries of c c^T lie in [-1, 1], so that four standard errors are below 4 / sqrt(n) = 0.02.
    torch.testing.assert_close(mean, softmax_fisher(LOGITS), rtol=0, atol=0.02)
    assert (mean - softmax_fisher(0.8 * LOGITS)).abs().max() > 0.02


def test_the_empirical_cotangent_is_the_gradient_of_the_loss():
    for task, outputs, targets in (
        (Classification(), LOGITS, LABELS),
        (Regression(), LOGITS, torch.zeros_like(LOGITS) + 0.3),
    ):
        leaf = outputs.clone().requires_grad_()
        (grad,) = torch.autograd.grad(task.loss(leaf, targets).sum(), leaf)
        (c,) = task.cotangents(outputs, targets, "empirical", None)
        torch.testing.assert_close(c, grad, rtol=1e-12, atol=1e-14)


def test_regression_fisher_is_the_identity():
    f, y = torch.randn(5, 3, generator=generator(), dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    exact = second_moment(Regression().cotangents(f, y, "exact", None))
    assert torch.equal(exact, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    n = 40_000
    sampled = second_moment(
        Regression().cotangents(f[:1].repeat(n, 1), y[:1].repeat(n, 1), "sampled", generator())
    ).mean(0)
    torch.testing.assert_close(sampled, torch.eye(3, dtype=torch.float64), rtol=0, atol=4 * math.sqrt(2 / n))


def test_samples_follow_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    many = LOGITS.repeat(50, 1)
    a, b, c = (next(Classification().cotangents(many, LABELS.repeat(50), "sampled", generator(s))) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_draw_follows_the_probabilities():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    n = 50_000
    counts = draw(p.expand(n // 100, 100, 4), generator()).flatten().bincount(minlength=4)
    assert counts[1] == 0
    for count, share in zip(counts.tolist(), p.tolist(), strict=True):
        assert abs(count - n * share) <= 4 * math.sqrt(n * share * (1 - share))
    certain = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert draw(certain, generator()).tolist() == [2, 0]


# --- language models --------------------------------------------------------------------------------------------------

IDS = torch.tensor([[3, 1, 4, 1], [2, 0, -1, -1]])
TARGETS = torch.tensor([[-100, 1, 4, 1], [2, 0, -100, -100]])
TOKENS = torch.randn(2, 4, 5, generator=generator(2), dtype=torch.float64)


def by_hand(outputs, targets):
    """-log p(target t + 1) at position t, summed over targets that carry a loss, in plain Python."""
    totals = []
    for logits, document in zip(outputs.tolist(), targets.tolist(), strict=True):
        total = 0.0
        for t in range(1, len(document)):
            if document[t] != -100:
                row = logits[t - 1]
                total += math.log(sum(math.exp(v) for v in row)) - row[document[t]]
        totals.append(total)
    return totals


def test_the_shift_and_the_padding_of_language_models():
    task = CausalLM()
    assert task.loss(TOKENS, TARGETS).tolist() == pytest.approx(by_hand(TOKENS, TARGETS), rel=1e-12)
    assert task.loss(TOKENS, TARGETS).tolist() != pytest.approx(by_hand(TOKENS.roll(1, dims=1), TARGETS), rel=1e-3)
    # The first target has no position before it; what follows the last real token is never asked.
    changed = TOKENS.clone()
    changed[0, -1] += 7
    changed[1, 1:] -= 7
    assert torch.equal(task.loss(changed, TARGETS), task.loss(TOKENS, TARGETS))
    assert task.token_losses(TOKENS, TARGETS).shape == (2, 3)
    assert task.token_losses(TOKENS, TARGETS)[1, 1:].tolist() == [0, 0]
    assert task.feed(IDS).tolist() == [[3, 1, 4, 1], [2, 0, 0, 0]]
    assert task.mask(batch_of(IDS, TARGETS)).tolist() == [[True] * 4, [True, True, False, False]]


def test_longer_padding_changes_nothing():
    task = CausalLM()
    padded = torch.nn.functional.pad(TARGETS, (0, 3), value=-100)
    outputs = torch.cat([TOKENS, torch.randn(2, 3, 5, generator=generator(9), dtype=torch.float64)], 1)
    torch.testing.assert_close(task.loss(outputs, padded), task.loss(TOKENS, TARGETS), rtol=1e-14, atol=0)
    (c,) = task.cotangents(outputs, padded, "empirical", None)
    (short,) = task.cotangents(TOKENS, TARGETS, "empirical", None)
    torch.testing.assert_close(c[:, :4], short)
    assert not c[:, 4:].any()


def test_the_language_objective_is_the_mean_over_tokens():
    task = CausalLM()
    each = task.loss(TOKENS, TARGETS)
    batch = batch_of(IDS, TARGETS, [1.0, 0.5])
    wanted = by_hand(TOKENS, TARGETS)
    assert task.objective(each, batch).item() == pytest.approx((wanted[0] + 0.5 * wanted[1]) / 4, rel=1e-12)
    silent = batch_of(IDS, torch.full_like(TARGETS, -100))
    assert task.objective(task.loss(TOKENS, silent.targets), silent).item() == 0  # and not 0 / 0


def test_language_cotangents():
    task = CausalLM()
    leaf = TOKENS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(task.loss(leaf, TARGETS).sum(), leaf)
    (c,) = task.cotangents(TOKENS, TARGETS, "empirical", None)
    torch.testing.assert_close(c, grad, rtol=1e-12, atol=1e-14)
    n = 20_000
    (many,) = task.cotangents(TOKENS.repeat(n, 1, 1), TARGETS.repeat(n, 1), "sampled", generator())
    many = many.view(n, 2, 4, 5)
    has_loss = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert not many[:, ~has_loss].any()
    fisher = torch.einsum("nti,ntj->tij", many[:, has_loss], many[:, has_loss]) / n
    torch.testing.assert_close(fisher, softmax_fisher(TOKENS[has_loss]), rtol=0, atol=4 / math.sqrt(n))
    # Tokens are drawn one by one: those of different positions are uncorrelated.
    across = torch.einsum("ni,nj->ij", many[:, 0, 0], many[:, 0, 1]) / n
    assert across.abs().max() < 4 / math.sqrt(n)
    with pytest.raises(InfuserError, match="exact labels are not available"):
        next(task.cotangents(TOKENS, TARGETS, "exact", None))


# --- with a model -----------------------------------------------------------------------------------------------------


def test_losses_of_a_model_at_other_parameters():
    data = Dataset.from_arrays(np.eye(3), np.array([0, 1, 1]))
    model = nn.Linear(3, 2, bias=False)
    other = {"weight": torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])}
    got = losses(task_of(data), model, other, next(data.batches(3)))
    wanted = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2)), math.log(1 + math.exp(3))]
    assert got.tolist() == pytest.approx(wanted, rel=1e-6)
    assert not torch.equal(trainable(model)["weight"], other["weight"])


def test_tasks_by_kind():
    assert task_of(Dataset.from_arrays(np.eye(2), np.array([0, 1]))) == Classification()
    assert task_of(Dataset.from_arrays(np.eye(2), np.array([0.0, 1.0]))) == Regression()
    tokens = Dataset(IDS.numpy(), TARGETS.numpy(), "causal_lm", 5)
    assert task_of(tokens) == CausalLM()
