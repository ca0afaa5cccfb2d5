"""Solves against dense inverses, and files that belong to one run and one data set."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infuser.checkpoints import Run, build
from infuser.curvature import Identity, fit_dense, fit_ekfac, fit_kfac, identity, load_curvature, save_curvature
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.types import Damping
from tests import oracles
from tests.curvature.small import case, dataset

CLOSE = {"rtol": 1e-8, "atol": 1e-10}


@pytest.fixture(scope="module")
def fitted():
    run, data = case("batch norm", n=8)
    return run, data, fit_ekfac(run, data)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_kfac, fit_dense])
@pytest.mark.parametrize("damping", [Damping(0.1), Damping(1e-3, "absolute")])
def test_solve_is_the_inverse_of_the_damped_matrix(fit, damping):
    run, data = case("conv2d grouped", n=8)
    curvature, like = fit(run, data), oracles.leaves(run.model())
    matrix = oracles.as_matrix(curvature.matvec, like)
    added = torch.zeros(len(matrix), dtype=torch.float64)
    groups = [tuple(like)] if fit is fit_dense else [block.layer.names for block in curvature.blocks]
    for names in groups:
        at = oracles.positions_of(names, like)
        added[at] = damping.value * (matrix[at, at].mean() if damping.kind == "relative" else 1.0)
    inverse = oracles.as_matrix(lambda v: curvature.solve(v, damping), like)
    identity_matrix = torch.eye(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(inverse @ (matrix + added.diag()), identity_matrix, **CLOSE)
    torch.testing.assert_close(matrix, matrix.T, **CLOSE)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_dense])
def test_a_sweep_is_one_solve_per_damping(fit):
    run, data = case("mlp")
    curvature = fit(run, data)
    v = {n: torch.randn(3, *p.shape, dtype=torch.float64) for n, p in oracles.leaves(run.model()).items()}
    dampings = [Damping(0.01), Damping(1.0), Damping(0.5, "absolute")]
    before = {n: value.clone() for n, value in v.items()}
    for damping, swept in zip(dampings, curvature.sweep(v, dampings), strict=True):
        for name, value in curvature.solve(v, damping).items():
            assert torch.equal(swept[name], value)
    assert all(torch.equal(v[n], before[n]) for n in v)


def linear(input_shape, n_outputs):
    return nn.Linear(input_shape[0], n_outputs)


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_matrix_from_single_precision_is_singular_where_a_common_offset_of_the_logits_changes_nothing(outputs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    v = {"weight": torch.ones(1, outputs, 4), "bias": torch.ones(1, outputs)}
    classes = Dataset(x, rng.integers(0, outputs, 60), "classification", outputs)
    fitted = fit_dense(run_of_floats(classes), classes)
    rank = torch.linalg.matrix_rank(fitted.matrix(), rtol=1e-6)
    assert rank == 5 * (outputs - 1)
    with pytest.raises(InfuserError, match=r"singular at damping 0.*offset of all logits"):
        fitted.solve(v, Damping(0.0))
    numbers = Dataset(x, x[:, :outputs], "regression", outputs)
    regular = fit_dense(run_of_floats(numbers), numbers)
    back = regular.matvec(regular.solve(v, Damping(0.0)))
    torch.testing.assert_close(back["weight"], v["weight"], rtol=1e-4, atol=1e-4)


def run_of_floats(data):
    return Run.from_weights(linear, build(linear, data.input_shape, data.n_outputs, 0).state_dict(), data)


@pytest.mark.parametrize("fit", [fit_ekfac, fit_dense])
def test_no_damping_on_a_singular_curvature_is_an_error(fit):
    run, data = case("mlp", n=2)
    v = {n: torch.ones(1, *p.shape, dtype=torch.float64) for n, p in oracles.leaves(run.model()).items()}
    with pytest.raises(InfuserError, match=r"singular at damping 0 relative.*positive damping"):
        fit(run, data, labels="empirical").solve(v, Damping(0.0))


def test_uncovered_parameters_count_as_constant(fitted):
    run, _, curvature = fitted
    v = {n: torch.ones(2, *p.shape, dtype=torch.float64) for n, p in oracles.leaves(run.model()).items()}
    extra = {**v, "scale": torch.ones(2, 3)}
    solved = curvature.solve(extra, Damping(0.1))
    assert torch.equal(solved["scale"], torch.zeros(2, 3))
    assert solved.keys() == extra.keys()


def test_identity():
    v = {"w": torch.tensor([[3.0, 1.0]])}
    assert torch.equal(identity().matvec(v)["w"], v["w"])
    assert torch.equal(identity().solve(v, Damping(0.5))["w"], torch.tensor([[2.0, 2 / 3]]))
    assert repr(identity("any run")) == repr(Identity()) == "Identity()"


def test_dense_refuses_large_models_and_other_parameters():
    run, data = case("mlp")
    curvature = fit_dense(run, data)
    with pytest.raises(InfuserError, match="vectors do not fit"):
        curvature.matvec({"w": torch.ones(1, 2)})
    from functools import partial

    from infuser import models
    from tests.curvature.small import run_of

    big = dataset((200,))
    with pytest.raises(InfuserError, match=r"too large for a dense curvature.*at most 20000.*fit_ekfac"):
        fit_dense(run_of(partial(models.mlp, (200,), 3, hidden=(100,)), big), big)


def test_what_is_saved_comes_back(fitted, tmp_path):
    run, data, curvature = fitted
    save_curvature(curvature, tmp_path / "h")
    loaded = load_curvature(tmp_path / "h", run, data, seed=0, labels="sampled", documents=8)
    assert loaded.origin == curvature.origin
    assert loaded.describe() == curvature.describe()
    v = {n: torch.randn(2, *p.shape, dtype=torch.float64) for n, p in oracles.leaves(run.model()).items()}
    for name, value in curvature.solve(v, Damping(0.1)).items():
        assert torch.equal(loaded.solve(v, Damping(0.1))[name], value)


def test_a_full_disk_leaves_no_factors(fitted, tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InfuserError, match="the disk is full"):
        save_curvature(fitted[2], tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_model_data_or_setting_is_refused(fitted, tmp_path):
    run, data, curvature = fitted
    save_curvature(curvature, tmp_path)
    other_run, other_data = case("batch norm", n=7)
    other_run.checkpoints[0].weights["3.weight" if "3.weight" in other_run.checkpoints[0].weights else "4.weight"][
        0, 0
    ] += 1
    with pytest.raises(InfuserError, match="made from other weights"):
        load_curvature(tmp_path, other_run, data)
    with pytest.raises(InfuserError, match="made from other data"):
        load_curvature(tmp_path, run, other_data)
    with pytest.raises(InfuserError, match=r"made from other seed. Got: 0. Expected: 1"):
        load_curvature(tmp_path, run, data, seed=1)
    with pytest.raises(InfuserError, match=r"made from other documents. Got: 8. Expected: 100"):
        load_curvature(tmp_path, run, data, documents=100)


def test_damaged_files_are_refused(fitted, tmp_path):
    run, data, curvature = fitted
    save_curvature(curvature, tmp_path)
    whole = (tmp_path / "factors.safetensors").read_bytes()
    (tmp_path / "factors.safetensors").write_bytes(whole[:-8])
    with pytest.raises(InfuserError, match="missing or damaged"):
        load_curvature(tmp_path, run, data)
    (tmp_path / "factors.safetensors").write_bytes(whole)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "layers": manifest["layers"][:1]}))
    assert len(load_curvature(tmp_path, run, data).blocks) == 1
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InfuserError, match=r"manifest\.json is missing"):
        load_curvature(tmp_path, run, data)


def test_it_says_what_it_is(fitted):
    _, _, curvature = fitted
    assert repr(curvature) == "KroneckerEigen(ekfac of 8 documents, sampled labels, seed 0, 3 layers)"
    lines = curvature.describe().splitlines()
    assert lines[1].startswith("0.weight: 3 x 36, eigenvalues ")
    assert len(lines) == 4
