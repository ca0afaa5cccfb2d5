"""What a sweep found, as one table: a row a point, regime, arm and control; and how far it is."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from infuser.errors import InfuserError
from infuser.storage import plain, read_json

SCHEMA = 1
_EFFECT = ("arm", "control", "mean", "low", "high", "p", "n_probes", "n_seeds")


def sweep_table(
    changes: Mapping[str, Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return what results.json of a sweep holds, and under "csv" its rows as text.

    Args:
        changes: point -> its own settings, in the order of the sweep.
        results: of every point that is whole.
        failed: job -> its error.
    """
    rows = [row for point in changes if point in results for row in _rows(point, changes[point], results[point])]
    axes = list(dict.fromkeys(path for change in changes.values() for path in change))
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("point", *axes, "regime", "unit", *_EFFECT))
    for row in rows:
        settings = [_cell(row["changes"].get(axis)) for axis in axes]
        cells = ["" if row[name] is None else row[name] for name in ("regime", "unit", *_EFFECT)]
        writer.writerow((row["point"], *settings, *cells))
    points = {name: {"changes": plain(changes[name]), "whole": name in results} for name in changes}
    found = {"schema": SCHEMA, "points": points, "axes": axes, "rows": rows, "failed": dict(failed)}
    return {**found, "csv": file.getvalue()}


def refuse_sweep(folder: Path, command: str) -> None:
    """Raise where `folder` is a sweep, and the command wants a single run.

    Raises:
        InfuserError: it is one.
    """
    if (folder / "sweep.json").exists():
        remedy = f"infuser {command} {folder / 'points' / 'POINT'}; infuser show {folder} names the points"
        raise InfuserError("this folder is a sweep of many runs", got=str(folder), remedy=remedy)


def read_plan(folder: Path) -> dict[str, Any]:
    """Return what sweep.json says.

    Raises:
        InfuserError: it is not the plan of a sweep.
    """
    plan = read_json(folder / "sweep.json")
    points = plan.get("points") if isinstance(plan, dict) else None
    held = points.values() if isinstance(points, dict) else [None]
    if not all(isinstance(point, dict) and {"changes", "jobs"} <= {*point} for point in held):
        raise InfuserError(
            "sweep.json is not the plan of a sweep",
            got=f"{plan!s:.60}",
            causes=["it was changed by hand", "it comes from another version"],
            remedy="run the sweep again with --resume: nothing that is finished is run again",
        )
    return cast(dict[str, Any], plan)


def status(folder: Path) -> dict[str, Any]:
    """Return how many jobs of a sweep are done, running and failed, by what lies in its folder."""
    plan = read_plan(folder)
    done = total = 0
    for name, point in plan["points"].items():
        total += len(point["jobs"])
        for job, key in point["jobs"].items():
            part = folder / "points" / name / "parts" / f"{job}.json"
            done += part.exists() and read_json(part).get("key") == key
    logs = sorted((folder / "failures").glob("*.log"))
    left = total - done - sum(1 for log in logs if not log.stem.endswith(("--prepare", "--results")))
    running = min(int(plan["slots"]), left) if _in_use(folder) else 0
    return {"done": done, "total": total, "running": running, "failed": [str(log) for log in logs]}


def sweep_summary(folder: Path) -> str:
    """Return the state of a sweep, its failures with their logs, and the edit's effects at every point."""
    now = status(folder)
    lines = [f"{now['done']} of {now['total']} jobs done, {now['running']} running, {len(now['failed'])} failed"]
    for log in now["failed"]:
        text = Path(log).read_text(encoding="utf-8").rstrip().splitlines()
        lines.append(f"  failed: {Path(log).stem.replace('--', '/')}: {text[-1] if text else ''} (log: {log})")
    if now["done"] < now["total"] and not now["running"]:
        lines.append("  stopped; go on with: infuser sweep CONFIG --resume (the same configuration and folder)")
    if (folder / "results.json").exists():
        lines.append(_table(read_json(folder / "results.json")))
    return "\n".join(lines)


def _rows(point: str, changes: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for regime, block in results["regimes"].items():
        for effect in block["effects"]:
            low, high = effect["ci95"] or (None, None)
            own = {name: effect[name] for name in _EFFECT if name not in ("low", "high")}
            named = {"point": point, "changes": plain(dict(changes)), "regime": regime, "unit": block["unit"]}
            rows.append({**named, **own, "low": low, "high": high})
    return rows


def _table(results: Mapping[str, Any]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the edit against each control, paired by probe and seed", title_justify="left")
    for column in (*results["axes"], "regime", "control"):
        table.add_column(column, overflow="fold")
    for column in ("mean", "95 % interval", "p", "probes", "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in results["rows"]:
        if row["arm"] != "edit":
            continue
        settings = [_cell(row["changes"].get(axis)) for axis in results["axes"]]
        ci = "-" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        p = "-" if row["p"] is None else f"{row['p']:.2g}"
        numbers = (f"{row['mean']:+.3f}", ci, p, str(row["n_probes"]), str(row["n_seeds"]))
        table.add_row(*settings, row["regime"], row["control"], *numbers)
    out = StringIO()
    Console(file=out, width=120, force_terminal=False).print(table)
    return out.getvalue().rstrip()


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _in_use(folder: Path) -> bool:
    # Without its lock file nobody holds it; asking must leave none behind.
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError as error:
        raise InfuserError("cannot look at the folder's lock", got=str(error)) from error
    lock.release()
    return False
