"""Null calibration: under the null hypothesis the tests reject at their level."""

from __future__ import annotations

import numpy as np
import pytest

from infuser.attribution.f_ine import FInfluence
from infuser.attribution.null_tests import benjamini_hochberg, find, group_test, matched_groups, permutation_p
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.training import train
from infuser.types import Recipe, Scores
from tests.attribution.test_f_ine import SMALL, documents


def data(n=300, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 1, 2, 2), dtype=np.uint8)
    return Dataset(images, rng.integers(0, classes, n), "classification", classes, ids=np.arange(n) + 1000)


def test_permutation_p_counts():
    assert permutation_p(np.array([0.5, 2.0, -1.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx([0.75, 0.5, 1.0])
    assert np.isnan(permutation_p(np.nan, np.array([1.0])))
    infinite = np.array([-np.inf, 0.0, np.inf])
    assert permutation_p(np.array([-np.inf, 0.5, np.inf]), infinite) == pytest.approx([1.0, 0.5, 0.5])
    for null in ([], [0.0, np.nan]):
        with pytest.raises(InfuserError, match="empty or not of numbers"):
            permutation_p(1.0, np.array(null))


def test_random_groups_are_rejected_at_the_nominal_rate_and_influential_ones_always():
    ds = data()
    values = dict(zip(ds.ids.tolist(), np.random.default_rng(1).standard_t(3, len(ds)), strict=True))
    for i, label in zip(ds.ids.tolist(), ds.targets, strict=True):
        values[i] += 2.0 * label  # labels differ, which a test without matching would take for influence

    def statistic(ids):
        return float(np.mean([values[int(i)] for i in ids]))

    rng = np.random.default_rng(2)
    ids = ds.ids[ds.targets == 2]
    p = np.array([group_test(statistic, ds, rng.choice(ids, 8, False), groups=99, seed=s).p for s in range(500)])
    assert (p <= 0.05).mean() <= 1.5 * 0.05
    assert (p <= 0.01).mean() <= 1.5 * 0.01
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.06)
    unmatched = [
        float(
            permutation_p(
                statistic(rng.choice(ids, 8, False)), [statistic(rng.choice(ds.ids, 8, False)) for _ in range(99)]
            )
        )
        for _ in range(40)
    ]
    assert np.mean(np.array(unmatched) <= 0.05) > 0.5
    best = np.array(sorted(ids, key=lambda i: -values[int(i)])[:8])
    assert group_test(statistic, ds, best, groups=99).p == 0.01


def test_matched_groups_have_the_same_labels():
    ds = data()
    ids = ds.ids[:11]
    want = np.bincount(ds.targets[:11], minlength=3)
    for group in matched_groups(ds, ids, 20, np.random.default_rng(0)):
        assert len(set(group.tolist())) == 11
        assert (np.bincount(ds.targets[ds.positions(group)], minlength=3) == want).all()


@pytest.mark.parametrize(
    ("ids", "match"),
    [([], "not none and not all"), (list(range(1000, 1300)), "not none and not all"), ([1000, 1000], "twice")],
)
def test_impossible_groups_are_refused(ids, match):
    with pytest.raises(InfuserError, match=match):
        group_test(lambda ids: 0.0, data(), ids)


def scores(values):
    return Scores(np.asarray(values)[None], np.arange(len(values)), "test", "mu", reasons={"1": "made up"})


def test_conformal_p_values_keep_the_false_discovery_rate_and_find_what_stands_out():
    rng = np.random.default_rng(3)
    shares, power, false_alarms = [], [], []
    for _ in range(300):
        bad = np.zeros(400, dtype=bool)
        bad[:40] = True
        values = rng.gamma(2.0, size=400) + 9.0 * bad
        result = find(scores(values), reference=np.arange(200, 400), level=0.1)
        false = ~bad[result.ids[result.found]]
        shares.append(false.mean() if len(false) else 0.0)
        power.append(result.found[bad[result.ids]].mean())
        clean = find(scores(rng.gamma(2.0, size=400)), reference=np.arange(200, 400))
        false_alarms.append([(clean.p <= level).mean() for level in (0.05, 0.01)])
    assert np.mean(shares) <= 0.1 + 2 * np.std(shares) / np.sqrt(300)
    assert np.mean(power) > 0.9
    at5, at1 = np.mean(false_alarms, 0)
    assert at5 <= 1.5 * 0.05
    assert at1 <= 1.5 * 0.01
    assert at5 == pytest.approx(0.05, abs=0.012)  # and it is no test that never rejects


def test_infinite_scores_of_the_reference_count_and_those_that_are_missing_are_told():
    tested = [3.0, np.inf, -5.0, np.nan]
    result = find(scores([*tested, 1.0, 2.0, np.inf, -np.inf]), reference=[4, 5, 6, 7])
    assert result.ids.tolist() == [1, 0, 2, 3]
    assert result.p[:3] == pytest.approx([2 / 5, 2 / 5, 4 / 5])  # one infinite score is at least as large as any
    assert np.isnan(result.p[3])
    assert "if the 4 reference documents are" in result.claim
    result = find(scores([*tested, 1.0, 2.0, np.nan, np.inf]), reference=[4, 5, 6, 7])
    assert result.p[:3] == pytest.approx([2 / 4, 2 / 4, 1.0])
    assert "if the 3 of 4 reference documents that have a score are a random sample of clean ones" in result.claim
    with pytest.raises(InfuserError, match="no reference document has a score"):
        find(scores([1.0, np.nan]), reference=[1])


def test_a_reference_that_is_not_exchangeable_breaks_the_level():
    rng = np.random.default_rng(4)
    easiest = np.sort(rng.gamma(2.0, size=400))[::-1].copy()  # the reference: the lowest scores
    result = find(scores(easiest), reference=np.arange(200, 400))
    assert (result.p <= 0.05).mean() > 0.9


def test_without_a_reference_documents_are_only_ranked_and_the_output_says_so():
    result = find(scores([0.1, np.nan, 3.0]))
    assert result.ids.tolist() == [2, 0, 1]
    assert np.isnan(result.p).all()
    assert not result.found.any()
    assert "ranked only" in result.claim


def test_benjamini_hochberg_by_its_definition():
    p = np.random.default_rng(5).random(50) ** 3
    q = benjamini_hochberg(p)
    for level in (0.05, 0.1, 0.3):
        ordered = np.sort(p)
        passing = np.flatnonzero(ordered <= level * np.arange(1, 51) / 50)
        limit = ordered[passing[-1]] if len(passing) else -1.0
        np.testing.assert_array_equal(q <= level, p <= limit)


def test_bad_references_and_levels_are_refused():
    with pytest.raises(InfuserError, match="some of the scored documents"):
        find(scores([1.0, 2.0]), reference=[0, 1])
    with pytest.raises(InfuserError, match="level is out of range"):
        find(scores([1.0, 2.0]), level=1.0)


def test_a_group_of_all_documents_of_its_labels_is_like_every_other():
    few, probes = documents(60)
    method = FInfluence(every=1)
    run = train(
        SMALL, few, Recipe(epochs=4, batch_size=8, lr=0.1), observers=[method.observer(few, measurement=probes)]
    )
    for label in range(4):
        members = few.ids[few.targets == label][::-1]
        assert method.group_test(run, few, members, probes, groups=49).p == 1
