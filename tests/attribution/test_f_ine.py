"""f-INE against its formulas written out with full gradients, and its promises: bits, cost, groups, reasons."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from infuser import models
from infuser.attribution import signals
from infuser.attribution.attribute import attribute
from infuser.attribution.estimators import auc, estimate, gauss
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.f_recorder import together
from infuser.attribution.loss_trace import LossTrace
from infuser.attribution.per_document import by_vmap
from infuser.data import digits
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.measure import Contrastive, LogProb, Losses, MeanLoss
from infuser.params import flatten, trainable
from infuser.tasks import task_of
from infuser.training import train
from infuser.types import Recipe
from tests.attribution.small import loss_gradients

SMALL = partial(models.mlp, hidden=(12,))
CNN = partial(models.simple_cnn, width=4)
RECIPE = Recipe(epochs=6, batch_size=8, lr=0.1, seed=1, schedule="linear", momentum=0.5)


def norm_net(input_shape, n_outputs):
    """Dropout and BatchNorm: what eval mode and the kept random state are for."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, n_outputs)
    )


class Scaled(nn.Module):
    """A parameter that no layer covers, so that all gradients go by vmap."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1) * self.scale)


BUILDERS = {"mlp": SMALL, "cnn": CNN, "norm": norm_net, "uncovered": lambda shape, outputs: Scaled()}


def documents(n=32):
    train_set, test_set = digits()
    data = train_set[train_set.ids[:n]]
    targets = data.targets.copy()
    targets[:4] = (targets[:4] + 1) % 10
    return replace(data, targets=targets), LogProb(test_set[test_set.ids[:2]])


class Oracle:
    """Keeps every recorded step's full per-document gradients: the formulas of mode snr and paper without shortcuts."""

    name = "oracle"

    def __init__(self, data, measurement, every):
        self.data, self.measurement, self.every = data, measurement, every
        self.rows, self.targets, self.batches, self.lrs = [], [], [], []

    def step(self, moment):
        if moment.step % self.every != self.every // 2:
            return
        params = trainable(moment.model)
        rows = flatten(loss_gradients(moment.model, params, self.data), 1).double()
        self.rows.append(rows)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            f = self.measurement(moment.model, leaves)
            grads = [torch.autograd.grad(value, list(leaves.values()), retain_graph=True) for value in f]
        self.targets.append(-torch.stack([torch.cat([g.flatten() for g in row]) for row in grads]).double())
        self.batches.append(self.data.positions(moment.batch.ids.numpy()))
        self.lrs.append(moment.lr)

    def trace(self):
        return self

    def gram(self, t):
        """V_t(j) for every document as a target, (N targets, N)."""
        return (self.lrs[t] * self.rows[t] @ self.rows[t].T).numpy()

    def along(self, t):
        return (self.lrs[t] * self.targets[t] @ self.rows[t].T).numpy()


def recorded(builder, method, *, groups=None, on_probes=False, recipe=RECIPE):
    data, probes = documents()
    oracle = Oracle(data, probes, 1)
    watched = method.observer(data, measurement=probes if on_probes else None, groups=groups)
    run = train(builder, data, recipe, observers=[watched, oracle])
    return run, data, probes, oracle


def observed(method, recipe=RECIPE, data=None, **targets):
    data = documents()[0] if data is None else data
    return train(SMALL, data, recipe, observers=[method.observer(data, **targets)]), data


