from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import infuser as inf
from infuser import measure
from infuser.checkpoints import build
from infuser.data import Dataset, digits
from infuser.errors import InfuserError
from infuser.measure import Contrastive, Correct, Custom, LogProb, Losses, Margin, MeanLoss, Probability
from infuser.params import flatten, trainable, unflatten

N, C = 7, 4
WANTED = np.array([1, 0, 3, 2, 1, 1, 0])


def documents(n=N):
    rng = np.random.default_rng(3)
    return Dataset.from_arrays(
        rng.integers(0, 256, (n, 1, 3, 3), dtype=np.uint8), np.arange(n) % C, classes=tuple("abcd"), name="probes"
    )


@pytest.fixture
def model():
    return build(lambda shape, n: inf.models.mlp(shape, n, hidden=(6,)), (1, 3, 3), C, 1).double().eval()


def logits_by_numpy(model, data):
    """The network computed by hand, apart from torch."""
    w1, b1, w2, b2 = (p.detach().numpy() for p in model.parameters())
    x = data.inputs.reshape(len(data), -1) / 255
    return np.maximum(x @ w1.T + b1, 0) @ w2.T + b2


@pytest.fixture(autouse=True)
def in_double(monkeypatch):
    # Pixels are fed in single precision; a double-precision network needs doubles, and gives tight comparisons.
    monkeypatch.setattr(
        "infuser.tasks.Classification.feed", lambda self, x: x.double() / 255 if x.dtype == torch.uint8 else x
    )


def expected(name, logits):
    logp = log_softmax(logits, axis=1)
    rows = np.arange(N)
    own = np.arange(N) % C
    p = np.exp(logp[rows, WANTED])
    return {
        "log_prob": logp[rows, WANTED],
        "probability": p,
        "log_odds": np.log(p) - np.log1p(-p),
        "contrastive": logp[rows, WANTED] - logp[rows, own],
        "correct": (logits.argmax(1) == WANTED).astype(float),
        "neg_loss": logp[rows, own],
        "neg_mean_loss": np.array([logp[rows, own].mean()]),
    }[name]


ALL = [
    LogProb(documents(), WANTED),
    Probability(documents(), WANTED),
    Margin(documents(), WANTED),
    Contrastive(documents(), WANTED),
    Correct(documents(), WANTED),
    Losses(documents()),
    MeanLoss(documents()),
]


@pytest.mark.parametrize("f", ALL, ids=lambda f: f.name)
def test_values_against_numpy(f, model):
    values = f(model, trainable(model)).detach().numpy()
    wanted = expected(f.name, logits_by_numpy(model, documents()))
    np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-12)
    assert values.shape == (len(f),) == (len(f.queries),)
    assert f.unit
    # The oracle can fail: other weights give other values.
    if f.name != "correct":
        other = logits_by_numpy(model, documents()) * 1.01
        assert np.abs(values - expected(f.name, other)).max() > 1e-4


@pytest.mark.parametrize("f", [f for f in ALL if f.name != "correct"], ids=lambda f: f.name)
def test_gradients_against_finite_differences(f, model):
    params = trainable(model)
    grads, values = measure.gradients(f, model, params)
    alone = torch.cat([part(model, params).detach() for part in (f if hasattr(f, "__getitem__") else (f,))])
    torch.testing.assert_close(values, alone, rtol=0, atol=0)
    torch.testing.assert_close(values, f(model, params).detach(), rtol=1e-12, atol=1e-12)
    rows = flatten(grads, batch_dims=1)
    theta, h = flatten(params), 1e-6
    assert rows.shape == (len(f), len(theta))
    columns = []
    for j in range(len(theta)):
        step = torch.zeros_like(theta)
        step[j] = h
        up, down = (f(model, unflatten(theta + s * step, params)).detach() for s in (1, -1))
        columns.append((up - down) / (2 * h))
    numeric = torch.stack(columns, 1)
    torch.testing.assert_close(rows, numeric, rtol=1e-5, atol=1e-8)
    assert (rows - 1.01 * numeric).abs().max() > 1e-4
    assert all(p.grad is None for p in model.parameters())


def test_the_work_of_a_gradient_does_not_grow_with_the_other_queries(model):
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    f = Margin(documents(), WANTED)
    measure.gradients(f, model, trainable(model))
    assert seen == [1] * len(f)


