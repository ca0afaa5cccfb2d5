"""What a finished study of a language model leaves behind: rows, results with forecasts and caveats, a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infuser.config import dump
from infuser.evaluation.checks import check_agreement, check_effects, check_p_values, check_seeds, distinct
from infuser.evaluation.compare import compare
from infuser.perturbation.perturb import take
from infuser.perturbation.text_manifest import load_text_edit, recorded, text_distances
from infuser.report import EditView, from_results, report
from infuser.storage import write_json
from infuser.studies.results import forecast, write_trials
from infuser.studies.text_study import PRIMARY, START, Setup
from infuser.types import Effect, Trials

SHOWN = 12  # edited documents shown per case, those with the largest predicted gain; all are in edits/


def finished(folder: Path, value: Mapping[str, Any], setup: Setup, settings: Any, trials: Trials) -> dict[str, Any]:
    """Write trials.parquet, results.json and report.html, and return what results.json holds.

    Args:
        folder: of the run; its edits lie in edits/CASE.
        value: results without what is added here: predicted against measured changes, and caveats.
        setup: that all cases share.
        settings: of the study, with its recipe.
        trials: all rows.
    """
    main = _in_pairs(compare(trials, "edit", "clean", PRIMARY))
    predicted = {name: value["cases"][name]["predicted"] for name in value["probes"]}
    block, matched = forecast(predicted, main)
    # That open insertion does more is no caveat: it is the ceiling.
    compared = [a for a in dict.fromkeys(trials.arm.tolist()) if a not in ("clean", "edit", "insert_k")]
    effects = [main, *(_in_pairs(compare(trials, "edit", arm, PRIMARY)) for arm in compared)]
    caveats = [
        *check_seeds(trials, settings.recipe),
        *check_effects(effects),
        *check_p_values(effects),
        *check_agreement(matched),
    ]
    whole = {**value, "predicted": {START: block}, "caveats": [caveat.text for caveat in distinct(caveats)]}
    write_trials(folder / "trials.parquet", {START: trials})
    write_json(folder / "results.json", whole)
    write_report(folder, whole, setup, dump(settings))
    return whole


def _in_pairs(effect: Effect) -> Effect:
    return replace(effect, estimate=replace(effect.estimate, unit_of_n="pairs"))


def write_report(folder: Path, results: Mapping[str, Any], setup: Setup, config: str) -> None:
    """Write report.html: what was asked and found, effects by arm, every pair, and the edited texts token by token."""
    hashes = {"training data": setup.data.content_hash, "weights": setup.run.checkpoints[-1].content_hash}
    shown = [*from_results(results, config=config, hashes=hashes), *_edits(folder, results, setup)]
    report(folder / "report.html", *shown, title=f"Infusion on {results['dataset']}, {results['model']}")


def _edits(folder: Path, results: Mapping[str, Any], setup: Setup) -> Iterator[EditView]:
    pieces = dict(enumerate(setup.codec.pieces))
    for name in results["probes"]:
        where = folder / "edits" / name
        edit = load_text_edit(where, setup.data, setup.codec)
        gains = np.zeros(len(edit)) if edit.gains is None else edit.gains
        few = take(edit, np.argsort(-gains, kind="stable")[:SHOWN], edit.made_by)
        perplexity, substitutions = recorded(where, few)
        distances = text_distances(few, setup.codec)
        facts = {"characters changed": distances["levenshtein"]}
        facts |= {} if perplexity is None else {"perplexity, ratio": perplexity}
        title = f"Edited for pair {name}: {len(few)} of {len(edit)} documents, by predicted gain"
        yield EditView(few, title, (), None, facts, pieces, substitutions)