@pytest.mark.parametrize("name", list(BUILDERS))
def test_products_equal_those_of_full_gradients(name):
    data, _ = documents(20)
    run = train(BUILDERS[name], data, RECIPE)
    model = run.model()
    params = trainable(model)
    layers = signals.supported_layers(model, params, data)
    assert (layers is None) == (name == "uncovered")
    full = flatten(loss_gradients(model, params, data), 1).double()
    partners = data.batch(np.array([3, 7, 11]))
    seen = signals.read_signals(model, params, task_of(data), data, layers, partners=partners)
    exact = full @ full.T
    assert relative(seen.own, exact.diagonal()) < 1e-5
    assert relative(seen.cross, exact[:, [3, 7, 11]]) < 1e-5
    vectors = {k: torch.randn(2, *v.shape) for k, v in params.items()}
    along = signals.read_signals(model, params, task_of(data), data, layers, vectors=vectors)
    assert relative(along.along, flatten(vectors, 1).double() @ full.T) < 1e-5
    np.testing.assert_allclose(along.read.losses, -Losses(data)(model, params), rtol=1e-5)
    assert along.own is None
    both = signals.read_signals(model, params, task_of(data), data, layers, partners=partners, vectors=vectors)
    for name, alone in (("own", seen), ("cross", seen), ("along", along)):
        torch.testing.assert_close(getattr(both, name), getattr(alone, name), rtol=0, atol=0)
    # The oracle tells a missing parameter apart.
    part = full[:, : full.shape[1] // 2]
    assert relative(seen.own, (part @ part.T).diagonal()) > 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_products_of_language_models_equal_those_of_full_gradients(tied):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 16, (14, 9))
    ids[3, 6:] = -1  # padding
    data = Dataset(ids, np.where(ids < 0, -100, ids), "causal_lm", 16)
    builder = partial(models.tiny_gpt, width=8, depth=1, heads=2, tied=tied)
    method = FInfluence(every=1, partners=14)
    run = train(builder, data, Recipe(epochs=6, batch_size=3, lr=0.5), observers=[method.observer(data)])
    model = run.model()
    params, task = trainable(model), task_of(data)
    layers = signals.supported_layers(model, params, data)
    assert layers is not None
    partners = data.batch(np.array([3, 7, 11]))
    rows = flatten(by_vmap(model, params, task, data.batch(np.arange(14))), 1).double()
    seen = signals.read_signals(model, params, task, data, layers, partners=partners)
    assert relative(seen.own, (rows @ rows.T).diagonal()) < 1e-5
    assert relative(seen.cross, rows @ rows[[3, 7, 11]].T) < 1e-5
    assert seen.read.margins is None
    np.testing.assert_allclose(seen.read.losses, -Losses(data)(model, params), rtol=1e-5)
    assert (method.score(run, data).values > 0).all()


def relative(got, expected):
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm())


def snr_by_definition(v, inside, batch_size):
    """mu from V_t(j) of shape (T, N): the formula with masks, term by term."""
    n = v.shape[1]
    d = inside.sum() / n * (v[:, inside].mean(1) - v[:, ~inside].mean(1))
    return d.sum() / np.sqrt((v.var(1) / batch_size).sum())


@pytest.mark.parametrize("name", ["mlp", "norm", "uncovered"])
def test_snr_on_documents_themselves_is_its_formula(name):
    run, data, _, oracle = recorded(BUILDERS[name], FInfluence(every=1, partners=32))
    scores = FInfluence(every=1, partners=32).score(run, data)
    for i in (0, 5, 30):
        v = np.stack([oracle.gram(t)[i] for t in range(len(oracle.rows))])
        inside = np.arange(len(data)) == i
        assert scores.values[0, i] == pytest.approx(snr_by_definition(v, inside, 8), rel=1e-4)
        # A variance across steps in place of the one within steps is another number.
        assert abs(scores.values[0, i] / (v[:, i].sum() / len(data) / v.mean(1).std() / 24**0.5) - 1) > 0.02
    assert scores.unit == "mu"
    assert scores.queries == ("self",)