@pytest.mark.parametrize("f", ALL, ids=lambda f: f.name)
def test_values_do_not_depend_on_the_chunk(f, model, monkeypatch):
    whole = f(model, trainable(model)).detach()
    monkeypatch.setattr(measure, "_CHUNK", 3)
    torch.testing.assert_close(f(model, trainable(model)).detach(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("f", ALL[:6], ids=lambda f: f.name)
def test_one_query_is_a_row_of_all(f, model):
    params = trainable(model)
    whole = f(model, params).detach()
    each = [part(model, params).detach() for part in f]  # iteration ends by IndexError
    torch.testing.assert_close(torch.cat(each), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f[-1](model, params).detach(), whole[-1:], rtol=1e-12, atol=1e-12)
    assert f[2].queries == f.queries[2:3]
    with pytest.raises(IndexError):
        f[len(f)]


def test_log_odds_do_not_saturate(model):
    f = Margin(documents(), WANTED)
    sure = {name: 200 * value for name, value in trainable(model).items()}
    values = f(model, sure).detach()
    assert torch.isfinite(values).all()
    assert values.abs().max() > 1000  # where p rounds to 0 or 1


def test_labels_default_to_the_documents_own():
    assert LogProb(documents()).queries == ("0->0", "1->1", "2->2", "3->3", "4->0", "5->1", "6->2")
    assert LogProb(documents(), WANTED).queries[0] == "0->1"
    assert Contrastive(documents(), WANTED).against.tolist() == documents().targets.tolist()


def test_bad_labels():
    with pytest.raises(InfuserError, match=r"one label per probe.*\(3,\).*\(7,\)"):
        LogProb(documents(), [1, 2, 3])
    for bad in (-1, C):
        with pytest.raises(InfuserError, match=r"label is out of range.*0 to 3"):
            Margin(documents(), [bad] + [0] * 6)
    with pytest.raises(InfuserError, match="out of range"):
        Contrastive(documents(), WANTED, [C] * 7)
    with pytest.raises(InfuserError, match="classification data"):
        LogProb(Dataset.from_arrays(np.zeros((2, 3)), [0.5, 1.5]))


def test_a_measurement_without_gradient_says_so(model):
    with pytest.raises(InfuserError, match=r"correct carries no gradient.*LogProb"):
        measure.gradients(Correct(documents()), model, trainable(model))


def test_custom(model):
    params = trainable(model)
    squares = Custom(lambda model, params: torch.stack([v.square().sum() for v in params.values()]), "squares", n=4)
    grads, values = measure.gradients(squares, model, params)
    assert squares.queries == ("squares 0", "squares 1", "squares 2", "squares 3")
    for q, name in enumerate(params):
        torch.testing.assert_close(grads[name][q], 2 * params[name])
        torch.testing.assert_close(values[q], params[name].square().sum())
        assert not grads[name][:q].any()
        assert not grads[name][q + 1 :].any()
    with pytest.raises(InfuserError, match=r"squares has the wrong shape.*\(4,\).*\(3,\)"):
        Custom(squares.fn, "squares", n=3)(model, params)


def test_predictions_and_names(model):
    logits = logits_by_numpy(model, documents())
    np.testing.assert_array_equal(measure.predictions(model, trainable(model), documents()), logits.argmax(1))
    assert measure.query_names(LogProb(documents()), N)[1] == "1->1"

    class Bare:
        name = "mine"

    assert measure.query_names(Bare(), 2) == ("mine 0", "mine 1")


class Own:
    """A measurement of one's own that is no dataclass."""

    name, unit = "own", "nats"

    def __init__(self, *queries):
        self.queries = queries

    def __call__(self, model, params):
        return torch.zeros(len(self.queries))


def test_measurements_are_told_apart_by_all_that_they_are():
    few = digits()[1]
    few = few[few.ids[:2]]
    other = replace(few, inputs=255 - few.inputs)
    made = [
        measure.LogProb(few),
        measure.LogProb(other),
        measure.Margin(few),
        measure.LogProb(few, labels=(few.targets + 1) % 10),
        measure.Contrastive(few, [0, 0], against=[1, 1]),
        measure.Contrastive(few, [0, 0], against=[2, 2]),
        measure.Custom(len, name="one"),
        measure.Custom(len, name="two"),
        Own("a"),
        Own("b"),
    ]
    assert len({measure.identity(each) for each in made}) == len(made)
    assert measure.identity(measure.LogProb(replace(few))) == measure.identity(made[0])
    assert measure.identity(Own("a")) == measure.identity(made[-2])
