"""The acceptance table of f-INE from finished slices: the last stage of f_ine_fidelity.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from f_ine_candidates import candidates
from f_ine_fidelity_truth import FIRST_SEED, true_mu_of
from scipy.stats import rankdata, spearmanr

from infuser.evaluation.true_mu import TrueInfluence
from infuser.storage import write_json
from infuser.studies.environment import environment

RESAMPLES = 2000
CLAIM = "To be tested: one run's f-INE, mode snr, ranks subsets on themselves as retraining does."


def write(runs: Path, out: Path) -> None:
    rows = []
    for folder in sorted(runs.iterdir()):
        stored = [json.loads(path.read_text()) for path in sorted(folder.glob("run-?.json"))]
        if stored and list(folder.glob("truth-????.npz")):
            for path, run in zip(sorted(folder.glob("table-?.npz")), stored, strict=True):
                with np.load(path) as table:
                    run["tried"] = {name: values[run["singles"]] for name, values in candidates(table).items()}
                product = np.array(run["self"]["f-INE snr"]) * np.array(run["self"]["training loss, mean"])
                run["self"]["tried: snr x mean loss"] = product.tolist()
                # The exponent was chosen on mnist-0; the other cases check it.
                z = np.array(run["self"]["f-INE, EK-FAC within-step z"]) / np.array(run["sizes"]) ** 0.25
                run["self"]["tried: EK-FAC z / size^(1/4)"] = z.tolist()
            rows += case_rows(folder.name, true_mu_of(folder.name), stored)
    write_json(out, {"name": "f_ine_fidelity", "claim": CLAIM, "rows": rows, "environment": environment()})
    for row in rows:
        low, high = row["interval"] or (np.nan, np.nan)
        print(
            f"{row['case']:14} {row['what']:40} {row['method']:28} {row['value']:7.3f} [{low:.3f}, {high:.3f}]",
            row["n"],
        )


def case_rows(case: str, truth: TrueInfluence, stored: list[dict]) -> list[dict]:
    names, sizes = stored[0]["names"], np.array(stored[0]["sizes"])
    assert tuple(names) == truth.names
    own, on_points = truth.self_mu(), truth.mu()
    rows = []

    def row(what: str, method: str, value: float, interval=None, n=0, **more) -> None:
        seeds = {"truth": [min(truth.seeds), max(truth.seeds)], "runs": list(range(len(stored)))}
        n = n or len(names)
        rows.append(
            {
                "case": case,
                "what": what,
                "method": method,
                "value": float(value),
                "interval": interval,
                "n": n,
                "seeds": seeds,
                **more,
            }
        )

    halves, corrected = truth.split_half()
    row(
        "split-half of true self mu",
        f"truth, {truth.randomness}",
        halves,
        by_spearman_brown=corrected,
        seeds_of_truth=len(truth.seeds),
    )
    row("models a minute", "batched", 60 * truth.models / truth.seconds, n=truth.models)
    wrong = np.array([name.startswith("wrong 1") for name in names])
    row("true self mu, wrong single, median", "truth", np.median(own[wrong]), n=int(wrong.sum()))
    clean = np.array([name.startswith("clean 1") for name in names])
    row("true self mu, clean single, median", "truth", np.median(own[clean]), n=int(clean.sum()))
    for method in stored[0]["self"]:
        estimates = np.array([run["self"][method] for run in stored])
        row("Spearman with true self mu", method, *by_run(estimates, own))
        row(
            "Spearman with true self mu, singles",
            method,
            *by_run(estimates[:, sizes == 1], own[sizes == 1]),
            int((sizes == 1).sum()),
        )
        other = np.array([not name.startswith("class") for name in names])
        row("Spearman, without one-class groups", method, *by_run(estimates[:, other], own[other]), int(other.sum()))
        if method.startswith("f-INE"):
            clear = (sizes == 1) & (own > 0.3)
            ratio = np.median(estimates[:, clear] / own[clear], axis=1).mean() if clear.any() else np.nan
            row("self mu over truth, median", method, ratio, n=int(clear.sum()))
    for name in stored[0]["tried"]:
        estimates = np.array([run["tried"][name] for run in stored])
        row(
            "Spearman with true self mu, singles",
            f"tried: {name}",
            *by_run(estimates, own[sizes == 1]),
            int((sizes == 1).sum()),
        )
    first, second = (truth.take(np.arange(start, len(truth.seeds), 2)).mu() for start in (0, 1))
    error = np.sqrt(np.mean((first - second) ** 2)) / 2
    clear = np.abs(on_points) > 2 * error
    row(
        "split-half of true mu on test points",
        "truth",
        spearmanr(first.ravel(), second.ravel()).statistic,
        n=on_points.size,
        rms_error=error,
    )
    row("share of test pairs beyond 2 errors", "truth", clear.mean(), n=on_points.size)
    for method in stored[0]["test"]:
        estimates = np.array([run["test"][method] for run in stored])
        row("sign on test points, clear pairs", method, *signs(estimates, on_points, clear), int(clear.sum()))
        row(
            "Spearman on test points",
            method,
            *by_run(estimates.reshape(len(stored), -1), on_points.ravel(), blocks=len(names)),
            on_points.size,
        )
        mean = estimates.mean(0)
        row(
            "sign on test points, mean of runs",
            method,
            (np.sign(mean) == np.sign(on_points))[clear].mean(),
            n=int(clear.sum()),
        )
    for made in stored[0].get("grid") or []:
        values = np.array(made["self"])
        truth_of = own[sizes == 1]
        label = f"every {made['every']}, {made['partners']} partners"
        row("grid: Spearman with true self mu, singles", label, spearmanr(values, truth_of).statistic, n=len(values))
        exact = np.array(stored[0]["grid"][0]["self"])
        row("grid: largest relative gap from exact", label, np.abs(values / exact - 1).max(), n=len(values))
    return rows


def by_run(estimates: np.ndarray, truth: np.ndarray, blocks: int | None = None) -> tuple[float, tuple[float, float]]:
    """Return the mean over runs of Spearman, and its percentile interval over subsets (all points of one together)."""
    value = np.mean([spearmanr(row, truth).statistic for row in estimates])
    blocks = blocks or len(truth)
    at = np.arange(len(truth)).reshape(blocks, -1)
    count = RESAMPLES if at.shape[1] == 1 else 200
    chosen = at[np.random.default_rng(0).integers(blocks, size=(count, blocks))].reshape(count, -1)
    wanted = centred_ranks(truth[chosen])
    draws = np.mean([correlations(centred_ranks(row[chosen]), wanted) for row in estimates], axis=0)
    return float(value), tuple(np.nanpercentile(draws, [2.5, 97.5]).tolist())


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks within each row, ties at their mean, less their mean."""
    ranks = rankdata(values, axis=1)
    return ranks - ranks.mean(1, keepdims=True)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlation of each row of centred values; NaN where one is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def signs(estimates: np.ndarray, truth: np.ndarray, clear: np.ndarray) -> tuple[float, tuple[float, float]]:
    right = (np.sign(estimates) == np.sign(truth)).mean(0)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(truth), size=len(truth))
        if clear[chosen].any():
            draws.append(right[chosen][clear[chosen]].mean())
    return float(right[clear].mean()), tuple(np.percentile(draws, [2.5, 97.5]).tolist())


assert FIRST_SEED == 1000, "truth-????.npz has four digits"
