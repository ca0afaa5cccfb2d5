import numpy as np
import pytest
from scipy import stats

from infuser.errors import InfuserError
from infuser.evaluation.compare import compare, paired, pool
from infuser.types import Effect, Estimate, Trials
from tests.evaluation.small import table_trials, tables


def test_differences_are_taken_by_probe_and_seed_whatever_the_order_of_the_rows():
    made = tables()
    trials = table_trials(made)
    effect = compare(trials, "edit")
    difference = made["edit"] - made["clean"]
    assert effect.value == pytest.approx(difference.mean(), abs=1e-12)
    for p, mean in enumerate(difference.mean(1)):
        assert effect.per_probe[f"p{p}"] == pytest.approx(mean, abs=1e-12)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(trials))
    columns = {c: getattr(trials, c)[order] for c in ("arm", "seed", "probe", "measure", "value")}
    shuffled = compare(Trials(**columns, start="last_epoch"), "edit")
    assert (shuffled.value, *shuffled.interval) == (effect.value, *effect.interval)
    # Pairing matters: compared as two groups the interval would be several times as wide.
    unpaired = stats.ttest_ind(made["edit"].mean(1), made["clean"].mean(1)).confidence_interval()
    assert unpaired.high - unpaired.low > 4 * (effect.interval[1] - effect.interval[0])


@pytest.mark.parametrize("lost", ["edit", "clean"])
def test_missing_pairs_are_named(lost):
    trials = table_trials(tables(4, 2))
    keep = ~((trials.arm == lost) & (trials.probe == "p2") & (trials.seed == 1))
    columns = {c: getattr(trials, c)[keep] for c in ("arm", "seed", "probe", "measure", "value")}
    holey = Trials(**columns, start="last_epoch")
    with pytest.raises(InfuserError, match=rf"1 \(probe, seed\) pairs are missing.*no {lost} \('p2', 1\)"):
        compare(holey, "edit")
    assert compare(holey, "edit", probes=["p0", "p1", "p3"]).estimate.n == 3


def test_a_probe_named_twice_is_no_second_probe():
    trials = table_trials(tables(2, 3))
    assert compare(trials, "edit", probes=["p1", "p0"]).estimate.n == 2
    with pytest.raises(InfuserError, match=r"counts once.*Got: p0 more than once"):
        compare(trials, "edit", probes=["p0", "p1", "p0"])


def test_one_value_for_the_whole_model_serves_every_probe():
    trials = Trials.concat(
        [
            table_trials({"edit": np.array([[0.5, 0.6], [0.7, 0.9]])}, "test_accuracy"),
            Trials.from_rows(
                [("clean", 0, "", "test_accuracy", 0.4), ("clean", 1, "", "test_accuracy", 0.5)], "last_epoch"
            ),
        ]
    )
    pairs = paired(trials, "edit", "clean")
    np.testing.assert_allclose(pairs.difference, [[0.1, 0.1], [0.3, 0.4]])


def test_a_pair_measured_twice_must_agree():
    trials = table_trials(tables(3, 1))
    twice = Trials.concat([trials, trials.where(arm="clean")])
    assert compare(twice, "edit").value == compare(trials, "edit").value
    other = table_trials({"clean": tables(3, 1, seed=5)["clean"]})
    with pytest.raises(InfuserError, match="clean holds different values of log_odds for one probe and seed"):
        compare(Trials.concat([trials, other]), "edit")


def test_the_measure_must_be_known():
    several = Trials.concat([table_trials(tables(), "probability"), table_trials(tables(), "log_odds")])
    assert compare(several, "edit").measure == "log_odds"
    without = Trials.concat([table_trials(tables(), "probability"), table_trials(tables(), "log_prob")])
    with pytest.raises(InfuserError, match="several things were measured"):
        compare(without, "edit")
    with pytest.raises(InfuserError, match="no trials of arm noise on log_odds"):
        compare(several, "noise")
    with pytest.raises(InfuserError, match="no trials to compare"):
        compare(Trials.from_rows([], "last_epoch"), "edit")


def test_starts_that_differ_or_are_unknown_are_refused():
    same = {f"{arm}/{s}": f"weights=a ids={s}" for arm in ("edit", "clean") for s in range(3)}
    assert compare(table_trials(tables(), starts=same), "edit").estimate.n == 12
    with pytest.raises(InfuserError, match=r"did not start alike under seed 1.*differ in weights"):
        compare(table_trials(tables(), starts={**same, "edit/1": "weights=b ids=1"}), "edit")
    with pytest.raises(InfuserError, match="did not start alike under seed 0"):
        compare(table_trials(tables(), starts={k: v for k, v in same.items() if k != "clean/0"}), "edit")


def test_values_that_are_not_finite_are_refused():
    made = tables()
    made["edit"][3, 1] = np.nan
    with pytest.raises(InfuserError, match="finite values"):
        compare(table_trials(made), "edit")


def test_clusters_are_units():
    made = tables(12, 1)
    clusters = {f"p{p}": f"model {p // 3}" for p in range(12)}
    effect = compare(table_trials(made), "edit", clusters=clusters)
    means = (made["edit"] - made["clean"]).mean(1).reshape(4, 3).mean(1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert effect.estimate.n == 4
    assert effect.estimate.unit_of_n == "clusters"
    assert effect.interval == pytest.approx((expected.low, expected.high))
    with pytest.raises(InfuserError, match="probes without a cluster"):
        compare(table_trials(made), "edit", clusters={"p0": "a"})


def test_pooling_over_base_models():
    effects = [compare(table_trials(tables(4, 2, seed=s)), "edit") for s in range(5)]
    pooled = pool(effects)
    expected = stats.ttest_1samp([e.value for e in effects], 0).confidence_interval(0.95)
    assert pooled.interval == pytest.approx((expected.low, expected.high))
    assert (pooled.estimate.n, pooled.estimate.unit_of_n, len(pooled.per_probe)) == (5, "base models", 20)
    with pytest.raises(InfuserError, match="one arm, control and measure"):
        pool([effects[0], Effect("noise", "clean", "log_odds", Estimate(0, None, 1), None, {})])
