"""The placebo of a probe is the mean of the models that were edited for the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.evaluation.compare import compare
from infuser.evaluation.placebo import PLACEBO, Elsewhere, with_placebo
from infuser.measure import LogProb, Margin
from infuser.params import trainable
from infuser.types import Trials

SEEDS = (1, 2)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 1, 3, 3)).astype(np.uint8)
PROBES = LogProb(Dataset.from_arrays(IMAGES, np.array([0, 1, 2, 0])), np.array([1, 2, 0, 2]))


def models() -> np.ndarray:
    """Return log-odds by seed, the probe that the model was edited for, and the probe that it is read off on."""
    return np.random.default_rng(1).normal(size=(len(SEEDS), 4, 4)) + 3 * np.eye(4)


def rows(table: np.ndarray, starts: bool = True) -> Trials:
    names, found = PROBES.queries, []
    for s, seed in enumerate(SEEDS):
        found += [("clean", seed, name, "log_odds", 0.0) for name in names]
        for q, own in enumerate(names):
            found.append(("edit", seed, own, "log_odds", table[s, q, q]))
            found += [("edit", seed, name, "elsewhere", table[s, q, r]) for r, name in enumerate(names) if r != q]
    same = {f"{arm}/{seed}": f"weights={seed}" for arm in ("clean", "edit") for seed in SEEDS}
    return Trials.from_rows(found, "last_epoch", same if starts else {})


def test_an_edit_is_compared_with_the_models_of_the_other_probes():
    table = models()
    found = compare(with_placebo(rows(table)), "edit", PLACEBO, "log_odds")
    for q, name in enumerate(PROBES.queries):
        others = np.delete(table[:, :, q], q, axis=1).mean(1)
        assert found.per_probe[name] == pytest.approx((table[:, q, q] - others).mean())
    assert found.value > 2
    # With the model itself among its placebos the edit would be held against a part of itself.
    diluted = np.mean([table[:, q, q] - table[:, :, q].mean(1) for q in range(4)])
    assert abs(diluted - found.value) > 0.5


def test_the_placebo_starts_where_the_edit_does():
    trials = with_placebo(rows(models()))
    assert trials.starts["placebo/2"] == "weights=2"
    other = rows(models())
    other.starts["edit/2"] = "weights=9"
    with pytest.raises(InfuserError, match="did not start alike under seed 2"):
        compare(with_placebo(other), PLACEBO, "clean", "log_odds")
    assert compare(with_placebo(rows(models(), starts=False)), "edit", PLACEBO, "log_odds").estimate.n == 4


def test_nothing_is_added_where_a_probe_was_not_read_off_elsewhere():
    whole = rows(models())
    lost = (whole.measure == "elsewhere") & (whole.probe == PROBES.queries[3]) & (whole.seed == 2)
    kept = [column[~lost] for column in (whole.arm, whole.seed, whole.probe, whole.measure, whole.value)]
    part = Trials(*kept, whole.start, whole.starts)
    assert with_placebo(part) is part
    without = whole.where(measure="log_odds")
    assert with_placebo(without) is without


def test_other_probes_are_read_off_as_their_own_log_odds():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    params = trainable(model)
    whole = Margin(PROBES.documents, PROBES.labels)(model, params)
    for own in range(4):
        measure = Elsewhere(PROBES, own)
        rest = [q for q in range(4) if q != own]
        assert measure.queries == tuple(PROBES.queries[q] for q in rest)
        assert len(measure) == 3
        torch.testing.assert_close(measure(model, params), whole[rest])
    assert not torch.allclose(whole[1:], PROBES(model, params)[1:])  # log-odds, whatever the edit is to raise
