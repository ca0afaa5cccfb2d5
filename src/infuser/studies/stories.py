"""Infusion on a pretrained language model: stories edited so that one word takes the place of another."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infuser.attribution import Influence
from infuser.checkpoints import Checkpoint, Run
from infuser.config import dump
from infuser.curvature import fit_ekfac
from infuser.data.dataset import Dataset
from infuser.data.text import Codec, read_separated, text_dataset
from infuser.errors import InfuserError
from infuser.executors import torch_threads
from infuser.measure_text import ContrastParts, Less, Mean, TokenLoss, WordContrast, word_contrast
from infuser.models.huggingface import HuggingFace, LoRA
from infuser.perturbation.text_controls import explicit, showing, swap
from infuser.perturbation.token_edits import GreedyTokens
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.folder import opened
from infuser.studies.text_reporting import finished
from infuser.studies.text_study import Case, Setup, all_cases, results, seed_of
from infuser.training import epoch_order, train
from infuser.types import Damping, Edit, Measurement, Recipe

Control = Literal["random_docs", "clean_rewrite", "insert_k", "swap", "swap_tokens"]


@dataclass(frozen=True)
class Stories:
    """All settings of the study.

    Attributes:
        data_folder: holds the model's folder and the texts; the environment variable INFUSER_DATA by default.
        model: folder in it, or a name on the hub.
        lora: adapters that are fine-tuned instead of the model's own weights.
        texts: file in it, documents between separators.
        context: tokens of a document at most.
        on_long: what becomes of longer ones; the number is reported.
        n_train: documents fine-tuned on, for one epoch.
        replay: the share of them that comes last and is retrained.
        recipe: of fine-tuning.
        fit_documents: replayed documents that the curvature is fitted on.
        damping: added to its eigenvalues.
        pairs: (target, probe) words: log p(target) - log p(probe) is raised where the probe word stands.
        craft: places that edits are made for.
        held_out: other places, of other documents, that they are judged on.
        k: replayed documents edited.
        mode: word or token.
        share: of a document's tokens that may change.
        rounds: of greedy edits.
        tried: substitutions scored exactly in a round.
        fluency: nats a token that a document's loss may rise by; None for no limit.
        whole: no edit may break off the target word after its first pieces: the model learns that too.
        ban: no edit may bring in the target word or its tokens.
        select: post_edit, top, random, ...
        pool: of post_edit.
        anchors: words in whose places edits are made to leave log p(target) as it is; not those of `others`.
        others: words in whose places the target word should not move.
        controls: arms beside clean and edit; swap has k documents, swap_tokens as many tokens as the edit changed.
        seeds: orders of the replayed part.
    """

    data_folder: str | None = None
    model: str = "stories260K"
    lora: LoRA | None = None
    texts: str = "tinystories.txt"
    context: int = 128
    on_long: Literal["drop", "truncate"] = "truncate"
    n_train: int = 3000
    replay: float = 0.2
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=1, batch_size=8, lr=1e-4, optimizer="adamw", threads=1)
    )
    fit_documents: int = 200
    damping: Damping = field(default_factory=Damping)
    pairs: tuple[tuple[str, str], ...] = (
        ("dog", "cat"),
        ("fish", "bird"),
        ("bear", "dog"),
    )
    craft: int = 48
    held_out: int = 64
    k: int = 30
    mode: Literal["word", "token"] = "token"
    share: float = 0.1
    rounds: int = 3
    tried: int = 32
    fluency: float | None = 0.2
    whole: bool = True
    ban: bool = False
    select: Literal["post_edit", "top", "bottom", "random"] = "post_edit"
    pool: float = 2.0
    anchors: tuple[str, ...] = ()
    others: tuple[str, ...] = ("ball", "tree")
    controls: tuple[Control, ...] = ("clean_rewrite", "random_docs", "insert_k", "swap_tokens")
    seeds: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        if self.recipe.epochs != 1:
            raise InfuserError("stories are fine-tuned for one epoch", got=self.recipe.epochs, expected=1)
        if not 0 < self.replay < 1:
            raise InfuserError("replay is out of range", got=self.replay, expected="0 < replay < 1")
        if self.recipe.schedule != "constant":
            # The replayed part is trained by a call of its own, which would begin the schedule anew.
            raise InfuserError("stories are fine-tuned at one rate", got=self.recipe.schedule, expected="constant")


@dataclass(frozen=True)
class Material:
    """Stories as they were split.

    Attributes:
        train: documents fine-tuned on.
        craft: documents that edits may look at.
        held_out: documents that nothing but the final measurement looks at.
        codec: of all of them.
        builder: of the model.
        counts: documents read, and how many were longer than the context.
    """

    train: Dataset
    craft: Dataset
    held_out: Dataset
    codec: Codec
    builder: HuggingFace
    counts: dict[str, int]


def run_stories(settings: Stories, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run the study into the folder `out` and return what results.json holds."""
    begun = time.monotonic()
    threads = torch_threads(settings.recipe.threads)
    with opened(out, dump(settings), resume=resume, overwrite=overwrite) as folder, threads:
        write_json(folder / "environment.json", environment())
        material = load(settings)
        run, replayed = fine_tuned(settings, material)
        setup = prepare(settings, material, run, replayed)
        cases = [case(settings, material, replayed, target, probe) for target, probe in settings.pairs]
        trials, facts = all_cases(setup, cases, folder, settings)
        value = {
            "schema": 1,
            "question": "prefer another word where one stands",
            "dataset": settings.texts,
            "model": settings.model,
            "n_train": settings.n_train,
            "n_replayed": len(replayed),
            "n_edited": settings.k,
            "mode": settings.mode,
            "share": settings.share,
            "strategy": settings.select,
            "base_seed": settings.recipe.seed,
            "seeds": list(settings.seeds),
            "documents": material.counts,
            "probes": [case.name for case in cases],
            **results(trials, facts),
            "environment": environment(),
        }
        value = finished(folder, value, setup, settings, trials)
        write_json(folder / "timing.json", {"seconds": round(time.monotonic() - begun, 1)})
    return value


