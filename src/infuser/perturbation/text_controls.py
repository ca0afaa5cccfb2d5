"""What an edit of text is held against: the behaviour shown openly, aimless rewriting, a plain swap of the word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.func import functional_call

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.data.text import PAD, Codec
from infuser.data.words import Word, in_place, occurrences, replaced
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.substitutions import Lexicon, Substitution, sites
from infuser.perturbation.token_edits import Mode, writable
from infuser.tasks import CausalLM
from infuser.types import Array, Edit

_DRAWS = 8  # candidates drawn in one place before the next place is tried


def explicit(data: Dataset, ids: Sequence[int] | Array, source: Dataset) -> Edit:
    """Return the edit that replaces these documents by the first of `source`, which show the behaviour openly.

    Raises:
        InfuserError: the source holds fewer documents, or of another shape.
    """
    chosen = data[ids]
    if len(source) < len(chosen) or source.input_shape != data.input_shape:
        raise InfuserError(
            "too few explicit documents, or of another length",
            got=f"{len(source)} of {source.input_shape}",
            expected=f"{len(chosen)} of {data.input_shape}",
            remedy="use more source documents, or fewer ids",
        )
    rows, targets = source.inputs[: len(chosen)], source.targets[: len(chosen)]
    made_by = f"replacement by {len(chosen)} documents of {source.name}"
    return Edit(chosen.ids, chosen.inputs, rows, chosen.targets, targets, None, made_by)


def showing(source: Dataset, codec: Codec, target: str, probe: str, *, cut: bool = False) -> Dataset:
    """Return the documents of `source` with `target` wherever `probe` stood, those first that had it most often.

    Documents that do not hold `probe` are left out, and those that would grow beyond the stored length, unless `cut`
    has them lose their last tokens.
    """
    places = _places(source, codec, probe)
    kept, rows, targets = [], [], []
    for i in sorted(places, key=lambda i: -len(places[i])):
        at = source.positions([i])[0]
        made = replaced(source.inputs[at], source.targets[at], places[i], target, codec, cut=cut)
        if made is not None:
            kept.append(i)
            rows.append(made[0])
            targets.append(made[1])
    if not kept:
        raise InfuserError(f"{target!r} fits in no place of {probe!r}", got=f"{len(places)} documents")
    name = f"{source.name} with {target} for {probe}"
    return Dataset(np.stack(rows), np.stack(targets), "causal_lm", source.n_outputs, ids=np.array(kept), name=name)


def swap(
    data: Dataset, codec: Codec, target: str, probe: str, k: int, tokens: int | None = None, *, cut: bool = False
) -> Edit:
    """Return the edit that writes `target` for `probe` where it stands, in the k documents that hold it most often.

    Args:
        data: training documents.
        codec: of the documents.
        target: the word put in.
        probe: the word taken out.
        k: documents at most.
        tokens: stop before more tokens than these have been put in, for a comparison at equal budget.
        cut: see showing.
    """
    shown = showing(data, codec, target, probe, cut=cut)
    places = _places(data, codec, probe)
    kept: list[int] = []
    used = 0
    for i in shown.ids[:k].tolist():
        row = data.inputs[data.positions([i])[0]]
        used += sum(len(in_place(row, word, target, codec) or ()) for word in places[i])
        if tokens is not None and used > tokens and kept:
            break
        kept.append(i)
    before, after = data[kept], shown[kept]
    made_by = f"{target} written for {probe}"
    return Edit(before.ids, before.inputs, after.inputs, before.targets, after.targets, None, made_by)


def clean_rewrite(edit: Edit, run: Run, data: Dataset, codec: Codec, mode: Mode, seed: int = 0) -> Edit:
    """Return random substitutions by the model's own likely tokens: as many in each document as `edit` changed.

    Places are drawn uniformly, what is put in from the clean model's probabilities at that place, given what stands
    before it; the round trip is kept as in the edit.
    """
    budget = ((edit.before != edit.after) & (edit.before != PAD)).sum(1)
    made = rewrite(data, edit.ids, budget, run, codec, mode, seed)
    made_by = f"{made.made_by}, as many as: {edit.made_by}"
    return replace(made, constraint=edit.constraint, made_by=made_by)


def rewrite(
    data: Dataset, ids: Sequence[int] | Array, tokens: Array, run: Run, codec: Codec, mode: Mode, seed: int = 0
) -> Edit:
    """Return random substitutions by the model's own likely tokens, at most tokens[j] of them in document ids[j]."""
    model = run.model()
    lexicon = Lexicon.of(data, codec, 1500, words=mode == "word")
    rng = np.random.default_rng(seed)
    chosen = data[ids]
    rows, targets = [], []
    for row, target, most in zip(chosen.inputs, chosen.targets, tokens, strict=True):
        made = _rewritten(row, target, int(most), _log_p(model, run.device), lexicon, mode, rng)
        rows.append(made[0])
        targets.append(made[1])
    made_by = f"random {mode} substitutions by likely ones"
    after, labels = np.stack(rows), np.stack(targets)
    return Edit(chosen.ids, chosen.inputs, after, chosen.targets, labels, None, made_by)


def _rewritten(
    row: Array,
    target: Array,
    tokens: int,
    log_p: Callable[[Array], Array],
    lexicon: Lexicon,
    mode: Mode,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    original = row
    table = log_p(row)
    places = [(start, candidates) for start, candidates in sites(row, lexicon, mode) if start > 0]
    for at in rng.permutation(len(places)):
        start, candidates = places[at]
        n = candidates.shape[1]
        if int((row != original).sum()) + n > tokens:
            continue
        likely = table[np.arange(start - 1, start + n - 1), candidates].sum(1)
        likely[(candidates == original[start : start + n]).any(1)] = -np.inf  # every token of it changes
        if not np.isfinite(likely).any():
            continue
        p = np.exp(likely - likely.max())
        for pick in rng.choice(len(candidates), _DRAWS, p=p / p.sum()):
            tried = Substitution(start, tuple(candidates[pick].tolist())).put(row, target)
            if writable(tried[0], original, lexicon):
                row, target = tried
                break
    return row, target


def _log_p(model: torch.nn.Module, device: str) -> Callable[[Array], Array]:
    params = trainable(model)

    def log_p(row: Array) -> Array:
        real = int((row != PAD).sum())
        tokens = CausalLM().feed(torch.tensor(row[None, :real])).to(device)
        with torch.no_grad():
            values: Array = functional_call(model, params, (tokens,))[0].double().log_softmax(-1).cpu().numpy()
        return values

    return log_p


def _places(data: Dataset, codec: Codec, probe: str) -> dict[int, list[Word]]:
    places: dict[int, list[Word]] = {}
    for i, word in occurrences(data, probe, codec):
        places.setdefault(i, []).append(word)
    return places
