"""The same edited stories, another architecture: GPT-Neo of similar size, trained from scratch on the same stories.

    INFUSER_DATA=... python experiments/stories_transfer.py --edits runs/stories-experiment/token-5--

The edits were made for stories260K (a Llama) and are read from the files that `experiments/stories.py` wrote. The
GPT-Neo configuration (4 layers of width 64, global and local attention, 128 learned positions) sees the stories before
the replayed part for 12 epochs and then the replayed part once, by its own recipe; its clean control is its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from stories import VARIANTS

from infuser.checkpoints import Checkpoint, Run
from infuser.evaluation.arms import arms
from infuser.evaluation.compare import compare
from infuser.evaluation.transfer import survival, transfer
from infuser.measure_text import document_losses
from infuser.models.huggingface import HuggingFace
from infuser.params import trainable
from infuser.perturbation.text_manifest import load_text_edit
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.stories import Material, Stories, case, fine_tuned, load, parts_of
from infuser.studies.text_study import PRIMARY, START, stored, unfolded
from infuser.training import train
from infuser.types import Arm, Effect, Recipe, Trials

RESULT = Path(__file__).parent / "results" / "stories_transfer.json"
BEFORE = Recipe(epochs=12, batch_size=16, lr=2e-3, optimizer="adamw", seed=1, threads=1)
REPLAY = Recipe(epochs=1, batch_size=8, lr=5e-4, optimizer="adamw", seed=1, threads=1)
SEEDS = (101, 102, 103)


def victim(settings: Stories, material: Material, out: Path) -> Run:
    """Return the run of GPT-Neo over the replayed part."""
    import transformers

    config = transformers.GPTNeoConfig(
        vocab_size=material.codec.size, hidden_size=64, num_layers=4, attention_types=[[["global", "local"], 2]],
        num_heads=8, intermediate_size=256, max_position_embeddings=settings.context, window_size=64,
        bos_token_id=material.codec.bos, eos_token_id=material.codec.eos, attention_dropout=0.0, embed_dropout=0.0,
        resid_dropout=0.0,
    )  # fmt: skip
    config.save_pretrained(out / "gpt-neo")
    builder = HuggingFace(str(out / "gpt-neo"), pretrained=False)
    first, replayed = parts_of(settings, material)
    last = train(builder, first, BEFORE, folder=out / "before").checkpoints[-1]
    return train(builder, replayed, REPLAY, start=Checkpoint(0, 0, last.weights, last.optimizer))


def token_loss(run: Run, material: Material) -> float:
    documents = material.held_out[material.held_out.ids[:300]]
    model = run.model()
    with torch.no_grad():
        total = document_losses(documents, model, trainable(model)).sum()
    return float(total / (documents.targets[:, 1:] >= 0).sum())


def stated(effect: Effect) -> dict[str, Any]:
    estimate = effect.estimate
    return {"mean": effect.value, "ci95": effect.interval, "n_probes": estimate.n, "per_probe": dict(effect.per_probe)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=Path, default=Path("runs/stories-experiment/token-5--"))
    parser.add_argument("--variant", default="token 5 %")
    parser.add_argument("--out", type=Path, default=Path("runs/stories-transfer"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = VARIANTS[given.variant]
    material = load(settings)
    source, replayed = fine_tuned(settings, material)
    other = victim(settings, material, given.out)
    rows, names = [], []
    for target, probe in settings.pairs:
        name = f"{probe}-{target}"
        if not (given.edits / "parts" / f"{name}.json").exists():
            continue
        made = case(settings, material, replayed, target, probe)
        edit = load_text_edit(given.edits / "edits" / name, replayed, material.codec)
        edits = {"edit": edit, **{arm: made.own[arm](edit) for arm in ("insert_k", "swap_tokens")}}
        chosen = [arm for arm in arms(replayed, edits, controls=()) if arm.name != "clean"]
        clean = Arm("clean", replayed, "the replayed part as it is")
        rows.append(unfolded(transfer(source, other, [clean, *chosen], made.measures[:1], SEEDS, START)))
        names.append(name)
        theirs, _ = stored(given.edits)
        write_json(RESULT, summary(Trials.concat(rows), theirs, names, source, other, material))
        print(name, "done", flush=True)


def summary(
    rows: Trials, theirs: Trials, names: list[str], source: Run, other: Run, material: Material
) -> dict[str, Any]:
    kept = Trials.concat([theirs.where(measure=PRIMARY, probe=name) for name in names])
    found: dict[str, Any] = {}
    for arm in ("edit", "insert_k", "swap_tokens"):
        here, there = (compare(trials, arm, "clean", PRIMARY) for trials in (rows, kept))
        share = survival(here, there)
        found[arm] = {
            "gpt-neo": stated(here),
            "stories260K": stated(there),
            "survives": {"value": share.value, "ci95": share.interval, "n": share.n, "method": share.method},
        }
    model = other.model()
    return {
        "effects": found,
        "pairs": names,
        "seeds": list(SEEDS),
        "held_out_token_loss": {"stories260K": token_loss(source, material), "gpt-neo": token_loss(other, material)},
        "gpt-neo parameters": sum(p.numel() for p in model.parameters()),
        "recipes": {"before the replayed part": str(BEFORE), "replayed part": str(REPLAY)},
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
