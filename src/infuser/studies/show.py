"""Results as a table of plain text."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any


def summary(results: Mapping[str, Any]) -> str:
    """Return what results.json says: arms and effects of every regime, with n, seeds and intervals."""
    from rich.console import Console
    from rich.table import Table

    out = StringIO()
    console = Console(file=out, width=110, force_terminal=False)
    head = f"{results['dataset']}, {results['model']}: {results['n_edited']} of {results['n_train']} documents edited"
    console.print(f"{head} within {results['norm']} {results['radius']:g}/255, strategy {results['strategy']}")
    for regime, block in results["regimes"].items():
        table = Table(title=f"{regime}: change against clean", title_justify="left")
        for column in ("arm", "log-odds", "p (mean)", "p (median)", "raised", "flips", "test accuracy", "n"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for name, arm in block["arms"].items():
            flips = f"{arm['flips']}/{arm['n_nontrivial']}"
            cells = (_signed(arm["log_odds"]), _signed(arm["mean_delta_p"]), _signed(arm["median_delta_p"]))
            table.add_row(name, *cells, _share(arm["raised"]), flips, _share(arm["test_accuracy"]), str(arm["n"]))
        console.print(table)
        table = Table(title=f"{regime}: effects in {block['unit']}, paired by probe and seed", title_justify="left")
        for column in ("arm", "control", "mean", "95 % interval", "p", "probes", "seeds"):
            table.add_column(column, justify="left" if column in ("arm", "control") else "right")
        for effect in block["effects"]:
            ci = "-" if effect["ci95"] is None else f"[{effect['ci95'][0]:+.3f}, {effect['ci95'][1]:+.3f}]"
            p = "-" if effect["p"] is None else f"{effect['p']:.2g}"
            sizes = (str(effect["n_probes"]), str(effect["n_seeds"]))
            table.add_row(effect["arm"], effect["control"], _signed(effect["mean"]), ci, p, *sizes)
        console.print(table)
    for caveat in results.get("caveats", ()):
        console.print(f"Note: {caveat}", markup=False)
    return out.getvalue().rstrip()


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
