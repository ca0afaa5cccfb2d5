"""The audit of one's own data: train once under observation, rank the documents, and say how good the ranking is.

data -> train, observed -> every detector -> a ranked list with neighbours, agreement and influence
data with planted faults -> train, observed -> every detector -> recall of the planted faults at each depth
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

import infuser.models
from infuser.config import dump, resolve
from infuser.data.dataset import Dataset
from infuser.data.source import files, load, split, subset, texts, unsplit
from infuser.data.text import text_dataset
from infuser.detection.features import penultimate
from infuser.errors import InfuserError, listed
from infuser.evaluation.stats import wilson, wilson_of_share
from infuser.executors import Local
from infuser.measure import Margin
from infuser.models.huggingface import HuggingFace
from infuser.storage import write_json
from infuser.studies import stories
from infuser.studies.audit_material import Labelled, Material, Texts, require_fault
from infuser.studies.audit_report import write_report, write_suspects
from infuser.studies.audit_settings import Audit
from infuser.studies.environment import environment
from infuser.studies.folder import opened
from infuser.studies.parts import Part, completed, determinants, key_of
from infuser.studies.planted import finding
from infuser.studies.suspects import observed, recall_at, search
from infuser.studies.worlds import Stories, TextPoison
from infuser.training import train, without_traces
from infuser.types import Array, Edit

SCHEMA = 2  # of results and parts
DEPTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # shares of the list that recall is stated at
_NOT_LISTED = ("random",)
_AGREED = 10  # documents at the least that are a detector's top


def run_audit(
    settings: Audit,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
    export: Literal["none", "clean"] = "none",
    remove: Sequence[int] = (),
) -> dict[str, Any]:
    """Audit a training set into the folder `out` and return what results.json holds.

    Args:
        settings: of the audit.
        out: gets suspects.parquet (all documents, most suspicious first), results.json and report.html.
        resume: go on with what the folder holds.
        overwrite: start over in the folder.
        allow_code: let the settings name module:function.
        export: `clean` writes the data without the chosen suspects to the subfolder `clean-data`.
        remove: ids of the chosen suspects; by default the head of the list, `depth` of the data.

    Raises:
        InfuserError: bad settings or data, or `out` holds another audit.
    """
    with opened(out, dump(settings), resume=resume, overwrite=overwrite) as folder:
        made_with = environment()
        write_json(folder / "environment.json", made_with)
        material = prepare(settings, allow_code=allow_code)
        data = material.data
        jobs = ["audit", *(["planted"] if settings.plant else [])]
        base = {**determinants(settings, made_with), "data": data.content_hash, "schema": SCHEMA}
        base |= material.determinants
        keys = {name: key_of({**base, "job": name}) for name in jobs}
        parts = completed(
            folder,
            data,
            {name: name for name in jobs},
            keys,
            Local(settings.recipe.threads),
            partial(audit_job, settings, material),
        )
        table = _table(settings, data, parts["audit"].facts)
        results = {
            **assemble(settings, data, table, parts, _notes(settings, material, table)),
            "environment": made_with,
        }
        write_suspects(folder / "suspects.parquet", table)
        write_json(folder / "results.json", results)
        write_json(folder / "timing.json", {name: part.seconds for name, part in parts.items()})
        write_report(folder / "report.html", results, material, table, dump(settings))
        if export == "clean":
            chosen = np.asarray(remove if len(remove) else table["id"][: max(1, round(settings.depth * len(data)))])
            _export(material, chosen, folder / "clean-data")
    return results


def prepare(settings: Audit, *, allow_code: bool = False) -> Material:
    """Return the data with their model, the suspected behaviour, and what can be planted.

    Raises:
        InfuserError: the documents have neither labels nor text, a suspected or trusted one is not there, or the faults
            to be planted are of another kind of data.
    """
    material = _texts(settings) if settings.of_texts else _labelled(settings, allow_code)
    material.data.positions(settings.trusted)  # raises for ids that are not there
    if settings.plant:
        require_fault(material, settings.plant_kind)
    return material


def _labelled(settings: Audit, allow_code: bool) -> Labelled:
    # Where nobody set a test part aside, one is needed only to suspect a behaviour on.
    whole = unsplit(settings.data)
    aim = None
    if whole is None or settings.suspect:
        train_set, test = load(settings.data, settings.data_folder)
        aim = Margin(test[settings.suspect], np.array(settings.suspect_labels)) if settings.suspect else None
    else:
        train_set = whole
    if train_set.kind != "classification":
        raise InfuserError("an audit is of labelled documents or texts", got=train_set.kind, expected="classification")
    if len(np.unique(train_set.targets)) < 2:
        raise InfuserError(
            "the documents all have one label, so that there is nothing to learn and nothing to suspect",
            got=f"{len(train_set)} documents of one class",
            expected="two classes or more; in a folder, a subfolder for each",
        )
    names = tuple(str(path) for path in files(settings.data)) if settings.data.startswith("folder:") else ()
    builder = resolve(settings.model, infuser.models, allow_code)
    return Labelled(builder, subset(train_set, settings.limit), aim, train_set if whole is None else whole, names)


def _texts(settings: Audit) -> Texts:
    builder = HuggingFace(settings.model)
    path = settings.data.removeprefix("text:")
    read = texts(path)
    codec = builder.codec()
    every = text_dataset(read, codec, settings.context, on_long="truncate", on_empty="drop", name=Path(path).name)
    if len(every) < 2:
        raise InfuserError(
            f"{every.name} holds one document",
            got=path,
            expected="<|endoftext|> between documents in .txt, a line each in .jsonl, a file each in a folder",
        )
    # Without a behaviour nothing is measured on texts of its own.
    if not settings.suspect_words:
        data = subset(every, settings.limit)
        return Texts(Stories(stories.Material(data, every, every, codec, builder, {})), read)
    train_set, test = split(every, 0.2)
    test = replace(test, name=f"the {len(test)} of {len(every)} texts held out to read the behaviour on")
    data = subset(train_set, settings.limit)
    said, instead = settings.suspect_words
    world = Stories(stories.Material(data, test, test, codec, builder, {}), TextPoison(pairs=((said, instead),)))
    if settings.plant and settings.plant_kind == "infusion":
        return Texts(world, read, world.behaviour("", 0, "defender"), world.behaviour("", 0, "attacker"))
    return Texts(world, read, world.behaviour("", 0, "judge"))  # nobody else needs a part of them


def audit_job(settings: Audit, material: Material, job: str) -> Part:
    """Train on the data as they are, or with planted faults, and let every detector look."""
    begun = time.monotonic()
    data, aim = material.data, material.aim
    edit = planted(settings, material) if job == "planted" else None
    seen = data if edit is None else data.apply(edit)
    found = observed(material.builder, seen, settings.recipe, settings.effort, aim)
    said = search(found, seen, settings.effort, aim)
    kept = {name: said.suspicions[name] for name in sorted(said.suspicions) if name not in _NOT_LISTED}  # as JSON sorts
    facts: dict[str, Any] = {"epochs": {name: said.epochs[name] for name in kept}}
    if edit is not None:
        depths = [max(1, round(share * len(data))) for share in DEPTHS]
        facts |= {"k": len(edit), "made_by": edit.made_by}
        facts["recall"] = {name: recall_at(value, edit.ids, depths).tolist() for name, value in kept.items()}
        facts["ids"] = edit.ids.tolist()
        facts["suspicions"] = {name: value.values.tolist() for name, value in kept.items()}
        return Part({}, edit, facts, round(time.monotonic() - begun, 1))
    head = kept[ranked_by(settings, kept)].top(min(settings.review, len(data)))
    facts["told"] = {name: value.told for name, value in kept.items()}
    facts["suspicions"] = {name: value.values.tolist() for name, value in kept.items()}
    facts["columns"] = material.columns(without_traces(found.run))
    facts["near"] = dict(zip(map(str, head.tolist()), _near(found.run, data, head, settings.neighbours), strict=True))
    return Part({}, None, facts, round(time.monotonic() - begun, 1))


def planted(settings: Audit, material: Material) -> Edit:
    """Return the faults that are planted in the second run."""
    count = max(1, round(settings.plant * len(material.data)))
    trained = partial(train, material.builder, material.data, settings.recipe)
    return material.planted(settings.plant_kind, trained, count, settings.plant_seed)


def ranked_by(settings: Audit, suspicions: Mapping[str, Any]) -> str:
    """Return the detector that orders the list.

    Raises:
        InfuserError: it is not among those that ran.
    """
    told = settings.suspect or settings.suspect_words
    name = settings.rank_by or ("fused_told" if told else "fused_blind")
    if name not in suspicions:
        raise InfuserError("no such detector ran", got=name, expected=", ".join(suspicions))
    return name


def assemble(
    settings: Audit, data: Dataset, table: Mapping[str, Any], parts: Mapping[str, Part], notes: Sequence[str]
) -> dict[str, Any]:
    """Return what results.json says, but for the environment."""
    facts = parts["audit"].facts
    count = min(settings.review, len(data))
    names = [name for name in table if not name.startswith("detector: ")]
    head = [{name: _cell(table[name][row]) for name in names} for row in range(count)]
    known = parts["planted"].facts if "planted" in parts else None
    return {
        "schema": SCHEMA,
        "dataset": data.name,
        "n": len(data),
        "model": settings.model,
        "ranked_by": ranked_by(settings, facts["suspicions"]),
        "told": facts["told"],
        "epochs": facts["epochs"],
        "suspects": head,
        "notes": list(notes),
        "recall": recalls(settings, known),
        "planted": None if known is None else finding(data.ids, facts, known, ranked_by(settings, facts["suspicions"])),
        "precision": precisions(settings, data, table["id"]),
    }


def recalls(settings: Audit, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the recall of the planted faults at each depth with its Wilson interval, or why it is unknown."""
    if known is None:
        return {"kind": None, "rows": [], "reason": "nothing was planted: set plant, for instance to 0.01"}
    rows = []
    for name, shares in known["recall"].items():
        for depth, share in zip(DEPTHS, shares, strict=True):
            estimate = wilson_of_share(share, known["k"], "planted documents")
            row = {"detector": name, "depth": depth, "value": share, "ci95": estimate.interval, "n": known["k"]}
            rows.append(row | {"seeds": [settings.plant_seed]})
    return {"kind": settings.plant_kind, "made_by": known["made_by"], "rows": rows, "reason": None}


