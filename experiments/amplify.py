"""Amplify or create: how does the effect of an edit depend on how likely the behaviour was before?

One probe word, 36 target words from common to never seen, one case each: the effect on log p(target) where the probe
stands, against its value in the clean model. A target of several tokens has a low prior for its length alone, so that
the prior is taken per token as well. The typical probability is exp(mean log p) over the places. Intervals are over
targets. The folder is resumed, so that the command can be stopped and run again; `--table` writes what is there.

    INFUSER_DATA=... python experiments/amplify.py --out runs/amplify-experiment
    INFUSER_DATA=... python experiments/amplify.py --out runs/amplify-experiment --table
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infuser.evaluation.stats import mean_estimate, spearman
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.stories import Stories, load, run_stories
from infuser.studies.text_study import results, stored
from infuser.types import Estimate

RESULT = Path(__file__).parent / "results" / "amplify.json"
PROBE = "cat"
NAMES = (
    # Common and rare ones in turn, so that a part of the list says something too.
    "dog camel bird zebra girl eagle boy whale bear shark fish lizard frog otter rabbit walrus mouse lobster duck goat "
    "cow snake horse turtle pig squirrel lion elephant fox wolf monkey tiger owl ant sheep bee"
)
TARGETS = NAMES.split()
BASE = Stories(
    mode="token", pairs=tuple((target, PROBE) for target in TARGETS), craft=32, held_out=64,
    rounds=2, fluency=None, whole=False, select="random", controls=(), others=(), seeds=(101, 102),
)  # fmt: skip


def stated(made: Estimate) -> dict[str, Any]:
    return {"value": made.value, "ci95": made.interval, "n": made.n, "unit": made.unit_of_n, "method": made.method}


def summary(settings: Stories, folder: Path) -> dict[str, Any]:
    trials, cases = stored(folder)
    regime = results(trials, cases)["regimes"]["last_epoch"]
    codec = load(settings).codec
    rise = regime["arms"]["edit"]["log_p_target"]["per_probe"]
    prior, clean_seeds = regime["clean"]["log_p_target"], sorted({int(s) for s in trials.seed})
    rows = {}
    for target, probe in settings.pairs:
        name = f"{probe}-{target}"
        if name not in cases:
            continue
        tokens = len(codec.encode(f"a {target}")) - len(codec.encode("a"))
        rows[target] = {"prior": prior[name], "tokens": tokens, "rise": rise[name], **cases[name]}
    priors = np.array([row["prior"] for row in rows.values()])
    rises = np.array([row["rise"] for row in rows.values()])
    per_token = priors / np.array([row["tokens"] for row in rows.values()])
    # In probability, of which nats say nothing: from 1e-15 to 1e-8 is 16 nats and still never said.
    gained = np.exp(priors + rises) - np.exp(priors)
    coherence = np.array([row["coherence"] for row in rows.values()])
    third, common = (np.argsort(sign * priors)[: len(priors) // 3] for sign in (1, -1))
    return {
        "targets": rows,
        "seeds": clean_seeds,
        "clean_drift": regime["clean_drift"],
        "rise_against_prior": stated(spearman(priors, rises, unit="targets")),
        "rise_against_prior_per_token": stated(spearman(per_token, rises, unit="targets")),
        "rise_of_typical_probability_against_prior": stated(spearman(priors, gained, unit="targets")),
        "rise_of_typical_probability_commonest_third": stated(mean_estimate(gained[common], unit="targets")),
        "rise_of_typical_probability_rarest_third": stated(mean_estimate(gained[third], unit="targets")),
        "rise_against_coherence": stated(spearman(coherence, rises, unit="targets")),
        "rise_all": stated(mean_estimate(rises, unit="targets")),
        "rise_rarest_third": stated(mean_estimate(rises[third], unit="targets")),
        "rise_commonest_third": stated(mean_estimate(rises[common], unit="targets")),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/amplify-experiment"))
    parser.add_argument("--targets", type=int, default=len(TARGETS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(BASE, pairs=BASE.pairs[: given.targets])
    if not given.table:
        run_stories(settings, given.out, resume=True)
    found = summary(settings, given.out)
    missing = [target for target, _ in settings.pairs if target not in found["targets"]]
    write_json(RESULT, {**found, "missing": missing, "settings": str(settings), "environment": environment()})


if __name__ == "__main__":
    main()
