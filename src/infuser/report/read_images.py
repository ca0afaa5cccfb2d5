"""From results.json of a study of images to what a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infuser.report.material import ArmStats, Regime, Summary
from infuser.report.reading import (
    PERCENT,
    Reading,
    Results,
    controls,
    effect,
    main_effect,
    predicted,
    sentence,
    share_of,
)

_BALLS = {"linf": "by at most {}/255 a pixel", "l2": "within an L2 ball of {}/255"}


def read(results: Results) -> Reading:
    """Return what the results of a study of images say."""
    regimes = tuple(_regime(name, block, results["seeds"]) for name, block in results["regimes"].items())
    unit = next((str(block.get("unit", "log_odds")) for block in results["regimes"].values()), "")
    return Reading(
        Summary(_asked(results), _found(results, regimes)), _settings(results), regimes, (), predicted(results, unit)
    )


def _settings(results: Results) -> dict[str, float | str | None]:
    return {
        "data": results["dataset"], "model": results["model"], "documents": results["n_train"],
        "edited": results["n_edited"], "limit of an edit": f"{results['norm']} {results['radius']:g}/255",
        "strategy": results["strategy"], "units": f"{len(results['probes'])} probes", "seeds": len(results["seeds"]),
        "exact derivative": results.get("unrolled"),
    }  # fmt: skip


def _regime(name: str, block: Mapping[str, Any], seeds: Sequence[int]) -> Regime:
    measure = str(block.get("unit", "log_odds"))
    points = block.get("per_probe", {})
    # The points are differences from clean, so they belong to the effects against it.
    effects = [
        effect(e["arm"], e["control"], measure, e, seeds, points.get(e["arm"]) if e["control"] == "clean" else None)
        for e in block["effects"]
    ]
    for arm, row in block["arms"].items():
        if arm != "clean":
            moved = {"mean": row["mean_delta_p"], "ci95": row["ci95"], "n_probes": row["n"]}
            effects.append(effect(arm, "clean", "probability", moved, seeds))
    return Regime(name, tuple(effects), tuple(_arm(arm, row) for arm, row in block["arms"].items()))


def _arm(arm: str, row: Mapping[str, Any]) -> ArmStats:
    clean = arm == "clean"
    cells: dict[str, float | str | None] = {
        "Δ log-odds, mean": None if clean else row["log_odds"],
        "Δ p, mean": None if clean else row["mean_delta_p"],
        "Δ p, median": None if clean else row["median_delta_p"],
        "probes raised": None if clean else f"{100 * row['raised']:.0f}{PERCENT}",
        "flips": f"{row['flips']} of {row['n_nontrivial']}",
        "test accuracy": f"{100 * row['test_accuracy']:.1f}{PERCENT}",
        "n": row["n"],
    }
    return ArmStats(arm, cells)


def _asked(results: Results) -> str:
    ball = _BALLS.get(str(results.get("norm", "linf")).lower(), "within {}/255").format(f"{results['radius']:g}")
    return (
        f"If {results['n_edited']:,} of the {results['n_train']:,} training documents of {results['dataset']} "
        f"({share_of(results['n_edited'], results['n_train'])}) are changed {ball}{_along(results)}, "
        f"does a {results['model']} that is retrained on them prefer a chosen class for one test document? "
        f"Asked for {len(results['probes'])} probes."
    )


def _along(results: Results) -> str:
    """Return what an edit ascends where it is not the direction of the influence."""
    starts = {"last_epoch": "the last epoch", "half": "half of it", "scratch": "all of it"}
    start = results.get("unrolled")
    return f" along the exact derivative of training through {starts[start]}" if start else ""


def _found(results: Results, regimes: Sequence[Regime]) -> tuple[str, ...]:
    said: list[str] = []
    for regime in regimes:
        main = main_effect(regime)
        if main is None:
            continue
        said.append(sentence(main, regime.name))
        if len(said) == 1:
            said += controls(regime, main)
            said += _flips(results["regimes"][regime.name]["arms"])
    return tuple(said)


def _flips(arms: Mapping[str, Any]) -> list[str]:
    if not {"edit", "clean"} <= arms.keys():
        return []
    edit, clean = arms["edit"], arms["clean"]
    return [
        f"It made the target the top class in {edit['flips']} of {edit['n_nontrivial']} cases that did not start there "
        f"(clean: {clean['flips']}), at a test accuracy of {100 * edit['test_accuracy']:.1f}{PERCENT} "
        f"(clean: {100 * clean['test_accuracy']:.1f}{PERCENT})."
    ]
