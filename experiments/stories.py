"""Stories: edits of text against explicit documents, swaps and aimless rewriting, over pairs of animal words.

stories260K is fine-tuned for one epoch and the last fifth replayed in 5 orders; 5 % and 1 % of the replayed documents
are edited in 10 % of their tokens, by words and by tokens. The learning rate was fixed by the loss on held-out stories,
before any effect was looked at. Folders are resumed, so that the command can be stopped and run again.

    INFUSER_DATA=... python experiments/stories.py --out runs/stories
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.stories import Stories, run_stories
from infuser.types import Damping

RESULT = Path(__file__).parent / "results" / "stories.json"
# (target, probe): the last four targets are rare.
PAIRS = (
    ("dog", "cat"), ("cat", "dog"), ("fish", "bird"), ("bird", "cat"), ("bear", "dog"), ("rabbit", "bird"),
    ("owl", "bird"), ("wolf", "dog"), ("tiger", "cat"), ("elephant", "dog"),
)  # fmt: skip
BASE = Stories(
    context=384, on_long="drop", n_train=3000, k=30, pairs=PAIRS, held_out=96, pool=2.0, seeds=(101, 102, 103, 104, 105)
)
FEW = replace(BASE, pairs=PAIRS[:3])
VARIANTS = {
    "token 5 %": BASE,
    "word 5 %": replace(BASE, mode="word"),
    "token 1 %": replace(BASE, k=6),
    "word 1 %": replace(BASE, mode="word", k=6),
    "token 5 %, 5 % of tokens": replace(FEW, share=0.05),
    "token 5 %, top": replace(FEW, select="top"),  # random selection is the control random_docs of every variant
    "token 5 %, damping 0.01": replace(FEW, damping=Damping(0.01)),
    "token 5 %, damping 1": replace(FEW, damping=Damping(1.0)),
}


def summary(value: dict[str, Any]) -> dict[str, Any]:
    regime = value["regimes"]["last_epoch"]
    per_pair = {arm: block["contrast"]["per_probe"] for arm, block in regime["arms"].items()}
    pairs = list(per_pair["edit"])
    return {
        "effects": regime["effects"],
        "arms": {
            arm: {m: {k: b[k] for k in ("mean", "ci95", "n_probes", "n_seeds")} for m, b in block.items()}
            for arm, block in regime["arms"].items()
        },
        "per_pair": per_pair,
        "pairs_above_1.5_insert_k": sum(per_pair["edit"][p] > 1.5 * per_pair["insert_k"][p] for p in pairs),
        "pairs_above_swap": sum(per_pair["edit"][p] > per_pair["swap"][p] for p in pairs),
        "pairs": len(pairs),
        "clean_drift": regime["clean_drift"],
        "documents": value["documents"],
        "cases": value["cases"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/stories-experiment"))
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in given.only:
        folder = given.out / "".join(c if c.isalnum() else "-" for c in name)
        found[name] = summary(run_stories(VARIANTS[name], folder, resume=True))
        write_json(RESULT, {"variants": found, "settings": str(BASE), "environment": environment()})
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
