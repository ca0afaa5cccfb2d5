"""Results as a table of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from infuser.errors import InfuserError

if TYPE_CHECKING:
    from rich.table import Table


def kind_of(results: Mapping[str, Any]) -> str:
    """Return what results.json is about.

    Raises:
        InfuserError: it holds no mapping.
    """
    if not isinstance(results, Mapping):
        raise _not_results(f"{results!s:.60}")
    if "suspects" in results:
        return "an audit"
    if "removal" in results:
        return "a benchmark of detectors"
    return "edits of texts" if "mode" in results or "alphabets" in results else "edits of images"


def shown(results: Mapping[str, Any]) -> str:
    """Return what results.json of any study says, as its command printed it.

    Raises:
        InfuserError: it is not what a study writes.
    """
    try:
        match kind_of(results):
            case "an audit":
                from infuser.studies import audit_report

                return audit_report.summary(results)
            case "a benchmark of detectors":
                from infuser.studies import detection_benchmark

                return detection_benchmark.table(results)
            case _:
                return summary(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _not_results(f"{type(error).__name__}: {error}") from error


def _not_results(got: str) -> InfuserError:
    causes = ["it was changed by hand", "it comes from another version"]
    return InfuserError(
        "results.json is not what a study writes", got=got, causes=causes, remedy="go on with the run by --resume"
    )


def summary(results: Mapping[str, Any]) -> str:
    """Return what results.json says: arms and effects of every regime, with n, seeds and intervals."""
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=110, force_terminal=False)
    head = f"{results['dataset']}, {results['model']}: {results['n_edited']} of {results['n_train']} documents edited"
    console.print(f"{head} within {_limit(results)}, strategy {results['strategy']}", markup=False)
    for regime, block in results["regimes"].items():
        if "mode" not in results:
            console.print(_arms(regime, block))
        console.print(_effects(regime, block))
    if "targets" in results:
        probes = " ".join(f"{i}-{target}" for i, target in zip(results["probes"], results["targets"], strict=True))
        console.print(f"Probes (document-target, for --probe): {probes}", markup=False, highlight=False)
    for caveat in results.get("caveats", ()):
        console.print(f"Note: {caveat}", markup=False)
    return out.getvalue().rstrip()


def _limit(results: Mapping[str, Any]) -> str:
    if "mode" in results:
        return f"{100 * results['share']:g} % of their tokens ({results['mode']})"
    return f"{results['norm']} {results['radius']:g}/255"


def _arms(regime: str, block: Mapping[str, Any]) -> Table:
    columns = ("arm", "log-odds", "prob (mean)", "prob (median)", "raised", "flips", "test accuracy", "n")
    table = _table(f"{regime}: change against clean", columns, ("arm",))
    for name, arm in block["arms"].items():
        flips = f"{arm['flips']}/{arm['n_nontrivial']}"
        cells = (_signed(arm["log_odds"]), _signed(arm["mean_delta_p"]), _signed(arm["median_delta_p"]))
        table.add_row(name, *cells, _share(arm["raised"]), flips, _share(arm["test_accuracy"]), str(arm["n"]))
    return table


def _effects(regime: str, block: Mapping[str, Any]) -> Table:
    columns = ("arm", "control", "mean", "95 % interval", "p-value", "probes", "seeds")
    table = _table(f"{regime}: effects in {block['unit']}, paired by probe and seed", columns, ("arm", "control"))
    for effect in block["effects"]:
        ci = "-" if effect["ci95"] is None else f"[{effect['ci95'][0]:+.3f}, {effect['ci95'][1]:+.3f}]"
        p = "-" if effect["p"] is None else f"{effect['p']:.2g}"
        sizes = (str(effect["n_probes"]), str(effect["n_seeds"]))
        table.add_row(effect["arm"], effect["control"], _signed(effect["mean"]), ci, p, *sizes)
    return table


def _table(title: str, columns: Sequence[str], words: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right")
    return table


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