def test_a_few_random_partners_estimate_the_exact_score():
    exact, data = observed(FInfluence(partners=32))
    reference = FInfluence(partners=32).score(exact, data).values[0]
    ratios = []
    for seed in range(6):
        method = FInfluence(partners=8, seed=seed)
        ratios.append(method.score(observed(method)[0], data).values[0] / reference)
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert np.std(ratios) < 0.1
    assert np.std(ratios) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_snr_on_a_measurement_is_its_formula_for_documents_and_groups(name):
    method = FInfluence(every=1)
    run, data, probes, oracle = recorded(BUILDERS[name], method, on_probes=True)
    scores = attribute(method, run, data, probes)
    assert scores.values.shape == (2, 32)
    v = np.stack([oracle.along(t) for t in range(len(oracle.rows))])
    group = data.ids[[2, 9, 30]]
    mu = method.group_scores(run, data, {"g": group}, probes)["g"]
    for q in range(2):
        for i in (0, 17):
            want = snr_by_definition(v[:, q], np.arange(32) == i, 8)
            assert scores.values[q, i] == pytest.approx(want, rel=1e-3, abs=1e-5)
        want = snr_by_definition(v[:, q], np.isin(np.arange(32), [2, 9, 30]), 8)
        assert mu[q] == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_the_sign_is_that_of_a_step_on_the_document():
    method = FInfluence(every=1)
    data, _ = documents()
    doubles = MeanLoss(data[data.ids[10:11]])
    run = train(SMALL, data, RECIPE, observers=[method.observer(data, measurement=doubles)])
    scores = method.score(run, data, doubles)
    assert scores.top(1)[0] == data.ids[10]  # nothing lowers a document's loss as the document does


def test_groups_on_themselves_are_their_formula_and_a_group_of_one_is_its_document():
    data, _ = documents()
    groups = {"one": data.ids[[5]], "three": data.ids[[0, 1, 2]]}
    run, _, _, oracle = recorded(SMALL, FInfluence(), groups=groups)
    mu = FInfluence().group_scores(run, data, groups)
    for name, at in (("one", [5]), ("three", [0, 1, 2])):
        v = np.stack(
            [(oracle.lrs[t] * oracle.rows[t][at].mean(0) @ oracle.rows[t].T).numpy() for t in range(len(oracle.rows))]
        )
        want = snr_by_definition(v, np.isin(np.arange(32), at), 8)
        assert mu[name][0] == pytest.approx(want, rel=1e-3)
    alone, _ = observed(FInfluence(partners=32))
    assert mu["one"][0] == pytest.approx(FInfluence(partners=32).score(alone, data).values[0, 5], rel=1e-3)


def paper_by_definition(v, batches, inside, estimator):
    """O' and O per step from V_t(j) (T, N), by sets."""
    without, with_s = [], []
    for row, batch in zip(v, batches, strict=True):
        rest = [j for j in batch if not inside[j]]
        members = np.flatnonzero(inside)
        without.append(np.mean(row[rest]))
        with_s.append((np.sum(row[rest]) + np.sum(row[members])) / (len(rest) + len(members)))
    mu_step = estimator(np.array(without), np.array(with_s))[0]
    return 8 / v.shape[1] * np.sqrt(len(v)) * mu_step


@pytest.mark.parametrize(("estimator", "function"), [("auc", auc), ("gauss", gauss)])
def test_mode_paper_is_its_formula(estimator, function):
    method = FInfluence(mode="paper", estimator=estimator, every=1)
    recipe = RECIPE.with_(epochs=5)
    run, data, probes, oracle = recorded(SMALL, method, recipe=recipe)
    scores = method.score(run, data)
    for i in (0, 5, 30):
        v = np.stack([oracle.gram(t)[i] for t in range(len(oracle.rows))])
        want = paper_by_definition(v, oracle.batches, np.arange(32) == i, function)
        assert scores.values[0, i] == pytest.approx(want, rel=1e-3, abs=1e-3)
    run, data, probes, oracle = recorded(SMALL, method, recipe=recipe, on_probes=True)
    scores = method.score(run, data, probes)
    v = np.stack([oracle.along(t)[1] for t in range(len(oracle.rows))])
    want = paper_by_definition(v, oracle.batches, np.arange(32) == 17, function)
    assert scores.values[1, 17] == pytest.approx(want, rel=1e-3, abs=1e-3)
    groups = {"three": data.ids[[0, 1, 2]]}
    run, data, _, oracle = recorded(SMALL, method, recipe=recipe, groups=groups)
    rows = range(len(oracle.rows))
    v = np.stack([(oracle.lrs[t] * oracle.rows[t][:3].mean(0) @ oracle.rows[t].T).numpy() for t in rows])
    want = paper_by_definition(v, oracle.batches, np.arange(32) < 3, function)
    assert method.group_scores(run, data, groups)["three"][0] == pytest.approx(want, rel=1e-3, abs=1e-3)


