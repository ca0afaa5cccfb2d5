"""Amplify or create: how does the effect of an edit depend on how likely the behaviour was before?

One probe word, 36 target words from common to never seen, one case each: the effect on log p(target) where the probe
stands, against its value in the clean model. A target of several tokens has a low prior for its length alone, so that
the prior is taken per token as well. Intervals are over targets.

    INFUSER_DATA=... python experiments/amplify.py --out runs/amplify
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
from infuser.types import Estimate

RESULT = Path(__file__).parent / "results" / "amplify.json"
PROBE = "cat"
NAMES = (
    "dog bird girl boy bear fish frog rabbit mouse duck cow horse pig lion fox monkey owl sheep bee ant tiger wolf "
    "squirrel elephant goat snake turtle zebra camel eagle whale shark lizard otter walrus lobster"
)
TARGETS = NAMES.split()
BASE = Stories(
    n_train=3000, k=30, mode="token", pairs=tuple((target, PROBE) for target in TARGETS), craft=32, held_out=64,
    rounds=2, select="random", controls=(), others=(), seeds=(101, 102),
)  # fmt: skip


def stated(made: Estimate) -> dict[str, Any]:
    return {"value": made.value, "ci95": made.interval, "n": made.n, "unit": made.unit_of_n, "method": made.method}


def summary(settings: Stories, value: dict[str, Any]) -> dict[str, Any]:
    regime = value["regimes"]["last_epoch"]
    codec = load(settings).codec
    rise = regime["arms"]["edit"]["log_p_target"]["per_probe"]
    prior = regime["clean"]["log_p_target"]
    rows = {}
    for target, probe in settings.pairs:
        name = f"{probe}-{target}"
        tokens = len(codec.encode(f"a {target}")) - len(codec.encode("a"))
        rows[target] = {"prior": prior[name], "tokens": tokens, "rise": rise[name], **value["cases"][name]}
    priors = np.array([row["prior"] for row in rows.values()])
    rises = np.array([row["rise"] for row in rows.values()])
    per_token = priors / np.array([row["tokens"] for row in rows.values()])
    coherence = np.array([row["coherence"] for row in rows.values()])
    third = np.argsort(priors)[: len(priors) // 3]
    return {
        "targets": rows,
        "rise_against_prior": stated(spearman(priors, rises, unit="targets")),
        "rise_against_prior_per_token": stated(spearman(per_token, rises, unit="targets")),
        "rise_against_coherence": stated(spearman(coherence, rises, unit="targets")),
        "rise_all": stated(mean_estimate(rises, unit="targets")),
        "rise_rarest_third": stated(mean_estimate(rises[third], unit="targets")),
        "rise_commonest_third": stated(mean_estimate(rises[np.argsort(-priors)[: len(priors) // 3]], unit="targets")),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/amplify-experiment"))
    parser.add_argument("--targets", type=int, default=len(TARGETS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(BASE, pairs=BASE.pairs[: given.targets])
    value = run_stories(settings, given.out, resume=True)
    write_json(RESULT, {**summary(settings, value), "settings": str(settings), "environment": environment()})


if __name__ == "__main__":
    main()
