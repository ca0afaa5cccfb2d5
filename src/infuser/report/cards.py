"""Small multiples: probes, edited documents, edited texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from infuser.html import amplification, amplified, is_image, number
from infuser.report.blocks import Bar, Card, Cards, Cell, Picture, picture, value_cell
from infuser.report.lookup import class_name
from infuser.report.material import EditView, ProbeView, TokenDiff
from infuser.types import Array

HOW_TO_READ = (
    "What stood there before is struck through above what stands there now; point at a substitution for what taking it "
    "back alone would lose."
)
_CLASSES = 12  # bars of a small chart; beyond, only the classes that matter are drawn
_BUDGET = 2_000_000  # bytes of pictures of edited documents, so that a page stays easy to mail
_FEWEST = 6  # edited documents that are shown whatever their size
_MOST = 200  # and however small they are


def probes(views: Sequence[ProbeView]) -> Cards:
    """Return a card for each probe: the document, its probabilities before and after, the target's in every arm."""
    arms = list(dict.fromkeys(arm for view in views for arm in view.probabilities))
    before, after = [*arms, "", ""][:2]
    caption = (
        f"Bars: probability of each class, {before} in grey, {views[0].after or after} in colour, averaged over seeds; "
        "the document's own class in bold, the wanted one in colour. Below: its probability in each arm."
        if after
        else "Bars: probability of each class."
    )
    return Cards(f"{len(views)} probes", caption, tuple(_probe(view) for view in views))


def edits(views: Sequence[EditView]) -> Iterator[Cards]:
    """Yield the documents of each edit; those that fill the budget of bytes, largest predicted gain first."""
    share = _BUDGET // len(views)
    for number_, view in enumerate(views):
        kept: list[Card] = []
        size = 0
        for i in _order(view)[:_MOST]:
            card = _edited(view, i)
            size += sum(len(p.uri) for p in card.pictures)
            if size > share and len(kept) >= _FEWEST:
                break
            kept.append(card)
        within = f"within {view.edit.constraint}" if view.edit.constraint is not None else "without a ball"
        shown = "" if len(kept) == len(view.edit) else f" {len(kept)} of them are shown."
        caption = f"{_documents(len(view.edit))} {within}; {view.edit.made_by}.{shown}"
        yield Cards(view.title, caption, tuple(kept), folded=number_ > 0, wide=not is_image(view.edit.before))


def are_pictures(views: Sequence[EditView]) -> bool:
    """Say whether any of the edits is one of pictures."""
    return any(is_image(view.edit.before) for view in views)


def token_diffs(diffs: Sequence[TokenDiff]) -> Cards:
    """Return texts with their substitutions marked; a substitution's gain is read by pointing at it."""
    cards = []
    for diff in diffs:
        gains = [float("nan")] * len(diff.before) if diff.gains is None else diff.gains.tolist()
        tokens = tuple(_token(b, a, g) for b, a, g in zip(diff.before, diff.after, gains, strict=True))
        facts = _changed(diff.before, diff.after)
        cards.append(Card(f"document {diff.id}", text=diff.note, tokens=tokens, facts=facts))
    caption = f"{len(diffs)} documents. {HOW_TO_READ}"
    return Cards("Token by token", caption, tuple(cards), wide=True)


def _probe(view: ProbeView) -> Card:
    names = list(view.probabilities)
    before = names[0] if names else ""
    after = view.after or (names[1] if len(names) > 1 else before)
    label, target = view.classes[view.label], view.classes[view.target]
    facts: dict[str, Cell] = {
        arm.replace("_", " "): value_cell(float(p[view.target]), 2) for arm, p in view.probabilities.items()
    }
    bars: tuple[Bar, ...] = ()
    alt = ""
    if names:
        p, q = view.probabilities[before], view.probabilities[after]
        roles = {view.label: "label", view.target: "target"}
        bars = tuple(
            Bar(view.classes[c], float(p[c]) * 100, float(q[c]) * 100, roles.get(c, "")) for c in _shown(view, p, q)
        )
        alt = f"Probability of the target {target}: {number(float(p[view.target]), 2)} {before}, "
        alt += f"{number(float(q[view.target]), 2)} {after}."
    pictures: tuple[Picture, ...] = ()
    if not isinstance(view.document, str):
        pictures = (picture(view.document, f"probe {view.name}, class {label}"),)
    text = view.document if isinstance(view.document, str) else ""
    # A probe's name often ends in its target, which the title says anyway.
    name = view.name.removesuffix(f"->{view.target}").removesuffix(f"->{target}")
    return Card(f"{name}: is {label}, wanted {target}", pictures, text, (), facts, bars, (before, after), alt)


