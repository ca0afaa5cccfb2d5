"""From results.json of a study of language models to what a report shows: pairs are the unit, effects in nats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infuser.html import number
from infuser.report.material import ArmStats, Regime, Sheet, Summary
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
from infuser.report.wording import arm_name, interval_text, measure_name

PRIMARY = "contrast"
_DRAWN = (PRIMARY, "log_p_target", "log_p_probe")  # the others are columns of a table
_PAIRS = "pairs"


def read(results: Results) -> Reading:
    """Return what the results of a study of language models say."""
    regimes = tuple(_regime(name, block, results) for name, block in results["regimes"].items())
    parts = (*(_cases(name, block, results) for name, block in results["regimes"].items()),)
    said = Summary(_asked(results), tuple(_found(results, regimes)))
    return Reading(said, _settings(results), regimes, (), (*parts, *predicted(results, "nats", _PAIRS)))


def _settings(results: Results) -> dict[str, float | str | None]:
    limit = f"{100 * results['share']:g} % of tokens ({results['mode']})"
    return {
        "data": results["dataset"], "model": results["model"], "documents": results["n_train"],
        "edited": results["n_edited"], "limit of an edit": limit,
        "strategy": results["strategy"], "units": f"{len(results['probes'])} pairs", "seeds": len(results["seeds"]),
    }  # fmt: skip


def _regime(name: str, block: Mapping[str, Any], results: Results) -> Regime:
    seeds, arms = results["seeds"], sorted(block["arms"], key=lambda arm: arm != "edit")
    effects = [
        effect(e["arm"], e["control"], PRIMARY, e, seeds, e["per_probe"], _PAIRS)
        for e in sorted(block["effects"], key=lambda e: e["arm"] != "edit")
    ]
    effects += [
        effect(arm, "clean", measure, found, seeds, found["per_probe"], _PAIRS)
        for measure in _DRAWN[1:]
        for arm in arms
        if (found := block["arms"][arm].get(measure)) is not None
    ]
    return Regime(name, tuple(effects), tuple(_arm(arm, block["arms"][arm], results) for arm in arms))


def _arm(arm: str, measures: Mapping[str, Any], results: Results) -> ArmStats:
    cells: dict[str, float | str | None] = {
        f"Δ {_short(name)}": interval_text(effect(arm, "clean", name, found, ()).estimate)
        for name, found in measures.items()
        if name not in _DRAWN
    }
    tokens = [case.get("tokens_by_arm", {}).get(arm) for case in results["cases"].values()]
    known = [t for t in tokens if t is not None]
    cells["tokens changed, mean"] = f"{sum(known) / len(known):.1f}" if known else None
    targeting = _targeting(arm, results)
    if targeting is not None:
        cells["stands out by, SD"] = targeting
    return ArmStats(arm, cells)


def _cases(name: str, block: Mapping[str, Any], results: Results) -> Sheet:
    change = block["arms"].get("edit", {}).get(PRIMARY, {}).get("per_probe", {})
    rows = {}
    for case, facts in results["cases"].items():
        cells: dict[str, float | str | None] = {"measured, nats": change.get(case), "predicted": facts.get("predicted")}
        if "targeting" in facts:
            cells["stands out, SD"] = facts["targeting"].get("edit")
        if "gcd" in facts:
            cells["gcd"] = facts["gcd"]
        cells |= {
            "coherence": facts.get("coherence"),
            "tokens changed": facts.get("tokens_mean"),
            "perplexity ratio": facts.get("perplexity_ratio"),
        }
        rows[case] = cells
    note = (
        "Measured and predicted: change of the contrast by the edit. Coherence: mean cosine of the gradients of the "
        "inputs that the edit was made for; 1 where one change of the weights serves them all. Perplexity: of the "
        "edited documents under the clean model, over that before."
    )
    return Sheet(f"Each pair, {name.replace('_', ' ')}", rows, "pair", note)


def _asked(results: Results) -> str:
    wanted = results.get("question", "prefer what it would not have said")
    share = f"{100 * results['share']:g}{PERCENT}"
    return (
        f"If {results['n_edited']:,} of the {results['n_train']:,} training documents of {results['dataset']} "
        f"({share_of(results['n_edited'], results['n_train'])}) have at most {share} "
        f"of their tokens changed, does a {results['model']} that is retrained on them {wanted}? "
        f"Asked for {len(results['probes'])} pairs, on inputs that the edits were not made for."
    )


def _found(results: Results, regimes: Sequence[Regime]) -> Iterator[str]:
    for regime in regimes:
        main = main_effect(regime)
        if main is None:
            continue
        yield sentence(main, regime.name)
        if regime is regimes[0]:
            yield from controls(regime, main)
            yield from _apart(regime)
            yield from _specific(results, results["regimes"][regime.name])


def _apart(regime: Regime) -> Iterator[str]:
    """Yield which side of the contrast moved."""
    own = {e.measure: e for e in regime.effects if (e.arm, e.control) == ("edit", "clean")}
    if own.keys() >= {"log_p_target", "log_p_probe"}:
        target, probe = (interval_text(own[name].estimate) for name in ("log_p_target", "log_p_probe"))
        yield f"Taken apart, log p(target) moved by {target} and log p(probe) by {probe} nats."


def _specific(results: Results, block: Mapping[str, Any]) -> Iterator[str]:
    """Yield what else moved, and what would have moved without any edit."""
    drift = block.get("clean_drift", {}).get(PRIMARY)
    if drift is not None:
        yield (
            f"Another order of the same clean documents alone moves it by {number(drift, 2)} nats "
            "(standard deviation over orders)."
        )
    targeting = {arm: _targeting(arm, results) for arm in ("edit", "clean_rewrite")}
    if targeting["edit"] is not None:
        rewrite = targeting["clean_rewrite"]
        beside = "" if rewrite is None else f" (clean rewrite: {number(rewrite, 2, signed=True)})"
        yield (
            f"Among all answers of its kind the target's rise stands out by {number(targeting['edit'], 2)} "
            f"standard deviations{beside}."
        )
    elsewhere = {m.removeprefix("elsewhere_"): e for m, e in block["arms"].get("edit", {}).items() if "elsewhere_" in m}
    if elsewhere:
        said = [
            f"{arm_name(w)} {interval_text(effect('edit', 'clean', w, e, ()).estimate)}" for w, e in elsewhere.items()
        ]
        yield f"In the places of other words, where nothing should move: {'; '.join(said)} nats."


def _targeting(arm: str, results: Results) -> float | None:
    found = [case["targeting"][arm] for case in results["cases"].values() if arm in case.get("targeting", {})]
    return sum(found) / len(found) if found else None


def _short(measure: str) -> str:
    return measure_name(measure).removeprefix("change of ").partition(", nats")[0].replace("_", " ")
