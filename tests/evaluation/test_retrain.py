import copy
import pickle

import numpy as np
import pytest
import torch

from infuser.checkpoints import Run
from infuser.errors import InfuserError
from infuser.evaluation.arms import arms
from infuser.evaluation.compare import compare, paired
from infuser.evaluation.retrain import begin, retrain
from infuser.measure import Accuracy, Correct, Custom, Losses, Margin, MeanLoss, Probability
from infuser.models import tiny_resnet
from infuser.training import train
from infuser.types import Arm, Trials
from tests.evaluation.small import RECIPE, batch_norm_net, data, pixel_edit, probe, small_mlp, trained

STARTS = ("last_epoch", "half", "scratch")


def vector(model, params):
    return torch.cat([p.flatten() for p in params.values()])


def clean_arm():
    return Arm("clean", data()[0], "as they are")


def every_weight(run):
    """A measurement that gives every parameter, so that equality of rows is equality of weights."""
    count = sum(p.numel() for p in run.model().parameters())
    return Custom(vector, name="weights", n=count)


def test_a_measurement_of_all_weights_tells_two_seeds_apart():
    run = trained()
    rows = retrain(run, [clean_arm()], every_weight(run), [0, 1])
    assert (rows.value[rows.seed == 0] != rows.value[rows.seed == 1]).mean() > 0.5


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("builder", "changes"),
    [
        (small_mlp, {}),
        (small_mlp, {"momentum": 0.9, "schedule": "cosine", "lr": 0.02}),
        (small_mlp, {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1}),
        (batch_norm_net, {"augmentation": "flip_crop", "order": "fixed"}),
    ],
)
def test_the_recipes_own_seed_gives_the_stored_checkpoint_bit_for_bit(builder, changes, start):
    run = trained(builder, RECIPE.with_(**changes))
    rows = retrain(run, [clean_arm()], every_weight(run), [run.recipe.seed], start)
    stored = vector(None, dict(run.model().named_parameters())).detach().double().numpy()
    np.testing.assert_array_equal(rows.value, stored)
    other = retrain(run, [clean_arm()], every_weight(run), [run.recipe.seed + 1], start)
    if changes.get("order") != "fixed":
        assert (other.value != stored).any()


def test_buffers_are_reproduced_too():
    run = trained(batch_norm_net)

    def outputs(model, params):
        return torch.cat([b.flatten().double() for b in model.buffers()])

    expected = outputs(run.model(), None)
    rows = retrain(run, [clean_arm()], Custom(outputs, name="buffers", n=len(expected)), [run.recipe.seed])
    np.testing.assert_array_equal(rows.value, expected.numpy())


def test_an_arm_is_trained_as_train_would_train_it():
    run, edit = trained(), pixel_edit()
    treated = data()[0].apply(edit)
    rows = retrain(run, [Arm("edit", treated, "edited")], every_weight(run), [5], "half")
    again = train(small_mlp, treated, RECIPE.with_(seed=5), start=run.at(2))
    np.testing.assert_array_equal(rows.value, vector(None, dict(again.model().named_parameters())).detach().numpy())


def test_the_run_is_not_changed_and_torchs_random_state_neither():
    run = train(small_mlp, data()[0], RECIPE.with_(optimizer="adamw", lr=0.003))
    before = copy.deepcopy(run.checkpoints)
    state = torch.get_rng_state()
    first = retrain(run, [clean_arm()], every_weight(run), [1])
    second = retrain(run, [clean_arm()], every_weight(run), [1])
    np.testing.assert_array_equal(first.value, second.value)
    assert torch.equal(state, torch.get_rng_state())
    for old, new in zip(before, run.checkpoints, strict=True):
        assert old.content_hash == new.content_hash
        for key, slot in old.optimizer["state"].items():
            for name, value in slot.items():
                assert torch.equal(value, new.optimizer["state"][key][name])


