"""Which piece of the target word do edits of tokens move? A word of several tokens is only as likely as all of them.

    INFUSER_DATA=... python experiments/stories_pieces.py --variant "token 5 %" --pairs bird-fish bird-rabbit cat-dog

Reads the stored edits of a variant of `experiments/stories.py`, retrains on each in one order and gives log p of every
piece of the target word where the probe word stands, the pieces before it given, in the clean and in the edited model.
Beside it, how often the edit put the word's first pieces without its next one, which teaches the model to break it off.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stories import VARIANTS, folder_of
from torch import Tensor, nn
from torch.func import functional_call

from infuser.evaluation.arms import arms
from infuser.evaluation.retrain import retrain
from infuser.measure_text import Continuation, ContrastParts
from infuser.perturbation.text_manifest import load_text_edit
from infuser.storage import read_json, write_json
from infuser.studies.environment import environment
from infuser.studies.stories import case, fine_tuned, load
from infuser.studies.text_study import START
from infuser.tasks import CausalLM
from infuser.types import Array, Params

RESULT = Path(__file__).parent / "results" / "stories_pieces.json"
SEED = 101


@dataclass(frozen=True)
class Pieces:
    """Mean log p of each piece of a word, given those before it: (pieces,)."""

    wanted: Continuation
    count: int
    name: str = "log_p_of_piece"
    unit: str = "nats"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        task, documents = CausalLM(), self.wanted.documents
        batch = documents.batch(np.arange(len(documents)))
        found = []
        with torch.no_grad():
            losses = task.token_losses(functional_call(model, params, (task.feed(batch.inputs),)), batch.targets)
        for row, labels in zip(losses, batch.targets[:, 1:], strict=True):
            pieces = row[labels >= 0]
            if len(pieces) == self.count:  # a few contexts split the word otherwise
                found.append(-pieces)
        return torch.stack(found).mean(0)

    @property
    def queries(self) -> tuple[str, ...]:
        return tuple(str(j) for j in range(self.count))


def broken(rows: Array, pieces: list[int]) -> list[int]:
    """Return, for every piece but the last, how often the pieces up to it stand without the next one behind them."""
    found = [0] * (len(pieces) - 1)
    for row in rows:
        for j in range(1, len(pieces)):
            for t in range(len(row) - j):
                if row[t : t + j].tolist() == pieces[:j] and row[t + j] != pieces[j]:
                    found[j - 1] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/stories-experiment"))
    parser.add_argument("--variant", default="token 5 %", choices=VARIANTS)
    parser.add_argument("--pairs", nargs="+", default=["bird-fish", "bird-rabbit", "cat-dog", "dog-cat"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings, folder = VARIANTS[given.variant], folder_of(given.out, given.variant)
    material = load(settings)
    run, replayed = fine_tuned(settings, material)
    rows: dict[str, Any] = {}
    for target, probe in settings.pairs:
        name = f"{probe}-{target}"
        if name not in given.pairs:
            continue
        edit = load_text_edit(folder / "edits" / name, replayed, material.codec)
        judged = next(
            m for m in case(settings, material, replayed, target, probe).measures if isinstance(m, ContrastParts)
        )
        targets = judged.contrast.wanted.documents.targets
        lengths = (targets[:, 1:] >= 0).sum(1)
        count = int(np.bincount(lengths).argmax())
        first = targets[int(np.argmax(lengths == count))]
        pieces = first[first >= 0][-count:].tolist()
        chosen = arms(replayed, {"edit": edit}, controls=("clean",))
        trials = retrain(run, chosen, [Pieces(judged.contrast.wanted, count)], (SEED,), START)
        log_p = {arm.name: trials.where(arm=arm.name).value.tolist() for arm in chosen}
        rows[name] = {
            "pieces": [material.codec.pieces[i] for i in pieces],
            "log_p": log_p,
            "broken_off_before": broken(edit.before, pieces),
            "broken_off_after": broken(edit.after, pieces),
        }
        print(name, rows[name], flush=True)
    stored = read_json(RESULT) if RESULT.exists() else {}
    write_json(RESULT, {**stored, given.variant: {"pairs": rows, "seed": SEED, "environment": environment()}})


if __name__ == "__main__":
    main()
