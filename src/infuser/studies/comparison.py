"""Several finished runs in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infuser.config import read_yaml
from infuser.errors import InfuserError, listed
from infuser.report import compare_results, report
from infuser.storage import read_json
from infuser.studies.sweep_table import refuse_sweep


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write one HTML file that compares finished runs, and return its path.

    Runs are named by their folders, and by the folders above them where those are of the same name.

    Raises:
        InfuserError: a folder is given twice, or holds no finished run.
    """
    given = [folder.resolve() for folder in folders]
    if len(set(given)) != len(given):
        raise InfuserError("a run folder is given twice", got=listed([str(folder) for folder in folders]))
    for folder in given:
        refuse_sweep(folder, "report")
    names = _names(given)
    results = {name: read_json(folder / "results.json") for name, folder in names.items()}
    configs = {name: read_yaml(folder / "config.yaml") for name, folder in names.items()}
    return report(out, *compare_results(results, configs), title="Runs compared")


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the shortest ends of the paths that tell them apart."""
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {"/".join(folder.parts[-depth:]): folder for folder in folders}
