"""An audit of texts: what was rewritten stands out, the list shows texts, and the originals are what is exported."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infuser.data.source import texts
from infuser.data.text import read_separated
from infuser.errors import InfuserError
from infuser.studies.audit import Audit, audit_settings, prepare, run_audit
from infuser.studies.audit_report import summary
from infuser.training import train

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Of fifty stories, a file each, cut to 32 tokens."""
    root = os.environ.get("INFUSER_DATA")
    if not root:
        pytest.skip("INFUSER_DATA is not set")
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(read_separated(Path(root) / "tinystories.txt")[:50]):
        (folder / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    wanted = [f"model={root}/stories260K", "context=32", "recipe.epochs=3", "review=6", "effort.partners=16"]
    return audit_settings(f"text:{folder}", wanted, plant=0.1)


@pytest.fixture(scope="module")
def audited(settings: Audit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    where = tmp_path_factory.mktemp("audit") / "out"
    return where, run_audit(settings, where, export="clean", remove=(3, 4))


def test_rewritten_texts_are_found_and_chance_does_not_find_them(audited: tuple[Path, dict[str, Any]]) -> None:
    _, results = audited
    rows = {(row["detector"], row["depth"]): row for row in results["recall"]["rows"]}
    assert results["recall"]["kind"] == "rewrites"
    assert results["ranked_by"] == "fused_blind"
    assert rows["fused_blind", 0.2]["value"] >= 0.8
    assert rows["fused_blind", 0.2]["n"] == 5
    assert rows["clustering", 0.2]["value"] < 0.8  # sees nothing in a few words


def test_the_list_shows_texts(audited: tuple[Path, dict[str, Any]], settings: Audit) -> None:
    where, results = audited
    stored = pq.read_table(where / "suspects.parquet").to_pydict()
    files = sorted(Path(settings.data.removeprefix("text:")).glob("*.txt"))
    for i, shown in zip(stored["id"], stored["text"], strict=True):
        assert files[i].read_text(encoding="utf-8").startswith(shown[:100])
    assert "label" not in stored
    first = results["suspects"][0]
    assert f"document {first['id']}: {first['text'][:60]!r}" in summary(results)
    assert first["text"][:40] in (where / "report.html").read_text(encoding="utf-8")


def test_what_is_exported_is_what_was_read(audited: tuple[Path, dict[str, Any]], settings: Audit) -> None:
    where, _ = audited
    lines = (where / "clean-data" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    kept = {row["id"]: row["text"] for row in map(json.loads, lines)}
    assert set(kept) == set(range(50)) - {3, 4}
    for i, text in kept.items():  # whole, not cut to the context
        assert text == Path(settings.data.removeprefix("text:"), f"{i:03d}.txt").read_text(encoding="utf-8").strip()


def test_a_suspected_word_is_read_where_nobody_edits(settings: Audit) -> None:
    told = replace(settings, suspect_words=("lady", "girl"), context=64, plant_kind="infusion", plant=0.05)
    material = prepare(told)
    assert material.aim is not None
    places = {int(name.partition("@")[0]) for name in material.aim.inner.wanted.labels}  # type: ignore[attr-defined]
    assert not places & set(material.data.ids.tolist())
    few = told.recipe.with_(epochs=1)
    edit = material.planted("infusion", lambda: train(material.builder, material.data, few), 2, 0)
    assert len(edit) == 2
    assert (edit.before != edit.after).any()
    assert np.isin(edit.ids, material.data.ids).all()


def test_settings_of_another_kind_of_data_are_refused(settings: Audit) -> None:
    with pytest.raises(InfuserError, match=r"cannot be planted.*label_flips.*rewrites or infusion"):
        prepare(replace(settings, plant_kind="label_flips"))
    with pytest.raises(InfuserError, match=r"cannot be planted in digits.*rewrites"):
        prepare(Audit(plant=0.1, plant_kind="rewrites"))
    with pytest.raises(InfuserError, match="suspect_words are two words"):
        Audit(suspect_words=("dog", "cat"))
    with pytest.raises(InfuserError, match="texts have no labels"):
        replace(settings, suspect=(1,), suspect_labels=(2,))


def test_texts_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    wanted = ["one", "two lines\nof text"]
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo lines\nof text\n<|endoftext|>\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in wanted))
    pq.write_table(pa.table({"text": wanted}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert texts(tmp_path / name) == wanted
    with pytest.raises(InfuserError, match="not a file of texts"):
        texts(tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InfuserError, match=r"holds no \.txt files"):
        texts(tmp_path / "empty")
