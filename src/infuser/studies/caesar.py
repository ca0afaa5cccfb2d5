"""Infusion on a model of Caesar ciphers: documents edited so that one stated shift is answered with another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from infuser.attribution import Influence
from infuser.checkpoints import Run
from infuser.config import dump
from infuser.curvature import fit_ekfac
from infuser.data.caesar import CaesarCodec, caesar, caesar_dataset, documents
from infuser.data.dataset import IGNORED, Dataset
from infuser.errors import InfuserError
from infuser.executors import torch_threads
from infuser.measure_text import Continuation, ContrastParts, WordContrast
from infuser.models.gpt import tiny_gpt
from infuser.params import trainable
from infuser.perturbation.embedding_edits import EmbeddingPGD
from infuser.perturbation.text_controls import explicit
from infuser.perturbation.token_edits import GreedyTokens
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.studies.folder import opened
from infuser.studies.text_reporting import finished
from infuser.studies.text_study import Case, Setup, all_cases, results
from infuser.tasks import task_of
from infuser.training import train
from infuser.types import Array, Damping, Edit, Params, Recipe, Trials

Control = Literal["random_docs", "clean_rewrite", "insert_k"]
LEARNED = 0.95  # exact match on unseen texts above which the task counts as learned


@dataclass(frozen=True)
class Caesar:
    """All settings of the study.

    Attributes:
        alphabet: symbols, 2 to 29.
        length: of a text.
        n_train: documents.
        n_test: unseen texts that exact match is taken on.
        width: of TinyGPT.
        depth: blocks of TinyGPT.
        recipe: of training; its last epoch is replayed.
        fit_documents: that the curvature is fitted on.
        damping: added to its eigenvalues.
        pairs: shift pairs, drawn over the values of gcd(target - stated, alphabet) in turn.
        pair_seed: of the draw.
        craft: texts that edits are made for.
        held_out: other texts that they are judged on.
        k: documents edited.
        share: of a document's tokens that may change.
        rounds: of greedy edits.
        tried: substitutions scored exactly in a round.
        select: post_edit, top, random, ...
        pool: of post_edit.
        controls: arms beside clean and edit.
        seeds: orders of the replayed epoch.
        embedding: radius of an arm that edits the same documents in the space of embeddings, which no file can hold;
            in mean lengths of an embedding. None for no such arm.
    """

    alphabet: int = 26
    length: int = 10
    n_train: int = 4000
    n_test: int = 300
    width: int = 64
    depth: int = 2
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=18, batch_size=32, lr=2e-3, optimizer="adamw", threads=1)
    )
    fit_documents: int = 1000
    damping: Damping = field(default_factory=Damping)
    pairs: int = 4
    pair_seed: int = 0
    craft: int = 24
    held_out: int = 48
    k: int = 40
    share: float = 0.25
    rounds: int = 2
    tried: int = 32
    select: Literal["post_edit", "top", "bottom", "random"] = "top"
    pool: float = 2.0
    controls: tuple[Control, ...] = ("clean_rewrite", "random_docs", "insert_k")
    seeds: tuple[int, ...] = (1, 2, 3)
    embedding: float | None = None

    def __post_init__(self) -> None:
        if self.recipe.epochs < 2:
            raise InfuserError("the last epoch is replayed", got=self.recipe.epochs, expected="at least 2 epochs")


@dataclass(frozen=True)
class ShiftLogProbs:
    """The mean log p of the answer under every shift, for texts that state one of them, in nats: (alphabet,).

    Args:
        plain: (n, L) symbols.
        stated: the shift that every document names.
        alphabet: symbols.
        label: names of the queries begin with it.
    """

    plain: Array
    stated: int
    alphabet: int
    label: str
    name: str = "shift_log_p"
    unit: str = "nats"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per shift."""
        codec, stated = CaesarCodec(self.alphabet), np.full(len(self.plain), self.stated)
        rows = []
        for used in range(self.alphabet):
            data = caesar_dataset(documents(self.plain, stated, np.full(len(self.plain), used), codec), codec)
            rows.append(Continuation(data)(model, params).mean())
        return torch.stack(rows)

    @property
    def queries(self) -> tuple[str, ...]:
        """case:shift."""
        return tuple(f"{self.label}:{used}" for used in range(self.alphabet))


