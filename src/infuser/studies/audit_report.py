"""What an audit leaves behind for people: the list as parquet, the report, and a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infuser.data.dataset import Dataset
from infuser.report import Caveat, Documents, from_results, report
from infuser.report.read_audit import found
from infuser.storage import atomic_path
from infuser.types import Suspicion

_LISTED = 100  # documents at the head of each list whose pictures are in the report
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


def write_report(path: Path, results: Mapping[str, Any], data: Dataset, table: Mapping[str, Any], config: str) -> None:
    """Write report.html: the list with its documents, how good it is where that is known, limits and provenance."""
    names = [results["ranked_by"], *(["loss"] if results["ranked_by"] != "loss" else [])]
    suspicions = [
        Suspicion(np.asarray(table[f"detector: {name}"]), np.asarray(table["id"]), name, results["told"][name])
        for name in names
    ]
    shown = from_results(results, config=config, hashes={"training data": data.content_hash})
    title = f"Audit of {results['dataset']}, ranked by {results['ranked_by']}"
    report(path, *shown, Caveat("", _LIMITS), *_documents(data, table, suspicions), *suspicions, title=title)


def _documents(data: Dataset, table: Mapping[str, Any], suspicions: Sequence[Suspicion]) -> list[Documents]:
    """Return what a reader needs of every document that some list begins with; nothing where they are no pictures."""
    if data.inputs.dtype != np.uint8 or data.inputs.ndim != 4:
        return []
    ids = np.unique(np.concatenate([s.top(min(_LISTED, len(data))) for s in suspicions]))
    rank = {int(i): row for row, i in enumerate(table["id"])}
    rows = [rank[int(i)] for i in ids]
    named = list(data.classes) or [str(c) for c in range(data.n_outputs)]
    few = data[ids]
    facts = {
        "predicted": [named[table["prediction"][row]] for row in rows],
        "detectors agreeing": [int(table["agree"][row]) for row in rows],
        "labels of the nearest": [", ".join(named[c] for c in table["near_labels"][row]) or None for row in rows],
    }
    return [Documents(few.ids, few.inputs, few.targets, data.classes, facts=facts)]
