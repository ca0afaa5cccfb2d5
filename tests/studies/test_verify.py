"""A run folder is checked against itself, and against the same run made again; every kind of damage is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from infuser.cli import app
from infuser.errors import InfuserError
from infuser.executors import Local
from infuser.studies.environment import environment
from infuser.studies.experiment import run_experiment
from infuser.studies.replay import replay_run
from infuser.studies.study import Experiment, Victim
from infuser.studies.verify import verify_run
from infuser.types import Recipe, Scores

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.1, threads=1)
TINY = Experiment(
    limit=200,
    model="mlp",
    model_options={"hidden": (16,)},
    recipe=RECIPE,
    probes=2,
    judged=50,
    k=3,
    steps=2,
    seeds=(1, 2),
    controls=("noise",),
    regimes=("last_epoch", "scratch"),
    victims=(Victim("mlp", {"hidden": (8,)}, RECIPE),),
    workers=1,
)


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infuser.studies.experiment.write_report", lambda *_: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infuser.studies.experiment.write_report", lambda *_: None)
        run_experiment(TINY, folder, executor=Local(1))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def _edit(folder: Path) -> Path:
    return min((folder / "edits").iterdir())


def _wrong(folder: Path) -> str:
    return "\n".join(str(finding) for finding in verify_run(folder) if finding.wrong)


def _json(path: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _pixel(folder: Path) -> None:
    path = min((_edit(folder) / "after").iterdir())
    pixels = np.array(Image.open(path))
    pixels.flat[0] ^= 1
    Image.fromarray(pixels).save(path)


def _wider(folder: Path) -> None:
    _json(_edit(folder) / "manifest.json", lambda m: m["constraint"].update(radius=200))


def _start(folder: Path) -> None:
    def change(part: dict) -> None:
        starts = part["trials"]["last_epoch"]["starts"]
        starts["noise/1"] = starts["noise/1"].replace("weights=", "weights=0")

    _json(folder / "parts" / f"{_edit(folder).name}.json", change)


def _value(folder: Path) -> None:
    _json(folder / "parts" / "clean.json", lambda p: p["trials"]["scratch"]["value"].__setitem__(0, 3.0))


def _other_key(folder: Path) -> None:
    _json(folder / "parts" / "clean.json", lambda p: p.update(key="0" * 16))


def _effect(folder: Path) -> None:
    _json(folder / "results.json", lambda r: r["regimes"]["scratch"]["effects"][0].update(mean=9.0))


def _says(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: _json(folder / "results.json", change)


def _scored(change: Callable[[Scores], Scores]) -> Callable[[Path], None]:
    path = "scores.parquet"
    return lambda folder: change(Scores.from_parquet(folder / path)).to_parquet(folder / path)


def _folder_for(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _truncated(folder: Path) -> None:
    path = folder / "checkpoints" / "main" / "epoch-0001" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _settings(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("radius: 16", "radius: 8"))


def test_a_run_that_nobody_touched_is_whole(folder: Path) -> None:
    findings = verify_run(folder)
    assert [str(finding) for finding in findings if finding.wrong] == []
    checked = {finding.what.split()[0]: finding.checked for finding in findings}
    assert checked == {
        "checkpoints": 2 * 3,
        "parts": 3,
        "edits": 2,
        "arms": 2 * 2 * 2 * (1 + 2 * 2),  # models, regimes, seeds; the clean arm, two arms a probe
        "trials.parquet": checked["trials.parquet"],
        "scores.parquet": 200 * 2,
        "results.json": checked["results.json"],
    }
    assert checked["trials.parquet"] > 100
    assert checked["results.json"] > 100
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pixel, "not what the manifest says"),
        (_wider, "made within Linf 200/255, but the settings say Linf 16/255"),
        (_start, "2 different starts"),
        (_value, "not what the parts give"),
        (_other_key, "clean: stale"),
        (_effect, "regimes.scratch.effects.0.mean: 9.0; the parts give"),
        (_truncated, "missing or damaged"),
        (_settings, "stale"),
        (lambda folder: (folder / "parts" / "clean.json").unlink(), "clean: missing"),
        (lambda folder: (folder / "trials.parquet").unlink(), "there are no trials"),
        (lambda folder: (folder / "results.json").write_text("{}"), "base_seed: missing; the parts give 0"),
        (_says(lambda r: r["regimes"]["scratch"]["arms"]["edit"].update(flips=7)), "scratch.arms.edit.flips: 7; the"),
        (_says(lambda r: r["regimes"]["scratch"]["arms"]["edit"].update(test_accuracy=1)), "test_accuracy: 1; the"),
        (_says(lambda r: r["regimes"]["scratch"]["arms"]["noise"].update(mean_delta_p=0.9)), "mean_delta_p: 0.9; the"),
        (_says(lambda r: r.update(n_edited=1)), "n_edited: 1; the parts give 3"),
        (_says(lambda r: r["predicted"]["scratch"].update(slope={"value": 1.0, "ci95": None, "n": 2})), "slope.value"),
        (_says(lambda r: r.update(caveats=[])), "caveats.0: missing; the parts give"),
        (_says(lambda r: r.pop("caveats")), "caveats.0: missing; the parts give"),
        (_says(lambda r: r.update(praise="reliable")), "praise: reliable; the parts give nothing"),
        (_says(lambda r: r["scores"].update(sha256="0")), "scores.sha256: 0; the parts give"),
        (lambda folder: (folder / "scores.parquet").unlink(), "scores.parquet is missing"),
        (lambda folder: (folder / "scores.parquet").write_bytes(b"PAR1"), "cannot read the scores"),
        (lambda folder: (folder / "scores.parquet").write_bytes((folder / "trials.parquet").read_bytes()), "not hold"),
        (_scored(lambda scores: replace(scores, values=2 * scores.values)), "scores.sha256"),
        (_scored(lambda scores: replace(scores, ids=scores.ids[::-1])), "its documents are not those of the data"),
        (_scored(lambda scores: replace(scores, queries=("a", "b"))), "its probes are a, b, not"),
        (_folder_for("scores.parquet"), "scores.parquet is missing"),
        (_folder_for("trials.parquet"), "there are no trials"),
        (lambda folder: shutil.rmtree(folder / "checkpoints" / "main" / "epoch-0001"), "epochs 0, 2"),
    ],
)
def test_every_damage_is_seen(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    assert message in _wrong(folder)
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 1


def test_a_run_of_before_scores_had_a_hash_is_whole(folder: Path) -> None:
    _json(folder / "results.json", lambda r: r["scores"].pop("sha256"))
    assert _wrong(folder) == ""


def test_another_version_may_word_it_otherwise_but_not_count_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = environment()
    later = {**now, "packages": {**now["packages"], "infuser": "9.0"}}
    monkeypatch.setattr("infuser.studies.verify.environment", lambda: later)
    _json(folder / "results.json", lambda r: (r.update(caveats=["Few."]), r.pop("base_seed")))
    assert _wrong(folder) == ""
    _json(folder / "results.json", lambda r: r.update(n_edited=1))
    assert "n_edited: 1; the parts give 3\n      it was made with infuser" in _wrong(folder)


def test_results_of_no_study_are_an_error(folder: Path) -> None:
    (folder / "results.json").write_text("5")
    with pytest.raises(InfuserError, match="not what a study writes"):
        verify_run(folder)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InfuserError, match="not a run folder"):
        verify_run(tmp_path)
    (tmp_path / "config.yaml").write_text("alphabet: 7\n")
    with pytest.raises(InfuserError, match="does not hold an image study"):
        verify_run(tmp_path)
    with pytest.raises(InfuserError, match="not a finished run"):
        replay_run(tmp_path)


def test_a_run_comes_out_again_bit_by_bit(folder: Path) -> None:
    replayed = replay_run(folder)
    assert replayed.bitwise
    assert replayed.files == {"results.json": True, "trials.parquet": True, "scores.parquet": True}
    assert (dict(replayed.largest), dict(replayed.changed)) == ({}, {})


def test_a_run_of_other_settings_is_told_apart_by_measure(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("radius: 16", "radius: 14"))
    _json(folder / "environment.json", lambda e: e["packages"].update(torch="1.0"))
    replayed = replay_run(folder)
    assert not replayed.bitwise
    assert replayed.files["scores.parquet"]  # which know nothing of radii
    assert 0 < replayed.largest["log_odds"] < 1
    assert replayed.largest["results.radius"] == 2
    assert replayed.changed["torch"][0] == "1.0"
    assert "NOT bitwise equal" in str(replayed)
    assert CliRunner().invoke(app, ["replay", str(folder)]).exit_code == 1
