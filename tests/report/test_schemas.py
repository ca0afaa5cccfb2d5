"""results.json of text studies and audits keeps to the committed schemas, and the report says what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import infuser.report as rep
from infuser.studies import caesar as study
from infuser.studies.planted import finding
from infuser.types import Suspicion
from tests.report import runs


def schema(name: str) -> Any:
    return json.loads(Path(study.__file__).with_name(name).read_text(encoding="utf-8"))


def test_text_results_keep_to_their_schema_and_are_all_shown(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = runs.caesar(tmp_path / "caesar", patch)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(results, schema("text_results.schema.json"))
    with pytest.raises(jsonschema.ValidationError, match="share"):
        jsonschema.validate({**results, "share": 0}, schema("text_results.schema.json"))
    assert (folder / "trials.parquet").exists()
    parts = rep.from_results(results)
    [regime] = [part for part in parts if isinstance(part, rep.Regime)]
    shown = {(e.arm, e.control): e for e in regime.effects if e.measure == "contrast"}
    for row in results["regimes"]["last_epoch"]["effects"]:
        made = shown[row["arm"], row["control"]]
        assert made.value == row["mean"]
        assert made.per_probe == row["per_probe"]
        assert made.estimate.unit_of_n == "pairs"
    [predicted] = [part for part in parts if isinstance(part, rep.PredictedMeasured)]
    wanted = [results["cases"][name]["predicted"] for name in predicted.names]
    np.testing.assert_array_equal(predicted.predicted, wanted)
    [sheet] = [part for part in parts if isinstance(part, rep.Sheet)]
    assert list(sheet.rows) == list(results["cases"])


def test_a_planting_gives_metrics_lift_and_curves() -> None:
    ids, wanted = np.arange(40), np.arange(8)
    after, before = np.arange(40.0), np.arange(40.0)
    after[wanted] += 100  # found at once, and unremarkable before: the lowest of all
    facts = {"suspicions": {"d": before.tolist()}}
    made = finding(ids, facts, {"suspicions": {"d": after.tolist()}, "ids": wanted.tolist()}, "d")
    rows = {row["metric"]: row for row in made["rows"]}
    assert rows["roc_auc"]["after"]["value"] == 1.0
    assert rows["roc_auc"]["lift"]["value"] == 1.0
    assert made["curves"]["d"]["tpr"][1] == 1.0 or made["curves"]["d"]["fpr"][1] == 0.0
    flat = finding(ids, facts, {"suspicions": {"d": before.tolist()}, "ids": wanted.tolist()}, "d")
    assert {row["metric"]: row for row in flat["rows"]}["roc_auc"]["lift"]["value"] == 0.0  # the negative


def test_thinning_a_curve_keeps_its_ends_and_area() -> None:
    from sklearn.metrics import roc_auc_score

    from infuser.studies.planted import roc

    rng = np.random.default_rng(0)
    values, wanted = rng.normal(size=5000), np.arange(1000)
    values[wanted] += 1.0
    curve = roc(Suspicion(values, np.arange(5000), "d"), wanted)
    assert len(curve["fpr"]) <= 200
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0.0, 0.0, 1.0, 1.0)
    area = float(np.trapezoid(curve["tpr"], curve["fpr"]))
    assert area == pytest.approx(roc_auc_score(np.arange(5000) < 1000, values), abs=0.01)
