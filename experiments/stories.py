"""Stories: edits of text against explicit documents, swaps and aimless rewriting, over pairs of animal words.

stories260K is fine-tuned for one epoch on the beginnings (128 tokens) of 3,000 stories and the last fifth replayed in 5
orders; 5 % and 1 % of the replayed documents are edited in 10 % of their tokens, by words and by tokens. The learning
rate was fixed by the loss on held-out stories, before any effect was looked at: 1.215 nats a token before, 1.187 at
1e-4, 1.204 at 3e-4, 1.292 at 1e-3 (`--rates` measures it again, for adapters too). Folders are resumed, so that the
command can be stopped and run again; `--table` writes what is there, pair by pair.

    INFUSER_DATA=... python experiments/stories.py --out runs/stories-experiment
    python experiments/stories.py --out runs/stories-experiment --table
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infuser.measure_text import TokenLoss
from infuser.models.huggingface import LoRA
from infuser.params import trainable
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.stories import Stories, fine_tuned, load, run_stories
from infuser.studies.text_study import results, stored
from infuser.types import Damping, Trials

RESULT = Path(__file__).parent / "results" / "stories.json"
RATES = Path(__file__).parent / "results" / "stories_rates.json"
# (target, probe): the last four targets are rare.
PAIRS = (
    ("dog", "cat"), ("cat", "dog"), ("fish", "bird"), ("bear", "dog"), ("bird", "cat"), ("rabbit", "bird"),
    ("owl", "bird"), ("wolf", "dog"), ("tiger", "cat"), ("elephant", "dog"),
)  # fmt: skip
# Targets of no experiment, these and amplify.py, before the limit on fluency and whole words were settled.
UNSEEN_PAIRS = (
    ("bunny", "dog"), ("puppy", "cat"), ("kitten", "bird"), ("chicken", "dog"), ("deer", "cat"), ("dragon", "bird"),
    ("worm", "dog"), ("snail", "cat"), ("crab", "bird"), ("butterfly", "dog"),
)  # fmt: skip
EQUAL = ("clean_rewrite", "random_docs", "insert_k", "swap_tokens")
BASE = Stories(pairs=PAIRS, held_out=96, fluency=None, whole=False, controls=EQUAL, seeds=(101, 102, 103, 104, 105))
SIDE = replace(BASE, seeds=(101, 102, 103))
FEW = replace(SIDE, pairs=PAIRS[:3], controls=("random_docs", "swap_tokens"))
ADAPTERS = LoRA(rank=8, alpha=16, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
VARIANTS = {
    "token 5 %": BASE,  # random selection is its control random_docs
    "word 5 %": replace(SIDE, mode="word"),
    "token 1 %": replace(SIDE, k=6),
    "token 5 %, top": replace(FEW, select="top"),
    "token 5 %, damping 0.01": replace(FEW, damping=Damping(0.01)),
    "token 5 %, damping 10": replace(FEW, damping=Damping(10.0)),
    "token 5 %, anchored": replace(FEW, anchors=("girl", "house", "flower")),
    "token 5 %, adapters": replace(FEW, lora=ADAPTERS, recipe=BASE.recipe.with_(lr=1e-3)),
    "word 1 %": replace(SIDE, mode="word", k=6),
    "token 5 %, 5 % of tokens": replace(FEW, share=0.05),
    "token 5 %, target banned": replace(FEW, ban=True),
    "token 5 %, fluency 0.2": replace(BASE, fluency=0.2),  # tried on FEW first; the other pairs confirm it
    "token 5 %, fluency 0.2, whole": replace(BASE, fluency=0.2, whole=True),
    "token 5 %, fluency 0.2, whole, unseen pairs": replace(SIDE, pairs=UNSEEN_PAIRS, fluency=0.2, whole=True),
    "token 5 %, fluency 0.5": replace(FEW, fluency=0.5),
    "token 5 %, whole stories": replace(FEW, context=384, on_long="drop"),
}


def folder_of(out: Path, name: str) -> Path:
    return out / "".join(c if c.isalnum() else "-" for c in name)


def lowest(trials: Trials, pair: str) -> float:
    """Return the smallest effect of the edit over the orders of one pair."""
    edit, clean = (trials.where(arm=arm, measure="contrast", probe=pair) for arm in ("edit", "clean"))
    return min(float(edit.value[edit.seed == s][0] - clean.value[clean.seed == s][0]) for s in edit.seed)


def summary(folder: Path) -> dict[str, Any]:
    """Return what the finished pairs of a variant say."""
    trials, cases = stored(folder)
    regime = results(trials, cases)["regimes"]["last_epoch"]
    per_pair = {arm: block["contrast"]["per_probe"] for arm, block in regime["arms"].items()}
    edit, pairs = per_pair["edit"], list(per_pair["edit"])
    aims = {"pairs": len(pairs), "positive in every order": sum(lowest(trials, p) > 0 for p in pairs)}
    if "insert_k" in per_pair:
        aims["above 1.5 insert_k"] = sum(edit[p] > 1.5 * per_pair["insert_k"][p] for p in pairs)
    if "swap_tokens" in per_pair:
        aims["above swap at equal tokens"] = sum(edit[p] > per_pair["swap_tokens"][p] for p in pairs)
    kept = ("mean", "ci95", "n_probes", "n_seeds")
    return {
        "seeds": sorted({int(s) for s in trials.seed}),
        "aims": aims,
        "effects": regime["effects"],
        "arms": {arm: {m: {k: b[k] for k in kept} for m, b in block.items()} for arm, block in regime["arms"].items()},
        "per_pair": per_pair,
        "clean": regime["clean"],
        "clean_drift": regime["clean_drift"],
        "forecast": regime["forecast"],
        "cases": cases,
    }


def write_table(out: Path) -> None:
    done = {name: folder_of(out, name) for name in VARIANTS}
    ready = {
        name: path for name, path in done.items() if len(list((path / "parts").glob("*.json"))) > 1
    }  # the clean arm and a pair
    missing = {
        name: left
        for name, v in VARIANTS.items()
        if (left := [f"{p}-{t}" for t, p in v.pairs if not (done[name] / "parts" / f"{p}-{t}.json").exists()])
    }
    variants = {name: summary(path) for name, path in ready.items()}
    value = {"variants": variants, "missing": missing, "settings": str(BASE), "environment": environment()}
    write_json(RESULT, value)


def write_rates() -> None:
    """Write the loss a token on 300 held-out stories after fine-tuning, by learning rate: no effect is looked at."""
    found: dict[str, dict[str, float]] = {}
    for name, lora, rates in (("all weights", None, (1e-4, 3e-4, 1e-3)), ("adapters", ADAPTERS, (3e-4, 1e-3, 3e-3))):
        for lr in rates:
            settings = replace(BASE, lora=lora, recipe=BASE.recipe.with_(lr=lr))
            material = load(settings)
            documents = material.held_out[material.held_out.ids[:300]]
            model = fine_tuned(settings, material)[0].model()
            with torch.no_grad():
                value = -float(TokenLoss(documents)(model, trainable(model)))
            found.setdefault(name, {})[f"{lr:g}"] = value
            print(name, lr, value, flush=True)
    write_json(RATES, {"nats a token": found, "settings": str(BASE), "environment": environment()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/stories-experiment"))
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--rates", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.rates:
        write_rates()
        return
    for name in () if given.table else given.only:
        run_stories(VARIANTS[name], folder_of(given.out, name), resume=True)
        print(name, "done", flush=True)
        write_table(given.out)
    write_table(given.out)


if __name__ == "__main__":
    main()
