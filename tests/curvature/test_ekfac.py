"""EK-FAC and K-FAC against the dense Gauss-Newton matrix, and what must not change them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from infuser import models
from infuser.checkpoints import Run
from infuser.curvature import factors, find_layers, fit_dense, fit_ekfac, fit_kfac
from infuser.curvature.factors import Pass
from infuser.errors import InfuserError
from infuser.types import Damping
from tests import oracles
from tests.curvature.small import MODELS, Bag, case, dataset, regression, run_of, texts

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
SOME = ["mlp", "conv2d grouped", "conv2d stride, padding", "batch norm", "tokens", "called twice, tied", "shared input"]
SOME += ["gpt2 conv1d", "bag", "gpt", "gpt, tied"]


def dense(curvature, model):
    return oracles.as_matrix(curvature.matvec, oracles.leaves(model))


def blocks_of(matrix, layers, like):
    for layer in layers:
        at = oracles.positions_of(layer.names, like)
        yield layer, matrix[at][:, at]


def linear_net(data, *widths):
    return run_of(lambda: nn.Sequential(*[nn.Linear(i, o) for i, o in pairwise(widths)]), data)


# --- equalities ---


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
def test_linear_networks_with_squared_error_are_exact(fit):
    data = regression((4,), n=7)
    run = linear_net(data, 4, 3, 3, 2)
    model, fitted = run.model(), fit(run, data, labels="exact", batch_size=3)
    like, true, mine = oracles.leaves(model), oracles.gauss_newton(model, data), dense(fitted, model)
    for layer, block in blocks_of(true, find_layers(model), like):
        at = oracles.positions_of(layer.names, like)
        torch.testing.assert_close(mine[at][:, at], block, **CLOSE)
        mine[at[:, None], at] = 0
    assert torch.count_nonzero(mine) == 0  # nothing between layers


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
def test_one_document_with_one_position_is_exact(fit):
    run, data = case("mlp", n=1)
    model = run.model()
    like, mine = oracles.leaves(model), dense(fit(run, data, labels="exact"), model)
    for layer, block in blocks_of(oracles.gauss_newton(model, data), find_layers(model), like):
        at = oracles.positions_of(layer.names, like)
        torch.testing.assert_close(mine[at][:, at], block, **CLOSE)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
def test_softmax_over_many_documents_is_not_exact(fit):
    run, data = case("mlp", n=12)
    model = run.model()
    like, mine = oracles.leaves(model), dense(fit(run, data, labels="exact"), model)
    for layer, block in blocks_of(oracles.gauss_newton(model, data), find_layers(model), like):
        at = oracles.positions_of(layer.names, like)
        assert (mine[at][:, at] - block).norm() > 0.02 * block.norm()


@pytest.mark.parametrize("name", SOME)
def test_eigenvalues_are_the_fisher_along_the_eigenvectors(name):
    """Q^T F Q of the dense Fisher has lambda on its diagonal, whatever the layer, tied or padded."""
    run, data = case(name)
    model = run.model()
    fitted, true = fit_ekfac(run, data, labels="empirical", batch_size=4), oracles.empirical_fisher(model, data)
    like = oracles.leaves(model)
    for block, (layer, own) in zip(fitted.blocks, blocks_of(true, find_layers(model), like), strict=True):
        size = np.prod(layer.shape)
        unit = torch.eye(int(size), dtype=torch.float64).view(-1, *layer.shape)
        basis = oracles.rows_of(layer.from_matrix(block.rotate_back(unit)))
        torch.testing.assert_close(basis @ basis.T, torch.eye(int(size), dtype=torch.float64), **CLOSE)
        torch.testing.assert_close((basis @ own @ basis.T).diagonal(), block.eigenvalues.flatten(), **CLOSE)


@pytest.mark.parametrize("name", SOME)
def test_ekfac_is_never_further_from_the_fisher_than_kfac(name):
    run, data = case(name, n=12)
    model = run.model()
    like, true = oracles.leaves(model), oracles.empirical_fisher(model, data)
    near, far = (dense(fit(run, data, labels="empirical"), model) for fit in (fit_ekfac, fit_kfac))
    strictly = 0
    for layer, block in blocks_of(true, find_layers(model), like):
        at = oracles.positions_of(layer.names, like)
        errors = [(m[at][:, at] - block).norm() for m in (near, far)]
        assert errors[0] <= errors[1] * (1 + 1e-9)
        strictly += bool(errors[0] < 0.999 * errors[1])
    assert strictly


@pytest.mark.parametrize("labels", ["empirical", "exact"])
def test_dense_is_the_fisher_by_autograd(labels):
    run, data = case("conv2d grouped")
    model = run.model()
    true = (oracles.empirical_fisher if labels == "empirical" else oracles.gauss_newton)(model, data)
    torch.testing.assert_close(fit_dense(run, data, labels=labels, batch_size=4).matrix(), true, **CLOSE)
    other = (oracles.gauss_newton if labels == "empirical" else oracles.empirical_fisher)(model, data)
    assert (true - other).norm() > 0.1 * true.norm()


def test_sampled_labels_average_to_the_exact_fisher():
    run, data = case("mlp", n=4)
    draws = torch.stack([fit_dense(run, data, labels="sampled", seed=s).matrix() for s in range(150)])
    exact = oracles.gauss_newton(run.model(), data)
    error = (draws.mean(0) - exact).norm()
    expected = draws.std(0).norm() / 150**0.5
    assert 0.4 * expected < error < 2 * expected
    assert (draws[0] - exact).norm() > 5 * error


# --- the covariances ---


def first_pass(run, data, **how):
    return factors.covariances(run, data, Pass("empirical", **{"positions": None, **how}), np.arange(len(data)))


def test_padding_is_left_out_of_the_input_factor():
    data = texts()
    run, _ = case("gpt", n=5)
    model = run.model()
    seen = []
    model.blocks[0].up.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    ids = torch.tensor(data.inputs)
    with torch.no_grad():
        model(ids.clamp(min=0))
    real = ids >= 0
    rows = torch.cat([seen[0][real], torch.ones(int(real.sum()), 1, dtype=torch.float64)], 1)
    sums = first_pass(run, data)
    torch.testing.assert_close(sums.right["blocks.0.up.weight|0"][0], rows.T @ rows, **CLOSE)
    assert sums.rows["blocks.0.up.weight|0"] == int(real.sum())
    assert real.sum() < real.numel()
    counts = torch.bincount(ids[real], minlength=9).double()
    torch.testing.assert_close(sums.left["tokens.weight|0"][0], counts)


def test_a_shared_input_has_one_factor():
    run, data = case("shared input")
    sums = first_pass(run, data)
    assert sums.same["0.k.weight|0"] == sums.same["0.v.weight|0"] == "0.q.weight|0"
    assert set(sums.right) == {"0.q.weight|0", "3.weight|0"}
    fitted = fit_ekfac(run, data)
    assert torch.equal(fitted.blocks[0].right, fitted.blocks[1].right)
    other, _ = case("tokens")
    assert len(set(first_pass(other, data=case("tokens")[1]).same.values())) == 3


@pytest.mark.parametrize("name", ["conv2d circular", "conv2d grouped", "conv1d"])
def test_a_sample_of_positions_is_a_sample_of_the_patches(name):
    run, data = case(name)
    full, same = first_pass(run, data), first_pass(run, data, positions=10**6)
    part = first_pass(run, data, positions=4)
    key = "0.weight|0"
    assert torch.equal(full.right[key], same.right[key])
    assert part.rows[key] == 4 * len(data)
    form = find_layers(run.model())[0].forms[0]
    x, ids = torch.tensor(data.inputs), torch.tensor(data.ids)
    patches = form.right(x)
    chosen = factors._chosen(patches.shape[2], 4, 0, ids)
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    assert len({tuple(row) for row in chosen.tolist()}) > 1
    rows = torch.stack([patches[n][:, at] for n, at in enumerate(chosen)])
    torch.testing.assert_close(part.right[key], torch.einsum("nkti,nktj->kij", rows, rows), **CLOSE)
    one = first_pass(run, data, positions=4, batch_size=1)
    torch.testing.assert_close(part.right[key], one.right[key], **CLOSE)
    assert torch.equal(part.left[key], full.left[key])


def test_positions_are_drawn_evenly():
    counts = torch.bincount(factors._chosen(12, 5, 3, torch.arange(6000)).flatten(), minlength=12)
    assert counts.sum() == 30_000
    assert (counts - 2500).abs().max() < 5 * (6000 * 5 / 12 * 7 / 12) ** 0.5


@pytest.mark.parametrize("name", ["mlp", "bag", "gpt, tied"])
def test_a_wide_side_keeps_its_own_axes(name, monkeypatch):
    run, data = case(name)
    model, true = run.model(), oracles.empirical_fisher(run.model(), data)
    like = oracles.leaves(model)
    monkeypatch.setattr(factors, "WIDE", 4)
    for fit in (fit_ekfac, fit_kfac):
        fitted = fit(run, data, labels="empirical")
        for block, (layer, own) in zip(fitted.blocks, blocks_of(true, find_layers(model), like), strict=True):
            assert (block.left is None) == (layer.diagonal or layer.shape[1] > 4 or layer.names[0] == "tokens.weight")
            assert (block.right is None) == (layer.diagonal or layer.shape[2] > 4)
            if fit is fit_ekfac:
                assert block.eigenvalues.sum().item() == pytest.approx(own.trace().item(), rel=1e-9)


def test_weights_multiply_documents():
    data = dataset((5,), n=6)
    run = run_of(MODELS["mlp"][0], data)
    none = fit_kfac(run, data.with_weights([1, 4], 0.0), labels="empirical")
    without = fit_kfac(run, data.without([1, 4]), labels="empirical")
    for mine, other in zip(none.blocks, without.blocks, strict=True):
        torch.testing.assert_close(mine.eigenvalues * 6 / 4, other.eigenvalues, **CLOSE)
    doubled = fit_ekfac(run, data.with_weights(data.ids, 2.0), labels="sampled")
    plain = fit_ekfac(run, data, labels="sampled")
    v = {n: p.detach()[None] for n, p in oracles.leaves(run.model()).items()}
    for name, value in plain.matvec(v).items():
        torch.testing.assert_close(doubled.matvec(v)[name], 2 * value, **CLOSE)


# --- invariances ---


def solved(fitted, model):
    generator = torch.Generator().manual_seed(3)
    v = {
        n: torch.randn(2, *p.shape, dtype=torch.float64, generator=generator) for n, p in oracles.leaves(model).items()
    }
    return oracles.rows_of(fitted.solve(v, Damping(0.1)))


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
@pytest.mark.parametrize("name", ["conv2d grouped", "gpt, tied", "batch norm"])
def test_batch_size_order_and_shards_change_nothing(fit, name):
    run, data = case(name, n=7)
    model = run.model()
    expected = solved(fit(run, data, seed=5), model)
    shuffled = data[np.random.default_rng(0).permutation(data.ids)]
    for other in (
        fit(run, data, seed=5, batch_size=1),
        fit(run, data, seed=5, batch_size=3, shards=2),
        fit(run, shuffled, seed=5),
    ):
        torch.testing.assert_close(solved(other, model), expected, rtol=1e-7, atol=1e-8)
    assert (solved(fit(run, data, seed=6), model) - expected).norm() > 1e-3 * expected.norm()


def test_more_padding_changes_nothing():
    make = partial(models.tiny_gpt, (9,), 9, width=4, depth=1, heads=2)
    short, long = texts(extra=0), texts(extra=3)
    run = run_of(make, long)
    results = [solved(fit(run, d), run.model()) for fit in (fit_ekfac, fit_kfac) for d in (short, long)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(results[2], results[3], rtol=1e-8, atol=1e-9)


class Ships:
    """Checks that everything can travel to another process, and counts the jobs."""

    def __init__(self):
        self.jobs = 0

    def map(self, fn, jobs):
        assert pickle.dumps(fn)
        for job in jobs:
            self.jobs += 1
            result = fn(job)
            assert pickle.dumps(result)
            yield result


def test_shards_go_through_the_executor():
    data = dataset((5,), n=9)
    data = type(data)(data.inputs.astype(np.float32), data.targets, "classification", 3)
    model = models.mlp((5,), 3, hidden=(4,))
    run = Run.from_weights(partial(models.mlp, hidden=(4,)), model.state_dict(), data)
    ships = Ships()
    near, far = fit_ekfac(run, data, shards=4), fit_ekfac(run, data, shards=4, executor=ships)
    assert ships.jobs == 8  # two passes
    for mine, other in zip(near.blocks, far.blocks, strict=True):
        assert torch.equal(mine.eigenvalues, other.eigenvalues)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
def test_sharded_sums_are_the_local_ones_and_one_shard_is_the_local_fit(fit):
    data = dataset((5,), n=40)
    data = type(data)(data.inputs.astype(np.float32), data.targets, "classification", 3)
    model = models.mlp((5,), 3, hidden=(4,))
    run = Run.from_weights(partial(models.mlp, hidden=(4,)), model.state_dict(), data)
    local = fit(run, data, batch_size=4)
    one, many = (fit(run, data, batch_size=4, shards=n, executor=Ships()) for n in (1, 7))
    v = {n: torch.ones(1, *p.shape) for n, p in oracles.leaves(model).items()}
    want = oracles.rows_of(local.solve(v, Damping(0.1)))
    for mine, other in zip(local.blocks, one.blocks, strict=True):
        assert torch.equal(mine.eigenvalues, other.eigenvalues)
    assert torch.equal(oracles.rows_of(one.solve(v, Damping(0.1))), want)
    got = oracles.rows_of(many.solve(v, Damping(0.1)))
    assert (got - want).norm() <= 1e-6 * want.norm()
    assert fit(run, data[data.ids[:-1]], batch_size=4).blocks[0].eigenvalues.ne(local.blocks[0].eigenvalues).any()


def test_a_sample_of_documents_is_counted():
    run, data = case("mlp", n=12)
    fitted = fit_ekfac(run, data, documents=5, seed=2)
    assert fitted.origin.documents == 5
    assert fit_ekfac(run, data, documents=13).origin.documents == 12
    with pytest.raises(InfuserError, match=r"documents is out of range.*Got: 0.*at least 1"):
        fit_ekfac(run, data, documents=0)


def test_exact_labels_count_an_embedding_once():
    rng = np.random.default_rng(0)
    base = dataset((6,), n=6)
    data = type(base)(rng.integers(0, 7, (6, 6)), base.targets, "classification", 3)
    run = run_of(lambda: Bag(7, 4, 3), data)
    kfac = fit_kfac(run, data, labels="exact")
    like, true = oracles.leaves(run.model()), oracles.gauss_newton(run.model(), data)
    at = oracles.positions_of(("tokens.weight",), like)
    mine = oracles.as_matrix(kfac.matvec, like)[at][:, at]
    # sum_t of squares against squares of sums: of one order, not three times (the classes) as large
    assert 0.3 < mine.trace() / true[at][:, at].trace() < 2.0


def test_a_weight_that_is_not_finite_is_named():
    run, data = case("conv2d plain")
    run.checkpoints[0].weights["0.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(InfuserError, match=r"not finite. Got: parameters 0\.weight, .*weights diverged"):
        fit_ekfac(run, data)


def test_a_factor_that_is_not_finite_names_its_layer():
    from infuser.curvature.operator import eigenbasis

    factor = torch.eye(3)[None].clone()
    factor[0, 1, 2] = float("nan")
    with pytest.raises(InfuserError, match=r"factor of layer head\.weight is not finite. Got: 1 of 9.*diverged"):
        eigenbasis("head.weight", factor)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac])
def test_weights_of_an_embeddings_documents_count_once(fit):
    """A document of weight 2 is one that stands there twice."""
    run, data = case("gpt", n=6)
    heavy = fit(run, data.with_weights(data.ids[:1], 2.0), labels="empirical")
    first = data[data.ids[:1]]
    twice = replace(
        data,
        inputs=np.concatenate([data.inputs, first.inputs]),
        targets=np.concatenate([data.targets, first.targets]),
        ids=np.arange(7),
        weights=np.ones(7, np.float32),
    )
    other = fit(run, twice, labels="empirical")
    for mine, theirs in zip(heavy.blocks, other.blocks, strict=True):
        torch.testing.assert_close(mine.eigenvalues * 6 / 7, theirs.eigenvalues, rtol=1e-6, atol=1e-9)