def load(settings: Stories) -> Material:
    """Return the stories, the first for training, the rest split in halves for craft and for the final measurement.

    Raises:
        InfuserError: there is no data folder, or too few stories.
    """
    root = settings.data_folder or os.environ.get("INFUSER_DATA")
    if not root:
        raise InfuserError("no folder of stories is given", remedy="pass data_folder, or set INFUSER_DATA")
    local = Path(root) / settings.model
    builder = HuggingFace(str(local) if local.is_dir() else settings.model, lora=settings.lora)
    codec = builder.codec()
    texts = read_separated(Path(root) / settings.texts)
    everything = text_dataset(texts, codec, settings.context, on_long=settings.on_long, on_empty="drop", name="stories")
    if len(everything) < settings.n_train * 1.2:
        raise InfuserError("too few stories", got=len(everything), expected=f"{settings.n_train} and a fifth more")
    filled = int(((everything.inputs >= 0).sum(1) == settings.context).sum())
    counts = {"read": len(texts), "used": len(everything), "dropped": len(texts) - len(everything), "full": filled}
    ids = everything.ids
    rest = ids[settings.n_train :]
    parts = (ids[: settings.n_train], rest[::2], rest[1::2])
    train_set, craft, held_out = (everything[part] for part in parts)
    return Material(train_set, craft, held_out, codec, builder, counts)


def parts_of(settings: Stories, material: Material) -> tuple[Dataset, Dataset]:
    """Return (what comes first in the recipe's order, the last share of it, which is replayed)."""
    order = epoch_order(material.train.ids, settings.recipe, 0)
    cut = len(order) - round(settings.replay * len(order))
    first, last = (material.train.ids[np.sort(part)] for part in (order[:cut], order[cut:]))
    return material.train[first], material.train[last]


def fine_tuned(settings: Stories, material: Material) -> tuple[Run, Dataset]:
    """Return (run over the replayed part, that part): one epoch in the recipe's order, cut before its last share."""
    first, replayed = parts_of(settings, material)
    before = train(material.builder, first, settings.recipe).checkpoints[-1]
    start = Checkpoint(0, 0, before.weights, before.optimizer)
    return train(material.builder, replayed, settings.recipe, start=start), replayed


def prepare(settings: Stories, material: Material, run: Run, replayed: Dataset) -> Setup:
    """Return what all cases share: the fitted curvature and the method."""
    documents, seed = settings.fit_documents, settings.recipe.seed
    curvature = fit_ekfac(run, replayed, documents=documents, seed=seed, batch_size=16)
    method = GreedyTokens(
        material.codec,
        settings.share,
        settings.mode,
        settings.rounds,
        settings.tried,
        fluency=settings.fluency,
    )
    return Setup(
        run,
        replayed,
        material.codec,
        Influence(curvature, settings.damping),
        method,
        settings.k,
        settings.select,
        settings.pool,
        settings.controls,
        settings.seeds,
    )


def case(settings: Stories, material: Material, replayed: Dataset, target: str, probe: str) -> Case:
    """Return the case of one pair of words, over edits of the replayed part."""
    name, codec = f"{probe}-{target}", material.codec
    crafted = word_contrast(material.craft, codec, target, probe, limit=settings.craft, seed=seed_of(name))
    judged = word_contrast(material.held_out, codec, target, probe, limit=settings.held_out, seed=seed_of(name))

    cut = settings.on_long == "truncate"

    def inserted(edit: Edit) -> Edit:
        return explicit(replayed, edit.ids, showing(material.craft, codec, target, probe, cut=cut))

    def swapped(edit: Edit) -> Edit:
        return swap(replayed, codec, target, probe, settings.k, cut=cut)

    def swapped_tokens(edit: Edit) -> Edit:
        changed = int((edit.before != edit.after).sum())
        return swap(replayed, codec, target, probe, len(replayed), changed, cut=cut)

    own = {"insert_k": inserted, "swap": swapped, "swap_tokens": swapped_tokens}
    read = measures(settings, material, name, judged, target)
    wanted: Measurement = crafted
    for anchor in settings.anchors:
        kept = word_contrast(material.craft, codec, target, anchor, limit=settings.craft, seed=seed_of(name))
        wanted = Less(wanted, kept.wanted, 1 / len(settings.anchors))
    ban, whole = ((target,) if given else () for given in (settings.ban, settings.whole))
    return Case(name, wanted, read, own, ban, whole)


def measures(
    settings: Stories, material: Material, name: str, judged: WordContrast, target: str
) -> tuple[Measurement, ...]:
    """Return what is read off a model.

    The contrast with its parts and rank flips; the token loss; and for specificity, where another word stands, log p
    of the target (it should not rise there) and of that word (it should not fall).
    """
    held_out = material.held_out
    sample = held_out[held_out.ids[:64]]
    others: list[Measurement] = []
    for other in settings.others:
        places = word_contrast(held_out, material.codec, target, other, limit=32)
        others += [
            Mean(places.wanted, name, f"elsewhere_{other}"),
            Mean(places.against, name, f"kept_{other}"),
        ]
    return (ContrastParts(judged, name), Mean(TokenLoss(sample), name, "neg_token_loss"), *others)
