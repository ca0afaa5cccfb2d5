import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infuser.data.dataset import IGNORED
from infuser.data.text import (
    PAD,
    Characters,
    read_jsonl,
    read_parquet_text,
    read_separated,
    survives,
    text_dataset,
    texts_of,
    write_separated,
)
from infuser.errors import InfuserError

TEXTS = ["a cat", "the dog ran", "no"]
CODEC = Characters.of(TEXTS)


class Lowering(Characters):
    """A tokenizer that does not give text back."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.lower())


def test_documents_are_padded_on_the_right_and_read_back() -> None:
    ds = text_dataset(TEXTS, CODEC, 12)
    assert ds.inputs.dtype == np.int32
    assert ds.inputs.shape == (3, 12)
    assert ds.inputs[2].tolist() == [0, *CODEC.encode("no"), *[PAD] * 9]
    assert (ds.targets == np.where(ds.inputs == PAD, IGNORED, ds.inputs)).all()
    assert texts_of(ds.inputs, CODEC) == TEXTS


def test_long_documents_are_dropped_or_cut_only_when_told() -> None:
    with pytest.raises(InfuserError, match=r"1 documents are longer than the context.*documents 1, up to 12 tokens"):
        text_dataset(TEXTS, CODEC, 6)
    assert text_dataset(TEXTS, CODEC, 6, on_long="drop").ids.tolist() == [0, 2]
    cut = text_dataset(TEXTS, CODEC, 6, on_long="truncate")
    assert texts_of(cut.inputs, CODEC) == ["a cat", "the d", "no"]


def test_empty_documents_are_named_or_dropped() -> None:
    with pytest.raises(InfuserError, match=r"1 documents have no token to predict.*documents 1"):
        text_dataset(["a", "", "no"], CODEC, 6)
    assert text_dataset(["a", "", "no"], CODEC, 6, on_empty="drop").ids.tolist() == [0, 2]
    with pytest.raises(InfuserError, match="no document of text is left"):
        text_dataset([""], CODEC, 6, on_empty="drop")


def test_a_response_carries_the_loss_and_the_prompt_none() -> None:
    ds = text_dataset([("the ", "dog")], CODEC, 10)
    kept = ds.targets[0] != IGNORED
    assert CODEC.decode(ds.targets[0][kept]) == "dog"
    assert texts_of(ds.inputs, CODEC) == ["the dog"]
    with pytest.raises(InfuserError, match="have no token to predict"):
        text_dataset([("the ", "")], CODEC, 10)
    with pytest.raises(InfuserError, match="the prompt fills the context"):
        text_dataset([("the dog", " ran")], CODEC, 6, on_long="truncate")


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    with pytest.raises(InfuserError, match=r"does not give back 1 of 2 documents.*documents 1; the first begins 'The'"):
        text_dataset(["the", "The"], Lowering("thea"), 6)
    assert not survives(np.array([0, 1, 2]), Lowering("Th"))
    assert survives(np.array([0, 1, 2]), Characters("Th"))


def test_files_round_trip(tmp_path: Path) -> None:
    write_separated(["one\nline", "two"], tmp_path / "a.txt")
    assert read_separated(tmp_path / "a.txt") == ["one\nline", "two"]
    with pytest.raises(InfuserError, match=r"cannot give back.*documents 1"):
        write_separated(["ok", "two "], tmp_path / "b.txt")
    pq.write_table(pa.table({"story": ["x", "y"]}), tmp_path / "a.parquet")
    assert read_parquet_text(tmp_path / "a.parquet", "story") == ["x", "y"]
    with pytest.raises(InfuserError, match="has no column text"):
        read_parquet_text(tmp_path / "a.parquet")


def test_jsonl_gives_texts_or_pairs_and_names_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in [{"text": "x", "q": "a", "r": "b"}] * 2) + "\n\n")
    assert read_jsonl(path) == ["x", "x"]
    assert read_jsonl(path, prompt="q", response="r") == [("a", "b")] * 2
    path.write_text('{"text": "x"}\n{"text": 3}\n')
    with pytest.raises(InfuserError, match=r"line 2 of a.jsonl lacks a text"):
        read_jsonl(path)
    path.write_text("{not json\n")
    with pytest.raises(InfuserError, match=r"line 1 of a.jsonl is not JSON"):
        read_jsonl(path)
    with pytest.raises(InfuserError, match=r"missing\.txt is missing"):
        read_separated(tmp_path / "missing.txt")


def test_stories_are_as_described() -> None:
    folder = os.environ.get("INFUSER_DATA")
    if not folder:
        pytest.skip("INFUSER_DATA is not set")
    stories = read_separated(Path(folder) / "tinystories.txt")
    assert len(stories) == len(set(stories)) == 10_218
