"""An edit of text on disk: its documents before and after as text files, what changed, and how to undo it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import PAD, Codec, document_ids, texts_of
from infuser.errors import InfuserError, listed
from infuser.perturbation.token_edits import TokenBudget
from infuser.storage import atomic_path, plain, read_json, write_json
from infuser.types import Array, Edit

NAME = "manifest.json"
_SCHEMA = 1


def token_diff(before: Array, after: Array, codec: Codec) -> list[tuple[int, str, str]]:
    """Return (position, piece before, piece after) for every token that differs; "" where there is none."""

    def piece(row: Array, t: int) -> str:
        return "" if t >= len(row) or row[t] == PAD else codec.pieces[int(row[t])]

    longest = max(len(before), len(after))
    pairs = ((t, piece(before, t), piece(after, t)) for t in range(longest))
    return [(t, a, b) for t, a, b in pairs if a != b]


def text_distances(edit: Edit, codec: Codec) -> dict[str, Array]:
    """Return distances of every edited document, each (k,): tokens changed, their share, and Levenshtein in characters.

    Token counts compare position by position, so that they are meant for edits that keep the length.
    """
    from rapidfuzz.distance import Levenshtein

    changed = (edit.before != edit.after).sum(1)
    pairs = zip(texts_of(edit.before, codec), texts_of(edit.after, codec), strict=True)
    characters = np.array([Levenshtein.distance(a, b) for a, b in pairs])
    return {"tokens": changed, "share": changed / np.maximum((edit.before != PAD).sum(1), 1), "levenshtein": characters}


def save_text_edit(
    edit: Edit,
    folder: str | os.PathLike[str],
    codec: Codec,
    *,
    perplexity: Array | None = None,
    substitution_gains: Array | None = None,
) -> Path:
    """Write before/ID.txt, after/ID.txt and manifest.json, the manifest last: a folder with one is whole.

    Args:
        edit: of documents of tokens.
        folder: of this edit alone.
        codec: of the documents.
        perplexity: (k,) perplexity after over before under the clean model, for the record.
        substitution_gains: (k, T) what each substitution gained, NaN where the token was kept; for the record.

    Raises:
        InfuserError: `folder` holds another edit, a document is not given back by its text, or it has none.
    """
    folder = Path(folder)
    beyond = (edit.after >= codec.size).any(1)
    if beyond.any():
        raise InfuserError(
            "an edit of embeddings cannot be stored: no text encodes to it",
            got=f"documents {listed(edit.ids[beyond].tolist())}",
            remedy="edit words or tokens (GreedyTokens)",
        )
    texts = {"before": texts_of(edit.before, codec), "after": texts_of(edit.after, codec)}
    _require_stored(edit, texts, codec)
    distances = text_distances(edit, codec)
    rows = [
        {
            "id": int(i),
            "before_sha256": _digest(texts["before"][j]),
            "after_sha256": _digest(texts["after"][j]),
            "loss_from": [
                _loss_from(edit.targets_before[j], edit.before[j], int(i)),
                _loss_from(edit.targets_after[j], edit.after[j], int(i)),
            ],
            "diff": token_diff(edit.before[j], edit.after[j], codec),
            "gain": None if edit.gains is None else float(edit.gains[j]),
            "perplexity_ratio": None if perplexity is None else float(perplexity[j]),
            "substitution_gains": None if substitution_gains is None else _present(substitution_gains[j]),
            **{name: float(values[j]) for name, values in distances.items()},
        }
        for j, i in enumerate(edit.ids)
    ]
    share = edit.constraint.share if isinstance(edit.constraint, TokenBudget) else None
    manifest = plain({"schema": _SCHEMA, "made_by": edit.made_by, "share": share, "documents": rows})
    if (folder / NAME).exists() and read_json(folder / NAME) != manifest:
        raise InfuserError("the folder holds another edit", got=str(folder), remedy="choose another folder")
    for part, values in texts.items():
        for i, text in zip(edit.ids.tolist(), values, strict=True):
            with atomic_path(folder / part / f"{i}.txt") as temporary:
                temporary.write_bytes(text.encode())
    write_json(folder / NAME, manifest)
    return folder / NAME


def load_text_edit(folder: str | os.PathLike[str], data: Dataset, codec: Codec) -> Edit:
    """Return the edit that was written, its documents encoded anew from their text files.

    Raises:
        InfuserError: a file is missing or changed, or the documents of `data` are not what the edit was made for.
    """
    folder = Path(folder)
    manifest = read_json(folder / NAME)
    rows = _rows(manifest)
    chosen = data[np.array([row["id"] for row in rows], dtype=np.int64)]
    after, targets, wrong = [], [], []
    for row, stored, label in zip(rows, chosen.inputs, chosen.targets, strict=True):
        text = _read(folder / "after" / f"{row['id']}.txt")
        if _digest(text) != row["after_sha256"]:
            wrong.append(row["id"])
        made = _encoded(text, stored, row["loss_from"][1], codec)
        after.append(made)
        targets.append(_labels(made, row["loss_from"][1], label.dtype))
    if wrong:
        raise InfuserError(
            f"{len(wrong)} edited texts are not what the manifest says",
            got=f"documents {listed(wrong)}",
            causes=["a file was changed", "line ends were converted"],
            remedy="write the edit again",
        )
    differ = [
        row["id"]
        for row, text in zip(rows, texts_of(chosen.inputs, codec), strict=True)
        if _digest(text) != row["before_sha256"]
    ]
    if differ:
        causes = ["the edit was applied already", "the data set was changed since"]
        got = f"documents {listed(differ)}"
        raise InfuserError("documents are not what the edit was made for", got=got, causes=causes)
    gains = [row["gain"] for row in rows]
    return Edit(
        chosen.ids,
        chosen.inputs,
        np.array(after, dtype=chosen.inputs.dtype).reshape(chosen.inputs.shape),
        chosen.targets,
        np.array(targets, dtype=chosen.targets.dtype).reshape(chosen.targets.shape),
        None if manifest["share"] is None else TokenBudget(float(manifest["share"])),
        str(manifest["made_by"]),
        None if None in gains else np.array(gains, dtype=np.float64),
    )


def recorded(folder: str | os.PathLike[str], edit: Edit) -> tuple[Array | None, Array | None]:
    """Return what the manifest says beside the edit: (perplexity ratios (k,), substitution gains (k, T)), or None.

    Raises:
        InfuserError: it is not the manifest of this edit of text.
    """
    rows = {row["id"]: row for row in _rows(read_json(Path(folder) / NAME))}
    if absent := [i for i in edit.ids.tolist() if i not in rows]:
        raise InfuserError(f"{NAME} is that of another edit", got=f"documents {listed(absent)} are not in it")
    kept = [rows[i] for i in edit.ids.tolist()]
    ratios = [row.get("perplexity_ratio") for row in kept]
    perplexity = None if None in ratios else np.array(ratios, dtype=np.float64)
    if any(row.get("substitution_gains") is None for row in kept):
        return perplexity, None
    gains = np.full(edit.after.shape, np.nan)
    for j, row in enumerate(kept):
        for t, gain in row["substitution_gains"]:
            if not 0 <= t < edit.after.shape[1]:
                fact = f"{NAME} tells of a substitution outside its document"
                raise InfuserError(fact, got=f"document {row['id']}, position {t}")
            gains[j, t] = gain
    return perplexity, gains


def write_texts(data: Dataset, folder: str | os.PathLike[str], codec: Codec) -> None:
    """Write every document as ID.txt: all of a released set alike, else the files give the edited ones away."""
    for i, text in zip(data.ids.tolist(), texts_of(data.inputs, codec), strict=True):
        with atomic_path(Path(folder) / f"{i}.txt") as temporary:
            temporary.write_bytes(text.encode())


def undo_texts(folder: str | os.PathLike[str], edit_folder: str | os.PathLike[str]) -> list[int]:
    """Put the texts before the edit back into a folder of ID.txt, byte for byte, and return their ids.

    Raises:
        InfuserError: a file is neither the edited text nor the one before; nothing is written then.
    """
    rows = _rows(read_json(Path(edit_folder) / NAME))
    before = {row["id"]: _read(Path(edit_folder) / "before" / f"{row['id']}.txt") for row in rows}
    wrong = [
        row["id"]
        for row in rows
        if _digest(_read(Path(folder) / f"{row['id']}.txt")) not in (row["after_sha256"], row["before_sha256"])
        or _digest(before[row["id"]]) != row["before_sha256"]
    ]
    if wrong:
        raise InfuserError("texts were changed since the edit", got=f"documents {listed(wrong)}")
    for i, text in before.items():
        with atomic_path(Path(folder) / f"{i}.txt") as temporary:
            temporary.write_bytes(text.encode())
    return list(before)


def _present(row: Array) -> list[tuple[int, float]]:
    return [(int(t), float(row[t])) for t in np.flatnonzero(~np.isnan(row))]


def _require_stored(edit: Edit, texts: dict[str, list[str]], codec: Codec) -> None:
    for part, rows in (("before", edit.before), ("after", edit.after)):
        pairs = zip(edit.ids.tolist(), texts[part], rows, strict=True)
        lost = [i for i, text, row in pairs if codec.encode(text) != document_ids(row, codec)]
        if lost:
            raise InfuserError(f"documents {part} the edit do not survive as text", got=f"documents {listed(lost)}")


def _encoded(text: str, like: Array, loss_from: int, codec: Codec) -> Array:
    """Return the stored row of a text, with the begin and end mark where `like` has them."""
    real = like[like != PAD]
    ids = codec.encode(text)
    ids = [int(codec.bos), *ids] if codec.bos is not None and len(real) and real[0] == codec.bos else ids
    ids = [*ids, int(codec.eos)] if codec.eos is not None and len(real) and real[-1] == codec.eos else ids
    if len(ids) > len(like) or not 0 <= loss_from <= len(ids):
        raise InfuserError("an edited text is longer than its document may be", got=len(ids), expected=len(like))
    row = np.full_like(like, PAD)
    row[: len(ids)] = ids
    return row


def _labels(row: Array, loss_from: int, dtype: Any) -> Array:
    labels = np.where(row == PAD, IGNORED, row).astype(dtype)
    labels[:loss_from] = IGNORED
    return labels


def _loss_from(target: Array, row: Array, i: int) -> int:
    kept, real = np.flatnonzero(target != IGNORED), np.flatnonzero(row != PAD)
    # All that is stored is where it begins, so that it has to go on to the end and be of the tokens themselves.
    if len(kept) == 0 or not np.array_equal(kept, real[len(real) - len(kept) :]) or (target[kept] != row[kept]).any():
        raise InfuserError(
            "a text edit stores a loss on the tokens from one place to the end",
            got=f"document {i}",
            causes=["labels in the middle or at the end of the document are masked"],
        )
    return int(kept[0])


def _rows(manifest: Any) -> list[dict[str, Any]]:
    rows = manifest.get("documents") if isinstance(manifest, dict) else None
    if not isinstance(rows, list) or manifest.get("schema") != _SCHEMA:
        raise InfuserError("not the manifest of a text edit", got=str(manifest)[:80])
    for row in rows:
        _require_fields(row, _OF_DOCUMENT, "a document of the manifest")
        recorded = {name: holds for name, holds in _FOR_THE_RECORD.items() if name in row}
        _require_fields(row, recorded, f"document {row['id']} of the manifest")
    _require_fields(manifest, _OF_EDIT, "the manifest")
    return rows


def _require_fields(held: Any, fields: Mapping[str, Callable[[Any], bool]], what: str) -> None:
    """Raise where a field is missing or its value is not one that `save_text_edit` writes."""
    missing = [name for name in fields if not isinstance(held, dict) or name not in held]
    if missing:
        raise InfuserError(f"{what} lacks {listed(missing)}", got=str(held)[:80])
    wrong = [name for name, holds in fields.items() if not holds(held[name])]
    if wrong:
        raise InfuserError(
            f"{what} in {NAME} holds a wrong {listed(wrong)}",
            got=listed([f"{name}: {held[name]!r:.40}" for name in wrong]),
            causes=["the file was changed by hand"],
            remedy="write the edit again",
        )


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # True is an int of another type


def _number_or_null(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _two_places(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value))


def _gains_or_null(value: Any) -> bool:
    """Return whether these are (position, gain), as `_present` gives them."""
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return value is None or (pairs and all(_whole(t) and _number_or_null(gain) for t, gain in value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


# What a manifest must hold, and what it may, by name.
_OF_EDIT: dict[str, Callable[[Any], bool]] = {"share": _number_or_null, "made_by": _text}
_OF_DOCUMENT: dict[str, Callable[[Any], bool]] = {
    "id": _whole,
    "before_sha256": _text,
    "after_sha256": _text,
    "loss_from": _two_places,
    "gain": _number_or_null,
}
_FOR_THE_RECORD = {"perplexity_ratio": _number_or_null, "substitution_gains": _gains_or_null}


def _read(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        raise InfuserError(f"{path.name} is missing or is not a file", got=str(path))
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InfuserError(f"{path.name} is not UTF-8 text", got=str(error)) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
