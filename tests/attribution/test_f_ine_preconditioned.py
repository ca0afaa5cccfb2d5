"""The preconditioned mode against its formula with dense matrices."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from infuser import models
from infuser.attribution.f_ine_preconditioned import PreconditionedFInfluence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.data import digits
from infuser.errors import InfuserError
from infuser.measure import LogProb, gradients
from infuser.params import flatten, trainable, unflatten
from infuser.training import train
from infuser.types import Damping, Recipe
from tests.attribution.small import loss_gradients

METHOD = PreconditionedFInfluence(checkpoints=3)


@pytest.fixture(scope="module")
def trained():
    train_set, test_set = digits()
    data = train_set[train_set.ids[:40]]
    probes = LogProb(test_set[test_set.ids[:2]])
    return train(partial(models.mlp, hidden=(6,)), data, Recipe(epochs=6, batch_size=8, lr=0.1)), data, probes


def by_definition(run, data, probes, damping=1.0):
    z = []
    for epoch in (2, 4, 6):
        at = run.at(epoch)
        model = run.model(at)
        params = trainable(model)
        rows = flatten(loss_gradients(model, params, data), 1).double().numpy()
        target = flatten(gradients(probes, model, params)[0], 1).double()
        # F as a dense matrix, column by column, and each layer's own damping on its diagonal.
        curvature = fit_ekfac(replace(run, checkpoints=(at,)), data)
        solved = curvature.solve(unflatten(target.float(), params), Damping(damping))
        v = -(flatten(solved, 1).double().numpy() @ rows.T)
        z.append([(q - q.mean()) / q.std() for q in v])
    return np.mean(z, axis=0)


def test_scores_are_the_formula(trained):
    run, data, probes = trained
    assert [c.epoch for c in METHOD.chosen(run)] == [2, 4, 6]
    z = by_definition(run, data, probes)
    scores = METHOD.score(run, data, probes)
    scale = np.sqrt(30 * 8) / 40
    np.testing.assert_allclose(scores.values, scale * z * 40 / 39, rtol=2e-2, atol=1e-3)
    assert np.abs(scores.values - scale * by_definition(run, data, probes, 0.01) * 40 / 39).max() > 0.05
    assert scores.unit == "mu"
    at = [3, 5, 30]
    inside = np.isin(np.arange(40), at)
    want = scale * 3 * (z[:, inside].mean(1) - z[:, ~inside].mean(1))
    got = METHOD.group_scores(run, data, {"g": data.ids[at]}, probes)["g"]
    np.testing.assert_allclose(got, want, rtol=2e-2, atol=3e-3)
    alone = METHOD.group_scores(run, data, {"g": data.ids[[7]]}, probes)["g"]
    np.testing.assert_allclose(alone, scores.values[:, 7], rtol=1e-6)


def test_a_positive_score_is_a_document_whose_removal_lowers_f(trained):
    run, data, _ = trained
    own = LogProb(data[data.ids[:5]])
    scores = METHOD.score(run, data, own)
    ranks = [list(scores.top(40, q)).index(data.ids[q]) for q in range(5)]
    assert np.median(ranks) == 0


def test_bad_requests_are_refused(trained):
    run, data, probes = trained
    with pytest.raises(InfuserError, match="trained on other data"):
        METHOD.score(run, data.without(data.ids[:1]), probes)
    with pytest.raises(InfuserError, match="out of range"):
        PreconditionedFInfluence(checkpoints=0)
    with pytest.raises(InfuserError, match="out of range"):
        PreconditionedFInfluence(after=1.0)


def test_a_model_trained_elsewhere_has_no_steps_to_count(trained):
    run, data, probes = trained
    assert METHOD.score(run, data, probes).unit == "mu"
    foreign = Run.from_weights(run.builder, run.checkpoints[-1].weights, data)
    assert "the root of the steps, which the run does not know" in METHOD.score(foreign, data, probes).unit
    # What a run that goes on did not train is not counted: 10 of 30 steps.
    method = PreconditionedFInfluence(checkpoints=1, after=0.99)
    parts = [replace(run, checkpoints=(run.at(epoch), run.checkpoints[-1])) for epoch in (0, 4)]
    whole, later = (method.score(part, data, probes).values for part in parts)
    np.testing.assert_allclose(whole / later, np.sqrt(3), rtol=1e-6)