def test_recorded_steps_stand_for_all_steps():
    recipe = RECIPE.with_(epochs=18)
    every_third, every_one = (FInfluence(every=c, partners=32) for c in (3, 1))
    run, data = observed(every_third, recipe)
    trace = every_third.trace(run, data)
    assert (trace.steps, trace.recorded, trace.every) == (72, 24, 3)
    dense = every_one.score(observed(every_one, recipe)[0], data).values[0]
    ratio = every_third.score(run, data).values[0] / dense
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    method = FInfluence(partners=4)
    long, _ = observed(method, RECIPE.with_(epochs=70, lr=0.01))
    assert method.trace(long, data).recorded == 140  # of 280 steps, every second one


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize("mode", ["snr", "paper"])
def test_weights_are_the_same_bit_for_bit_with_and_without_observers(name, mode):
    data, probes = documents(24)
    recipe = Recipe(
        epochs=2, batch_size=8, lr=0.1, momentum=0.9, seed=3, augmentation="none" if name == "mlp" else "flip"
    )
    method = FInfluence(mode=mode, every=1)
    observers = [
        method.observer(data),
        method.observer(data, measurement=probes),
        method.observer(data, groups={"g": data.ids[:3]}),
        LossTrace(every=2).observer(data),
    ]
    plain, watched = (train(BUILDERS[name], data, recipe, observers=watching) for watching in ([], observers))
    for one, two in zip(plain.checkpoints, watched.checkpoints, strict=True):
        for key, value in one.weights.items():
            assert torch.equal(value, two.weights[key])
    assert len(watched.traces) == 4


@pytest.mark.parametrize(
    ("builder", "shape", "bound"),
    [
        (partial(models.mlp, hidden=(64, 64)), (1, 28, 28), 3.0),
        (models.simple_cnn, (1, 28, 28), 3.0),
        (models.simple_cnn, (1, 8, 8), 3.35),
    ],
)
def test_a_recorded_step_costs_three_forward_passes(builder, shape, bound):
    rng = np.random.default_rng(0)
    data = Dataset(rng.integers(0, 256, (256, *shape), dtype=np.uint8), rng.integers(0, 10, 256), "classification", 10)
    model = builder(shape, 10).eval()
    params = trainable(model)
    task = task_of(data)
    layers = signals.supported_layers(model, params, data)
    partners = signals.affordable_partners(model, params, task, data, layers)
    with FlopCounterMode(display=False) as forward:
        signals.read_losses(model, params, task, data)
    with FlopCounterMode(display=False) as step:
        batch = data.batch(np.arange(partners))
        signals.read_signals(model, params, task, data, layers, partners=batch)
    # The partners' own pass comes on top of the documents'. Tiny images reach the floor of partners.
    own_pass = partners / len(data) * 3
    assert step.get_total_flops() <= (bound + own_pass) * forward.get_total_flops()
    assert partners >= 4
    vectors = {key: torch.randn(1, *value.shape) for key, value in params.items()}
    with FlopCounterMode(display=False) as along:
        signals.read_signals(model, params, task, data, layers, vectors=vectors)
    assert along.get_total_flops() <= 3 * forward.get_total_flops()


