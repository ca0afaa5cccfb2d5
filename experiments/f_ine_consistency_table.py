"""Recall, AUC and agreement over runs from finished runs: the last stage of f_ine_consistency.py."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from f_ine_candidates import candidates
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from infuser.evaluation.stability import stability
from infuser.storage import write_json
from infuser.studies.environment import environment
from infuser.types import Scores

CLAIM = "f-INE finds wrong labels better than all-step TracIn and final-model influence, and not better than mean loss."
NAME = re.compile(r"noise(\d+)-epochs(\d+)-data(\d+)-run(\d+)")
SHARES = (0.05, 0.1, 0.2)


def write(runs: Path, out: Path) -> None:
    cells: dict[tuple[int, int], dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(runs.glob("noise*-run?.npz")):
        noise, epochs, data, _ = map(int, NAME.fullmatch(path.stem).groups())
        cells[noise, epochs][data].append(path)
    rows = []
    for (noise, epochs), by_data in sorted(cells.items()):
        measured = [one_data_seed(paths) for paths in by_data.values()]
        runs_of = [len(paths) for paths in by_data.values()]
        about = {"noise": noise, "epochs": epochs, "seeds": {"data": sorted(by_data), "runs": runs_of}}
        for method, what in measured[0]:
            values = np.array([cell[method, what] for cell in measured])
            rows.append(
                {
                    **about,
                    "method": method,
                    "what": what,
                    "value": float(values.mean()),
                    "interval": interval(values),
                    "n": len(values),
                }
            )
        for what in ("recall", "jaccard 0.2"):
            for other in ("TracIn, all steps", "TracIn, last", "training loss, mean"):
                gaps = np.array([cell["f-INE snr", what] - cell[other, what] for cell in measured])
                rows.append(
                    {
                        **about,
                        "method": f"f-INE snr - {other}",
                        "what": what,
                        "value": float(gaps.mean()),
                        "interval": interval(gaps),
                        "n": len(gaps),
                    }
                )
    write_json(out, {"name": "f_ine_consistency", "claim": CLAIM, "rows": rows, "environment": environment()})
    show(rows)


def one_data_seed(paths: list[Path]) -> dict[tuple[str, str], float]:
    """Return (method, what) -> mean over the runs of one data seed."""
    scores, found = defaultdict(list), defaultdict(list)
    for path in paths:
        with np.load(path) as stored:
            wrong = stored["wrong"]
            each = {key[6:]: stored[key] for key in stored if key.startswith("score ")}
            tried = candidates({key: stored[key] for key in stored if key.startswith("table ")})
            each |= {f"tried: {name}": values for name, values in tried.items()}
        k = int(wrong.sum())
        for method, values in each.items():
            top = np.argsort(-values, kind="stable")[:k]
            found[method, "recall"].append(wrong[top].mean())
            found[method, "auc"].append(roc_auc_score(wrong, values))
            scores[method].append(Scores(values, np.arange(len(values)), method, ""))
    means = {key: float(np.mean(values)) for key, values in found.items()}
    for method, runs in scores.items():
        if len(runs) > 1:
            agreement = stability(runs, SHARES)
            means |= {(method, f"jaccard {share:g}"): value.value for share, value in agreement.jaccard.items()}
            means[method, "spearman over runs"] = agreement.spearman.value
            means[method, "coefficient of variation"] = agreement.variation.value
    return means


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the t-interval over data seeds, none below three."""
    if len(values) < 3:
        return None
    reach = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def show(rows: list[dict]) -> None:
    for noise, epochs in sorted({(row["noise"], row["epochs"]) for row in rows}):
        here = [row for row in rows if (row["noise"], row["epochs"]) == (noise, epochs)]
        print(f"\nnoise {noise} %, {epochs} epochs, data seeds and runs {here[0]['seeds']}")
        columns = list(dict.fromkeys(row["what"] for row in here))
        print(f"{'':44}" + "".join(f"{what[:12]:>13}" for what in columns))
        for method in dict.fromkeys(row["method"] for row in here):
            value = {row["what"]: row["value"] for row in here if row["method"] == method}
            print(f"{method:44}" + "".join(f"{value[w]:13.3f}" if w in value else " " * 13 for w in columns))