def _shown(view: ProbeView, p: Array, q: Array) -> list[int]:
    if len(view.classes) <= _CLASSES:
        return list(range(len(view.classes)))
    likely = [int(c) for c in np.argsort(-np.maximum(p, q), kind="stable")[: _CLASSES - 2]]
    return list(dict.fromkeys([view.label, view.target, *likely]))


def _edited(view: EditView, i: int) -> Card:
    edit = view.edit
    before, after, id_ = edit.before[i], edit.after[i], int(edit.ids[i])
    labels = [class_name(view.classes, t[i]) for t in (edit.targets_before, edit.targets_after)]
    label = " → ".join(dict.fromkeys(labels))
    facts = {}
    if view.influence is not None:
        facts["influence"] = value_cell(float(view.influence[i]), signed=True)
    if edit.gains is not None:
        facts["predicted gain"] = value_cell(float(edit.gains[i]), signed=True)
    for name, values in (view.distances or _own_distance(view)).items():
        facts[name] = value_cell(float(values[i]))
    title = f"{id_}" if label == "–" else f"{id_}, label {label}"
    if is_image(edit.before):
        times = amplification(edit.before, edit.after)
        pictures = (
            picture(before, f"document {id_} before", "before"),
            picture(after, f"document {id_} after", "after"),
            picture(
                amplified(before, after, times), f"document {id_}, difference times {times}", f"difference ×{times}"
            ),
        )
        return Card(title, pictures, facts=facts)
    if before.ndim == 1 and before.dtype.kind in "iu":
        length = int((before >= 0).sum())  # padding on the right is -1
        texts = [[view.pieces.get(t, str(t)) for t in tokens[:length].tolist()] for tokens in (before, after)]
        none = [float("nan")] * length
        gains = none if view.substitution_gains is None else view.substitution_gains[i][:length].tolist()
        # Bare numbers need a space between them; pieces of text bring their own.
        gap = "" if view.pieces else " "
        tokens = tuple(_token(gap + b, gap + a, g) for b, a, g in zip(*texts, gains, strict=True))
        return Card(title, tokens=tokens, facts={**facts, **_changed(*texts)})
    return Card(title, facts={**facts, "values changed": value_cell(int((before != after).sum()))})


def _own_distance(view: EditView) -> Mapping[str, Array]:
    constraint = view.edit.constraint
    return {} if constraint is None else {str(constraint): constraint.distance(view.edit.before, view.edit.after)}


def _order(view: EditView) -> list[int]:
    gains = view.edit.gains
    if gains is None or not np.isfinite(gains).all():
        return list(range(len(view.edit)))
    return [int(i) for i in np.argsort(-gains, kind="stable")]


def _changed(before: Iterable[str], after: Iterable[str]) -> dict[str, Cell]:
    pairs = list(zip(before, after, strict=True))
    changed = sum(b != a for b, a in pairs)
    return {"tokens changed": Cell(f"{changed} of {len(pairs)}", float(changed))}


def _token(before: str, after: str, gain: float) -> tuple[str, str, str, str]:
    # A space that both begin with is not part of the substitution.
    space = before[: len(before) - len(before.lstrip())]
    space = space if after.startswith(space) else ""
    return space, before[len(space) :], after[len(space) :], _gain(gain)


def _gain(value: float) -> str:
    return number(value, signed=True) if np.isfinite(value) else ""


def _documents(n: int) -> str:
    return f"{n:,} document" if n == 1 else f"{n:,} documents"
