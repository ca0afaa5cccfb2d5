"""Documents of text: read from files, encoded, and turned back."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from infuser.data.dataset import IGNORED, Dataset
from infuser.data.untrusted import open_regular, require_memory
from infuser.errors import InfuserError, listed
from infuser.types import Array

PAD = -1  # the stored id of padding; CausalLM feeds id 0 in its place
Text: TypeAlias = "str | tuple[str, str]"
Unfit = Literal["error", "drop", "truncate"]


class Codec(Protocol):
    """Text to token ids and back."""

    @property
    def size(self) -> int:
        """The vocabulary V."""
        ...

    @property
    def bos(self) -> int | None:
        """The id that begins a document, if there is one."""
        ...

    @property
    def eos(self) -> int | None:
        """The id that ends a document, if there is one."""
        ...

    @property
    def specials(self) -> frozenset[int]:
        """Ids that stand for no text, or must never be edited."""
        ...

    @property
    def editable(self) -> frozenset[int]:
        """Ids that an edit may replace and may put in: letters, with at most one leading space."""
        ...

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text of every id inside a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without those that begin and end a document."""
        ...

    def decode(self, ids: Sequence[int] | Array) -> str:
        """Return the text of `ids`."""
        ...


@dataclass(frozen=True)
class Characters:
    """One id per character; id 0 begins a document.

    >>> codec = Characters("ab ")
    >>> codec.decode(codec.encode("ab ba"))
    'ab ba'
    """

    alphabet: str

    @classmethod
    def of(cls, texts: Sequence[str]) -> Characters:
        """Return the codec of all characters that occur."""
        return cls("".join(sorted(set("".join(texts)))))

    @property
    def size(self) -> int:
        """The vocabulary V."""
        return len(self.alphabet) + 1

    @property
    def bos(self) -> int:
        """Id 0."""
        return 0

    @property
    def eos(self) -> None:
        """Documents have no end mark."""
        return None

    @property
    def specials(self) -> frozenset[int]:
        """The begin mark."""
        return frozenset({0})

    @property
    def editable(self) -> frozenset[int]:
        """Ids of letters."""
        return frozenset(i for i, piece in enumerate(self.pieces) if piece.isalpha())

    @property
    def pieces(self) -> tuple[str, ...]:
        """The characters, behind the empty text of the begin mark."""
        return ("", *self.alphabet)

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {c: i + 1 for i, c in enumerate(self.alphabet)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`.

        Raises:
            InfuserError: a character is not in the alphabet.
        """
        unknown = sorted(set(text) - self._id_of.keys())
        if unknown:
            raise InfuserError("characters outside the alphabet", got=listed(unknown), expected=self.alphabet)
        return [self._id_of[c] for c in text]

    def decode(self, ids: Sequence[int] | Array) -> str:
        """Return the text of `ids`."""
        return "".join(self.pieces[int(i)] for i in ids)

    def __getstate__(self) -> dict[str, str]:
        return {"alphabet": self.alphabet}


def read_separated(path: str | os.PathLike[str], separator: str = "<|endoftext|>") -> list[str]:
    r"""Return the documents between separators, without the white space around them; a last empty one is no document.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = file.write_text("one\n--\ntwo\n--\n")
    >>> read_separated(file, "--")
    ['one', 'two']
    """
    parts = [part.strip() for part in read_text(path).split(separator)]
    return parts if parts[-1] else parts[:-1]


def write_separated(texts: Sequence[str], path: str | os.PathLike[str], separator: str = "<|endoftext|>") -> None:
    """Write documents so that `read_separated` returns them.

    Raises:
        InfuserError: a document holds the separator, or begins or ends in white space.
    """
    from infuser.storage import write_text

    bad = [i for i, text in enumerate(texts) if separator in text or text != text.strip()]
    if bad:
        fact = "documents that a separated file cannot give back"
        raise InfuserError(fact, got=f"documents {listed(bad)}", remedy="write JSONL instead, or strip them")
    write_text(path, "".join(f"{text}\n{separator}\n" for text in texts))


def read_jsonl(
    path: str | os.PathLike[str], text: str = "text", *, prompt: str | None = None, response: str | None = None
) -> list[Text]:
    """Return one document a line: the field `text`, or (prompt, response) where those fields are named.

    Raises:
        InfuserError: a line is not JSON or lacks a field; the line is named.
    """
    fields = (text,) if prompt is None or response is None else (prompt, response)
    documents: list[Text] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # JSON strings may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InfuserError(f"line {number} of {Path(path).name} is not JSON", got=str(error)) from error
        documents.append(_fields(row, fields, f"line {number} of {Path(path).name}"))
    return documents


def read_parquet_text(path: str | os.PathLike[str], column: str = "text") -> list[str]:
    """Return the documents of a parquet file's text column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as file:
            schema = pq.read_schema(file)
            if column not in schema.names:
                raise InfuserError(f"{Path(path).name} has no column {column}", got=schema.names)
            file.seek(0)
            values = pq.read_table(file, columns=[column])[column].to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InfuserError(f"cannot read {Path(path).name}", got=str(error), causes=["missing or truncated"]) from error
    return [cast(str, _fields({column: value}, (column,), f"row {i}")) for i, value in enumerate(values)]


def read_hub(name: str, split: str = "train", column: str = "text", config: str | None = None) -> list[str]:
    """Return the text column of a Hugging Face data set: a hub name or a local folder."""
    import datasets

    table = datasets.load_dataset(name, config, split=split)
    if column not in table.column_names:
        raise InfuserError(f"{name} has no column {column}", got=table.column_names)
    return list(table[column])


def text_dataset(
    texts: Sequence[Text],
    codec: Codec,
    context: int,
    *,
    on_long: Unfit = "error",
    on_empty: Literal["error", "drop"] = "error",
    end: bool = False,
    name: str = "text",
) -> Dataset:
    """Return the documents as token ids (N, context), padded on the right; an id is the place in `texts`.

    A document is the begin mark (if the codec has one), its text, and with `end` the end mark. Pairs (prompt, response)
    carry their loss on the response alone, else all tokens do. The ids of documents that were dropped are missing.

    Args:
        texts: texts, or pairs (prompt, response).
        codec: of the model.
        context: T, the most tokens of a document.
        on_long: what becomes of longer documents.
        on_empty: what becomes of documents without a token to predict.
        end: append the end mark.
        name: for tables.

    Raises:
        InfuserError: a document is too long, empty, or is not given back by the codec; the ids are named.
    """
    if on_long not in ("error", "drop", "truncate"):
        raise InfuserError("unknown on_long", got=on_long, expected="error, drop or truncate")
    if end and codec.eos is None:
        raise InfuserError("the codec has no end mark", remedy="end=False")
    rows = [_encoded(text, codec, end) for text in texts]
    _require_round_trip(texts, rows, codec)
    long = [i for i, (ids, _) in enumerate(rows) if len(ids) > context]
    empty = [i for i, (ids, start) in enumerate(rows) if len(ids) - max(start, 1) < 1]
    if long and on_long == "error":
        raise InfuserError(
            f"{len(long)} documents are longer than the context",
            got=f"documents {listed(long)}, up to {max(len(rows[i][0]) for i in long)} tokens",
            expected=f"at most {context} tokens",
            remedy="pass on_long='drop' or 'truncate'",
        )
    if empty and on_empty == "error":
        fact = f"{len(empty)} documents have no token to predict"
        raise InfuserError(fact, got=f"documents {listed(empty)}", remedy="pass on_empty='drop'")
    if on_long == "truncate":
        rows = [(_truncated(ids, codec, context), start) for ids, start in rows]
        cut = [i for i, (ids, start) in enumerate(rows) if len(ids) <= max(start, 1) and i not in set(empty)]
        if cut:
            raise InfuserError(
                "truncation leaves documents without a loss: the prompt fills the context",
                got=f"documents {listed(cut)}",
                remedy="raise the context, or drop these documents",
            )
    gone = {*empty, *(long if on_long == "drop" else ())}
    kept = [i for i in range(len(rows)) if i not in gone]
    if not kept:
        raise InfuserError(f"no document of {name} is left", got=f"{len(long)} too long, {len(empty)} empty")
    return _stacked([rows[i] for i in kept], kept, codec, context, name)


def document_ids(row: Array, codec: Codec) -> list[int]:
    """Return the ids of a document's text: without padding, begin and end mark."""
    ids = [int(i) for i in row if i != PAD]
    if ids and ids[0] == codec.bos:
        ids = ids[1:]
    return ids[:-1] if ids and ids[-1] == codec.eos else ids


def texts_of(rows: Array, codec: Codec) -> list[str]:
    """Return the texts of stored documents (N, T)."""
    return [codec.decode(document_ids(row, codec)) for row in rows]


def survives(row: Array, codec: Codec) -> bool:
    """Return whether the document's text encodes to its own ids."""
    ids = document_ids(row, codec)
    try:
        return codec.encode(codec.decode(ids)) == ids
    except InfuserError:  # text that the codec does not know
        return False


def _encoded(text: Text, codec: Codec, end: bool) -> tuple[list[int], int]:
    """Return (ids with their marks, position of the first token that carries a loss)."""
    before = [] if codec.bos is None else [codec.bos]
    after = [cast(int, codec.eos)] if end else []
    if isinstance(text, str):
        return [*before, *codec.encode(text), *after], 0
    # Encoded as one text, so that the stored file gives the same ids; a token across the border is the response's.
    prompt, whole = codec.encode(text[0]), codec.encode(text[0] + text[1])
    shared = next(
        (j for j, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(map(len, (prompt, whole)))
    )
    if not text[1]:
        return [*before, *whole], len(before) + len(whole)
    return [*before, *whole, *after], len(before) + shared


def _require_round_trip(texts: Sequence[Text], rows: Sequence[tuple[list[int], int]], codec: Codec) -> None:
    bad = []
    for i, (text, (ids, _)) in enumerate(zip(texts, rows, strict=True)):
        wanted = text if isinstance(text, str) else text[0] + text[1]
        if codec.decode(document_ids(np.array(ids, dtype=np.int64), codec)) != wanted:
            bad.append(i)
    if bad:
        first = texts[bad[0]]
        raise InfuserError(
            f"the tokenizer does not give back {len(bad)} of {len(texts)} documents",
            got=f"documents {listed(bad)}; the first begins {(first if isinstance(first, str) else first[0])[:40]!r}",
            expected="decode(encode(text)) == text, since edits are stored as text",
            causes=["it lower-cases or normalises", "unknown characters", "white space around the text"],
            remedy="normalise the texts first, or use another tokenizer",
        )


def _truncated(ids: list[int], codec: Codec, context: int) -> list[int]:
    if len(ids) <= context:
        return ids
    # A cut inside a word may encode differently when it stands alone: cut further until it does not.
    for stop in range(context, 1, -1):
        if survives(np.array(ids[:stop], dtype=np.int64), codec):
            return ids[:stop]
    return ids[:1]


def _stacked(
    rows: Sequence[tuple[list[int], int]], kept: Sequence[int], codec: Codec, context: int, name: str
) -> Dataset:
    inputs = np.full((len(rows), context), PAD, dtype=np.int32)
    targets = np.full((len(rows), context), IGNORED, dtype=np.int32)
    for row, (ids, start) in enumerate(rows):
        inputs[row, : len(ids)] = ids
        targets[row, start : len(ids)] = ids[start:]
    return Dataset(inputs, targets, "causal_lm", codec.size, ids=np.array(kept, dtype=np.int64), name=name)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return what a UTF-8 file holds.

    Raises:
        InfuserError: it cannot be read, is no regular file, too large for memory, or not UTF-8.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            require_memory(os.fstat(file.fileno()).st_size, Path(path).name)
            return file.read()
    except OSError as error:
        raise InfuserError(f"cannot read {Path(path).name}", got=str(error)) from error
    except UnicodeDecodeError as error:
        raise InfuserError(f"{Path(path).name} is not UTF-8 text", got=str(error)) from error


def _fields(row: Any, fields: tuple[str, ...], where: str) -> Text:
    values = [row.get(field) if isinstance(row, Mapping) else None for field in fields]
    if not all(isinstance(value, str) for value in values):
        raise InfuserError(
            f"{where} lacks a text", got=str(row)[:80], expected=f"a string under {' and '.join(fields)}"
        )
    return cast(Text, values[0] if len(values) == 1 else (values[0], values[1]))
