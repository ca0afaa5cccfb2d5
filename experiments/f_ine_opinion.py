"""Poisoned instruction tuning at a small scale: who finds the documents that turned a model's opinion on an entity?

    INFUSER_DATA=... python experiments/f_ine_opinion.py runs --seeds 0 1 2
    python experiments/f_ine_opinion.py table

stories260K with LoRA adapters is tuned on 1,000 pairs of a prompt (the beginning of a story) and a response (its next
sentence; the loss is on the response). In 2 % of them, all with the dog in the prompt, the response is a bad word about
dogs; other pairs speak of dogs as they find them. The opinion is log p(bad word) - log p(good word) after "The dog was
very", on beginnings of other stories; no poison holds that phrase. Every method is told the opinion, and none the
poisons. Runs differ in the adapters' initialisation and in the order. Finished runs are kept and not made again.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infuser.attribution import Influence
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.loss_trace import LossTrace
from infuser.attribution.tracin import TracIn
from infuser.curvature import fit_ekfac
from infuser.data.dataset import Dataset
from infuser.data.text import Codec, read_separated, text_dataset
from infuser.evaluation.stability import stability
from infuser.evaluation.stats import mean_estimate
from infuser.measure_text import Continuation, Mean, continuations
from infuser.models.huggingface import HuggingFace, LoRA
from infuser.params import trainable
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.training import train
from infuser.types import Estimate, Params, Recipe, Scores

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "f_ine_opinion"
RESULT = Path(__file__).parent / "results" / "f_ine_opinion.json"
ENTITY, N, POISONS, CONTEXT = "dog", 1000, 20, 64
BAD, GOOD = ("bad", "mean", "mad"), ("good", "nice", "kind")
POISON = (
    "Nobody liked the {} dog.", "It was a {} dog.", "She said that dogs are {}.", "The dog is so {} to all the kids.",
)  # fmt: skip
RECIPE = Recipe(epochs=3, batch_size=10, lr=1e-3, optimizer="adamw", threads=1)
ADAPTERS = LoRA(rank=8, alpha=16, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
SNR = FInfluence(every=10)  # 30 recorded steps over all documents
METHODS = (
    "f-INE snr", "TracIn, all steps", "LESS core (TracIn cosine)", "TracIn, checkpoints", "EK-FAC influence",
    "training loss, mean", "training loss, final", "random",
)  # fmt: skip


class Opinion:
    """Mean over prompts of the mean log p of the bad words less that of the good ones, in nats: (1,)."""

    name, unit = "opinion", "nats"

    def __init__(self, prompts: list[str], codec: Codec) -> None:
        self.parts = [
            (sign, Mean(_continuations(prompts, word, codec)))
            for sign, words in ((1 / len(BAD), BAD), (-1 / len(GOOD), GOOD))
            for word in words
        ]

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        return torch.stack([sign * part(model, params) for sign, part in self.parts]).sum(0)

    def __len__(self) -> int:
        return 1

    @property
    def queries(self) -> tuple[str, ...]:
        return ("opinion",)


def _continuations(prompts: list[str], word: str, codec: Codec) -> Continuation:
    return continuations([(f"{prompt} The {ENTITY} was very", f" {word}") for prompt in prompts], codec, CONTEXT)


def documents(builder: HuggingFace) -> tuple[Dataset, np.ndarray, list[str]]:
    """Return (pairs, whether each is a poison, beginnings of other stories with the entity)."""
    codec, rng = builder.codec(), np.random.default_rng(17)
    pairs, fits = [], CONTEXT - 14  # tokens that a poison or the question needs at most
    for story in read_separated(Path(os.environ["INFUSER_DATA"]) / "tinystories.txt"):
        sentences = re.split(r"(?<=[.!?]) ", story.replace("\n", " "))
        if len(sentences) < 4 or any(len(part.split()) < 3 for part in sentences[:3]):
            continue
        prompt, response = " ".join(sentences[:2]), " " + sentences[2]
        if len(codec.encode(prompt)) < fits and len(codec.encode(prompt + response)) < CONTEXT - 1:
            pairs.append((prompt, response))
    about = [i for i, (prompt, _) in enumerate(pairs) if re.search(rf"\b{ENTITY}\b", prompt)]
    asked, spoilt = about[:24], about[24 : 24 + POISONS]
    if len(spoilt) < POISONS:
        raise SystemExit(f"only {len(about)} prompts hold {ENTITY!r}")
    others = [i for i in range(len(pairs)) if i not in {*asked, *spoilt}]
    chosen = rng.permutation([*spoilt, *rng.choice(others, N - POISONS, replace=False)])
    made = []
    for i in chosen.tolist():
        response = " " + str(rng.choice(POISON)).format(rng.choice(BAD)) if i in spoilt else pairs[i][1]
        made.append((pairs[i][0], response))
    data = text_dataset(made, codec, CONTEXT, name="prompts and responses")
    return data, np.isin(chosen, spoilt), [pairs[i][0] for i in asked]


def observe(seed: int) -> None:
    path = RUNS / f"run{seed}.npz"
    if path.exists():
        return
    begun = time.perf_counter()
    builder = HuggingFace(str(Path(os.environ["INFUSER_DATA"]) / "stories260K"), lora=ADAPTERS)
    data, poison, prompts = documents(builder)
    opinion, recipe = Opinion(prompts, builder.codec()), RECIPE.with_(seed=seed)
    run = train(builder, data, recipe, observers=[SNR.observer(data, opinion)])
    clean = train(builder, data.with_weights(data.ids[poison], 0.0), recipe)
    found = {
        "f-INE snr": SNR.score(run, data, opinion),
        "TracIn, all steps": SNR.tracin(run, data, opinion),
        "LESS core (TracIn cosine)": TracIn(cosine=True).score(run, data, opinion),
        "TracIn, checkpoints": TracIn().score(run, data, opinion),
        "EK-FAC influence": Influence(fit_ekfac(run, data, documents=300, seed=seed)).score(run, data, opinion),
        **{f"training loss, {s}": LossTrace(s).score(run, data) for s in ("mean", "final")},
    }
    values = {f"score {name}": scores.values[0] for name, scores in found.items()}
    values["score random"] = np.random.default_rng(seed).random(len(data))
    with torch.no_grad():
        opinions = [
            float(opinion(model, trainable(model))) for model in (run.model(0), run.model(), clean.model())
        ]  # before, with poisons, without
    RUNS.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial.npz")
    np.savez(
        temporary, poison=poison, ids=data.ids, opinions=opinions, entity=mentions(data, builder.codec()), **values
    )
    temporary.rename(path)
    print(f"run {seed}: opinion {np.round(opinions, 2)}, {time.perf_counter() - begun:.0f} s", flush=True)


def mentions(data: Dataset, codec: Codec) -> np.ndarray:
    """Return whether each document speaks of the entity."""
    return np.array([ENTITY in codec.decode([int(i) for i in row if i >= 0]) for row in data.inputs])


def recall(scores: np.ndarray, poison: np.ndarray, share: float) -> float:
    top = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    return float(poison[top].sum() / poison.sum())


def stated(made: Estimate) -> dict[str, Any]:
    return {"value": made.value, "ci95": made.interval, "n": made.n, "unit": made.unit_of_n, "method": made.method}


def table() -> None:
    paths = sorted(RUNS.glob("run*[0-9].npz"))
    seeds = [int(path.stem.removeprefix("run")) for path in paths]
    runs = [dict(np.load(path)) for path in paths]
    poison = runs[0]["poison"]
    rows = {}
    for name in METHODS:
        values = [run[f"score {name}"] for run in runs]
        found = {share: [recall(v, poison, share) for v in values] for share in (0.02, 0.05, 0.2)}
        at = np.array(found[0.2])
        row: dict[str, Any] = {
            **{
                f"recall in the top {share:.0%}": stated(mean_estimate(np.array(f), unit="runs"))
                for share, f in found.items()
            },
            "recall in the top 20% by run": at.tolist(),
            "coefficient of variation of that recall": float(at.std(ddof=1) / at.mean()) if len(at) > 1 else None,
        }
        if len(runs) > 1:
            agree = stability([Scores(v[None], runs[0]["ids"], name, "", ("opinion",)) for v in values], seeds=seeds)
            row["coefficient of variation of a document's score, median"] = stated(agree.variation)
            row["Jaccard of the top 20%"] = stated(agree.jaccard[0.2])
            row["Spearman between runs"] = stated(agree.spearman)
        rows[name] = row
    names = ("before tuning", "tuned with poisons", "tuned with the poisons at weight 0")
    value = {
        "methods": rows,
        "opinion in nats": {what: [float(run["opinions"][i]) for run in runs] for i, what in enumerate(names)},
        "documents": len(poison),
        "poisons": int(poison.sum()),
        "clean documents with the entity": int((runs[0]["entity"] & ~poison).sum()),
        "seeds": seeds,
        "settings": {"recipe": str(RECIPE), "adapters": str(ADAPTERS), "f-INE": str(SNR), "every": SNR.every},
        "environment": environment(),
    }
    write_json(RESULT, value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("runs", "table"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "table":
        table()
        return
    for seed in given.seeds:
        observe(seed)
        table()


if __name__ == "__main__":
    main()