def test_recorders_together_record_the_same_in_fewer_passes(monkeypatch):
    data, probes = documents()
    method, other = FInfluence(every=2, partners=12), FInfluence(every=3)
    two = [probes, Losses(data[data.ids[:3]])]
    passes = []
    plain = signals.read_signals

    def counted(*given, **asked):
        passes.append(len(given[3]))
        return plain(*given, **asked)

    monkeypatch.setattr(signals, "read_signals", counted)

    def run(shared):
        observers = [method.observer(data), *(method.observer(data, measurement=f) for f in two), other.observer(data)]
        if shared:
            together(observers)
        return train(SMALL, data, RECIPE, observers=observers)

    apart = run(shared=False)
    alone = len(passes)
    both = run(shared=True)
    shared = len(passes) - alone
    steps = method.trace(apart, data).recorded
    assert (
        alone - shared == 2 * steps
    )  # three recorders have one pass in the place of three; the fourth has other steps
    assert list(apart.traces) == list(both.traces)
    for name, trace in apart.traces.items():
        for field in ("inside", "outside", "noise", "losses"):
            np.testing.assert_array_equal(getattr(trace, field), getattr(both.traces[name], field))
    assert (method.score(both, data).values != method.score(both, data, two[0]).values[0]).all()


def test_few_steps_and_no_variance_give_nan_with_a_reason():
    method = FInfluence(every=1)
    run, data = observed(method, RECIPE.with_(epochs=4))
    assert method.trace(run, data).recorded == 16
    scores = method.score(run, data)
    assert np.isnan(scores.values).all()
    assert scores.reasons == {"all": "16 recorded steps, at least 20 are needed"}
    with pytest.raises(InfuserError, match="mu is not known for all documents"):
        method.suspicion(run, data)
    silent = data.with_weights(data.ids, 0.0)
    scores = method.score(observed(method, data=silent)[0], silent)
    assert scores.reasons == {"all": "the variance is 0"}


def learnable(n=200):
    """Enough documents that wrong labels stand out: the first six carry one."""
    train_set, _ = digits()
    data = train_set[train_set.ids[:n]]
    targets = data.targets.copy()
    targets[:6] = (targets[:6] + 1) % 10
    return replace(data, targets=targets)


def test_losses_and_tracin_come_with_the_signals_and_all_find_wrong_labels():
    data, method = learnable(), FInfluence(every=8, partners=16)
    recipe = Recipe(epochs=15, batch_size=8, lr=0.1)
    run = train(SMALL, data, recipe, observers=[method.observer(data)])
    alone = train(SMALL, data, recipe, observers=[LossTrace(every=8).observer(data)])
    wrong = np.arange(len(data)) < 6
    for statistic in ("mean", "aum"):
        shared, own = LossTrace(statistic).score(run, data), LossTrace(statistic).score(alone, data)
        np.testing.assert_allclose(shared.values, own.values, rtol=1e-4)
        assert roc_auc_score(wrong, shared.values[0]) > 0.9
    final = LossTrace("final").score(run, data)
    model = run.model()
    np.testing.assert_allclose(final.values[0], -Losses(data)(model, trainable(model)), rtol=1e-5)
    for scores in (method.score(run, data), method.tracin(run, data)):
        assert roc_auc_score(wrong, scores.values[0]) > 0.9
    assert set(LossTrace().suspicion(run, data).top(3)) == set(LossTrace().score(run, data).top(3))
    with pytest.raises(InfuserError, match="no training losses of these data"):
        LossTrace().score(train(SMALL, data, recipe.with_(epochs=1)), data)


def test_a_group_stands_out_against_random_groups_of_its_labels():
    data = learnable()
    group = data.ids[:4]
    probes = MeanLoss(data[group])
    method = FInfluence(every=4)
    recipe = Recipe(epochs=12, batch_size=8, lr=0.1)
    run = train(SMALL, data, recipe, observers=[method.observer(data, measurement=probes)])
    result = method.group_test(run, data, group, probes, groups=99)
    assert result.p == 0.01
    assert result.mu == pytest.approx(method.group_scores(run, data, {"g": group}, probes)["g"][0])
    with pytest.raises(InfuserError, match="needs mode snr"):
        FInfluence(mode="paper").group_test(run, data, group, probes)


