"""Arms: the ways to prepare the training data that an effect is stated against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.types import Arm, Array, Edit

CONTROLS = ("clean", "noise", "insert_1", "insert_k")  # what can be made of an edit and a probe alone
_REASONS = {
    "clean": "the training data as they are: what retraining changes by itself",
    "noise": "the edit's own pixel differences, shuffled within each document with random signs: as large, but aimless",
    "random_docs": "the same method on randomly drawn documents: what choosing the documents adds",
    "insert_1": "the probe with the wanted label in place of the first selected document: one explicit poison",
    "insert_k": "the probe with the wanted label in place of every selected document: the bluntest poison of this size",
    "influence": "the same ball along the influence of one trained model, in place of the exact derivative",
    "no_curvature": "the same ball along the plain gradient of f: without any curvature",
    "gradient_matching": "documents whose summed gradient is turned towards the target's: the published rival",
}
_GIVEN = ("random_docs", "influence", "no_curvature", "gradient_matching")  # need an edit that only the caller can make


def arms(
    data: Dataset,
    edits: Mapping[str, Edit | Callable[[Array], Edit]],
    probe: Any = None,
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
) -> list[Arm]:
    """Return one arm per control and per edit, all with the documents of `data` in the same order.

    Args:
        data: the clean training data.
        edits: name -> edit. The one called "edit", else the first, is what noise and insert copy. Under "random_docs" a
            function of k randomly drawn ids is accepted as well; documents of weight 0 are not drawn. A control given
            here is used as it is.
        probe: a measurement of one document, with `.documents` and `.labels`; needed by insert_1 and insert_k.
        controls: which controls to make; those of `_GIVEN` must be among the edits.
        seed: of the noise and of the random documents.

    Raises:
        InfuserError: a control is unknown, or needs an edit or a probe that was not given, or fewer documents than
            the edit has count in the training, so that random ones cannot be drawn.
    """
    main = _main(edits, controls)
    made: list[Arm] = []
    for name in dict.fromkeys([*(c for c in controls if c == "clean"), *edits, *controls]):
        if name == "clean":
            made.append(Arm(name, data, _REASONS[name]))
            continue
        edit = edits[name] if name in edits else _control(name, main, data, probe, seed)
        if not isinstance(edit, Edit):
            edit = _on_random_documents(name, edit, data, len(main), seed)
        reason = _REASONS.get(name, f"{len(edit)} documents changed by {edit.made_by}")
        made.append(Arm(name, data.apply(edit), reason))
    return made


def _main(edits: Mapping[str, Edit | Callable[[Array], Edit]], controls: Sequence[str]) -> Edit:
    unknown = [name for name in controls if name not in _REASONS]
    if unknown or "clean" in edits:
        raise InfuserError(
            "not a control" if unknown else "clean is the data without any edit",
            got=listed(unknown) if unknown else "an edit named clean",
            expected=f"some of {listed(list(_REASONS))}",
            remedy="pass edits of your own in `edits`, under a name of your own",
        )
    absent = [name for name in controls if name in _GIVEN and name not in edits]
    if absent:
        raise InfuserError(
            f"control {listed(absent)} needs an edit that was not given",
            got=f"edits {listed(list(edits))}",
            causes=["these controls repeat the edit's method, which arms does not know"],
            remedy=f'add it: arms(data, {{"edit": edit, "{absent[0]}": its_edit}}, ...) (for random_docs also a '
            "function ids -> Edit), or leave it out of controls",
        )
    main = edits.get("edit", next(iter(edits.values()), None))
    if not isinstance(main, Edit) or not len(main):
        raise InfuserError(
            "arms need an edit of at least one document",
            got="none" if main is None else "an empty edit or a function",
            remedy='pass {"edit": edit}',
        )
    return main


def _control(name: str, edit: Edit, data: Dataset, probe: Any, seed: int) -> Edit:
    if name == "noise":
        return noise(edit, seed)
    return insert(data, edit.ids[:1] if name == "insert_1" else edit.ids, probe)


def _on_random_documents(name: str, make: Callable[[Array], Edit], data: Dataset, k: int, seed: int) -> Edit:
    if name != "random_docs":
        raise InfuserError(f"{name} must be an edit", got="a function", remedy="only random_docs may be a function")
    counting = data.ids[data.weights > 0]  # no method edits a document that the training does not see
    if len(counting) < k:
        raise InfuserError(
            "too few documents to draw from", got=f"{len(counting)} of weight above 0", expected=f"at least {k}"
        )
    drawn = np.sort(np.random.default_rng([seed, 1]).choice(counting, size=k, replace=False))
    edit = make(drawn)
    if set(edit.ids.tolist()) != set(drawn.tolist()):
        raise InfuserError(
            "random_docs edited other documents than those drawn",
            got=listed(edit.ids.tolist()),
            expected=listed(drawn.tolist()),
            remedy="pass the ids on: lambda ids: perturb(..., ids=ids)",
        )
    return edit


def noise(edit: Edit, seed: int = 0) -> Edit:
    """Return an aimless edit of exactly the same Linf and L2 for every document, and the same labels.

    The absolute differences of a document are permuted over its values, and each takes a random sign among those that
    stay in [0, 255]. A difference above 127 fits some values with neither sign, so the largest are placed first, each
    drawn among the values that can still hold it; since those sets are nested, all admissible permutations are equally
    likely and the placement never fails.

    Raises:
        InfuserError: the documents are not uint8.
    """
    if edit.before.dtype != np.uint8:
        raise InfuserError(
            "noise of the same size is defined for 8-bit documents",
            got=f"documents of {edit.before.dtype}",
            remedy='pass an edit of your own under "noise" (for tokens: as many random substitutions)',
        )
    rng = np.random.default_rng([seed, 0])
    before = edit.before.reshape(len(edit), -1).astype(np.int16)
    sizes = np.abs(edit.after.reshape(len(edit), -1).astype(np.int16) - before)
    after = np.stack([_scattered(x, size, rng) for x, size in zip(before, sizes, strict=True)])
    return Edit(
        edit.ids,
        edit.before,
        after.reshape(edit.before.shape).astype(np.uint8),
        edit.targets_before,
        edit.targets_after,
        edit.constraint,
        f"noise of the size of: {edit.made_by}",
    )


def _scattered(x: Array, sizes: Array, rng: np.random.Generator) -> Array:
    """Return x (D,) plus the differences `sizes` (D,) in a random admissible order with random admissible signs."""
    capacity = np.maximum(x, 255 - x)
    placed = np.zeros_like(sizes)
    free = np.ones(len(x), dtype=bool)
    # Every value can hold up to 127 one way or the other, hence only larger differences need care.
    for size in sorted(sizes[sizes > 127].tolist(), reverse=True):
        at = rng.choice(np.flatnonzero(free & (capacity >= size)))
        placed[at], free[at] = size, False
    placed[free] = rng.permutation(sizes[sizes <= 127])
    up, down = x + placed <= 255, x - placed >= 0
    sign = np.where(up & down, rng.choice(np.array([-1, 1], dtype=np.int16), len(x)), np.where(up, 1, -1))
    return np.asarray(x + sign * placed)


def insert(data: Dataset, ids: Array, probe: Any) -> Edit:
    """Return the edit that replaces these documents by the probe's document under its wanted label; N and ids stay.

    Raises:
        InfuserError: the probe is not one document of the data's kind with a label.
    """
    documents, labels = getattr(probe, "documents", None), getattr(probe, "labels", None)
    remedy = "pass a measurement of one document (LogProb, Margin), or leave insert_1 and insert_k out of controls"
    if documents is None or labels is None:
        raise InfuserError("insert needs a document and its wanted label", got=repr(probe), remedy=remedy)
    if len(documents) != 1:
        raise InfuserError("insert replaces by one document", got=f"{len(documents)} probes", remedy="pass probes[q]")
    if documents.inputs.dtype != data.inputs.dtype or documents.input_shape != data.input_shape:
        raise InfuserError(
            "the probe is not of the training data's kind",
            got=f"{documents.inputs.dtype} {documents.input_shape}",
            expected=f"{data.inputs.dtype} {data.input_shape}",
        )
    chosen = data[ids]
    return Edit(
        chosen.ids,
        chosen.inputs,
        np.repeat(documents.inputs, len(chosen), axis=0),
        chosen.targets,
        np.repeat(np.asarray(labels, dtype=chosen.targets.dtype), len(chosen), axis=0),
        None,
        f"replacement by probe {documents.ids[0]}",
    )