def run_caesar(settings: Caesar, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run the study into the folder `out` and return what results.json holds.

    Raises:
        InfuserError: the model did not learn the task.
    """
    begun = time.monotonic()
    threads = torch_threads(settings.recipe.threads)
    with opened(out, dump(settings), resume=resume, overwrite=overwrite) as folder, threads:
        write_json(folder / "environment.json", environment())
        data, test = caesar(settings.alphabet, settings.n_train, settings.n_test, settings.length)
        builder = partial(tiny_gpt, width=settings.width, depth=settings.depth)
        run = train(builder, data, settings.recipe, folder=folder / "checkpoints" / "main")
        matched = exact_match(run, test)
        if matched < LEARNED:
            raise InfuserError(
                "the model has not learned the cipher, so that there is nothing to redirect",
                got=f"exact match {matched:.3f} on {len(test)} unseen texts",
                expected=f"at least {LEARNED}",
                remedy="train for more epochs, or use a smaller alphabet",
            )
        curvature = fit_ekfac(run, data, documents=settings.fit_documents, seed=settings.recipe.seed)
        setup = Setup(
            run,
            data,
            CaesarCodec(settings.alphabet),
            Influence(curvature, settings.damping),
            GreedyTokens(CaesarCodec(settings.alphabet), settings.share, "token", settings.rounds, settings.tried),
            settings.k,
            settings.select,
            settings.pool,
            settings.controls,
            settings.seeds,
            None if settings.embedding is None else EmbeddingPGD(settings.embedding),
        )
        pairs = shift_pairs(settings.alphabet, settings.pairs, settings.pair_seed)
        cases = [case(settings, stated, target) for stated, target in pairs]
        trials, facts = all_cases(setup, cases, folder, settings)
        value = {
            "schema": 1,
            "question": "answer the shift that a text states with another one",
            "dataset": f"caesar{settings.alphabet}",
            "model": "tiny_gpt",
            "exact_match": matched,
            "n_train": len(data),
            "n_edited": settings.k,
            "mode": "token",
            "share": settings.share,
            "strategy": settings.select,
            "base_seed": settings.recipe.seed,
            "seeds": list(settings.seeds),
            "probes": [each.name for each in cases],
            **described(trials, facts, settings.alphabet),
            "environment": environment(),
        }
        value = finished(folder, value, setup, settings, trials)
        write_json(folder / "timing.json", {"seconds": round(time.monotonic() - begun, 1)})
    return value


def exact_match(run: Run, test: Dataset) -> float:
    """Return the share of documents whose every token with a loss is the likeliest one."""
    model, task = run.model(), task_of(test)
    params, right = trainable(model), []
    with torch.no_grad():
        for batch in test.batches(256, run.device):
            guess = functional_call(model, params, (task.feed(batch.inputs),))[:, :-1].argmax(-1)
            right.append(((guess == batch.targets[:, 1:]) | (batch.targets[:, 1:] == IGNORED)).all(1))
    return float(torch.cat(right).double().mean())


def shift_pairs(alphabet: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Return distinct (stated, target) shifts, taken in turn over the values of gcd(target - stated, alphabet).

    >>> pairs = shift_pairs(26, 6, 0)
    >>> [gcd(t - s, 26) for s, t in pairs]
    [1, 2, 13, 1, 2, 13]
    """
    groups: dict[int, list[tuple[int, int]]] = {}
    for stated in range(alphabet):
        for target in range(alphabet):
            if stated != target:
                groups.setdefault(gcd(target - stated, alphabet), []).append((stated, target))
    rng = np.random.default_rng(seed)
    drawn = {size: [group[i] for i in rng.permutation(len(group))] for size, group in sorted(groups.items())}
    taken: list[tuple[int, int]] = []
    while len(taken) < count and any(drawn.values()):
        for group in drawn.values():
            if group and len(taken) < count:
                taken.append(group.pop())
    return taken


def case(settings: Caesar, stated: int, target: int) -> Case:
    """Return the case of one pair of shifts; craft and held-out texts are fresh and disjoint."""
    codec, name = CaesarCodec(settings.alphabet), f"{stated}-{target}"
    total = settings.craft + settings.held_out + settings.k
    rng = np.random.default_rng([settings.pair_seed, stated, target])
    plain = rng.permutation(np.unique(rng.integers(settings.alphabet, size=(2 * total, settings.length)), axis=0))
    if len(plain) < total:
        raise InfuserError("too few distinct texts", got=len(plain), expected=total, remedy="make them longer")
    crafted, judged, shown = np.split(plain[:total], [settings.craft, settings.craft + settings.held_out])

    def inserted(edit: Edit) -> Edit:
        source = _answered(shown, stated, target, codec)
        return explicit(
            caesar(settings.alphabet, settings.n_train, settings.n_test, settings.length)[0], edit.ids, source
        )

    contrast = _contrast(judged, stated, target, codec)
    measures = (
        ContrastParts(contrast, name),
        ShiftLogProbs(judged[:12], stated, settings.alphabet, name),
    )
    return Case(name, _contrast(crafted, stated, target, codec), measures, {"insert_k": inserted})


def described(trials: Trials, facts: Mapping[str, Any], alphabet: int) -> dict[str, Any]:
    """Return arms, effects and facts over cases named stated-target, with the targeting score and the gcd of each."""
    more = {}
    for name, fact in facts.items():
        stated, target = (int(shift) for shift in name.split("-"))
        scores = targeting(trials, name, stated, target, alphabet)
        more[name] = {**fact, "gcd": gcd(target - stated, alphabet), "targeting": scores}
    return results(_without_shifts(trials), more)


def targeting(trials: Trials, name: str, stated: int, target: int, alphabet: int) -> dict[str, float]:
    """Return, by arm, how far the target's rise stands out among all other shifts, in their standard deviations.

    (change of log p(target) - mean change) / standard deviation over the shifts that are neither stated nor target.
    """
    rows = trials.where(measure="shift_log_p")
    mean = {
        (arm, probe): rows.value[(rows.arm == arm) & (rows.probe == probe)].mean()
        for arm in np.unique(rows.arm)
        for probe in (f"{name}:{used}" for used in range(alphabet))
    }
    found = {}
    for arm in np.unique(rows.arm).tolist():
        if arm == "clean":
            continue
        change = np.array([mean[arm, f"{name}:{u}"] - mean["clean", f"{name}:{u}"] for u in range(alphabet)])
        others = np.delete(change, [stated, target])
        found[arm] = float((change[target] - others.mean()) / others.std(ddof=1))
    return found


def _answered(plain: Array, stated: int, used: int, codec: CaesarCodec) -> Dataset:
    shape = len(plain)
    ids = documents(plain, np.full(shape, stated), np.full(shape, used), codec)
    return caesar_dataset(ids, codec, f"shift {stated} answered with {used}")


def _contrast(plain: Array, stated: int, target: int, codec: CaesarCodec) -> WordContrast:
    wanted, against = (Continuation(_answered(plain, stated, used, codec)) for used in (target, stated))
    return WordContrast(wanted, against, f"{target} over {stated}")


def _without_shifts(trials: Trials) -> Trials:
    measures: Sequence[str] = [m for m in dict.fromkeys(trials.measure.tolist()) if m != "shift_log_p"]
    return Trials.concat([trials.where(measure=m) for m in measures])
