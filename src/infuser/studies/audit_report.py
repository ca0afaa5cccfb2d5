"""What an audit leaves behind for people: the list as parquet, the report, and a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infuser.report import Caveat, Documents, from_results, report
from infuser.report.read_audit import found
from infuser.storage import atomic_path
from infuser.studies.audit_material import Material
from infuser.types import Suspicion

_LISTED = 100  # documents at the head of each list that the report shows
_QUOTED = 60  # characters of a text on the terminal
_LIMITS = (
    "Suspicion is not proof: honest rare documents rank high too, and an attacker who knows these detectors can keep "
    "below them. Recall holds for the planted kind of fault alone; faults that the data hold already count as clean in "
    "it, and push the planted ones down."
)


def write_suspects(path: Path, table: Mapping[str, Any]) -> None:
    """Write all columns of the list as parquet, one row a document, most suspicious first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = ("near", "near_labels")
    typed = {n: pa.array(v, pa.list_(pa.int64()) if n in lists else None) for n, v in table.items()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(typed), temporary)


def summary(results: Mapping[str, Any], top: int = 10) -> str:
    """Return the head of the list and what is known of its quality, as plain text."""
    head = f"{results['dataset']}: {results['n']} documents, ranked by {results['ranked_by']}"
    lines = [f"{head}; near: the documents most like it, by what the last layer sees"]
    single = sum(not name.startswith("fused") for name in results["told"])
    for row in results["suspects"][:top]:
        said = (
            f"{row['rank']:>4}. document {row['id']}: {_told(row)}, in the top of {row['agree']} of {single} detectors"
        )
        lines.append(f"{said}; near {', '.join(map(str, row['near']))}")
    return "\n".join([*lines, *results["notes"], *found(results)])


def _told(row: Mapping[str, Any]) -> str:
    if "text" in row:
        return repr(row["text"][:_QUOTED])
    named = f"{row['file']}, " if "file" in row else ""
    return f"{named}label {row['label']}, predicted {row['prediction']}"


def write_report(
    path: Path, results: Mapping[str, Any], material: Material, table: Mapping[str, Any], config: str
) -> None:
    """Write report.html: the list with its documents, how good it is where that is known, limits and provenance."""
    names = [results["ranked_by"], *(["loss"] if results["ranked_by"] != "loss" else [])]
    suspicions = [
        Suspicion(np.asarray(table[f"detector: {name}"]), np.asarray(table["id"]), name, results["told"][name])
        for name in names
    ]
    shown = from_results(results, config=config, hashes={"training data": material.data.content_hash})
    title = f"Audit of {results['dataset']}, ranked by {results['ranked_by']}"
    report(path, *shown, Caveat("", _LIMITS), *_documents(material, table, suspicions), *suspicions, title=title)


def _documents(material: Material, table: Mapping[str, Any], suspicions: Sequence[Suspicion]) -> list[Documents]:
    """Return what a reader needs of every document that some list begins with, where it can be shown."""
    data = material.data
    ids = np.unique(np.concatenate([s.top(min(_LISTED, len(data))) for s in suspicions]))
    shown = material.documents(ids)
    if shown is None:
        return []
    rank = {int(i): row for row, i in enumerate(table["id"])}
    rows = [rank[int(i)] for i in ids]
    facts: dict[str, Sequence[object]] = {"detectors agreeing": [int(table["agree"][row]) for row in rows]}
    if "label" in table:
        named = list(data.classes) or [str(c) for c in range(data.n_outputs)]
        near = [", ".join(named[c] for c in table["near_labels"][row]) or None for row in rows]
        facts = {"predicted": [named[table["prediction"][row]] for row in rows], **facts, "labels of the nearest": near}
    return [replace(shown, facts=facts)]