def test_traces_are_asked_for_with_their_remedy():
    data, probes = documents()
    method = FInfluence(every=1)
    run = train(SMALL, data, RECIPE, observers=[method.observer(data)])
    with pytest.raises(InfuserError, match=r"no such f-INE trace.*observers=\[FInfluence"):
        method.score(run, data, probes)
    with pytest.raises(InfuserError, match="no such f-INE trace"):
        method.score(train(SMALL, data, RECIPE), data)
    with pytest.raises(InfuserError, match=r"belongs to other data.*Remedy"):
        method.score(run, data.without(data.ids[:1]))
    with pytest.raises(InfuserError, match="groups"):
        method.observer(data, measurement=probes, groups={"g": data.ids[:2]})
    used = method.observer(data)
    train(SMALL, data, RECIPE.with_(epochs=1), observers=[used])
    with pytest.raises(InfuserError, match="seen a training already"):
        train(SMALL, data, RECIPE.with_(epochs=1), observers=[used])


def test_an_observer_of_other_data_is_refused_unless_it_is_auxiliary():
    data, probes = documents()
    rest = data.without(data.ids[:8])
    with pytest.raises(InfuserError, match="other data than the training's"):
        train(SMALL, rest, RECIPE, observers=[FInfluence(every=1).observer(data)])
    for mode in ("snr", "paper"):
        method = FInfluence(mode=mode, every=1, auxiliary=True)
        watching = [method.observer(data), method.observer(data, measurement=probes)]
        run = train(SMALL, rest, RECIPE.with_(epochs=7), observers=watching)
        assert np.isfinite(method.score(run, data).values).all()
        assert np.isfinite(method.score(run, data, probes).values).all()


def test_a_gradient_that_is_not_finite_names_step_and_document():
    data, _ = documents(12)
    inputs = data.inputs.astype(np.float32)
    inputs[5] = 1e30
    wild = replace(data, inputs=inputs, weights=np.where(np.arange(12) == 5, 0, 1).astype(np.float32))

    def tame(shape, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), nn.Hardtanh())

    with pytest.raises(InfuserError, match=rf"not finite at step 0.*{data.ids[5]}"):
        train(tame, wild, Recipe(epochs=1, lr=1e-3), observers=[FInfluence(every=1).observer(wild)])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mode": "fast"}, "unknown mode"),
        ({"estimator": "median"}, "unknown estimator"),
        ({"every": 0}, "every is out of range"),
        ({"partners": 2}, "partners is out of range"),
    ],
)
def test_bad_settings_are_refused(fields, match):
    with pytest.raises(InfuserError, match=match):
        FInfluence(**fields)


def test_suspicion_ranks_by_mu():
    data, probes = documents()
    method = FInfluence(every=1)
    watching = [method.observer(data), method.observer(data, measurement=probes)]
    run = train(SMALL, data, RECIPE, observers=watching)
    blind = method.suspicion(run, data)
    assert blind.told == "blind"
    np.testing.assert_array_equal(blind.values, method.score(run, data).values[0])
    told = method.suspicion(run, data, probes)
    assert told.told == "suspected: log_prob"
    np.testing.assert_allclose(told.values, method.score(run, data, probes).values.mean(0))


def test_estimate_of_tables_is_used_by_scan():
    method = FInfluence(mode="paper", estimator="scan", every=1)
    run, data = observed(method)
    trace = method.trace(run, data)
    assert trace.tables is not None
    step = estimate(trace.tables[0][:, 0], trace.tables[1][:, 0], "scan").values
    np.testing.assert_allclose(method.score(run, data).values[0], 8 / 32 * np.sqrt(24) * step)


