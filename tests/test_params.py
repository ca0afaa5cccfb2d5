import numpy as np
import pytest
import torch
from torch import nn

from infuser import params as P
from infuser.errors import InfuserError


def two(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(2, 3, generator=g, dtype=dtype), "b": torch.randn(4, generator=g, dtype=dtype)}


def as_numpy(p):
    return np.concatenate([value.numpy().ravel() for value in p.values()])


def test_algebra_is_that_of_vectors():
    a, b = two(0), two(1)
    x, y = as_numpy(a), as_numpy(b)
    np.testing.assert_allclose(as_numpy(P.add(a, b, -2.5)), x - 2.5 * y, rtol=1e-14)
    np.testing.assert_allclose(as_numpy(P.scale(a, 3)), 3 * x, rtol=1e-14)
    assert P.dot(a, b).item() == pytest.approx(x @ y, rel=1e-14)
    assert P.norm(a).item() == pytest.approx(np.linalg.norm(x), rel=1e-14)
    assert not as_numpy(P.zeros(a)).any()
    np.testing.assert_allclose(as_numpy(P.apply(torch.exp, a)), np.exp(x), rtol=1e-14)
    np.testing.assert_array_equal(as_numpy(a), x)  # nothing was written in place


def test_missing_names_count_as_zero_when_adding_and_are_an_error_in_a_product():
    a, b = two(0), {"b": two(1)["b"]}
    total = P.add(a, b)
    assert torch.equal(total["w"], a["w"])
    assert torch.equal(total["b"], a["b"] + b["b"])
    with pytest.raises(InfuserError, match=r"different names.*w"):
        P.dot(a, b)


def test_products_do_not_depend_on_the_order_of_the_names():
    a, b = two(0), two(1)
    assert P.dot(a, dict(reversed(b.items()))) == P.dot(a, b)


def test_products_of_singles_are_summed_in_double_precision():
    n = 100_000
    a, ones = {"w": torch.full((n,), 0.1)}, {"w": torch.ones(n)}
    exact = n * float(np.float32(0.1))
    assert P.dot(a, ones).dtype == torch.float64
    assert P.dot(a, ones).item() == pytest.approx(exact, rel=1e-12)
    running = np.add.accumulate(a["w"].numpy())[-1]  # what single precision would have given
    assert abs(running - exact) / exact > 1e-7


def test_flatten_and_back():
    a = two()
    flat = P.flatten(a)
    np.testing.assert_array_equal(flat.numpy(), as_numpy(a))
    back = P.unflatten(flat, a)
    assert list(back) == list(a)
    assert all(torch.equal(back[name], a[name]) for name in a)
    queries = {name: torch.stack([value, 2 * value]) for name, value in a.items()}
    rows = P.flatten(queries, batch_dims=1)
    np.testing.assert_array_equal(rows.numpy(), np.stack([as_numpy(a), 2 * as_numpy(a)]))
    again = P.unflatten(rows, a)
    assert all(torch.equal(again[name], queries[name]) for name in a)


def test_trainable_leaves_out_what_is_frozen_and_shares_memory():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    found = P.trainable(model)
    assert list(found) == ["0.weight", "1.weight", "1.bias"]
    assert not any(value.requires_grad for value in found.values())
    assert found["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert model[0].weight.requires_grad