def precisions(settings: Audit, data: Dataset, order: Array) -> dict[str, Any]:
    """Return bounds on the precision of the list at each depth from how often trusted documents are on it.

    If trusted documents are like the other clean ones, a share r of all clean documents is flagged, at most r N, so
    that precision is at least 1 - r N / depth; the interval is that of r (Wilson).
    """
    if not settings.trusted:
        return {"rows": [], "reason": "unknown: no documents were named as trusted"}
    rows = []
    for depth in DEPTHS:
        flagged = max(1, round(depth * len(data)))
        rate = wilson(int(np.isin(settings.trusted, order[:flagged]).sum()), len(settings.trusted), "trusted documents")
        assert rate.interval is not None, "there are trusted documents"
        low, value, high = (
            min(1.0, max(0.0, 1 - r * len(data) / flagged)) for r in (rate.interval[1], rate.value, rate.interval[0])
        )
        rows.append({"depth": depth, "at_least": value, "ci95": (low, high), "n": rate.n})
    return {"rows": rows, "reason": None}


def _table(settings: Audit, data: Dataset, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of the list, most suspicious first."""
    suspicions = {name: np.array(values) for name, values in facts["suspicions"].items()}
    by = ranked_by(settings, suspicions)
    order = np.argsort(-suspicions[by], kind="stable")
    single = [name for name in suspicions if not name.startswith("fused")]
    depth = max(_AGREED, round(settings.depth * len(data)))
    tops = {name: in_top(suspicions[name], depth) for name in single}
    near = [facts["near"].get(str(i), []) for i in data.ids[order].tolist()]
    table: dict[str, Any] = {
        "rank": np.arange(1, len(data) + 1),
        "id": data.ids[order],
        **{name: [values[row] for row in order] for name, values in facts["columns"].items()},
        "suspicion": suspicions[by][order],
        "agree": np.sum(list(tops.values()), axis=0)[order],
        "agreeing": [", ".join(name for name in single if tops[name][row]) for row in order],
        "near": near,
    }
    if "label" in facts["columns"]:
        table["near_labels"] = [data.targets[data.positions(ids)].tolist() if ids else [] for ids in near]
    if "influence" in suspicions:
        table["influence"] = suspicions["influence"][order]
    return table | {f"detector: {name}": suspicions[name][order] for name in suspicions}


def in_top(values: Array, depth: int) -> Array:
    """Return which values (N,) are among the `depth` highest, (N,) bool: those above the next one behind them.

    Values that tie across the cut are not among them, since only storage order would tell them apart; so a detector
    that gives one value to all has no top.
    """
    behind = min(depth, len(values) - 1)
    return cast(Array, values > np.sort(values)[::-1][behind])


def _notes(settings: Audit, material: Material, table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a reader of the list has to know."""
    said = tuple(material.notes(table))
    if not (settings.plant and settings.plant_kind == "infusion") or settings.of_texts:
        return said
    planted = "The planted edits are made for the suspected documents themselves"
    return (*said, f"{planted}: the recall of detectors that are told these is the best case.")


def _near(run: Any, data: Dataset, head: Array, k: int) -> list[list[int]]:
    """Return the ids of the k nearest others in feature space of each document of `head`."""
    from sklearn.neighbors import NearestNeighbors

    features = penultimate(run, data)
    at = data.positions(head)
    count = min(k + 1, len(data))
    found = NearestNeighbors(n_neighbors=count).fit(features).kneighbors(features[at], return_distance=False)
    return [data.ids[row[row != own]][:k].tolist() for row, own in zip(found, at, strict=True)]


def _cell(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _export(material: Material, chosen: Array, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InfuserError(
            "data were exported here before", got=str(folder), remedy="move them away, then run it again with --resume"
        )
    try:
        material.export(chosen, folder)
    except InfuserError as error:
        raise InfuserError(f"the clean data cannot be written: {error.fact}", got=listed(chosen.tolist())) from error
