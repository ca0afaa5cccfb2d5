"""What an audit leaves behind for people: the list as parquet, the report, and a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infuser.data.dataset import Dataset
from infuser.report import Caveat, Documents, Metric, Provenance, Summary, report
from infuser.storage import atomic_path
from infuser.types import Estimate, Suspicion

_SHOWN = 0.1  # the depth at which recall is said in a sentence
_LIMITS = (
    "Suspicion is not proof: honest rare documents rank high too, and an attacker who knows these detectors can keep "
    "below them. Recall holds for the planted kind of fault alone."
)


def write_suspects(path: Path, table: Mapping[str, Any]) -> None:
    """Write all columns of the list as parquet, one row a document, most suspicious first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    typed = {name: pa.array(values) for name, values in table.items() if name not in ("near", "near_labels")}
    typed |= {name: pa.array(table[name], pa.list_(pa.int64())) for name in ("near", "near_labels")}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(typed), temporary)


def summary(results: Mapping[str, Any], top: int = 10) -> str:
    """Return the head of the list and what is known of its quality, as plain text."""
    lines = [f"{results['dataset']}: {results['n']} documents, ranked by {results['ranked_by']}"]
    for row in results["suspects"][:top]:
        said = f"{row['rank']:>4}. document {row['id']}: label {row['label']}, predicted {row['prediction']}"
        lines.append(f"{said}, in the top of {row['agree']} detectors; near {', '.join(map(str, row['near']))}")
    return "\n".join([*lines, *found(results)])


def found(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is known of the list's recall and precision, in sentences."""
    recall, precision = results["recall"], results["precision"]
    said = []
    for row in recall["rows"]:
        if row["depth"] == _SHOWN and row["detector"] in (results["ranked_by"], "loss"):
            share, ends = f"{100 * row['value']:.0f} %", f"[{100 * row['ci95'][0]:.0f}, {100 * row['ci95'][1]:.0f}]"
            said.append(
                f"Of {row['n']} planted {recall['kind']}, {row['detector']} has {share} {ends} in the first"
                f" {100 * _SHOWN:.0f} % of its list (one planting, 95 % Wilson interval)."
            )
    if not recall["rows"]:
        said.append(f"Recall is unknown: {recall['reason']}.")
    said += [
        f"Precision of the first {100 * _SHOWN:.0f} %: at least {row['at_least']:.2f} ({row['n']} trusted documents)."
        for row in precision["rows"]
        if row["depth"] == _SHOWN
    ]
    if not precision["rows"]:
        said.append(f"Precision is {precision['reason']}.")
    return tuple(said)


def write_report(path: Path, results: Mapping[str, Any], data: Dataset, table: Mapping[str, Any], config: str) -> None:
    """Write report.html: the list with its documents, recall at each depth, limits and provenance."""
    names = [results["ranked_by"], *(["loss"] if results["ranked_by"] != "loss" else [])]
    by = f"ranked by {results['ranked_by']}"
    suspicions = [
        Suspicion(np.asarray(table[f"detector: {name}"]), np.asarray(table["id"]), name, results["told"][name])
        for name in names
    ]
    rows = [row for row in results["recall"]["rows"] if row["detector"] in names]
    metrics = [
        Metric(
            f"{row['detector']}: recall of planted {results['recall']['kind']} in the first {100 * row['depth']:g} %",
            Estimate(row["value"], tuple(row["ci95"]), row["n"], tuple(row["seeds"]), "planted documents", "Wilson"),
        )
        for row in rows
    ]
    asked = f"Which of the {results['n']} training documents of {results['dataset']} should a person look at first?"
    shown = [Summary(asked, found(results)), Caveat("", _LIMITS), *_documents(data, results), *suspicions, *metrics]
    provenance = Provenance(config, results["environment"], {}, {"training data": data.content_hash})
    report(path, *shown, provenance, title=f"Audit of {results['dataset']}, {by}")


def _documents(data: Dataset, results: Mapping[str, Any]) -> list[Documents]:
    if data.inputs.dtype != np.uint8 or data.inputs.ndim != 4:
        return []
    few = data[[row["id"] for row in results["suspects"]]]
    return [Documents(few.ids, few.inputs, few.targets, data.classes)]
