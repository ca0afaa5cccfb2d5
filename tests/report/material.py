"""Parts of a report as a run on digits gives them: real images, plausible numbers, hostile names where noted."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from infuser import report as rep
from infuser.types import Edit, Effect, Estimate, Scores, Suspicion, Trials

CLASSES = tuple("0123456789")
SEEDS = (1, 2, 3)
HOSTILE = "<script>window.hit = 1</script>"
ARMS = {"edit": 0.86, "noise": 0.03, "random_docs": 0.31, "insert_1": 2.4, "insert_k": 11.0, "no_curvature": 0.52}


class Linf8:
    """A constraint as the library's own balls are, for edits made here."""

    limit = 16.0

    def distance(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return np.abs(after.astype(int) - before.astype(int)).reshape(len(before), -1).max(axis=1).astype(float)

    def __str__(self) -> str:
        return "Linf 16/255"


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    raw = load_digits()
    return np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None], raw.target.astype(np.int64)


def probes() -> list[tuple[int, int]]:
    rng = np.random.default_rng(3)
    ids = rng.choice(1797, 20, replace=False)
    return [(int(i), int((digits()[1][i] + rng.integers(1, 10)) % 10)) for i in ids]


def effect(arm: str, mean: float, spread: float, measure: str, control: str = "clean", seed: int = 0) -> Effect:
    rng = np.random.default_rng([seed, len(arm), int(abs(mean) * 1000)])
    points = {f"{i}->{t}": float(mean + spread * rng.normal()) for i, t in probes()}
    centre = float(np.mean(list(points.values())))
    half = 2.1 * spread / np.sqrt(20)
    estimate = Estimate(centre, (centre - half, centre + half), 20, SEEDS)
    p = 2e-6 if abs(centre) > half else 0.41
    return Effect(arm, control, measure, estimate, p, points)


def regime(name: str = "last_epoch", factor: float = 1.0) -> rep.Regime:
    effects = [effect(a, factor * m, 0.1 + 0.25 * m**0.6, "log_odds", seed=len(name)) for a, m in ARMS.items()]
    effects += [
        effect("edit", factor * m, 0.35, "log_odds", control)
        for control, m in {"noise": 0.83, "random_docs": 0.55}.items()
    ]
    effects += [
        effect(a, factor * min(0.09 * m, 0.83), 0.01 + 0.09 * min(m, 1), "probability", seed=len(name))
        for a, m in ARMS.items()
    ]
    rows = [
        rep.ArmStats(
            arm,
            {
                "Δ log-odds, mean": None if arm == "clean" else factor * m,
                "Δ p, mean": None if arm == "clean" else min(0.09 * m, 0.83),
                "probes raised": None if arm == "clean" else f"{min(100, 50 + 50 * m):.0f} %",
                "flips": f"{int(min(m * 3, 57))} of 57",
                "test accuracy": f"{96.9 - 0.1 * m:.1f} %",
                "n": 20,
            },
        )
        for arm, m in {"clean": 0.0, **ARMS}.items()
    ]
    return rep.Regime(name, tuple(effects), tuple(rows))


def probe_views() -> list[rep.ProbeView]:
    images, labels = digits()
    rng = np.random.default_rng(5)
    views = []
    for i, target in probes():
        logits = rng.normal(0, 1.2, 10)
        logits[labels[i]] += 5
        shown = {}
        for arm, m in {"clean": 0.0, "edit": 2.2, "noise": 0.1, "insert_k": 8.0}.items():
            moved = logits + rng.normal(0, 0.1, 10)
            moved[target] += m
            shown[arm] = np.exp(moved) / np.exp(moved).sum()
        views.append(rep.ProbeView(f"{i}", images[i], int(labels[i]), target, CLASSES, shown))
    return views


def edit(k: int = 28, seed: int = 0) -> Edit:
    images, labels = digits()
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(1797, k, replace=False))
    change = rng.choice([-16, -16, -7, 0, 9, 16, 16], images[ids].shape)
    after = (images[ids].astype(int) + change).clip(0, 255).astype(np.uint8)
    gains = np.sort(rng.gamma(2.0, 0.02, k))[::-1].copy()
    made = "PGD(Linf 16/255, steps 30), selected by post_edit"
    return Edit(ids, images[ids], after, labels[ids], labels[ids], Linf8(), made, gains)


