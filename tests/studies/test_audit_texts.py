"""An audit of texts: what was rewritten stands out, the list shows texts, and the originals are what is exported."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from infuser.cli import app
from infuser.data import texts
from infuser.data.text import PAD, read_separated
from infuser.errors import InfuserError
from infuser.studies.audit import prepare, run_audit
from infuser.studies.audit_material import Texts
from infuser.studies.audit_report import summary
from infuser.studies.audit_settings import Audit, audit_settings
from infuser.training import train

pytest.importorskip("transformers")
EMPTY = 10  # a file without text, so that ids are no positions
NAMED = ["context=32", "recipe.epochs=3", "review=6", "effort.partners=16"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Of fifty stories, a file each, cut to 32 tokens."""
    root = os.environ.get("INFUSER_DATA")
    if not root:
        pytest.skip("INFUSER_DATA is not set")
    folder = tmp_path_factory.mktemp("texts")
    stories = read_separated(Path(root) / "tinystories.txt")[:50]
    for i, text in enumerate([*stories[:EMPTY], "", *stories[EMPTY:]]):
        (folder / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    return audit_settings(f"text:{folder}", [f"model={root}/stories260K", *NAMED], plant=0.1)


@pytest.fixture(scope="module")
def audited(settings: Audit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    where = tmp_path_factory.mktemp("audit") / "out"
    return where, run_audit(settings, where)


def test_rewritten_texts_are_found_and_the_same_texts_before_are_not(audited: tuple[Path, dict[str, Any]]) -> None:
    _, results = audited
    assert results["recall"]["kind"] == "rewrites"
    assert results["ranked_by"] == "fused_blind"
    rows = {(row["detector"], row["depth"]): row for row in results["recall"]["rows"]}
    assert rows["fused_blind", 0.2]["n"] == 5
    assert rows["fused_blind", 0.2]["value"] >= 0.8
    raised = {row["detector"]: row["lift"] for row in results["planted"]["rows"] if row["metric"] == "roc_auc"}
    assert raised["fused_blind"]["value"] > 0.2
    assert abs(raised["clustering"]["value"]) < raised["fused_blind"]["value"]  # a few words hardly move the mean


def test_the_list_shows_texts(audited: tuple[Path, dict[str, Any]], settings: Audit) -> None:
    where, results = audited
    stored = pq.read_table(where / "suspects.parquet").to_pydict()
    assert set(stored["id"]) == set(range(51)) - {EMPTY}
    for i, shown in zip(stored["id"], stored["text"], strict=True):
        assert original(settings, i).startswith(shown[:100])
    assert "label" not in stored
    first = results["suspects"][0]
    assert f"document {first['id']}: {first['text'][:60]!r}" in summary(results)
    assert first["text"][:40] in (where / "report.html").read_text(encoding="utf-8")


def test_the_command_goes_on_and_exports_what_was_read(audited: tuple[Path, dict[str, Any]], settings: Audit) -> None:
    where, _ = audited
    before = (where / "parts" / "audit.json").stat().st_mtime_ns
    given = [f"--set={value}" for value in [f"model={settings.model}", *NAMED]]
    told = ["audit", settings.data, "--out", str(where), "--plant", "0.1", "--resume", "--export", "clean"]
    done = CliRunner().invoke(app, [*told, "--remove", "3,4", *given])
    assert done.exit_code == 0, done.output
    assert (where / "parts" / "audit.json").stat().st_mtime_ns == before
    assert "planted rewrites" in done.output
    lines = (where / "clean-data" / "texts.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    kept = {row["id"]: row["text"] for row in map(json.loads, lines)}
    assert set(kept) == set(range(51)) - {3, 4}
    assert kept == {i: original(settings, i) for i in kept}  # whole, not cut to the context


def original(settings: Audit, i: int) -> str:
    return Path(settings.data.removeprefix("text:"), f"{i:03d}.txt").read_text(encoding="utf-8").strip()


def test_a_suspected_word_is_read_where_nobody_edits(settings: Audit) -> None:
    told = replace(settings, suspect_words=("lady", "girl"), context=64, plant_kind="infusion", plant=0.05)
    material = prepare(told)
    assert isinstance(material, Texts)

    def places(aim: Any) -> set[int]:
        return {int(name.partition("@")[0]) for name in aim.inner.wanted.labels}

    crafted, read = places(material.crafted_for), places(material.aim)
    assert min(len(crafted), len(read)) > 0
    assert not crafted & read
    assert not (crafted | read) & set(material.data.ids.tolist())
    # Where no attacker needs a part, the defender reads the whole.
    assert places(prepare(replace(told, plant=0.0)).aim) > crafted | read
    run = train(material.builder, material.data, told.recipe.with_(epochs=1))
    edit = material.planted("infusion", lambda: run, 2, 0)
    assert len(edit) == 2
    assert (edit.before != edit.after).any()
    assert np.isin(edit.ids, material.data.ids).all()


def test_what_is_planted_did_change(settings: Audit) -> None:
    material = prepare(settings)
    run = train(material.builder, material.data, settings.recipe.with_(epochs=1))
    edit = material.planted("rewrites", lambda: run, 30, 0)
    changed = (edit.before != edit.after).sum(1)
    assert changed.min() > 0
    assert (changed <= np.ceil(0.1 * (edit.before != PAD).sum(1))).all()


def test_a_part_is_of_one_model(settings: Audit, tmp_path: Path) -> None:
    there, wanted = Path(settings.model), prepare(settings).determinants
    for file in there.iterdir():
        (tmp_path / file.name).symlink_to(file)
    copied = replace(settings, model=str(tmp_path))
    assert prepare(copied).determinants == wanted
    weights = (there / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert prepare(copied).determinants != wanted


def test_what_does_not_fit_is_refused(settings: Audit, tmp_path: Path) -> None:
    with pytest.raises(InfuserError, match=r"cannot be planted.*label_flips.*rewrites or infusion"):
        prepare(replace(settings, plant_kind="label_flips"))
    with pytest.raises(InfuserError, match=r"cannot be planted in digits.*rewrites"):
        prepare(Audit(plant=0.1, plant_kind="rewrites"))
    with pytest.raises(InfuserError, match="suspect_words are two words"):
        replace(settings, suspect_words=("dog",))
    with pytest.raises(InfuserError, match="suspect_words are of texts"):
        Audit(suspect_words=("dog", "cat"))
    with pytest.raises(InfuserError, match="texts have no labels"):
        replace(settings, suspect=(1,), suspect_labels=(2,))
    with pytest.raises(InfuserError, match=r"needs a language model.*model=DIR"):
        audit_settings(settings.data)
    short = replace(settings, recipe=settings.recipe.with_(epochs=2))
    with pytest.raises(InfuserError, match=r"too short to be watched.*14 steps: 50 documents.*raise recipe.epochs"):
        run_audit(short, Path(tempfile.mkdtemp()) / "out")
    with pytest.raises(InfuserError, match=r"no such texts.*51"):
        prepare(settings).export(np.array([51]), tmp_path)


def test_texts_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    wanted = ["one", "two lines\nof text\u2028and more"]
    (tmp_path / "a.txt").write_text("".join(f"{text}\n<|endoftext|>\n" for text in wanted), encoding="utf-8")
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in wanted]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    pq.write_table(pa.table({"text": wanted}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert texts(tmp_path / name) == wanted
    (tmp_path / "a.csv").write_text("one", encoding="utf-8")
    with pytest.raises(InfuserError, match="not a file of texts"):
        texts(tmp_path / "a.csv")
    with pytest.raises(InfuserError, match="no such file or folder"):
        texts(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InfuserError, match=r"holds no \.txt files"):
        texts(tmp_path / "empty")
