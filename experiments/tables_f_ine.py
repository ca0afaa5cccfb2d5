"""Tables of f-INE: fidelity, consistency, and an audit of wrong labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tables_format import Row, percent, results, table, three_places, two_places, wrapped

FIDELITY_DATA = {"mnist": "MNIST", "mnistweak": "MNIST, less training", "digits": "digits", "generated": "generated"}
SIZED = ("f-INE snr", "f-INE paper, auc")
FIDELITY = {
    "f-INE snr": "f-INE, mode snr",
    "f-INE paper, auc": "f-INE, mode paper, auc",
    "f-INE paper, gauss": "f-INE, mode paper, gauss",
    "f-INE, EK-FAC within-step z": "`PreconditionedFInfluence`",
    "tried: EK-FAC z / size^(1/4)": "the same over the fourth root of the size",
    "TracIn, all steps": "TracIn, all steps",
    "EK-FAC at the end": "EK-FAC influence at the end",
    "training loss, mean": "mean training loss",
}
CONSISTENCY = {
    "training loss, mean": "mean training loss",
    "training loss, aum": "area under the margin",
    "f-INE snr": "f-INE, mode snr",
    "f-INE paper, gauss": "f-INE, mode paper, gauss",
    "TracIn, all steps": "TracIn, all steps",
    "TRAK, one model": "TRAK, one model",
    "EK-FAC at the end": "EK-FAC self-influence at the end",
    "TracIn, last": "TracIn, last",
}
AUDITED = ("fused_blind", "deep_knn", "isolation", "loss", "clustering", "self_influence", "f_ine_self")


def fidelity(what: str) -> str:
    """Return Spearman correlations of one run with the true mu on itself, by data set: over the data seeds."""
    held = {(r["case"], r["method"]): r for r in results("f_ine_fidelity")["rows"] if r["what"] == what}
    known = _by_data(case for case, _ in held)
    subsets = next(held[key]["n"] for key in held if key[0] == next(iter(known.values()))[0])
    head = (
        f"{subsets} subsets",
        *(f"{FIDELITY_DATA[kind]}, {len(cases)} data seed{'s' * (len(cases) > 1)}" for kind, cases in known.items()),
    )
    body = [
        (shown, *(_spread([held[case, method]["value"] for case in cases]) for cases in known.values()))
        for method, shown in FIDELITY.items()
        if all((case, method) in held for cases in known.values() for case in cases)
    ]
    return table(head, body)


def fidelity_points() -> str:
    """Return what one run says of the size of mu, and of signs on test points, by data set."""
    held = {(r["case"], r["what"], r["method"]): r["value"] for r in results("f_ine_fidelity")["rows"]}
    told = [
        *((f"size of $\\mu$ over the truth, {FIDELITY[m]}", "self mu over truth, median", m) for m in SIZED),
        *((f"sign on test points, {FIDELITY[m]}", "sign on test points, clear pairs", m) for m in FIDELITY),
    ]
    known = _by_data(case for case, *_ in held)
    body = [
        (shown, *(_spread([held[case, what, method] for case in cases]) for cases in known.values()))
        for shown, what, method in told
        if all((case, what, method) in held for cases in known.values() for case in cases)
    ]
    return table(("", *(FIDELITY_DATA[kind] for kind in known)), body)


def _by_data(cases: Iterable[str]) -> dict[str, list[str]]:
    """Return the cases of each data set of which there are any, one a data seed."""
    each = list(dict.fromkeys(cases))
    found = {kind: [case for case in each if re.fullmatch(rf"{kind}-\d+", case)] for kind in FIDELITY_DATA}
    return {kind: of for kind, of in found.items() if of}


def consistency(what: str) -> str:
    """Return recall of wrong labels, or how far five runs agree, by noise and epochs: over the data seeds."""
    held = [r for r in results("f_ine_consistency")["rows"] if r["what"] == what]
    rows = {(r["noise"], r["epochs"], r["method"]): r for r in held}
    cells = sorted({(r["noise"], r["epochs"]) for r in held})
    body = [(shown, *(_told(rows.get((*cell, method))) for cell in cells)) for method, shown in CONSISTENCY.items()]
    return table(("", *(f"{noise} % wrong, {epochs} epochs" for noise, epochs in cells)), body)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return two_places(values[0])
    return f"{two_places(sum(values) / len(values))} ({two_places(min(values))} to {two_places(max(values))})"


def _told(row: Row | None) -> str:
    if row is None:
        return "–"
    ends = row["interval"]
    return three_places(row["value"]) + (f" [{three_places(ends[0])}, {three_places(ends[1])}]" if ends else "")


def audit() -> str:
    """Return recall of planted wrong labels by detector and depth."""
    value = results("detection")["audit-mnist"]
    rows = {(r["detector"], r["depth"]): r for r in value["recall"]}
    depths = (0.05, 0.1, 0.2)
    known = [name for name in AUDITED if (name, 0.1) in rows]
    head = ("detector", *(f"first {100 * depth:g} % of the list" for depth in depths))
    body = [(f"`{name}`", *(percent(rows[name, depth]) for depth in depths)) for name in known]
    first = rows[known[0], 0.1]
    rests_on = f"n = {first['n']} {first['unit']}, {first['interval'].split()[0]}"
    caption = wrapped(f"{value['plan']}: recall of the {first['planted']:,}; {rests_on}.")
    return f"{caption}\n{table(head, body)}"
