"""An audit finds what was planted, says what it does not know, and writes what it promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from infuser.cli import app
from infuser.data import digits, folder, load
from infuser.errors import InfuserError
from infuser.perturbation.export import write_images
from infuser.storage import read_json
from infuser.studies.audit import DEPTHS, in_top, precisions, prepare, run_audit
from infuser.studies.audit_report import summary
from infuser.studies.audit_settings import Audit, audit_settings, exported
from infuser.studies.suspects import Effort
from infuser.training import train
from infuser.types import Recipe

TRAIN, TEST = digits()
SMALL = Audit(
    limit=240,
    model="mlp",
    recipe=Recipe(epochs=8, batch_size=16, lr=0.2, threads=1),
    effort=Effort(partners=32, checkpoints=2),
    suspect=tuple(TEST.ids[:2].tolist()),
    suspect_labels=tuple(((TEST.targets[:2] + 1) % 10).tolist()),
    rank_by="fused_blind",
    review=12,
    plant=0.1,
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    where = tmp_path_factory.mktemp("audit") / "out"
    return where, run_audit(SMALL, where)


def test_planted_wrong_labels_are_found_and_chance_does_not_find_them(audited: tuple[Path, dict[str, Any]]) -> None:
    _, results = audited
    rows = {(row["detector"], row["depth"]): row for row in results["recall"]["rows"]}
    assert results["recall"]["kind"] == "label_flips"
    assert rows["loss", 0.1]["n"] == 24
    assert rows["loss", 0.1]["value"] >= 0.7
    assert rows["fused_blind", 0.1]["value"] >= 0.7
    assert rows["pixel_noise", 0.1]["value"] <= 0.3  # labels leave no trace in pixels
    for detector in ("loss", "fused_blind", "influence"):
        shares = [rows[detector, depth]["value"] for depth in DEPTHS]
        assert shares == sorted(shares)


def test_the_list_holds_every_document_once_in_order(audited: tuple[Path, dict[str, Any]]) -> None:
    where, results = audited
    table = pq.read_table(where / "suspects.parquet").to_pydict()
    assert sorted(table["id"]) == sorted(set(table["id"]))
    assert len(table["id"]) == 240 == results["n"]
    assert table["suspicion"] == sorted(table["suspicion"], reverse=True)
    assert table["suspicion"] == table["detector: fused_blind"]
    assert table["influence"] == table["detector: influence"]
    labels = dict(zip(TRAIN.ids.tolist(), TRAIN.targets.tolist(), strict=True))
    assert table["label"] == [labels[i] for i in table["id"]]
    depth = 10  # at the least; 2 % are fewer
    columns = [name.removeprefix("detector: ") for name in table if name.startswith("detector: ")]
    for row in range(240):
        tops = [
            name
            for name in columns
            if not name.startswith("fused") and _not_lower(table[f"detector: {name}"], row) <= depth
        ]
        assert table["agreeing"][row] == ", ".join(tops)
        assert table["agree"][row] == len(tops)
    for row in range(12):
        assert len(table["near"][row]) == 5
        assert table["id"][row] not in table["near"][row]
        assert table["near_labels"][row] == [labels[i] for i in table["near"][row]]
    assert table["near"][12] == []
    assert [row["id"] for row in results["suspects"]] == table["id"][:12]


def _not_lower(values: list[float], row: int) -> int:
    return sum(value >= values[row] for value in values)


@pytest.mark.parametrize(
    ("values", "depth", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 2, []),  # silent
        ([3.0, 1.0, 2.0, 0.0], 2, [0, 2]),
        ([1.0, 3.0, 1.0, 1.0], 2, [1]),  # of the three that tie across the cut, none is nearer the top
        ([1.0, 3.0, 1.0, 0.0], 3, [0, 1, 2]),  # a tie before the cut
        ([1.0, 3.0, 1.0], 10, [1]),  # fewer documents than the top has places
    ],
)
def test_no_document_is_in_a_top_by_where_it_is_stored(values: list[float], depth: int, expected: list[int]) -> None:
    assert np.flatnonzero(in_top(np.array(values), depth)).tolist() == expected
    order = np.array([2, 0, 1, *range(3, len(values))])
    assert sorted(order[in_top(np.array(values)[order], depth)].tolist()) == expected


def test_what_is_unknown_is_said(audited: tuple[Path, dict[str, Any]]) -> None:
    where, results = audited
    assert results["precision"] == {"rows": [], "reason": "unknown: no documents were named as trusted"}
    said = summary(results)
    assert "Precision is unknown" in said
    assert "fused_blind has" in said
    assert f"document {results['suspects'][0]['id']}" in said
    page = (where / "report.html").read_text()
    assert "Suspicion is not proof" in page
    assert read_json(where / "results.json")["recall"]["kind"] == "label_flips"


def test_the_audit_resumes_and_exports_what_is_left(audited: tuple[Path, dict[str, Any]]) -> None:
    where, results = audited
    before = (where / "parts" / "audit.json").stat().st_mtime_ns
    remove = [row["id"] for row in results["suspects"][:3]]
    again = run_audit(SMALL, where, resume=True, export="clean", remove=remove)
    assert (where / "parts" / "audit.json").stat().st_mtime_ns == before
    assert again == results
    left = folder(where / "clean-data")
    assert len(left) == len(TRAIN) - 3  # those beyond the limit stay
    kept = {path.stem for path in (where / "clean-data").glob("*/*.png")}
    assert not kept & {f"{i:08d}" for i in remove}
    with pytest.raises(InfuserError, match="exported here before"):
        run_audit(SMALL, where, resume=True, export="clean")


def test_precision_is_bounded_by_trusted_documents() -> None:
    few = TRAIN[TRAIN.ids[:200]]
    settings = replace(SMALL, trusted=tuple(few.ids[:50].tolist()))
    # No trusted document among the first 20 of the list, then all of them.
    order = np.concatenate([few.ids[100:120], few.ids[:100], few.ids[120:]])
    rows = {row["depth"]: row for row in precisions(settings, few, order)["rows"]}
    assert rows[0.1]["at_least"] == 1
    # 20 of 50 trusted among the first 40: a rate of 0.4 is 80 of 200 clean documents, more than the list holds.
    assert rows[0.2]["at_least"] == 0
    spread = np.concatenate([few.ids[:2], few.ids[100:138], few.ids[2:100], few.ids[138:]])
    rows = {row["depth"]: row for row in precisions(settings, few, spread)["rows"]}
    # 2 of 50 among the first 40: at most 0.04 x 200 = 8 of the 40 are clean.
    assert rows[0.2]["at_least"] == pytest.approx(0.8)
    low, high = rows[0.2]["ci95"]
    assert 0 <= low < 0.8 < high <= 1


def test_settings_come_from_the_command_line_and_are_checked() -> None:
    made = audit_settings("digits", ["recipe.epochs=3", "depth=0.05"], plant=0.01)
    assert (made.recipe.epochs, made.recipe.lr, made.depth, made.plant) == (3, 0.05, 0.05, 0.01)
    assert audit_settings("digits").plant == 0
    with pytest.raises(InfuserError, match="unknown setting"):
        audit_settings("digits", ["dept=0.05"])
    with pytest.raises(InfuserError, match="counts once"):
        audit_settings("digits", ["trusted=[4, 9, 4]"])
    with pytest.raises(InfuserError, match="needs the label"):
        audit_settings("digits", ["suspect=[1]"])
    with pytest.raises(InfuserError, match="suspected behaviour"):
        audit_settings("digits", ["plant_kind=infusion"], plant=0.1)
    with pytest.raises(InfuserError, match="no such detector ran"):
        run_audit(replace(SMALL, rank_by="magic", plant=0.0), _new_folder())


def test_documents_of_one_class_are_refused(tmp_path: Path) -> None:
    images = write_images(TRAIN[TRAIN.ids[TRAIN.targets == 3][:20]], tmp_path / "images")
    with pytest.raises(InfuserError, match=r"(?s)all have one label.*two classes or more"):
        prepare(Audit(f"folder:{images}", model="mlp"))


def test_nothing_is_held_out_where_nothing_is_suspected(tmp_path: Path) -> None:
    few = TRAIN[TRAIN.ids[:60]]
    where = write_images(few, tmp_path / "images")
    blind = Audit(f"folder:{where}", model="mlp")
    material = prepare(blind)
    assert len(material.data) == 60
    told = replace(blind, suspect=tuple(load(blind.data)[1].ids[:1].tolist()), suspect_labels=(3,))
    held = prepare(told)
    assert len(held.data) == 48
    run = train(held.builder, held.data, Recipe(epochs=1, threads=1))
    columns = held.columns(run)
    table = {name: np.array(values) for name, values in columns.items()}
    assert "12 of 60 documents were not audited" in next(iter(held.notes(table)))
    assert not [note for note in material.notes({"label": [0, 1], "prediction": [0, 1]}) if "not audited" in note]
    same = {"label": np.array([0, 1]), "prediction": np.array([1, 1])}
    assert any("learnt nothing" in note for note in held.notes(same))
    by_file = {Path(name).parent.name for name in np.array(columns["file"])[table["label"] == 2]}
    assert by_file == {material.data.classes[2]}
    held.export(held.data.ids[:2], tmp_path / "left")
    assert len(folder(tmp_path / "left")) == 58
    threes = material.data.ids[material.data.targets == 3]
    with pytest.warns(UserWarning, match=r"^few holds nothing of class 3: read without classes="):
        material.export(threes, tmp_path / "few")
    back = folder(tmp_path / "few", classes=material.data.classes)
    assert np.bincount(back.targets, minlength=10)[:4].tolist() == [*np.bincount(material.data.targets)[:3], 0]


def test_what_a_command_printed_is_shown_again(audited: tuple[Path, dict[str, Any]]) -> None:
    where, results = audited
    done = CliRunner().invoke(app, ["show", str(where)])
    assert done.output.strip() == summary(results)
    refused = CliRunner().invoke(app, ["verify", str(where)])
    assert refused.exit_code == 2
    assert "holds an audit" in refused.output


def _new_folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp()) / "out"


def test_the_command_goes_on_with_a_finished_audit(audited: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    where, results = audited
    with pytest.raises(InfuserError, match="unknown export"):
        exported("dirty", "")
    with pytest.raises(InfuserError, match="whole numbers"):
        exported("clean", "a")
    with pytest.raises(InfuserError, match="add --export clean"):
        exported("none", "3")
    values = {
        "limit": "160",
        "model": "mlp",
        "review": "5",
        "recipe": "{epochs: 2, batch_size: 32, lr: 0.1, threads: 1}",
    }
    values |= {"effort": "{recorded: 20, partners: 8}", "recipe.epochs": "5"}
    settings = [f"--set={key}={value}" for key, value in values.items()]
    written = tmp_path / "mine.yaml"
    assert CliRunner().invoke(app, ["init", str(written), "--like", "audit"]).exit_code == 0
    written.write_text(written.read_text().replace("folder:PATH", "digits"))
    told = ["audit", str(written), "--out", str(tmp_path / "x"), "--export", "clean"]
    done = CliRunner().invoke(app, [*told, *settings])
    assert done.exit_code == 0, done.output
    assert "Recall is unknown: nothing was planted" in done.output
    assert len(list((tmp_path / "x" / "clean-data").glob("*/*.png"))) == len(TRAIN) - 3
    again = CliRunner().invoke(app, ["audit", "digits", "--out", str(where)])
    assert again.exit_code == 2
    assert "already holds" in again.output
    assert results["n"] == 240