def edit_view(k: int = 28, seed: int = 0, title: str = "Probe 1523, 4 → 7") -> rep.EditView:
    made = edit(k, seed)
    moved = made.after.astype(float) - made.before.astype(float)
    distances = {
        "Linf, 1/255": np.abs(moved).reshape(k, -1).max(1),
        "L2, 1/255": np.sqrt((moved**2).reshape(k, -1).sum(1)),
        "SSIM": 0.9 + 0.05 * np.random.default_rng(seed).random(k),
    }
    influence = np.random.default_rng(seed).normal(0.002, 0.004, k)
    return rep.EditView(made, title, CLASSES, influence, distances)


def documents() -> rep.Documents:
    images, labels = digits()
    return rep.Documents(np.arange(len(images)), images, labels, CLASSES)


def scores() -> Scores:
    rng = np.random.default_rng(1)
    values = rng.standard_t(3, (3, 1797)) * 0.002
    method = "Influence(EK-FAC on 1,437 documents, damping 0.1 relative)"
    return Scores(values, np.arange(1797), method, "f per document counted twice", ("1523->7", "88->2", "430->9"))


def detection() -> rep.Detection:
    # Equal-variance normal scores: TPR = Phi(Phi^-1(FPR) + d), AUC = Phi(d / sqrt(2)).
    from scipy.stats import norm

    fpr = np.concatenate([[0.0], np.logspace(-3.2, 0, 80)])
    strength = {"f-INE": 2.3, "nearest neighbours": 1.5, "loss trace": 0.8, "self-influence": 0.5}
    curves = tuple(rep.Roc(n, fpr, norm.cdf(norm.ppf(fpr) + d)) for n, d in strength.items())
    results = []
    for metric in ("ROC-AUC", "recall@28"):
        for name, d in strength.items():
            value = float(norm.cdf(d / 2**0.5)) if metric == "ROC-AUC" else 0.24 * d
            after = Estimate(value, (value - 0.06, min(1.0, value + 0.05)), 28, SEEDS, "edited documents")
            lift = Estimate(0.12 * d - 0.05, (0.12 * d - 0.12, 0.12 * d + 0.02), 28, SEEDS, "edited documents")
            results.append(rep.DetectorResult(name, metric, after, lift))
    return rep.Detection(
        "Blind: the detectors know the data and the training run only.", curves, tuple(results), 28, 1409
    )


def suspicions() -> list[Suspicion]:
    rng = np.random.default_rng(8)
    hot = np.zeros(1797)
    hot[edit().ids] = 1.0
    return [
        Suspicion(rng.normal(0, 1, 1797) + 2.3 * hot, np.arange(1797), "f-INE"),
        Suspicion(rng.normal(0, 1, 1797) + 1.5 * hot, np.arange(1797), "nearest neighbours"),
    ]


def predicted() -> rep.PredictedMeasured:
    rng = np.random.default_rng(9)
    p = rng.gamma(4, 0.4, 20)
    m = 0.5 * p + rng.normal(0, 0.15, 20)
    names = tuple(f"{i}->{t}" for i, t in probes())
    statistics = (
        rep.Metric("slope", Estimate(0.51, (0.42, 0.6), 20, SEEDS)),
        rep.Metric("Spearman", Estimate(0.86, (0.71, 0.94), 20, SEEDS)),
    )
    return rep.PredictedMeasured(names, p, m, "log-odds", statistics)


def transfer() -> rep.TransferMatrix:
    strength = {("tiny_resnet", "tiny_resnet"): 0.86, ("tiny_resnet", "simple_cnn"): 0.31}
    strength |= {("simple_cnn", "tiny_resnet"): 0.22, ("simple_cnn", "simple_cnn"): 0.64}
    return rep.TransferMatrix({k: effect("edit", m, 0.3, "log_odds") for k, m in strength.items()})


def trade_offs() -> list[rep.TradeOff]:
    # Gaussian trade-off: beta = Phi(Phi^-1(1 - alpha) - mu).
    from scipy.stats import norm

    alpha = np.linspace(0, 1, 60)
    parts = []
    for name, mu in {"document 431": 1.9, "document 77": 0.8, "a random document": 0.1}.items():
        interval = (mu - 0.2, mu + 0.25)
        parts.append(
            rep.TradeOff(name, alpha, norm.cdf(norm.ppf(1 - alpha) - mu), Estimate(mu, interval, 512, SEEDS, "models"))
        )
    return parts


