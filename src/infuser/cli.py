"""The command line: thin. Every command reads arguments, calls one function and prints what it returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infuser.allocator import keep_freed_memory
from infuser.errors import InfuserError

if TYPE_CHECKING:
    from infuser.executors import Executor

# Torch and everything above it is imported inside the commands: `infuser --help` answers at once.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Shape and audit model behaviour through training data.",
)
benchmark = typer.Typer(no_args_is_help=True, help="Measure the methods against each other.")
app.add_typer(benchmark, name="benchmark")

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results; under runs/ by default.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder that holds the data set's files.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, key=value, such as recipe.epochs=3; may be given often.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the folder holds.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over in the folder.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let the configuration name module:function.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]


@contextmanager
def _said(hint: str) -> Iterator[None]:
    """Turn the library's errors and an interrupt into one message and an exit code."""
    try:
        yield
    except InfuserError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho(f"\nStopped. What was finished is kept. To go on: {hint}", err=True, fg="yellow")
        raise typer.Exit(130) from None


def _version(wanted: bool) -> None:
    if wanted:
        import infuser

        typer.echo(f"infuser {infuser.__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Shape and audit model behaviour through training data."""
    keep_freed_memory()


@app.command()
def run(
    what: Annotated[
        str, typer.Argument(help="digits, mnist, cifar10, caesar, stories, or the path of a YAML configuration.")
    ],
    data: Data = None,
    out: Out = None,
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
) -> None:
    """Find the documents that move a behaviour, edit a few, retrain, and state the effect against controls."""
    folder = out or Path("runs") / Path(what).stem
    hint = f"infuser run {what} --out {folder} --resume (with the same settings)"
    with _said(hint):
        from infuser.studies.presets import run_study, settings_of
        from infuser.studies.show import summary

        chosen = settings_of(what, settings or [], data)
        results = run_study(chosen, folder, resume=resume, overwrite=overwrite, allow_code=allow_code)
        typer.echo(summary(results))
        if (folder / "report.html").exists():
            typer.echo(f"Report: {folder / 'report.html'}")


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A study's settings with `grid` or `list`, as YAML.")],
    data: Data = None,
    out: Out = None,
    on: Annotated[
        str, typer.Option("--on", help="local, ray (found, else started here), ray://HOST:PORT or HOST:PORT.")
    ] = "local",
    gpus: Annotated[float, typer.Option("--gpus", help="GPUs that a job on Ray holds; fractions share one.")] = 0.0,
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
) -> None:
    """Run a study at many settings, on this machine or on a cluster; nothing that is finished is run again."""
    folder = out or Path("runs") / config.stem
    with _said(f"infuser sweep {config} --out {folder} --on {on} --resume"):
        from infuser.studies.sweep import read_sweep, run_sweep
        from infuser.studies.sweep_table import sweep_summary

        chosen = read_sweep(config, settings or [], data)
        flags: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "allow_code": allow_code}
        with _executor(on, chosen.threads, gpus) as executor:
            results = run_sweep(chosen, folder, executor, **flags)
        typer.echo(sweep_summary(folder))
        if results["failed"]:
            raise typer.Exit(1)


@contextmanager
def _executor(on: str, threads: int, gpus: float) -> Iterator[Executor | None]:
    """Yield the executor that --on names; None is the study's own."""
    if on == "local":
        if gpus:
            raise InfuserError("--gpus goes with Ray", got="--on local")
        yield None
        return
    if on != "ray" and ":" not in on:
        raise InfuserError("unknown place to run", got=on, expected="local, ray, ray://HOST:PORT or HOST:PORT")
    from infuser.ray_executor import RayExecutor

    executor = RayExecutor(None if on == "ray" else on, cpus=threads, gpus=gpus)
    with executor.connected():
        yield executor


@app.command()
def show(folder: RunFolder) -> None:
    """Print the effects of a finished run, or how far a sweep is and what it found."""
    with _said(f"infuser show {folder}"):
        if not folder.is_dir():
            got = f"{folder}, {'a file' if folder.is_file() else 'which is not there'}"
            raise InfuserError("this is not a run folder", got=got, remedy="make one with `infuser run`")
        if (folder / "sweep.json").exists():
            from infuser.studies.sweep_table import sweep_summary

            typer.echo(sweep_summary(folder))
            return
        from infuser.storage import read_json
        from infuser.studies.show import shown

        typer.echo(shown(read_json(folder / "results.json")))


@app.command()
def verify(folder: RunFolder, allow_code: AllowCode = False) -> None:
    """Check every hash, key, ball and start of a run, or of every point of a sweep."""
    with _said(f"infuser verify {folder}"):
        from infuser.studies.verify import verify_run

        findings = verify_run(folder, allow_code=allow_code)
        for finding in findings:
            typer.echo(finding)
        if any(finding.wrong for finding in findings):
            raise typer.Exit(1)


