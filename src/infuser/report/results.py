"""From results.json to parts of a report. Numbers are put into sentences and records as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infuser.html import number
from infuser.report.material import ArmStats, Caveat, ComparedRun, Provenance, Regime, Summary
from infuser.report.wording import interval_text
from infuser.types import Effect, Estimate

_WORDS = {"last_epoch": "over the last epoch", "half": "from half-way", "scratch": "from scratch"}


def from_results(
    results: Mapping[str, Any], *, config: str = "", hashes: Mapping[str, str] | None = None
) -> tuple[object, ...]:
    """Return summary, caveats, regimes and provenance of what results.json holds, ready for `report`.

    Args:
        results: of one run, schema 1.
        config: the resolved configuration as YAML.
        hashes: name -> hash of manifests and checkpoints.
    """
    regimes = tuple(_regime(name, block, results["seeds"]) for name, block in results["regimes"].items())
    caveats = tuple(_caveat(c) for c in results.get("caveats", ()))
    seeds = {"retraining": list(results["seeds"])}
    if "base_seed" in results:
        seeds["base model"] = [results["base_seed"]]
    return (
        Summary(_asked(results), _found(results, regimes)),
        *caveats,
        *regimes,
        Provenance(config, dict(results.get("environment", {})), seeds, dict(hashes or {})),
    )


def compare_results(runs: Mapping[str, Mapping[str, Any]]) -> tuple[object, ...]:
    """Return parts that compare several runs: name -> its results."""
    compared = []
    for name, results in runs.items():
        settings = {
            "data": results["dataset"], "model": results["model"], "documents": results["n_train"],
            "edited": results["n_edited"], "radius, 1/255": results["radius"], "strategy": results["strategy"],
            "probes": len(results["probes"]), "seeds": len(results["seeds"]),
        }  # fmt: skip
        main = {}
        for regime, block in results["regimes"].items():
            effect = _main(_regime(regime, block, results["seeds"]))
            if effect is not None:
                main[regime] = effect
        compared.append(ComparedRun(name, settings, main))
    asked = f"How do {len(compared)} runs compare?"
    found = tuple(
        f"{run.name}: {_sentence(effect, regime)}"
        for run in compared
        for regime, effect in list(run.effects.items())[:1]
    )
    return (Summary(asked, found), *compared)


def _regime(name: str, block: Mapping[str, Any], seeds: Sequence[int]) -> Regime:
    measure = str(block.get("unit", "log_odds"))
    points = block.get("per_probe", {})
    effects = []
    for e in block["effects"]:
        # The points are differences from clean, so they belong to the effects against it.
        own = points.get(e["arm"], {}) if e["control"] == "clean" else {}
        effects.append(
            _effect(e["arm"], e["control"], measure, e["mean"], e["ci95"], e["n_probes"], seeds, e["p"], own)
        )
    for arm, row in block["arms"].items():
        if arm != "clean":
            effects.append(
                _effect(arm, "clean", "probability", row["mean_delta_p"], row["ci95"], row["n"], seeds, None, {})
            )
    return Regime(name, tuple(effects), tuple(_arm(arm, row) for arm, row in block["arms"].items()))


def _effect(
    arm: str,
    control: str,
    measure: str,
    mean: float,
    interval: Sequence[float] | None,
    n: int,
    seeds: Sequence[int],
    p: float | None,
    points: Mapping[str, float],
) -> Effect:
    estimate = Estimate(mean, None if interval is None else (interval[0], interval[1]), n, tuple(seeds))
    return Effect(arm, control, measure, estimate, p, dict(points))


def _arm(arm: str, row: Mapping[str, Any]) -> ArmStats:
    clean = arm == "clean"
    cells: dict[str, float | str | None] = {
        "Δ log-odds, mean": None if clean else row["log_odds"],
        "Δ p, mean": None if clean else row["mean_delta_p"],
        "Δ p, median": None if clean else row["median_delta_p"],
        "probes raised": None if clean else f"{100 * row['raised']:.0f}\N{NO-BREAK SPACE}%",
        "flips": f"{row['flips']} of {row['n_nontrivial']}",
        "test accuracy": f"{100 * row['test_accuracy']:.1f}\N{NO-BREAK SPACE}%",
        "n": row["n"],
    }
    return ArmStats(arm, cells)


def _caveat(caveat: object) -> Caveat:
    if isinstance(caveat, Mapping):
        return Caveat(str(caveat.get("code", "")), str(caveat.get("text", "")))
    return Caveat("", str(caveat))


def _main(regime: Regime) -> Effect | None:
    chosen = [e for e in regime.effects if e.arm == "edit" and e.control == regime.control]
    return chosen[0] if chosen else None


def _asked(results: Mapping[str, Any]) -> str:
    share = 100 * results["n_edited"] / results["n_train"]
    norm = str(results.get("norm", "linf")).lower()
    ball = {"linf": "by at most {}/255 a pixel", "l2": "within an L2 ball of {}/255"}.get(norm, "within {}/255")
    within = ball.format(format(results["radius"], "g"))
    return (
        f"If {results['n_edited']:,} of the {results['n_train']:,} training documents of {results['dataset']} "
        f"({share:.2g}\N{NO-BREAK SPACE}%) are changed {within}, does a {results['model']} that is retrained "
        f"on them prefer a chosen class for one test document? Asked for {len(results['probes'])} probes."
    )


def _found(results: Mapping[str, Any], regimes: Sequence[Regime]) -> tuple[str, ...]:
    said = []
    for regime in regimes:
        effect = _main(regime)
        if effect is None:
            continue
        said.append(_sentence(effect, regime.name))
        if len(said) == 1:
            others = [
                e for e in regime.effects if e.control == "clean" and e.measure == effect.measure and e.arm != "edit"
            ]
            controls = [f"{e.arm.replace('_', ' ')} {interval_text(e.estimate)}" for e in others]
            if controls:
                said.append(f"On the same scale: {'; '.join(controls)}.")
            said += _flips(results["regimes"][regime.name]["arms"])
    return tuple(said)


def _sentence(effect: Effect, regime: str) -> str:
    p = "" if effect.p is None else f", p = {number(effect.p, 2)}"
    size = f"n = {effect.estimate.n} {effect.estimate.unit_of_n}, {len(effect.estimate.seeds)} seeds"
    model, _, start = regime.rpartition(":")
    how = f"Retrained {_WORDS.get(start, start)}" + (f" ({model})" if model else "")
    scale = effect.measure.replace("_", "-")
    moved = f"the edit moved the {scale} of the target by {interval_text(effect.estimate)}"
    return f"{how}, {moved} against {effect.control} ({size}{p})."


def _flips(arms: Mapping[str, Any]) -> list[str]:
    if not {"edit", "clean"} <= arms.keys():
        return []
    edit, clean = arms["edit"], arms["clean"]
    return [
        f"It made the target the top class in {edit['flips']} of {edit['n_nontrivial']} cases that did not start there "
        f"(clean: {clean['flips']}), at a test accuracy of {100 * edit['test_accuracy']:.1f}\N{NO-BREAK SPACE}% "
        f"(clean: {100 * clean['test_accuracy']:.1f}\N{NO-BREAK SPACE}%)."
    ]