def test_rows_are_named_by_query_and_whole_models_by_nothing():
    documents = data()[1][data()[1].ids[:3]]
    measures = [Margin(documents), Accuracy(data()[1]), Losses(documents)]
    rows = retrain(trained(), [clean_arm()], measures, [0, 7])
    assert len(rows) == 2 * 7
    assert rows.where(measure="log_odds").probe.tolist() == list(Margin(documents).queries) * 2
    assert rows.where(measure="test_accuracy").probe.tolist() == ["", ""]
    assert rows.start == "last_epoch"
    model = trained().model()
    expected = Margin(documents)(model, dict(model.named_parameters())).detach().numpy()
    own = rows.where(measure="log_odds")
    np.testing.assert_allclose(own.value[own.seed == 0], expected, rtol=1e-6)


def test_an_effect_that_is_there_is_measured():
    """The probe itself in place of documents raises its own log-odds by far more than noise of the same count."""
    made = arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean", "noise", "insert_k"])
    measures = [probe(), Probability(probe().documents, probe().labels)]
    rows = retrain(trained(), made, measures, range(1, 4), "scratch")
    insert, noise = (compare(rows, name, "clean") for name in ("insert_k", "noise"))
    assert insert.value > 0.5
    assert abs(noise.value) < 0.1
    assert insert.measure == "log_odds"
    assert insert.interval is None
    assert insert.p is None


def test_clean_is_shared_between_probes():
    documents = data()[1][data()[1].ids[:3]]
    every = Margin(documents, (documents.targets + 1) % 10)
    run = trained()
    parts = [retrain(run, [clean_arm()], every, [1, 2])]
    for q in range(3):
        treated = arms(data()[0], {"edit": pixel_edit(seed=q)}, every[q], ["insert_k"])
        parts.append(retrain(run, treated, every[q], [1, 2]))
    pooled = Trials.concat(parts)
    effect = compare(pooled, "insert_k")
    assert effect.estimate.n == 3
    assert min(effect.per_probe.values()) > 0.1
    alone = retrain(
        run, [clean_arm(), *arms(data()[0], {"edit": pixel_edit(seed=1)}, every[1], ["insert_k"])], every[1], [1, 2]
    )
    assert compare(alone, "insert_k").value == pytest.approx(effect.per_probe[every.queries[1]], abs=1e-12)


class Shipped:
    """Runs jobs as workers elsewhere would: on copies that came through pickle, the last one first."""

    def map(self, fn, jobs):
        boxes = [pickle.dumps((fn, job)) for job in jobs]
        results = []
        for box in reversed(boxes):
            work, job = pickle.loads(box)  # noqa: S301 - written three lines above
            results.append(pickle.loads(pickle.dumps(work(job))))  # noqa: S301
        return iter(results[::-1])


