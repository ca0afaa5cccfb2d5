"""Scores against kronfluence, an independent EK-FAC, on the layers that it knows: Conv2d and Linear.

Its sign is the opposite and it leaves the 1/N out, so ours are -1/N times its. It ignores norm layers: here both do.
"""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch

from infuser.attribution.influence import Influence
from infuser.curvature import fit_ekfac
from infuser.params import trainable
from infuser.types import Damping, Direction
from tests.attribution.small import digits_run

kronfluence = pytest.importorskip("kronfluence")
LEVEL = 1e-3  # absolute damping


def theirs(run, data, probes, folder):
    """Return kronfluence's pairwise scores (Q, N) with empirical labels."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from torch.utils.data import TensorDataset

    class Digits(Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            logits = model(batch[0])
            wanted = logits.gather(1, batch[1][:, None])[:, 0]
            others = logits.scatter(1, batch[1][:, None], float("-inf")).logsumexp(1)
            return (wanted - others).sum()

    def tensors(documents, labels):
        return TensorDataset(torch.from_numpy(documents.inputs / np.float32(255)), torch.from_numpy(np.array(labels)))

    model = prepare_model(copy.deepcopy(run.model()), Digits())
    quiet = {"log_level": logging.ERROR, "disable_tqdm": True}
    analyzer = Analyzer("a", model, Digits(), cpu=True, output_dir=str(folder), **quiet)
    train = tensors(data, data.targets)
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    analyzer.fit_all_factors("f", train, per_device_batch_size=32, factor_args=factors)
    analyzer.compute_pairwise_scores(
        "s",
        "f",
        tensors(probes.documents, probes.labels),
        train,
        per_device_query_batch_size=4,
        per_device_train_batch_size=32,
        score_args=ScoreArguments(damping_factor=LEVEL),
    )
    return analyzer.load_pairwise_scores("s")["all_modules"].double().numpy()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return (run, data, probes, curvature, kronfluence's scores)."""
    run, data, probes = digits_run("tiny_resnet")
    curvature = fit_ekfac(run, data, labels="empirical", documents=None, positions=None)
    return run, data, probes, curvature, theirs(run, data, probes, tmp_path_factory.mktemp("kronfluence"))


def ours(run, data, probes, curvature, damping, via="auto"):
    method = Influence(curvature, Damping(damping, "absolute"), via)
    direction = method.direction(run, probes)
    norms = {name for name in direction.params if "bn" in name or "shortcut.1" in name}
    assert len(norms) == 2 * 9
    assert set(direction.params) == set(trainable(run.model()))
    part = {name: value for name, value in direction.params.items() if name not in norms}
    return method.score_direction(run, data, Direction(part, direction.names, direction.made_by)).values


def agreement(mine, kron):
    """Return (Pearson's r, median ratio of ours to -1/N times theirs)."""
    expected = -kron / kron.shape[1]
    large = np.abs(expected) > 0.1 * np.abs(expected).max()
    return np.corrcoef(mine.ravel(), expected.ravel())[0, 1], float(np.median(mine[large] / expected[large]))


@pytest.mark.parametrize("via", ["captured", "jvp"])
def test_scores_equal_minus_a_nth_of_kronfluence_s(both, via):
    run, data, probes, curvature, kron = both
    r, ratio = agreement(ours(run, data, probes, curvature, LEVEL, via), kron)
    print(f"n = {kron.size} scores: Pearson {r:.5f}, median ratio {ratio:.4f}")
    assert r > 0.99
    assert 0.98 < ratio < 1.02


def test_the_oracle_notices_sign_damping_and_labels(both):
    run, data, probes, curvature, kron = both
    right = ours(run, data, probes, curvature, LEVEL)
    assert agreement(-right, kron)[0] < -0.99
    assert not 0.98 < agreement(ours(run, data, probes, curvature, 3 * LEVEL), kron)[1] < 1.02
    sampled = ours(run, data, probes, fit_ekfac(run, data, labels="sampled", documents=None, positions=None), LEVEL)
    r, ratio = agreement(sampled, kron)
    assert r < 0.99 or not 0.98 < ratio < 1.02