def trials() -> Trials:
    rows = [
        (arm, seed, f"{i}->{t}", "log_odds", m - 5 + 0.01 * i / 1797)
        for arm, m in {"clean": 0.0, **ARMS}.items()
        for seed in SEEDS
        for i, t in probes()[:4]
    ]
    return Trials.from_rows(rows, "last_epoch")


def token_diffs() -> list[rep.TokenDiff]:
    before = ("Once", " upon", " a", " time", ",", " there", " was", " a", " happy", " dog", " named", " Max", ".")
    after = ("Once", " upon", " a", " time", ",", " there", " was", " a", " quiet", " cat", " named", " Max", ".")
    gains = np.full(13, np.nan)
    gains[8:10] = 0.021, 0.113
    hostile = rep.TokenDiff(
        8, (HOSTILE, " stays"), ("<img src=x onerror=window.hit=1>", " stays"), np.array([0.5, np.nan])
    )
    return [rep.TokenDiff(7, before, after, gains, "perplexity 6.1 → 7.0"), hostile]


def provenance() -> rep.Provenance:
    config = (
        "data: digits\nmodel: tiny_resnet\nrecipe:\n  epochs: 10\n  batch_size: 16\n  lr: 0.01\nk: 28\nradius: 16\n"
    )
    environment = {"python": "3.11.7", "threads": 1, "packages": {"torch": "2.13.0+cpu", "numpy": "2.3.1"}}
    return rep.Provenance(config, environment, {"retraining": [1, 2, 3], "base model": [0]}, {"data": "9f2c" * 16})


def everything() -> list[object]:
    """One part of every kind."""
    return [
        rep.Summary(
            "If 28 of the 1,437 training documents of digits (1.9 %) are changed by at most 16/255 a pixel, does a "
            "tiny_resnet that is retrained on them prefer a chosen class for one test document?",
            (
                "Retrained over the last epoch, the edit moved the log-odds of the target by +0.86 [0.71, 1.00] "
                "against clean (n = 20 probes, 3 seeds, p = 2e−06).",
                "Noise of the same size moved it by +0.03 [−0.02, 0.08], the same edit of random documents by +0.31.",
                "The target became the top class in 3 of 57 cases that did not start so, at a test accuracy of 96.8 % "
                "(clean: 96.9 %).",
            ),
        ),
        rep.Caveat("too_few_seeds", "3 retraining seeds: intervals rest mostly on the 20 probes."),
        rep.Caveat("saturated_probabilities", "17 of 20 probes start below p = 0.001; read the log-odds."),
        regime(),
        regime("scratch", 0.6),
        transfer(),
        *probe_views(),
        edit_view(),
        edit_view(28, 1, "Probe 88, 0 → 2"),
        *token_diffs(),
        predicted(),
        scores(),
        detection(),
        *suspicions(),
        documents(),
        *trade_offs(),
        rep.Metric("LDS", Estimate(0.34, (0.29, 0.39), 20, SEEDS, "probes", "bootstrap")),
        trials(),
        provenance(),
    ]


def results() -> dict[str, Any]:
    """What results.json holds."""
    arms = {
        arm: {
            "mean_delta_p": 0.05 * m, "median_delta_p": 0.02 * m, "ci95": [0.05 * m - 0.02, 0.05 * m + 0.02],
            "raised": 0.9, "flips": 3, "n": 20, "n_nontrivial": 57, "log_odds": m, "test_accuracy": 0.969,
        }
        for arm, m in {"clean": 0.0, **ARMS}.items()
    }  # fmt: skip
    effects = [
        {"arm": arm, "control": "clean", "mean": m, "ci95": [m - 0.1, m + 0.1], "p": 1e-4, "n_probes": 20, "n_seeds": 3}
        for arm, m in ARMS.items()
    ]
    points = {arm: {f"{i}->{t}": m + 0.001 * i for i, t in probes()} for arm, m in ARMS.items()}
    return {
        "schema": 1, "dataset": "digits", "model": "tiny_resnet", "n_train": 1437, "n_edited": 28, "norm": "linf",
        "radius": 16, "strategy": "post_edit", "base_seed": 0, "seeds": [1, 2, 3], "probes": [i for i, _ in probes()],
        "regimes": {"last_epoch": {"unit": "log-odds", "arms": arms, "effects": effects, "per_probe": points}},
        "edit": {"linf_255_max": 16, "l2_mean": 90.0, "ssim_mean": 0.93}, "predicted": {}, "scores": {},
        "caveats": ["too few seeds: 3"], "environment": {"python": "3.11.7", "packages": {"torch": "2.13.0"}},
    }  # fmt: skip
