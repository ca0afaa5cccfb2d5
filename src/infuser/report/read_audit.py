"""From results.json of an audit to what a report shows: how good the list is, where faults were planted to find out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from infuser.report.material import Detection, DetectorResult, Metric, Roc, Summary
from infuser.report.reading import PERCENT, Reading, Results, interval_of
from infuser.types import Estimate

SHOWN = 0.1  # the depth at which recall is said in a sentence
_NAMES = {
    "roc_auc": "ROC-AUC", "average_precision": "average precision", "recall_at_k": "recall at k",
    "tpr_at_1_percent": "TPR at 1 % FPR", "tpr_at_0.1_percent": "TPR at 0.1 % FPR",
}  # fmt: skip
_DRAWN = ("roc_auc",)  # the curves show the rates


def read(results: Results) -> Reading:
    """Return what the results of an audit say."""
    asked = f"Which of the {results['n']:,} training documents of {results['dataset']} should a person look at first?"
    named = (results["ranked_by"], "loss")
    settings: dict[str, float | str | None] = {
        "data": results["dataset"], "model": results["model"], "documents": results["n"],
        "ranked by": results["ranked_by"], "planted": results["recall"]["kind"],
    }  # fmt: skip
    metrics = tuple(_recall(row, results) for row in results["recall"]["rows"] if row["detector"] in named)
    planted = results.get("planted")
    parts = () if planted is None else (_detection(planted, results),)
    return Reading(Summary(asked, (*results.get("notes", ()), *found(results))), settings, (), metrics, parts)


def found(results: Results) -> tuple[str, ...]:
    """Return what is known of the list's recall and precision, in sentences."""
    recall, precision = results["recall"], results["precision"]
    said = list(_recalled(results))
    if not recall["rows"]:
        said.append(f"Recall is unknown: {recall['reason']}.")
    said += [
        f"Precision of the first {100 * SHOWN:.0f} %: at least {row['at_least']:.2f} ({row['n']} trusted documents)."
        for row in precision["rows"]
        if row["depth"] == SHOWN
    ]
    if not precision["rows"]:
        said.append(f"Precision is {precision['reason']}.")
    return tuple(said)


def _recalled(results: Results) -> Iterator[str]:
    for row in results["recall"]["rows"]:
        if row["depth"] == SHOWN and row["detector"] in (results["ranked_by"], "loss"):
            kind = results["recall"]["kind"].replace("_", " ")
            share, ends = f"{100 * row['value']:.0f} %", f"[{100 * row['ci95'][0]:.0f}, {100 * row['ci95'][1]:.0f}]"
            yield (
                f"Of {row['n']} planted {kind}, {row['detector']} has {share} {ends} in the first "
                f"{100 * SHOWN:.0f} % of its list, {max(1, round(SHOWN * results['n']))} documents "
                f"(one planting, 95 % Wilson interval)."
            )


def _recall(row: Mapping[str, Any], results: Results) -> Metric:
    kind = results["recall"]["kind"].replace("_", " ")
    name = f"{row['detector']}: recall of planted {kind} in the first {100 * row['depth']:g}{PERCENT}"
    return Metric(
        name, Estimate(row["value"], interval_of(row), row["n"], tuple(row["seeds"]), "planted documents", "Wilson")
    )


def _detection(planted: Mapping[str, Any], results: Results) -> Detection:
    named = [row["detector"] for row in planted["rows"] if row["metric"] == "roc_auc"]
    best = sorted(named, key=lambda name: name != results["ranked_by"])
    curves = tuple(
        Roc(name, np.array(planted["curves"][name]["fpr"]), np.array(planted["curves"][name]["tpr"]))
        for name in best
        if name in planted["drawn"]
    )
    rows = tuple(
        DetectorResult(
            row["detector"], _NAMES[row["metric"]], _estimate(row["after"], row["k"]), _estimate(row["lift"], row["k"])
        )
        for metric in _NAMES
        for row in sorted(planted["rows"], key=lambda r: -r["after"]["value"])
        if row["metric"] == metric
    )
    kind = results["recall"]["kind"].replace("_", " ")
    title = f"A second training with {planted['k']} planted {kind}, whose documents are known"
    drawn = tuple(_NAMES[name] for name in _DRAWN)
    return Detection(title, curves, rows, planted["k"], results["n"] - planted["k"], drawn)


def _estimate(block: Mapping[str, Any], k: int) -> Estimate:
    return Estimate(block["value"], interval_of(block), k, (), "planted documents", block["method"])
