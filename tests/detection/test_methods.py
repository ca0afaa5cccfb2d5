"""Each statistic against a second computation that shares no code with it, and against cases that it must not pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from infuser import detection
from infuser.attribution.loss_trace import LossTrace
from infuser.curvature.dense import fit_dense
from infuser.curvature.ekfac import fit_ekfac
from infuser.detection.fused import fuse
from infuser.detection.isolation import isolation
from infuser.detection.pixel_noise import local_noise
from infuser.detection.spectral import projections
from infuser.errors import InfuserError
from infuser.types import Damping, Suspicion
from tests.detection.small import FINDER, behaviour, documents, observed

RNG = np.random.default_rng(0)


def _tilted(bad: int = 10, shift: float = 6.0) -> np.ndarray:
    """90 points of a round cloud, then `bad` of them moved along one axis; the whole away from 0."""
    cloud = RNG.normal(size=(90 + bad, 8))
    cloud[90:, 0] += shift
    return cloud + 5


def test_projections_are_those_of_the_singular_vectors() -> None:
    features = _tilted()
    centred = features - features.mean(0)
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred)
    wanted = (centred @ vectors[:, -2:]) ** 2
    np.testing.assert_allclose(projections(features, 1), wanted[:, 1], rtol=1e-8)
    np.testing.assert_allclose(projections(features, 2), wanted.sum(1), rtol=1e-8)
    assert projections(features, 1).sum() == pytest.approx(eigenvalues[-1])
    # Without the centring the first axis is the mean itself.
    assert not np.allclose(projections(features, 1), (features @ np.linalg.svd(features)[2][0]) ** 2, rtol=0.1)


def test_documents_moved_together_stick_out_and_those_moved_apart_do_not() -> None:
    assert set(np.argsort(-projections(_tilted(), 1))[:10]) == set(range(90, 100))
    apart = RNG.normal(size=(100, 8)) * np.array([4, *[1] * 7])  # a wide honest axis
    apart[90:, 1] += 4
    assert len(set(np.argsort(-projections(apart, 1))[:10]) & set(range(90, 100))) <= 4
    assert projections(np.ones((5, 3)), 1).tolist() == [0] * 5
    assert projections(np.ones((1, 3)), 1).tolist() == [0]


def test_clustering_gives_the_side_of_the_small_cluster() -> None:
    features = _tilted(10, shift=30)
    values = detection.ActivationClustering().sides(features)
    # By hand: the clusters are known, their centres are means, and PCA with all 8 axes keeps distances.
    large, small = features[:90].mean(0), features[90:].mean(0)
    to_large, to_small = ((features - large) ** 2).sum(1), ((features - small) ** 2).sum(1)
    wanted = (1 - 2 * 0.1) * (to_large - to_small) / ((large - small) ** 2).sum()
    np.testing.assert_allclose(values, wanted, rtol=1e-6)
    assert values[90:].min() > 0.5 > 0 > values[:90].max()
    # Halves are nobody's fault.
    halves = np.concatenate([RNG.normal(size=(50, 8)), RNG.normal(size=(50, 8)) + 20])
    assert np.abs(detection.ActivationClustering().sides(halves)).max() == 0
    assert detection.ActivationClustering().sides(np.zeros((3, 4))).tolist() == [0, 0, 0]


def test_the_share_of_foreign_neighbours_is_counted_over_others() -> None:
    run, data, _ = observed()
    model = run.model()
    with torch.no_grad():
        hidden = model[:-1](torch.from_numpy(data.inputs.copy()).float() / 255).double()
    distances = torch.cdist(hidden, hidden).fill_diagonal_(torch.inf)
    near = distances.argsort(1)[:, :7].numpy()
    wanted = (data.targets[near] != data.targets[:, None]).mean(1)
    found = detection.detect(detection.DeepKNN(k=7), run, data).values
    assert (np.abs(found - wanted) < 1e-9).mean() > 0.99  # rounding may swap two neighbours at one distance
    with_itself = distances.fill_diagonal_(0).argsort(1)[:, :7].numpy()
    assert not np.allclose(found, (data.targets[with_itself] != data.targets[:, None]).mean(1))


def test_isolation_is_the_distance_of_last_layer_gradients() -> None:
    run, data, _ = observed()
    few = data[data.ids[data.targets == 3][:12]]
    model = run.model()
    rows = []
    for x, y in zip(few.inputs, few.targets, strict=True):
        loss = F.cross_entropy(model(torch.from_numpy(x.copy())[None].float() / 255), torch.tensor([int(y)]))
        weight, bias = torch.autograd.grad(loss, [model[-1].weight, model[-1].bias])
        rows.append(torch.cat([weight.flatten(), bias]).double())
    distances = torch.cdist(torch.stack(rows), torch.stack(rows)).fill_diagonal_(torch.inf)
    wanted = distances.sort(1).values[:, :3].mean(1).numpy()
    alone = replace(run, data_hash=few.content_hash, n_documents=len(few))
    found = detection.detect(detection.GradientIsolation(k=3, checkpoints=1), alone, few).values
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
    averaged = detection.detect(detection.GradientIsolation(k=3, checkpoints=4), alone, few).values
    assert not np.allclose(averaged, wanted, rtol=1e-2)


def test_a_lone_gradient_is_isolated_and_a_pair_is_not() -> None:
    left, right = RNG.normal(size=(30, 4)) * 0.1, RNG.normal(size=(30, 6)) * 0.1
    left[7], left[[11, 12]] = 3, -3
    right[[11, 12]] = 1
    assert np.argmax(isolation(left, right, 1)) == 7
    assert isolation(left, right, 1)[11] == pytest.approx(0, abs=1e-9)
    assert isolation(left[:1], right[:1], 3).tolist() == [0]


def test_noise_raises_the_noise_and_smooth_edits_do_not() -> None:
    rows, columns = np.mgrid[:16, :16]
    phases = RNG.uniform(0, 6, (40, 1, 1, 1))
    images = (127 + 80 * np.sin(rows / 5 + columns / 7 + phases)).astype(np.uint8)
    noisy, brighter = images.copy(), images.copy()
    noisy[:5] = noisy[:5] + RNG.choice([-12, 12], noisy[:5].shape)
    brighter[:5] = brighter[:5] + 12
    data = documents()[0]
    run, _, _ = observed()

    def top(stored: np.ndarray) -> set[int]:
        made = type(data).from_arrays(stored, np.zeros(40, dtype=np.int64))
        suspicion = detection.PixelNoise(k=5).suspicion(run, made)
        return set(suspicion.top(5).tolist())

    assert top(noisy) == set(range(5))
    assert top(brighter) != set(range(5))
    level, smooth = local_noise(np.full((1, 1, 8, 8), 9, np.uint8))
    assert level.tolist() == [pytest.approx(np.log(1 / 255))]
    assert (smooth == 9).all()
    with pytest.raises(InfuserError, match="8-bit images"):
        detection.PixelNoise().suspicion(run, type(data).from_arrays(np.zeros((4, 3)), np.zeros(4, dtype=np.int64)))


def test_fused_ranks_are_means_of_ranks() -> None:
    run, data, _ = observed()
    members = (detection.TrainingLoss(), detection.DeepKNN(k=10), detection.SelfInfluence())
    table = [stats.rankdata(detection.detect(member, run, data).values) / len(data) for member in members]
    fused = detection.detect(detection.Fused(members), run, data)
    np.testing.assert_allclose(fused.values, np.mean(table, axis=0))
    largest = detection.detect(detection.Fused(members, "max"), run, data)
    np.testing.assert_allclose(largest.values, np.max(table, axis=0))
    assert not np.allclose(fused.values, largest.values)
    told = detection.Fused((*members, detection.InfluenceTowards()))
    assert detection.detect(told, run, data, behaviour()).told == "blind and suspected: log_odds"
    other = Suspicion(np.zeros(2), np.arange(2), "other")
    with pytest.raises(InfuserError, match="same documents"):
        fuse([fused, other])
    with pytest.raises(InfuserError, match="nothing to fuse"):
        detection.Fused(())


def test_rankers_of_what_was_recorded_add_nothing() -> None:
    run, data, _ = observed()
    loss = LossTrace().score(run, data).values[0]
    np.testing.assert_array_equal(detection.detect(detection.TrainingLoss(), run, data).values, loss)
    mu = FINDER.score(run, data).values[0]
    np.testing.assert_array_equal(detection.detect(detection.FIne(FINDER), run, data).values, mu)
    towards = FINDER.score(run, data, behaviour()).values.mean(0)
    found = detection.detect(detection.FIne(FINDER, "measurement"), run, data, behaviour()).values
    np.testing.assert_array_equal(found, towards)
    assert not np.allclose(mu, towards)


def test_influence_is_that_of_the_dense_matrix() -> None:
    run, data, _ = observed()
    few = data[data.ids[:40]]
    alone = replace(run, data_hash=few.content_hash, n_documents=len(few))
    dense = fit_dense(alone, few, labels="empirical")
    damping = Damping(0.01, "absolute")
    model = alone.model()
    params = list(model.parameters())
    rows = []
    for x, y in zip(few.inputs, few.targets, strict=True):
        loss = F.cross_entropy(model(torch.from_numpy(x.copy())[None].float() / 255), torch.tensor([int(y)]))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]).double())
    gradients = torch.stack(rows)
    size = gradients.shape[1]
    inverse = torch.linalg.inv(gradients.T @ gradients / 40 + 0.01 * torch.eye(size, dtype=torch.float64))
    own = torch.einsum("np,pq,nq->n", gradients, inverse, gradients).numpy()
    found = detection.detect(detection.SelfInfluence(damping, curvature=dense), alone, few).values
    np.testing.assert_allclose(found, own, rtol=2e-2, atol=1e-4)
    probe = behaviour()
    logits = model(torch.from_numpy(probe.documents.inputs.copy()).float() / 255)
    p = logits.softmax(1)[torch.arange(3), torch.as_tensor(np.asarray(probe.labels))]
    f = (p.log() - (1 - p).log()).mean()
    v = torch.cat([g.flatten() for g in torch.autograd.grad(f, params)]).double()
    wanted = (-(gradients @ (inverse @ v)) / 40).numpy()
    towards = detection.InfluenceTowards(damping, curvature=dense)
    values = detection.detect(towards, alone, few, probe).values
    np.testing.assert_allclose(values, wanted, rtol=2e-2, atol=1e-2 * np.abs(wanted).max())
    # Negative: without curvature, or with the other sign, the numbers are others.
    assert not np.allclose(values, -(gradients @ v).numpy() / 40, rtol=0.2)


def test_a_shared_fit_changes_nothing() -> None:
    run, data, _ = observed()
    shared = fit_ekfac(run, data)
    for method in (detection.SelfInfluence, detection.InfluenceTowards):
        given = detection.detect(method(curvature=shared), run, data, behaviour())
        fitted = detection.detect(method(), run, data, behaviour())
        np.testing.assert_array_equal(given.values, fitted.values)