def test_two_measurements_of_one_kind_have_traces_of_their_own():
    data, probes = documents()
    few = probes.documents
    other = replace(few, inputs=255 - few.inputs)  # the same ids and labels
    wanted = [Contrastive(few, [0, 0], against=[1, 1]), Contrastive(few, [0, 0], against=[2, 2]), LogProb(other)]
    method = FInfluence(every=1)
    watched = [method.observer(data, measurement=f) for f in (*wanted[:2], LogProb(few))]
    run = train(SMALL, data, RECIPE, observers=watched)
    first, second = (method.score(run, data, f).values for f in wanted[:2])
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()
    with pytest.raises(InfuserError, match="no such f-INE trace"):
        method.score(run, data, wanted[2])
    assert method.score(run, data, LogProb(replace(few))).values.shape == (2, 32)


def test_losses_are_those_of_the_steps_that_were_asked_for():
    data, _ = documents()
    often, seldom = LossTrace(every=1), LossTrace(every=8)
    watched = [FInfluence(every=12).observer(data), often.observer(data)]
    run = train(SMALL, data, RECIPE, observers=watched)
    alone = train(SMALL, data, RECIPE, observers=[often.observer(data)])
    assert np.array_equal(often.suspicion(run, data).values, often.suspicion(alone, data).values)
    only = train(SMALL, data, RECIPE, observers=[FInfluence(every=12).observer(data)])
    assert len(LossTrace().suspicion(only, data).values) == 32
    with pytest.raises(InfuserError, match="no training losses"):
        seldom.suspicion(only, data)


@pytest.mark.parametrize("scale", [1e-7, 1e5])
def test_mu_does_not_depend_on_the_unit_of_the_signals(scale):
    [trace] = observed(FInfluence(every=1))[0].traces.values()
    sums = {"inside": scale * trace.inside, "outside": scale * trace.outside, "noise": scale**2 * trace.noise}
    np.testing.assert_allclose(replace(trace, **sums).snr().values, trace.snr().values, rtol=1e-9)


@pytest.mark.parametrize(("estimator", "function"), [("auc", auc), ("gauss", gauss)])
@pytest.mark.parametrize("on_probes", [False, True])
def test_a_step_whose_batch_holds_nobody_else_says_nothing_of_that_document(estimator, function, on_probes):
    data, probes = documents(17)  # batches of 8, 8 and 1
    method, recipe = FInfluence(mode="paper", estimator=estimator, every=1), RECIPE.with_(epochs=10)
    oracle = Oracle(data, probes, 1)
    watched = method.observer(data, measurement=probes if on_probes else None)
    run = train(SMALL, data, recipe, observers=[watched, oracle])
    values = method.score(run, data, probes if on_probes else None).values[0]
    assert np.isfinite(values).all()
    alone = next(int(batch[0]) for batch in oracle.batches if len(batch) == 1)
    keep = [t for t, batch in enumerate(oracle.batches) if batch.tolist() != [alone]]
    assert len(keep) < len(oracle.batches)
    v = np.stack([(oracle.along(t)[0] if on_probes else oracle.gram(t)[alone]) for t in keep])
    inside = np.arange(17) == alone
    kept = [oracle.batches[t] for t in keep]
    want = paper_by_definition(v, kept, inside, function) * np.sqrt(len(oracle.batches) / len(keep))
    batch = max(len(b) for b in oracle.batches)
    assert values[alone] == pytest.approx(want, rel=2e-3, abs=1e-3), batch


def test_a_training_that_goes_on_counts_its_own_steps():
    data, _ = documents()
    start = train(SMALL, data, RECIPE.with_(epochs=20)).at(14)
    method = FInfluence(mode="paper", estimator="gauss")
    run = train(SMALL, data, RECIPE.with_(epochs=20), start=start, observers=[method.observer(data)])
    [trace] = run.traces.values()
    assert (trace.steps, trace.recorded, trace.every) == (24, 24, 1)
    assert np.isfinite(method.score(run, data).values).all()