@app.command()
def replay(folder: RunFolder, allow_code: AllowCode = False) -> None:
    """Run a finished run again from its stored settings, and say whether every bit comes out again."""
    with _said(f"infuser replay {folder}"):
        from infuser.studies.replay import replay_run

        replayed = replay_run(folder, allow_code=allow_code)
        typer.echo(replayed)
        if not replayed.bitwise:
            raise typer.Exit(1)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders to compare.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("comparison.html"),
) -> None:
    """Write one HTML file that compares several finished runs."""
    with _said("infuser report RUN... --out FILE"):
        from infuser.studies.comparison import write_comparison

        typer.echo(f"Wrote {write_comparison(folders, out)}")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the configuration.")] = Path("infuser.yaml"),
    like: Annotated[str, typer.Option("--like", help="A preset, or sweep, audit, audit-texts, detection.")] = "digits",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a commented configuration with every setting and its default."""
    with _said("infuser init"):
        from infuser.storage import write_text
        from infuser.studies.presets import commented

        if path.exists() and not overwrite:
            raise InfuserError(f"{path} exists", remedy="pass --overwrite, or another path")
        text, command = commented(like)
        write_text(path, text)
        typer.echo(f"Wrote {path}. Run it with: infuser {command} {path}")


@app.command()
def attribute(
    folder: RunFolder,
    method: Annotated[
        str, typer.Option("--method", help="influence, no-curvature, tracin, similarity, trak or f-ine.")
    ] = "influence",
    top: Annotated[int, typer.Option("--top", help="Documents to print per probe.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", help="Parquet file; scores-METHOD.parquet by default.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Score all training documents of a run towards its probes."""
    with _said(f"infuser attribute {folder} --method {method}"):
        from infuser.studies.commands import attribute_run

        path = out or folder / f"scores-{method}.parquet"
        scores = attribute_run(folder, method, path, allow_code=allow_code)
        for q, name in enumerate(scores.queries):
            typer.echo(f"{name}: proponents {_row(scores.top(top, q))}; opponents {_row(scores.bottom(top, q))}")
        typer.echo(f"Wrote {path} ({scores.method}; unit: {scores.unit})")


@app.command()
def edit(
    folder: Annotated[Path, typer.Argument(help="A run folder, or with --undo a folder of edited documents.")],
    probe: Annotated[
        str | None, typer.Option("--probe", help="The probe, such as 743-0; the first by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the edited training set.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Put every document back, byte for byte.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Write the training set with the edit of one probe as files; or undo it there."""
    with _said(f"infuser edit {folder}"):
        from infuser.studies.commands import edit_run, undo_edit

        if undo:
            typer.echo(f"Put {undo_edit(folder)} documents back in {folder}")
            return
        where = out or folder / "edited"
        count, total, name = edit_run(folder, probe, where, allow_code=allow_code)
        typer.echo(f"Wrote {total} documents, {count} of them edited for {name}, to {where}")


@app.command()
def retrain(
    folder: RunFolder,
    probe: Annotated[
        str | None, typer.Option("--probe", help="The probe whose edit is tried; the first by default.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Comma-separated seeds.")] = "1,2,3",
    start: Annotated[str, typer.Option("--start", help="last_epoch, half or scratch.")] = "last_epoch",
    allow_code: AllowCode = False,
) -> None:
    """Retrain on a stored edit and on its clean control, and print the paired difference for each seed."""
    with _said(f"infuser retrain {folder}"):
        from infuser.studies.commands import retrain_run

        typer.echo(retrain_run(folder, probe, seeds, start, allow_code=allow_code))


@app.command()
def audit(
    what: Annotated[
        str, typer.Argument(help="The training set: digits, folder:PATH, parquet:PATH, text:PATH, ...; or a YAML file.")
    ],
    data: Data = None,
    out: Out = None,
    settings: Settings = None,
    plant: Annotated[
        float | None, typer.Option("--plant", help="Share of faults to plant in a second run, for recall.")
    ] = None,
    export: Annotated[str, typer.Option("--export", help="clean: write the data without the suspects.")] = "none",
    remove: Annotated[str, typer.Option("--remove", help="Ids that --export leaves out; else the list's head.")] = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
) -> None:
    """Rank a training set by suspicion, and say how good the ranking is at finding planted faults."""
    folder = out or Path("runs") / f"audit-{_short(what)}"
    with _said(f"infuser audit {what} --out {folder} --resume (with the same settings)"):
        from infuser.studies.audit import run_audit
        from infuser.studies.audit_report import summary
        from infuser.studies.audit_settings import audit_settings, exported

        chosen = audit_settings(what, settings or [], data, plant)
        flags: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "allow_code": allow_code}
        results = run_audit(chosen, folder, **flags, **exported(export, remove))
        typer.echo(summary(results))
        typer.echo(f"List: {folder / 'suspects.parquet'}. Report: {folder / 'report.html'}")
        if export == "clean":
            typer.echo(f"Data without the suspects: {folder / 'clean-data'}")


@benchmark.command()
def detection(
    what: Annotated[
        str, typer.Argument(help="The training set: digits, mnist, cifar10, stories, ...; or a YAML file.")
    ] = "digits",
    data: Data = None,
    out: Out = None,
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
) -> None:
    """Try every detector on every attack: recall, lift over the clean data, and what removal undoes."""
    folder = out or Path("runs") / f"detection-{_short(what)}"
    with _said(f"infuser benchmark detection {what} --out {folder} --resume (with the same settings)"):
        from infuser.studies.detection_benchmark import benchmark_settings, run_detection_benchmark, table

        chosen = benchmark_settings(what, settings or [], data)
        flags: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "allow_code": allow_code}
        typer.echo(table(run_detection_benchmark(chosen, folder, **flags)))
        typer.echo(f"Report: {folder / 'report.html'}")


def _short(what: str) -> str:
    """Return a name for the folder of what is known by a source or a YAML file."""
    return Path(what.partition(":")[0]).stem


def _row(ids: Any) -> str:
    return ", ".join(str(i) for i in ids)


if __name__ == "__main__":
    sys.exit(app())
