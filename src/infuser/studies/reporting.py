"""From a finished study to its report.html: the records that the report shows, filled with what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infuser.config import dump
from infuser.perturbation.distances import edit_distances
from infuser.perturbation.perturb import take
from infuser.report import Documents, EditView, ProbeView, from_results, report
from infuser.studies.parts import Part
from infuser.studies.results import pooled_trials
from infuser.studies.study import Study
from infuser.types import Array, Trials

SHOWN = 12  # edited documents shown per probe, those with the largest predicted gain; all are in edits/


def write_report(path: Path, study: Study, parts: Mapping[str, Part], results: Mapping[str, Any]) -> None:
    """Write report.html: what was asked and found, effects, probes, edited documents, predicted against measured."""
    hashes = {"training data": study.data.content_hash}
    hashes |= {f"{name or 'main:'} weights": run.checkpoints[-1].content_hash for name, run in study.runs}
    shown = [
        *from_results(results, config=dump(study.settings), hashes=hashes),
        *_probes(study, pooled_trials(parts)),
        *_edits(study, parts),
        study.scores,
        Documents(study.data.ids, study.data.inputs, study.data.targets, study.data.classes, _edited(parts)),
    ]
    report(path, *shown, title=f"Infusion on {study.data.name}, {study.settings.model}")


def _probes(study: Study, pooled: Mapping[str, Trials]) -> Iterator[ProbeView]:
    trials = next(iter(pooled.values())).where(measure="class_probability")
    documents, labels = study.probes.documents, np.asarray(study.probes.labels)
    classes = study.data.classes
    arms = ["clean", *(arm for arm in dict.fromkeys(trials.arm.tolist()) if arm != "clean")]
    for q, name in enumerate(study.probes.queries):
        probabilities = {arm: _distribution(trials, arm, name, len(classes)) for arm in arms}
        label, target = int(documents.targets[q]), int(labels[q])
        yield ProbeView(name, documents.inputs[q], label, target, classes, probabilities, after="edit")


def _distribution(trials: Trials, arm: str, probe: str, n_classes: int) -> Array:
    rows = trials.where(arm=arm)
    return np.array([rows.where(probe=f"{probe}#{c}").value.mean() for c in range(n_classes)])


def _edits(study: Study, parts: Mapping[str, Part]) -> Iterator[EditView]:
    edited = [part.edit for part in parts.values() if part.edit is not None]
    for q, edit in enumerate(edited):
        gains = np.zeros(len(edit)) if edit.gains is None else edit.gains
        rows = np.argsort(-gains, kind="stable")[:SHOWN]
        shown = take(edit, rows, edit.made_by)
        distances = edit_distances(shown)
        named = {
            "Linf (1/255)": distances["linf_255"],
            "L2 (0 to 1)": distances["l2"],
            "SSIM": distances["ssim"],
        }
        influence = study.scores.values[q][study.data.positions(shown.ids)]
        probe = study.probes.queries[q].replace("->", " → ")
        title = f"Edited for probe {probe}: {len(shown)} of {len(edit)} documents, by predicted gain"
        yield EditView(shown, title, study.data.classes, influence, named)


def _edited(parts: Mapping[str, Part]) -> tuple[int, ...]:
    return tuple(sorted({int(i) for part in parts.values() if part.edit is not None for i in part.edit.ids}))
