from functools import partial

import numpy as np
import pytest

from infuser.errors import InfuserError
from infuser.evaluation.arms import arms
from infuser.evaluation.compare import compare
from infuser.evaluation.retrain import retrain
from infuser.evaluation.stats import Bootstrap, mean_estimate
from infuser.evaluation.transfer import survival, transfer
from infuser.models import mlp
from infuser.training import train
from infuser.types import Effect, Estimate, Trials
from tests.evaluation.small import RECIPE, data, pixel_edit, probe, trained

FEW = Bootstrap(resamples=1000)
other_mlp = partial(mlp, hidden=(24, 12))


def victim():
    return train(other_mlp, data()[0], RECIPE.with_(epochs=3, optimizer="adamw", lr=0.005))


def test_the_victim_is_retrained_by_its_own_recipe_against_its_own_clean_arm():
    run = victim()
    made = arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean", "insert_k"])
    trials = transfer(trained(), run, made, probe(), [0, 1])
    treated = next(arm for arm in made if arm.name == "insert_k").data
    for name, documents in (("clean", data()[0]), ("insert_k", treated)):
        model = train(other_mlp, documents, run.recipe.with_(seed=1), start=run.at(2)).model()
        rows = trials.where(arm=name)
        assert rows.value[rows.seed == 1].item() == probe()(model, dict(model.named_parameters())).item()
    assert compare(trials, "insert_k").value > 0


def test_the_sources_control_is_not_the_victims():
    made = arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean"])
    of_source = retrain(trained(), made[:1], probe(), [1])
    of_victim = transfer(trained(), victim(), made[1:], probe(), [1])
    with pytest.raises(InfuserError, match="did not start alike"):
        compare(Trials.concat([of_source, of_victim]), "edit")


def test_a_victim_of_other_data_or_the_source_itself_is_refused():
    fewer = train(other_mlp, data()[0].without(data()[0].ids[:5]), RECIPE)
    made = arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean"])
    with pytest.raises(InfuserError, match="trained on different data"):
        transfer(trained(), fewer, made, probe(), [0])
    with pytest.raises(InfuserError, match="the same model"):
        transfer(trained(), trained(), made, probe(), [0])


def effects(n=12, share=0.3, level=1.0, seed=0):
    rng = np.random.default_rng(seed)
    strong = level + 0.4 * rng.normal(size=(n, 3))
    weak = share * strong + 0.05 * rng.normal(size=(n, 3))
    found = []
    for table in (weak, strong):
        means = table.mean(1)
        per_probe = {f"p{i}": value for i, value in enumerate(means.tolist())}
        found.append(Effect("edit", "clean", "log_odds", mean_estimate(means, bootstrap=FEW), None, per_probe))
    return found


def test_survival_is_the_ratio_of_means_and_its_interval_covers():
    weak, strong = effects()
    estimate = survival(weak, strong)
    assert estimate.value == pytest.approx(weak.value / strong.value)
    hits = 0
    for seed in range(200):
        low, high = survival(*effects(seed=seed), FEW).interval
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_survival_has_no_interval_where_it_has_no_meaning():
    assert survival(*effects(n=6)).interval is None
    unclear = survival(*effects(level=0.0))
    assert unclear.interval is None
    assert "not clear of zero" in unclear.method
    weak, strong = effects()
    with pytest.raises(InfuserError, match="do not compare"):
        survival(weak, Effect("edit", "clean", "log_odds", Estimate(1.0, None, 1), None, {"p0": 1.0}))
    with pytest.raises(InfuserError, match="do not compare"):
        survival(weak, Effect("noise", "clean", "log_odds", strong.estimate, None, strong.per_probe))
