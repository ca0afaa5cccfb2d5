"""The command line on real runs: a small one made once, then every command that works on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import infuser.studies.experiment as study
from infuser.cli import app
from infuser.data import digits

TINY = {
    "model": "mlp",
    "model_options": "{hidden: [32]}",
    "limit": "300",
    "recipe": "{epochs: 3, batch_size: 32, lr: 0.1, threads: 1}",
    "probes": "3",
    "k": "5",
    "steps": "4",
    "seeds": "[1, 2]",
    "controls": "[noise, random_docs, insert_1, insert_k, no_curvature]",
    "workers": "1",
}


def _run(folder: Path, *more: str, **changes: str) -> list[str]:
    settings = [f"--set={key}={value}" for key, value in {**TINY, **changes}.items()]
    return ["run", "digits", "--out", str(folder), *settings, *more]


def _invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("run") / "digits"
    code, output = _invoke(*_run(where))
    assert code == 0, output
    assert "edit" in output
    assert "report.html" in output
    return where


def _results(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text())


def test_a_run_folder_holds_what_it_promises(folder: Path) -> None:
    promised = {"config.yaml", "environment.json", "results.json", "timing.json", "scores.parquet", "trials.parquet"}
    assert promised | {"edits", "checkpoints", "report.html"} <= {path.name for path in folder.iterdir()}


def test_results_keep_to_the_committed_schema(folder: Path) -> None:
    schema = json.loads(Path(study.__file__).with_name("results.schema.json").read_text())
    results = _results(folder)
    jsonschema.validate(results, schema)
    with pytest.raises(jsonschema.ValidationError, match="radius"):
        jsonschema.validate({**results, "radius": 0}, schema)


def test_results_state_every_arm_with_its_sizes(folder: Path) -> None:
    block = _results(folder)["regimes"]["last_epoch"]  # type: ignore[index]
    arms = {"clean", "edit", "noise", "random_docs", "insert_1", "insert_k", "no_curvature"}
    assert set(block["arms"]) == arms
    assert {(e["arm"], e["control"]) for e in block["effects"]} >= {("edit", c) for c in arms - {"edit"} if c[0] != "i"}
    assert all(e["n_probes"] == 3 and e["n_seeds"] == 2 for e in block["effects"])
    assert block["arms"]["insert_k"]["log_odds"] > block["arms"]["noise"]["log_odds"]


def test_trials_and_results_agree(folder: Path) -> None:
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    value = {
        arm: np.mean([r["value"] for r in rows if r["arm"] == arm and r["measure"] == "log_odds"])
        for arm in ("edit", "clean")
    }
    stated = _results(folder)["regimes"]["last_epoch"]["arms"]["edit"]["log_odds"]  # type: ignore[index]
    assert stated == pytest.approx(value["edit"] - value["clean"], abs=1e-9)


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    code, output = _invoke(*_run(tmp_path / "again"))
    assert code == 0, output
    for name in ("results.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.skipif("INFUSER_DATA" not in os.environ, reason="INFUSER_DATA names no folder with mnist.npz")
def test_mnist_runs_from_its_files(tmp_path: Path) -> None:
    arguments = ["mnist" if a == "digits" else a for a in _run(tmp_path / "out", controls="[noise]", seeds="[1]")]
    code, output = _invoke(*arguments, "--data", os.environ["INFUSER_DATA"], "--set", "judged=200")
    assert code == 0, output
    results = _results(tmp_path / "out")
    assert (results["dataset"], results["n_train"], results["n_judged"]) == ("mnist train", 300, 200)


def test_regimes_and_other_architectures_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    more = {
        "regimes": "[last_epoch, scratch]",
        "victims": "[{model: simple_cnn, options: {width: 4}, recipe: {epochs: 1, batch_size: 32, threads: 1}}]",
        "probes": "2",
        "controls": "[noise]",
    }
    for workers in ("1", "2"):
        code, output = _invoke(*_run(tmp_path / workers, **more, workers=workers))
        assert code == 0, output
    first, second = (json.loads((tmp_path / w / "results.json").read_text()) for w in ("1", "2"))
    assert set(first["regimes"]) == {"last_epoch", "scratch", "simple_cnn:last_epoch", "simple_cnn:scratch"}
    assert first["regimes"] == second["regimes"]
    # What limits one regime names it.
    assert any(text.startswith("simple_cnn:scratch: ") for text in first["caveats"])


def test_an_interrupted_run_goes_on_and_ends_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = study.probe_job, []

    def interrupted(shared: object, q: int) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(q)
        return real(shared, q)

    monkeypatch.setattr(study, "probe_job", interrupted)
    code, output = _invoke(*_run(tmp_path / "out"))
    assert code == 130
    assert "--resume" in output
    assert len(list((tmp_path / "out" / "parts").glob("*.json"))) == 2
    monkeypatch.setattr(study, "probe_job", real)
    assert _invoke(*_run(tmp_path / "out"))[0] == 2  # neither --resume nor --overwrite
    code, output = _invoke(*_run(tmp_path / "out", "--resume"))
    assert code == 0, output
    assert (tmp_path / "out" / "results.json").read_bytes() == (folder / "results.json").read_bytes()


def test_show_prints_the_table(folder: Path) -> None:
    code, output = _invoke("show", str(folder))
    assert code == 0
    assert "random_docs" in output
    assert "95 % interval" in output
    (probes,) = [line for line in output.splitlines() if line.startswith("Probes")]
    named = {path.name.removeprefix("probe-") for path in (folder / "edits").iterdir() if "-" in path.name}
    assert set(probes.partition(": ")[2].split()) <= named
    assert probes.partition(": ")[2]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").touch()
    code, output = _invoke("show", str(tmp_path / "my.yaml"))
    assert code == 2
    assert "this is not a run folder" in output


@pytest.mark.parametrize("held", ["[]", "{}", "5", '{"suspects": []}', '{"removal": 1}', '{"mode": 1}'])
def test_results_of_no_study_are_refused_in_one_line(held: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(held)
    code, output = _invoke("show", str(tmp_path))
    assert code == 2
    assert "results.json is not what a study writes" in output
    assert "Remedy" in output


def test_reports_compare_runs(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.html"
    code, output = _invoke("report", str(folder), "--out", str(out))
    assert code == 0, output
    assert "mlp" in out.read_text()
    assert _invoke("report", str(folder), str(folder), "--out", str(out))[0] == 2


@pytest.mark.parametrize("method", ["tracin", "similarity", "f-ine"])
def test_attribute_writes_scores_of_all_documents(folder: Path, tmp_path: Path, method: str) -> None:
    path = tmp_path / "scores.parquet"
    code, output = _invoke("attribute", str(folder), "--method", method, "--out", str(path))
    assert code == 0
    assert "proponents" in output
    table = pq.read_table(path)
    assert table.num_rows == 300
    assert table.num_columns == 4


def test_an_edit_is_written_and_undone_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    code, output = _invoke("edit", str(folder), "--out", str(out))
    assert code == 0
    assert "Wrote 300 documents, 5 of them edited" in output
    images = sorted((out / "images").rglob("*.png"))
    edited = [path.read_bytes() for path in images]
    code, output = _invoke("edit", str(out), "--undo")
    assert code == 0
    assert "Put 5 documents back" in output
    originals = [path.read_bytes() for path in images]
    assert sum(a != b for a, b in zip(edited, originals, strict=True)) == 5
    train, _ = digits()
    from PIL import Image

    for path in images:
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), train[[int(path.stem)]].inputs[0, 0])


def test_retrain_prints_the_effect_of_a_stored_edit(folder: Path) -> None:
    code, output = _invoke("retrain", str(folder), "--seeds", "1,2")
    assert code == 0
    assert "edit - clean" in output
    assert "seed 2" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "nowhere, which is not there"),
        (["attribute", "nowhere"], "not a run folder"),
        (["edit", "nowhere", "--undo"], "no edit to undo"),
        (["run", "mnist"], "--data"),
        (["run", "nothing"], "nothing of this name"),
        (["run", "digits", "--set", "k=5000", "--out", "OUT"], "k"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    if arguments[:1] == ["run"] and "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    code, output = _invoke(*arguments)
    assert code == 2
    assert "Error:" in output
    assert message in output


@pytest.mark.parametrize(("option", "value", "message"), [("--method", "magic", "unknown"), ("--probe", "9", "probe")])
def test_unknown_methods_and_probes_are_named(folder: Path, option: str, value: str, message: str) -> None:
    command = "attribute" if option == "--method" else "retrain"
    code, output = _invoke(command, str(folder), option, value)
    assert code == 2
    assert message in output


def test_init_writes_a_configuration_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    assert _invoke("init", str(path))[0] == 0
    assert _invoke("init", str(path))[0] == 2
    settings = [f"--set={key}={value}" for key, value in {**TINY, "controls": "[noise]", "seeds": "[1]"}.items()]
    code, output = _invoke("run", str(path), "--out", str(tmp_path / "out"), *settings)
    assert code == 0, output


def test_help_imports_no_torch() -> None:
    code = "import sys\nfrom infuser.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False False"


def test_the_version_is_printed() -> None:
    code, output = _invoke("--version")
    assert code == 0
    assert output.startswith("infuser 0.")