def test_results_do_not_depend_on_where_jobs_run():
    made = arms(data()[0], {"edit": pixel_edit()}, probe(), ["clean", "noise"])
    run = trained(small_mlp, RECIPE.with_(optimizer="adamw", lr=0.003))
    measures = [probe(), Accuracy(data()[1]), every_weight(run)]
    here = retrain(run, made, measures, [0, 1])
    there = retrain(run, made, measures, [0, 1], executor=Shipped())
    for name in ("arm", "seed", "probe", "measure", "value"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
    assert here.starts == there.starts


def test_anybodys_loop():
    run = trained()
    seen = []

    def fit(documents, seed, start):
        seen.append((seed, start))
        torch.manual_seed(seed)
        torch.rand(1)
        return train(small_mlp, documents, RECIPE.with_(seed=seed), start=start).checkpoints[-1].weights

    state = torch.get_rng_state()
    rows = retrain(run, [clean_arm()], every_weight(run), [0, 3], "last_epoch", fit)
    assert [s for s, _ in seen] == [0, 3]
    assert all(start is run.at(3) for _, start in seen)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(rows.value, retrain(run, [clean_arm()], every_weight(run), [0, 3]).value)
    retrain(run, [clean_arm()], probe(), [0], "scratch", fit)
    assert seen[-1] == (0, None)


def test_a_model_trained_elsewhere_needs_a_loop():
    elsewhere = Run.from_weights(small_mlp, trained().checkpoints[-1].weights, data()[0], recipe=RECIPE)
    for recipe in (RECIPE, RECIPE.with_(epochs=1)):
        bare = Run.from_weights(small_mlp, trained().checkpoints[-1].weights, data()[0], recipe=recipe)
        with pytest.raises(InfuserError, match=r"no checkpoint after epoch.*pass train_fn"):
            retrain(bare, [clean_arm()], probe(), [0])

    def fit(documents, seed, start):
        return start.weights

    assert len(retrain(elsewhere, [clean_arm()], probe(), [0], train_fn=fit)) == 1
    assert len(retrain(elsewhere, [clean_arm()], probe(), [0], "scratch")) == 1


def test_begin_names_the_checkpoints_of_the_regimes():
    run = trained()
    assert [begin(run, s).epoch for s in ("last_epoch", "half", 0, 1, 3)] == [3, 2, 0, 1, 3]
    assert begin(run, "scratch") is None
    for wrong in ("quarter", 4, -1, True):
        with pytest.raises(InfuserError, match=r"unknown regime|nothing is left"):
            begin(run, wrong)


def test_arms_with_other_documents_are_refused():
    documents = data()[0]
    fewer = Arm("filtered", documents.without(documents.ids[:3]), "without 3")
    with pytest.raises(InfuserError, match=r"cannot be paired.*240 and 237.*with_weights"):
        retrain(trained(), [clean_arm(), fewer], probe(), [0])
    turned = Arm("turned", documents[documents.ids[::-1]], "another order")
    with pytest.raises(InfuserError, match="another order"):
        retrain(trained(), [clean_arm(), turned], probe(), [0])
    masked = Arm("masked", documents.with_weights(documents.ids[:3], 0.0), "3 without a loss")
    assert len(retrain(trained(), [clean_arm(), masked], probe(), [0])) == 2


def test_a_clean_arm_that_is_not_clean_is_refused():
    edited = Arm("clean", data()[0].apply(pixel_edit()), "")
    with pytest.raises(InfuserError, match="not the data that the run was trained on"):
        retrain(trained(), [edited], probe(), [0])


def test_arms_that_start_apart_are_refused_within_a_call_and_in_a_comparison():
    calls = []

    def drawn_anew(input_shape, n_outputs):
        calls.append(1)
        model = small_mlp(input_shape, n_outputs)
        with torch.no_grad():
            model[1].weight += len(calls)
        return model

    run = train(drawn_anew, data()[0], RECIPE.with_(epochs=1))
    treated = Arm("edit", data()[0].apply(pixel_edit()), "edited")
    with pytest.raises(InfuserError, match="did not start alike under seed 0"):
        retrain(run, [clean_arm(), treated], probe(), [0], "scratch")

    first, second = trained(), trained(small_mlp, RECIPE.with_(seed=9))
    apart = Trials.concat([retrain(first, [clean_arm()], probe(), [1]), retrain(second, [treated], probe(), [1])])
    with pytest.raises(InfuserError, match=r"did not start alike under seed 1.*differ in weights"):
        compare(apart, "edit")
    together = Trials.concat([retrain(first, [clean_arm()], probe(), [1]), retrain(first, [treated], probe(), [1])])
    assert paired(together, "edit", "clean").difference.shape == (1, 1)


@pytest.mark.parametrize(
    ("change", "differs"), [({"lr": 0.05}, "recipe"), ({"momentum": 0.5}, "recipe"), ({"momentum": 0.9}, "optimizer")]
)
def test_another_recipe_or_optimiser_state_is_another_start(change, differs):
    first, other = trained(), trained(small_mlp, RECIPE.with_(**change))
    # The same weights on both sides: only the recipe (and with momentum the optimiser's state) tells them apart.
    last = other.checkpoints[3].__class__(3, first.at(3).step, first.at(3).weights, other.at(3).optimizer)
    checkpoints = (*first.checkpoints[:3], last, first.checkpoints[-1])
    other = Run(small_mlp, first.input_shape, 10, "classification", other.recipe, first.data_hash, checkpoints)
    treated = Arm("edit", data()[0].apply(pixel_edit()), "edited")
    pooled = Trials.concat([retrain(first, [clean_arm()], probe(), [1]), retrain(other, [treated], probe(), [1])])
    with pytest.raises(InfuserError, match=rf"differ in .*{differs}"):
        compare(pooled, "edit")


def test_what_goes_wrong_names_arm_and_seed():
    run = trained(small_mlp, RECIPE.with_(epochs=2))
    hot = Run(
        small_mlp,
        run.input_shape,
        10,
        "classification",
        RECIPE.with_(epochs=2, lr=1e30),
        run.data_hash,
        run.checkpoints,
    )
    with pytest.raises(InfuserError, match=r"arm clean, seed 4: the training loss is not finite"):
        retrain(hot, [clean_arm()], probe(), [4])
    broken = Custom(lambda model, params: torch.full((1,), float("nan")), name="broken")
    with pytest.raises(InfuserError, match=r"arm clean, seed 4: broken is not finite"):
        retrain(run, [clean_arm()], broken, [4])
    flat = Custom(lambda model, params: torch.zeros(()), name="flat")
    with pytest.raises(InfuserError, match="wrong shape"):
        retrain(run, [clean_arm()], flat, [4])


@pytest.mark.parametrize("seeds", [(), (1, 1), (0.5, 1.5)])
def test_seeds_are_distinct(seeds):
    with pytest.raises(InfuserError, match="seeds must be distinct"):
        retrain(trained(), [clean_arm()], probe(), seeds)


def test_one_seed_stands_in_a_list():
    with pytest.raises(InfuserError, match=r"seeds must be a sequence.*Got: 1.*pass \[1\]"):
        retrain(trained(), [clean_arm()], probe(), 1)


def test_two_arms_of_one_name_and_a_model_that_does_not_fit_are_refused():
    with pytest.raises(InfuserError, match="distinct names"):
        retrain(trained(), [clean_arm(), clean_arm()], probe(), [0])
    run = trained()
    wide = Run(tiny_resnet, (1, 9, 9), 10, "classification", RECIPE, run.data_hash, run.checkpoints)
    with pytest.raises(InfuserError, match="does not fit the run's model"):
        retrain(wide, [clean_arm()], probe(), [0])


def test_measures_of_every_kind_of_name():
    rows = retrain(trained(), [clean_arm()], [MeanLoss(data()[1]), Correct(probe().documents)], [0])
    assert set(rows.measure.tolist()) == {"neg_mean_loss", "correct"}


class Fourier(torch.nn.Module):
    """Random features that lie in a buffer; what is saved of it is up to the caller."""

    def __init__(self, n_outputs, persistent):
        super().__init__()
        self.register_buffer("waves", torch.randn(64, 8), persistent=persistent)
        self.head = torch.nn.Linear(8, n_outputs)

    def forward(self, x):
        return self.head(torch.sin(x.flatten(1) @ self.waves))


def test_a_builder_that_draws_what_weights_do_not_hold_is_refused():
    train_set, _ = data()
    for persistent in (True, False):
        run = train(lambda shape, n, kept=persistent: Fourier(n, kept), train_set, RECIPE)
        if persistent:
            assert len(retrain(run, [clean_arm()], Accuracy(train_set), [1], "scratch")) == 1
        else:
            with pytest.raises(InfuserError, match="draws something that the weights do not hold"):
                retrain(run, [clean_arm()], Accuracy(train_set), [1], "scratch")
