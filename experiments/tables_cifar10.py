"""Tables of the published claims on CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tables_format import (
    Row,
    clipped_ends,
    ends_of,
    p_value,
    results,
    row_of,
    share,
    shown,
    table,
    two_places,
    wrapped,
)

from infuser.evaluation.stats import holm, mean_estimate
from infuser.evaluation.truth import agreement

STARTS = {"last_epoch": "last epoch", "half": "half of the epochs", "scratch": "from scratch"}
PUBLISHED = ("r8", "r12", "original", "transfer", "horizon")  # cases of CIFAR-10 that have results
VIEWS = ("checkpoints", "seeds", "architectures")  # arms whose directions are averaged
MODELS = {"tiny_resnet": "TinyResNet", "simple_cnn": "SimpleCNN"}


def published(name: str) -> str:
    """Return what a CIFAR-10 file says of each arm against clean, and of arms against each other.

    Cases with arms to compare have tables of their own, since nothing is compared across cases; others share one.
    """
    found = _cases(name)
    order = sorted(found, key=lambda case: (found[case]["model"], found[case]["radius"], found[case]["seeds"]))
    told = {case: f"{case}: {_told(found[case])}" if len(found) > 1 else _told(found[case]) for case in order}
    apart = any(len(found[case]["arms"]) > 1 for case in order)
    if apart or len(order) == 1:
        return "\n".join(f"{wrapped(told[case])}\n{_tables(_arms(found[case]), _pairs(found[case]))}" for case in order)
    arms = [(f"{case}, {row[0]}", *row[1:]) for case in order for row in _arms(found[case])]
    return f"{wrapped(*told.values())}\n{_tables(arms, [])}"


def _told(value: Any) -> str:
    order = "the order of the run" if value["seeds"] == [value["base_seed"]] else "another order (one seed)"
    return (
        f"{MODELS[value['model']]}, {value['n_edited']} of {value['n_train']:,} documents edited within"
        f" {value['radius']:g}/255 ({value['strategy']}), {len(value['probes'])} probes, retrained in {order}."
    )


def _tables(arms: list[tuple[str, ...]], pairs: list[tuple[str, ...]]) -> str:
    head = ("against clean", "log-odds", "against placebos, above all of them", "probability", "median", "raised")
    tables = [table((*head, "flips", "accuracy, points", "SSIM"), arms)]
    if pairs:
        tables.append(table(("against another arm", "log-odds", "p, adjusted for this table"), pairs))
    return "\n".join(tables)


def _arms(value: Any) -> list[tuple[str, ...]]:
    rows = []
    for regime, where, block in _regimes(value):
        against = {effect["arm"]: effect for effect in block["effects"] if effect["control"] == "clean"}
        edited = [arm for arm in block["arms"] if arm != "clean"]
        rows += [(f"{where}: {arm}", shown(against[arm]), *_arm(value, regime, arm)) for arm in edited]
    return rows


def _pairs(value: Any) -> list[tuple[str, ...]]:
    found = [(where, e) for _, where, block in _regimes(value) for e in block["effects"] if e["control"] != "clean"]
    adjusted = holm([effect["p"] for _, effect in found])
    return [(*_pair(where, effect), p_value(p)) for (where, effect), p in zip(found, adjusted, strict=True)]


def _pair(where: str, effect: Row) -> tuple[str, str]:
    arm, control = effect["arm"], effect["control"]
    if control in VIEWS:  # the edit is what they are compared with
        return f"{where}: {control} - {arm}", shown(_turned(effect))
    return f"{where}: {arm} - {control}", shown(effect)


def _regimes(value: Any) -> Iterator[tuple[str, str, Any]]:
    for regime, block in value["regimes"].items():
        victim, _, start = regime.rpartition(":")
        yield regime, f"{MODELS[victim or value['model']]}, {STARTS[start]}", block


def _arm(value: Any, regime: str, arm: str) -> tuple[str, ...]:
    row, clean = (value["regimes"][regime]["arms"][name] for name in (arm, "clean"))
    beside = value["placebo"][regime].get(arm)
    return (
        "–" if beside is None else f"{shown(beside)}, {beside['above_all']} of {beside['n_probes']}",
        f"{row['mean_delta_p']:+.3f}{ends_of(row['ci95'])}",
        f"{row['median_delta_p']:+.3f}",
        f"{100 * row['raised']:.0f} %",
        f"{row['flips']} of {row['n_nontrivial']}{clipped_ends(row['flips_ci95'])}",
        f"{100 * (row['test_accuracy'] - clean['test_accuracy']):+.1f}",
        two_places(value["arms"][arm]["ssim_mean"]),
    )


def foretold() -> str:
    """Return how predicted and measured effects agree on CIFAR-10, and what the clean log-odds alone foretell."""
    body = []
    for case, value in (pair for file in PUBLISHED for pair in _cases(f"cifar10_{file}").items()):
        for regime, beside in value["foretold"].items():
            block = value["predicted"][regime]
            ranks = (beside["rank_of_clean_log_odds"], beside["rank_of_prediction_given_clean"])
            pairs = np.array([(predicted, block["measured"][name]) for name, predicted in block["per_probe"].items()])
            line = agreement(*pairs.T).slope  # anew: older files hold intervals that trust in equal errors
            slope = f"{line.value:.4f}{ends_of(line.interval, 4)}"
            rank = share(row_of(block["rank_correlation"]))
            body.append((f"{case}, {regime}", str(beside["n"]), rank, *map(two_places, ranks), slope))
    head = (
        "",
        "probes",
        "rank with prediction",
        "with clean log-odds",
        "with prediction, clean log-odds given",
        "slope",
    )
    return table(head, body)


def headline() -> str:
    """Return what storable edits do on CIFAR-10, in a few sentences."""
    value, second = (results("cifar10_r8")[case] for case in ("r8", "r8-rivals"))
    block = value["regimes"]["last_epoch"]
    effects, again = (
        {(e["arm"], e["control"]): e for e in each["regimes"]["last_epoch"]["effects"]} for each in (value, second)
    )
    edit, beside = block["arms"]["edit"], value["placebo"]["last_epoch"]["edit"]
    flips, cases, n = edit["flips"], edit["n_nontrivial"], beside["n_probes"]
    return wrapped(
        f"On CIFAR-10 (TinyResNet, {value['n_edited']} of {value['n_train']:,} images within {value['radius']:g}/255,",
        "the last epoch replayed in an order that no edit was made for) the log-odds of a wrong class move by",
        f"{shown(effects['edit', 'clean'])}, random noise of the same size moves them by",
        f"{shown(effects['noise', 'clean'])}, and {beside['above_all']} of {n} probes lie above every model that was",
        f"made with noise or an edit for another one. {flips} of {cases} wrong classes become the prediction.",
        f"On a second base model the log-odds move by {shown(again['edit', 'clean'])}, and by gradient matching in the",
        f"same ball by {shown(again['gradient_matching', 'clean'])}.",
    )


def beside_published() -> str:
    """Return the effects of storable edits minus those of the published setting, on the same probes, in log-odds.

    Of cases of one machine, that is of one base model.
    """

    def per_probe(value: Any) -> Mapping[str, float]:
        found: Mapping[str, float] = value["regimes"]["last_epoch"]["per_probe"]["edit"]
        return found

    body = []
    for theirs, value in _cases("cifar10_original").items():
        for ours, other in (pair for file in ("r8", "r12") for pair in _cases(f"cifar10_{file}").items()):
            if other.get("environment") != value.get("environment"):
                continue
            gains = [per_probe(other)[probe] - effect for probe, effect in per_probe(value).items()]
            gained = mean_estimate(np.array(gains))
            row = {"mean": gained.value, "ci95": gained.interval}
            body.append((f"{ours} - {theirs}", str(gained.n), shown(row)))
    return table(("", "probes", "log-odds"), body)


def machines() -> str:
    """Return how far clean models of one recipe and seed are apart on two machines."""
    ours, theirs = (results("cifar10_horizon")[case]["foretold"] for case in ("horizon", "horizon-views"))
    pairs = [(ours[regime]["clean_log_odds"], block["clean_log_odds"]) for regime, block in theirs.items()]
    apart = np.array([[abs(one[probe] - other[probe]) for probe in other] for one, other in pairs])
    return wrapped(
        f"On CIFAR-10, ten epochs under one recipe and seed on two machines gave models whose log-odds differ by"
        f" {apart.mean():.1f} in the mean and up to {apart.max():.1f} ({apart.shape[1]} probes, {len(apart)} ways to",
        "retrain two architectures).",
    )


def _cases(name: str) -> dict[str, Any]:
    return {case: value for case, value in results(name).items() if case != "environment"}


def _turned(effect: Row) -> Row:
    ends = effect["ci95"]
    return {"mean": -effect["mean"], "ci95": None if ends is None else (-ends[1], -ends[0])}
