"""Which substitutions to try first: label-side gain, the gradient over tokens, or relaxed PGD over simplices?

    INFUSER_DATA=... python experiments/proposers.py --documents 12

All edit the same random stories for the same direction, at most 10 % of the tokens, and are judged by the exact
predicted gain. The greedy method re-scores what any of them proposes; it is also given as much time as relaxed PGD
takes, by trying more of its own proposals. "discretised" takes what relaxed PGD ends at, without re-scoring.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stories import FEW

from infuser.evaluation.stats import mean_estimate
from infuser.measure_text import Mean
from infuser.perturbation.simplex import RelaxedPGD, TokenGradient
from infuser.perturbation.substitutions import LabelGain, Lexicon, propose
from infuser.perturbation.token_edits import Draft, GreedyTokens, TokenBudget, stacked
from infuser.perturbation.token_effect import TokenEffect
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.stories import case, fine_tuned, load, prepare
from infuser.types import Array

RESULT = Path(__file__).parent / "results" / "proposers.json"
PGD = RelaxedPGD(steps=12)
BASELINE = "greedy, label-side gain"


def methods(greedy: GreedyTokens) -> dict[str, GreedyTokens]:
    return {
        BASELINE: replace(greedy, proposer=LabelGain()),
        "greedy, label-side gain, four times the proposals": replace(
            greedy, proposer=LabelGain(), pool=4 * greedy.pool
        ),
        "greedy, gradient over tokens": replace(greedy, proposer=TokenGradient()),
        "greedy, relaxed PGD": replace(greedy, proposer=PGD),
    }


def discretised(effect: TokenEffect, lexicon: Lexicon, row: Array, target: Array, share: float) -> float:
    """Return the exact gain of what relaxed PGD ends at, the largest masses first until the budget is used."""
    (score,), (loss,) = effect.scores(row[None], target[None])
    draft = Draft(row, row, target, float(score), float(loss))
    ranked = propose(PGD.table(effect, row, target), row, lexicon, "token", len(row), 1)
    _, steps = stacked(ranked, draft, lexicon, TokenBudget(share).tokens(row))
    after = effect.scores(steps[-1][0][None], steps[-1][1][None])[0][0] if steps else score
    return float(after - score)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    material = load(FEW)
    run, replayed = fine_tuned(FEW, material)
    setup = prepare(FEW, material, run, replayed)
    gains: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for number, (target, probe) in enumerate(FEW.pairs):
        made = case(FEW, material, replayed, target, probe)
        effect = TokenEffect.of(setup.influence.direction(run, Mean(made.craft)), run, replayed)
        lexicon = setup.method.lexicon(replayed)
        chosen = np.random.default_rng(number).choice(len(replayed), given.documents, replace=False)
        for i in chosen:
            row, labels = replayed.inputs[i], replayed.targets[i]
            for name, method in methods(setup.method).items():
                begun = time.perf_counter()
                draft, before = method.rewrite(effect, lexicon, row, labels)
                seconds.setdefault(name, []).append(time.perf_counter() - begun)
                gains.setdefault(name, []).append(draft.score - before)
            begun = time.perf_counter()
            gains.setdefault("discretised", []).append(discretised(effect, lexicon, row, labels, FEW.share))
            seconds.setdefault("discretised", []).append(time.perf_counter() - begun)
        write_json(RESULT, summary(gains, seconds, number + 1, given.documents))
        print(probe, target, "done", flush=True)


def summary(
    gains: dict[str, list[float]], seconds: dict[str, list[float]], pairs: int, documents: int
) -> dict[str, Any]:
    """Return every proposer's gain as a share of the baseline's mean gain, with intervals over documents."""
    base = np.array(gains[BASELINE])
    rows = {}
    for name, values in gains.items():
        share = mean_estimate(np.array(values) / base.mean(), unit="documents")
        less = mean_estimate((np.array(values) - base) / base.mean(), unit="documents")
        rows[name] = {
            "gain over the baseline's mean": {"value": share.value, "ci95": share.interval, "n": share.n},
            "minus the baseline": {"value": less.value, "ci95": less.interval, "n": less.n},
            "share of documents that gain": float(np.mean(np.array(values) > 0)),
            "time over the baseline's": float(np.sum(seconds[name]) / np.sum(seconds[BASELINE])),
        }
    return {
        "proposers": rows,
        "pairs": pairs,
        "documents a pair": documents,
        "relaxed PGD": str(PGD),
        "budget": FEW.share,
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
