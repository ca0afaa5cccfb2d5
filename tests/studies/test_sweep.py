"""A sweep is ordinary runs side by side: the same files, nothing done twice, and one failure stops nothing else."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import infuser.studies.study as base
import infuser.studies.sweep as study
from infuser.cli import app
from infuser.errors import InfuserError
from infuser.executors import Local
from infuser.studies.experiment import run_experiment
from infuser.studies.parts import Part
from infuser.studies.study import Experiment
from infuser.studies.sweep import read_sweep, run_sweep
from infuser.studies.sweep_table import status, sweep_summary
from infuser.studies.verify import verify_run

TINY: dict[str, Any] = {
    "like": "digits",
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "limit": 200,
    "recipe": {"epochs": 2, "batch_size": 32, "lr": 0.1, "threads": 1},
    "probes": 2,
    "judged": 50,
    "k": 3,
    "steps": 2,
    "seeds": [1],
    "controls": ["noise"],
    "workers": 1,
}
GRID = {"radius": [4, 8]}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than everything else here, and are tested elsewhere."""
    monkeypatch.setattr("infuser.studies.experiment.write_report", lambda *_: None)


def _config(folder: Path, **more: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**TINY, "grid": GRID, **more}))
    return path


class _Counting:
    """Runs jobs here, counts them, and can fail where it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def map(self, fn: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        for job in jobs:
            self.jobs.append(job)
            yield from Local(1).map(fn, [job])


class _Losing(_Counting):
    """Gives up the jobs of these probes, as a cluster does whose workers died each time."""

    def __init__(self, *probes: int) -> None:
        super().__init__()
        self.probes = probes

    def map(self, fn: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        for job in jobs:
            if job[2] in self.probes:
                raise InfuserError("a worker process died")
            yield from super().map(fn, [job])


class _Wide(_Losing):
    """Has three jobs running at a time, and loses all of them with the one that is given up, as a pool does."""

    def map(self, fn: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        todo = list(jobs)
        for at, job in enumerate(todo):
            if any(other[2] in self.probes for other in todo[at : at + 3]):
                raise InfuserError("a worker process died")
            yield from _Counting.map(self, fn, [job])


def test_a_point_is_what_a_run_of_its_settings_is(tmp_path: Path) -> None:
    sweep = read_sweep(_config(tmp_path))
    run_sweep(sweep, tmp_path / "sweep", Local(1))
    for name, settings in sweep.points.items():
        run_experiment(settings, tmp_path / name, executor=Local(1))
        for file in ("config.yaml", "results.json", "trials.parquet", "scores.parquet"):
            swept = tmp_path / "sweep" / "points" / name / file
            assert swept.read_bytes() == (tmp_path / name / file).read_bytes(), file
    assert len(list((tmp_path / "sweep" / "base").iterdir())) == 1  # trained once for both
    assert CliRunner().invoke(app, ["show", str(tmp_path / "sweep" / "points" / name)]).exit_code == 0


def test_a_finished_job_is_not_run_again(tmp_path: Path) -> None:
    sweep, out = read_sweep(_config(tmp_path)), tmp_path / "sweep"
    first, second = _Counting(), _Counting()
    run_sweep(sweep, out, first)
    assert len(first.jobs) == 2 * 3
    before = (out / "results.json").read_bytes()
    run_sweep(sweep, out, second, resume=True)
    assert second.jobs == []
    name = next(iter(sweep.points))
    part = out / "points" / name / "parts" / "clean.json"
    part.write_text(part.read_text().replace(json.loads(part.read_text())["key"], "0" * 16))  # a stale one
    run_sweep(sweep, out, second, resume=True)
    assert second.jobs == [(name, "clean", -1)]
    assert (out / "results.json").read_bytes() == before


def test_a_sweep_verifies_whatever_it_names_and_misses_no_point(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    run_sweep(read_sweep(_config(tmp_path, grid={"k": [2, 3]}, probes=1)), out, Local(1))  # the radius is the default
    assert not [finding for finding in verify_run(out) if finding.wrong]
    gone = sorted((out / "points").iterdir())[0]
    shutil.rmtree(gone)
    table = [f"{name} is not what the points give" for name in ("results.json", "table.csv")]
    assert [wrong for finding in verify_run(out) for wrong in finding.wrong] == [f"{gone.name}: missing", *table]


@pytest.mark.parametrize("name", ["table.csv", "results.json"])
def test_a_sweep_verifies_its_table(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    run_sweep(read_sweep(_config(tmp_path)), out, Local(1))
    path = out / name
    path.write_text(path.read_text().replace("noise", "clean", 1))
    assert [line for finding in verify_run(out) for line in finding.wrong] == [f"{name} is not what the points give"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"points": []}', '{"points": {"a": 1}}'])
def test_a_plan_that_no_sweep_wrote_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InfuserError, match=r"sweep\.json is not the plan of a sweep.*--resume"):
        status(tmp_path)
    with pytest.raises(InfuserError, match=r"sweep\.json is not the plan of a sweep"):
        list(verify_run(tmp_path))


def test_commands_for_a_run_say_what_to_do_with_a_sweep(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(read_sweep(_config(tmp_path)), out, Local(1))
    for command in ("report", "replay"):
        told = CliRunner().invoke(app, [command, str(out)])
        assert told.exit_code == 2
        assert "this folder is a sweep of many runs" in told.output
        assert f"infuser {command}" in told.output


def test_a_point_is_linked_to_the_run_that_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, out = read_sweep(_config(tmp_path, grid={"k": [2]}, probes=1)), tmp_path / "sweep"
    run_sweep(sweep, out, Local(1))
    before = set((out / "base").iterdir())
    real = base.environment()
    newer = {**real, "packages": {**real["packages"], "pillow": "99"}}
    monkeypatch.setattr(base, "environment", lambda: newer)
    run_sweep(sweep, out, Local(1), resume=True)
    (made,) = set((out / "base").iterdir()) - before
    (link,) = out.glob("points/*/checkpoints/main")
    assert link.resolve() == made.resolve()


def test_one_failure_is_listed_with_its_log_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, out = read_sweep(_config(tmp_path)), tmp_path / "sweep"
    whole = study.probe_job

    def fails(shared: Any, q: int) -> Part:
        if q == 1 and shared.settings.radius == 8:
            raise RuntimeError("the cat sat on it")
        return whole(shared, q)

    monkeypatch.setattr(study, "probe_job", fails)
    results = run_sweep(sweep, out, Local(1))
    assert list(results["failed"].values()) == ["RuntimeError: the cat sat on it"]
    assert [point["whole"] for point in results["points"].values()] == [True, False]
    said = sweep_summary(out)
    assert "5 of 6 jobs done, 0 running, 1 failed" in said
    assert "RuntimeError: the cat sat on it" in said
    log = Path(status(out)["failed"][0])
    assert "Traceback" in log.read_text()
    monkeypatch.setattr(study, "probe_job", whole)
    again = _Counting()
    assert run_sweep(sweep, out, again, resume=True)["failed"] == {}
    assert [job[2] for job in again.jobs] == [1]
    assert not log.exists()
    run_sweep(sweep, tmp_path / "whole", Local(1))
    assert (out / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()
    assert (out / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()


def test_a_job_that_the_executor_gives_up_fails_alone(tmp_path: Path) -> None:
    sweep, out = read_sweep(_config(tmp_path)), tmp_path / "sweep"
    results = run_sweep(sweep, out, _Losing(0))
    assert len(results["failed"]) == 2
    assert set(results["failed"].values()) == {"a worker process died."}
    assert status(out)["done"] == 4
    with pytest.raises(InfuserError, match="worker process died"):
        run_sweep(sweep, tmp_path / "lost", _Losing(-1, 0, 1))


def test_a_job_that_takes_others_along_is_the_one_to_blame(tmp_path: Path) -> None:
    results = run_sweep(read_sweep(_config(tmp_path)), tmp_path / "sweep", _Wide(1))
    assert len(results["failed"]) == 2
    assert status(tmp_path / "sweep")["done"] == 4
    held = [json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("points/*/parts/*.json")]
    assert sum("clean" in part["trials"]["last_epoch"]["arm"] for part in held) == 2


def test_a_point_that_cannot_be_prepared_fails_alone(tmp_path: Path) -> None:
    path = _config(tmp_path, grid={"limit": [200, 100_000]})
    results = run_sweep(read_sweep(path), tmp_path / "sweep", Local(1))
    (name, said), *others = results["failed"].items()
    assert name.endswith("/prepare")
    assert "limit" in said
    assert not others
    assert [point["whole"] for point in results["points"].values()] == [True, False]


def test_the_table_holds_every_effect_of_every_point(tmp_path: Path) -> None:
    sweep = read_sweep(_config(tmp_path, list=[{"seeds": [1]}, {"seeds": [1, 2]}]))
    results = run_sweep(sweep, tmp_path / "sweep", Local(1))
    assert results["axes"] == ["seeds", "radius"]
    with open(tmp_path / "sweep" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["rows"]) == 4 * 5  # edit, noise and placebo against clean, the edit against both
    for row, held in zip(rows, results["rows"], strict=True):
        own = json.loads((tmp_path / "sweep" / "points" / row["point"] / "results.json").read_text())
        effects = own["regimes"]["last_epoch"]["effects"]
        mean = next(e["mean"] for e in effects if (e["arm"], e["control"]) == (row["arm"], row["control"]))
        assert float(row["mean"]) == held["mean"] == mean
        assert row["n_seeds"] == str(len(held["changes"]["seeds"]))


def test_the_command_line_runs_shows_and_resumes(tmp_path: Path) -> None:
    arguments = ["sweep", str(_config(tmp_path)), "--out", str(tmp_path / "out"), "--set", "radius=2", "--set", "k=2"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "6 of 6 jobs done" in first.output
    assert CliRunner().invoke(app, ["show", str(tmp_path / "out")]).output == first.output
    assert CliRunner().invoke(app, arguments).exit_code == 2  # the folder holds it already
    assert CliRunner().invoke(app, [*arguments, "--resume"]).output == first.output
    assert CliRunner().invoke(app, [*arguments, "--on", "mars", "--resume"]).exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [1]}, "grid must name a list"),
        ({"grid": {"radius": 4}}, "grid must name a list"),
        ({"grid": {"radius": []}}, "grid must name a list"),
        ({"list": [3]}, "list must hold groups"),
        ({"list": []}, "list must hold groups"),
        ({"grid": {"radiuss": [4]}}, r"point radiuss=4: unknown setting radiuss.*radius"),
        ({"grid": {"k.x": [4]}}, "point k.x=4: k in k.x is a value"),
        ({"grid": {"k": [0]}}, "point k=0: .*k"),
        ({"grid": {"k": [3, 3]}}, "same settings"),
        ({"grid": {"radius": [4, 4.0]}}, "same settings"),
        ({"grid": {}, "list": [{}, {"radius": 16}]}, "same settings"),  # the default
        ({"list": [{"radius": 4}]}, "both in grid and in list"),
        ({"grid": {"k": list(range(101)), "steps": list(range(101))}}, "too many points"),
        ({"grid": {"recipe.threads": [1, 2]}}, "same threads"),
        ({"like": "stories", "grid": {"k": [1]}}, "."),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InfuserError, match=message):
        read_sweep(_config(tmp_path, **change))


def test_a_value_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    sweep = read_sweep(_config(tmp_path, grid={"data": ["../../etc", "folder:/x/../y", "...", "a" * 300]}))
    for name in sweep.points:
        assert "/" not in name
        assert not name.startswith((".", "-"))
        assert len(name) < 100


def test_settings_may_come_from_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("k: 7\nrecipe: {lr: 0.3}\n")
    (tmp_path / "sweep.yaml").write_text("like: base.yaml\nsteps: 4\nlist:\n- recipe.epochs: 3\n- {}\n")
    first, second = read_sweep(tmp_path / "sweep.yaml").points.values()
    assert isinstance(first, Experiment)
    assert (first.k, first.steps, first.recipe.lr, first.recipe.epochs) == (7, 4, 0.3, 3)
    assert second.recipe.epochs != 3
