"""Numbers of README and docs, written from experiments/results into marked places, so that nobody types them.

A place begins with `<!-- numbers: NAME -->` and ends with `<!-- end of numbers -->`. `python experiments/tables.py`
renews all of them; a test fails where a page and the results differ.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infuser.evaluation.stats import mean_estimate

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/cifar10.md",
    "docs/detection.md",
    "docs/f_ine.md",
    "docs/performance.md",
    *(f"docs/guides/{name}.md" for name in ("attribute", "detect", "language")),
)
_PLACE = re.compile(r"(<!-- numbers: (?P<name>[\w-]+) -->\n)(?P<text>.*?)(<!-- end of numbers -->)", re.DOTALL)
Row = Mapping[str, Any]

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
ENOUGH_PAIRS = 3  # of words, for an interval over them
WATCHED = ("digits", "mnist", "cifar10", "stories")  # data of the detection benchmark
ATTACKS = {
    "infusion_top": "Infusion, top",
    "infusion_post_edit": "Infusion, post_edit",
    "infusion_adaptive": "Infusion, adaptive",
    "gradient_matching": "gradient matching",
    "insert_k": "insert_k",
    "swap": "word swapped",
    "label_flips": "wrong labels",
    "trigger": "trigger",
}
REMOVED = (
    "clean",
    "perfect",
    "random",
    "loss",
    "fused_blind",
    "fused_told",
)  # arms of removal, the last four at 1x, 3x
STARTS = {"last_epoch": "last epoch", "half": "half of the epochs", "scratch": "from scratch"}
PUBLISHED = ("r8", "r12", "original", "transfer")  # cases of CIFAR-10 that have results
VIEWS = ("checkpoints", "seeds", "architectures")  # what directions are averaged over
MODELS = {"tiny_resnet": "TinyResNet", "simple_cnn": "SimpleCNN"}
AUDITED = ("fused_blind", "deep_knn", "isolation", "loss", "clustering", "self_influence", "f_ine_self")


def results(name: str) -> Any:
    """Return what experiments/results holds under a name."""
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def demo() -> str:
    """Return what the demo finds, in a sentence."""
    value = results("digits")
    block = value["regimes"]["last_epoch"]
    effects = {(e["arm"], e["control"]): e for e in block["effects"]}
    edit, beyond, insert = (
        effects[pair] for pair in (("edit", "clean"), ("edit", "random_docs"), ("insert_1", "clean"))
    )
    flips, cases = block["arms"]["edit"]["flips"], block["arms"]["edit"]["n_nontrivial"]
    return _wrapped(
        f"{value['n_edited']} of {value['n_train']:,} digits, each changed by at most {value['radius']:g}/255 a pixel,",
        f"move the log-odds of a wrong label by {_effect(edit)} against clean retraining and by {_effect(beyond)}",
        f"against the same edit of random documents ({edit['n_probes']} probes, {edit['n_seeds']} data orders, one",
        f"base model). {flips} of {cases} predictions flip, and one inserted copy of the probe moves the log-odds by",
        f"{insert['mean']:+.2f}.",
    )


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
    return _table(head, body)


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
    return _table(("", *(FIDELITY_DATA[kind] for kind in known)), body)


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
    return _table(("", *(f"{noise} % wrong, {epochs} epochs" for noise, epochs in cells)), body)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _two(values[0])
    return f"{_two(sum(values) / len(values))} ({_two(min(values))} to {_two(max(values))})"


def _told(row: Row | None) -> str:
    if row is None:
        return "–"
    ends = row["interval"]
    return _three_places(row["value"]) + (f" [{_three_places(ends[0])}, {_three_places(ends[1])}]" if ends else "")


def audit() -> str:
    """Return recall of planted wrong labels by detector and depth."""
    value = results("detection")["audit-mnist"]
    rows = {(r["detector"], r["depth"]): r for r in value["recall"]}
    depths = (0.05, 0.1, 0.2)
    known = [name for name in AUDITED if (name, 0.1) in rows]
    head = ("detector", *(f"first {100 * depth:g} % of the list" for depth in depths))
    body = [(f"`{name}`", *(_percent(rows[name, depth]) for depth in depths)) for name in known]
    first = rows[known[0], 0.1]
    rests_on = f"n = {first['n']} {first['unit']}, {first['interval'].split()[0]}"
    caption = _wrapped(f"{value['plan']}: recall of the {first['planted']:,}; {rests_on}.")
    return f"{caption}\n{_table(head, body)}"


def detection(name: str) -> str:
    """Return recall at the edited number by detector and attack, and its lift over the same ids in clean data."""
    value = results("detection")[name]
    rows = {(r["detector"], r["attack"]): r for r in value["rows"] if r["metric"] == "recall_at_k"}
    known = [attack for attack in ATTACKS if any(key[1] == attack for key in rows)]
    told = {detector: row["told"] != "blind" for (detector, _), row in rows.items()}
    names = sorted(told, key=lambda d: (told[d], -max(rows[d, attack]["after"]["value"] for attack in known)))
    head = ("", *(f"{ATTACKS[attack]}, {rows[names[0], attack]['k']:,}" for attack in known))
    body = [
        (f"`{detector}`{', told' * told[detector]}", *(_lifted(rows[detector, attack]) for attack in known))
        for detector in names
    ]
    seeds = len(value["seeds"])
    counts = sorted({rows[names[0], attack]["n"] for attack in known})
    n = f"{seeds} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    own = "an order and a pair of words" if name == "stories" else "a base model and a probe"
    caption = _wrapped(
        f"{value['n_train']:,} documents, {n}, each with {own} of its own; the head gives how many",
        "are edited. Recall of them among as many (t-interval, none where all seeds gave the same), in brackets the",
        "lift.",
    )
    return f"{caption}\n{_table(head, body)}"


def over_loss() -> str:
    """Return what fusing blind detectors gains over the training loss alone, by data set and attack."""
    body = []
    for name, value in results("detection").items():
        rows = {(r["attack"], r["metric"]): r for r in value.get("rows", ()) if r["detector"] == "fused_blind"}
        for attack, shown in ATTACKS.items():
            if (attack, "roc_auc") in rows:
                told = [rows[attack, metric]["over_loss"] for metric in ("recall_at_k", "average_precision", "roc_auc")]
                body.append((f"{name}, {shown}", str(rows[attack, "roc_auc"]["n"]), *(_signed(one, 3) for one in told)))
    return _table(("", "seeds", "recall", "average precision", "ROC-AUC"), body)


def removal(name: str) -> str:
    """Return what the behaviour changed by when suspects were removed and the model was trained from scratch."""
    value = results("detection")[name]
    rows = {(r["arm"], r["attack"]): r for r in value["removal"] if r["measure"] != value["intact"]}
    intact: dict[str, list[float]] = {}
    for row in value["removal"]:
        if row["measure"] == value["intact"]:
            intact.setdefault(row["arm"], []).append(row["value"])
    known = [attack for attack in ATTACKS if any(key[1] == attack for key in rows)]
    arms = [arm for name in REMOVED for arm in (name, f"{name} 1x", f"{name} 3x") if (arm, known[0]) in rows]
    # A behaviour that moves by less than two nats under every arm needs a place more.
    places = {attack: 1 if any(abs(rows[arm, attack]["value"]) >= 2 for arm in arms) else 2 for attack in known}
    body = [
        (
            arm,
            *(_signed(rows[arm, attack], places[attack]) for attack in known),
            f"{sum(intact[arm]) / len(intact[arm]):+.3f}",
        )
        for arm in arms
    ]
    return _table(("", *(ATTACKS[attack] for attack in known), f"{value['intact']}, mean over attacks"), body)


def _lifted(row: Row) -> str:
    after = row["after"]
    # Seeds that all gave the same say nothing about their spread.
    ends = None if len(set(after["per_seed"])) == 1 else after["ci95"]
    return f"{_two(after['value'])}{_clipped(ends)} ({row['lift']['value']:+.2f})"


def _clipped(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f" [{_two(max(0.0, ends[0]))}, {_two(min(1.0, ends[1]))}]"


def _signed(row: Row, places: int) -> str:
    return f"{row['value']:+.{places}f}{_ends(row['ci95'], places)}"


def published(name: str) -> str:
    """Return what a CIFAR-10 file says of each arm against clean, and of arms against each other."""
    found = _cases(name)
    told, arms, pairs = [], [], []
    for case, value in sorted(found.items(), key=lambda item: (item[1]["model"], item[1]["radius"], item[1]["seeds"])):
        order = "the order of the run" if value["seeds"] == [value["base_seed"]] else "another order (one seed)"
        told.append(
            f"{MODELS[value['model']]}, {value['n_edited']} of {value['n_train']:,} documents edited within"
            f" {value['radius']:g}/255 ({value['strategy']}), {len(value['probes'])} probes, replayed in {order}."
        )
        for regime, block in value["regimes"].items():
            victim, _, start = regime.rpartition(":")
            where = f"{f'{case}, ' * (len(found) > 1)}{MODELS[victim or value['model']]}, {STARTS[start]}"
            against = {(e["arm"], e["control"]): e for e in block["effects"]}
            edited = [arm for arm in block["arms"] if arm != "clean"]
            arms += [(f"{where}: {arm}", _estimate(against[arm, "clean"]), *_arm(value, regime, arm)) for arm in edited]
            for (arm, control), effect in against.items():
                if control in VIEWS:  # the edit is what they are compared with
                    pairs.append((f"{where}: {control} - {arm}", _estimate(_turned(effect))))
                elif control != "clean":
                    pairs.append((f"{where}: {arm} - {control}", _estimate(effect)))
    head = ("against clean", "log-odds", "against placebos, above all of them", "probability", "median", "raised")
    head = (*head, "flips", "accuracy, points", "SSIM")
    tables = [_wrapped(*dict.fromkeys(told)), _table(head, arms)]
    return "\n".join([*tables, _table(("against another arm", "log-odds"), pairs)] if pairs else tables)


def _arm(value: Any, regime: str, arm: str) -> tuple[str, ...]:
    row, clean = (value["regimes"][regime]["arms"][name] for name in (arm, "clean"))
    beside = value["placebo"][regime].get(arm)
    return (
        "–" if beside is None else f"{_estimate(beside)}, {beside['above_all']} of {beside['n_probes']}",
        f"{row['mean_delta_p']:+.3f}{_ends(row['ci95'])}",
        f"{row['median_delta_p']:+.3f}",
        f"{100 * row['raised']:.0f} %",
        f"{row['flips']} of {row['n_nontrivial']}{_clipped(row['flips_ci95'])}",
        f"{100 * (row['test_accuracy'] - clean['test_accuracy']):+.1f}",
        _two(value["arms"][arm]["ssim_mean"]),
    )


def foretold() -> str:
    """Return how predicted and measured effects agree on CIFAR-10, and what the clean log-odds alone foretell."""
    body = []
    for case, value in (pair for file in PUBLISHED for pair in _cases(f"cifar10_{file}").items()):
        for regime, beside in value["foretold"].items():
            block = value["predicted"][regime]
            ranks = (beside["rank_of_clean_log_odds"], beside["rank_of_prediction_given_clean"])
            slope = f"{block['slope']['value']:.4f}{_ends(block['slope']['ci95'], 4)}"
            rank = _share(_of(block["rank_correlation"]))
            body.append((f"{case}, {regime}", str(beside["n"]), rank, *map(_two, ranks), slope))
    head = (
        "",
        "probes",
        "rank with prediction",
        "with clean log-odds",
        "with prediction, clean log-odds given",
        "slope",
    )
    return _table(head, body)


def headline() -> str:
    """Return what storable edits do on CIFAR-10, in a sentence."""
    value = results("cifar10_r8")["r8"]
    block = value["regimes"]["last_epoch"]
    effects = {(e["arm"], e["control"]): e for e in block["effects"]}
    edit, beside = block["arms"]["edit"], value["placebo"]["last_epoch"]["edit"]
    flips, cases, n = edit["flips"], edit["n_nontrivial"], beside["n_probes"]
    return _wrapped(
        f"On CIFAR-10 (TinyResNet, {value['n_edited']} of {value['n_train']:,} images within {value['radius']:g}/255,",
        "the last epoch replayed in an order that no edit was made for) the log-odds of a wrong class move by",
        f"{_effect(effects['edit', 'clean'])}, random noise of the same size moves them by",
        f"{_effect(effects['noise', 'clean'])}, and {beside['above_all']} of {n} probes lie above every model that was",
        f"made with noise or an edit for another one. {flips} of {cases} wrong classes become the prediction.",
    )


def beside_published() -> str:
    """Return the effects of storable edits minus those of the published setting, on the same probes, in log-odds."""

    def per_probe(value: Any) -> Mapping[str, float]:
        found: Mapping[str, float] = value["regimes"]["last_epoch"]["per_probe"]["edit"]
        return found

    body = []
    for theirs, value in _cases("cifar10_original").items():
        for ours, other in (pair for file in ("r8", "r12") for pair in _cases(f"cifar10_{file}").items()):
            gains = [per_probe(other)[probe] - effect for probe, effect in per_probe(value).items()]
            gained = mean_estimate(np.array(gains))
            row = {"mean": gained.value, "ci95": gained.interval}
            body.append((f"{ours} - {theirs}", str(gained.n), _estimate(row)))
    return _table(("", "probes", "log-odds"), body)


def _cases(name: str) -> dict[str, Any]:
    return {case: value for case, value in results(name).items() if case != "environment"}


def _turned(effect: Row) -> Row:
    ends = effect["ci95"]
    return {"mean": -effect["mean"], "ci95": None if ends is None else (-ends[1], -ends[0])}


def _ends(interval: Sequence[float] | None, places: int = 3) -> str:
    return "" if interval is None else f" [{interval[0]:+.{places}f}, {interval[1]:+.{places}f}]"


def stories() -> str:
    """Return what arms did to the held-out contrast, by variant of the study."""
    variants = {name: v for name, v in results("stories")["variants"].items() if v["aims"]["pairs"] >= ENOUGH_PAIRS}
    effects = {n: {(e["arm"], e["control"]): e for e in v["effects"]} for n, v in variants.items()}
    compared = dict.fromkeys(pair for found in effects.values() for pair in found)
    head = ("", *(f"{name}, {v['aims']['pairs']} pairs" for name, v in variants.items()))
    body = [
        (
            f"{arm} - {control}",
            *(_effect(found[arm, control]) if (arm, control) in found else "–" for found in effects.values()),
        )
        for arm, control in compared
    ]
    return _table(head, body)


def caesar() -> str:
    """Return targeting scores by alphabet and arm."""
    found = results("caesar")["alphabets"]
    head = ("targeting score", *(f"{a} symbols, {v['targeting']['edit']['n']} models" for a, v in found.items()))
    body = [
        (arm, *(_estimate(v["targeting"][arm]) for v in found.values()))
        for arm in ("edit", "clean_rewrite", "embedding")
    ]
    return _table(head, body)


def cost(name: str) -> str:
    """Return costs beside the peer's, in forward passes."""
    block = _largest(name)
    checked = {key: r for key, r in block.items() if key.startswith("pearson") and isinstance(r, float)}
    caption = _wrapped(
        f"{block['documents']} documents, {block['repeats']} interleaved repetitions, median [lowest, highest].",
        *(
            f"Pearson's r {key.removeprefix('pearson_').replace('_', ' ')}: {value:.4f}."
            for key, value in checked.items()
        ),
    )
    head = ["", "forward passes"]
    body = [[name, _range(row)] for name, row in block["rows"].items()]
    if any("error" in row for row in block["rows"].values()):
        head.append("relative error")
        for line, row in zip(body, block["rows"].values(), strict=True):
            line.append(f"{row['error']:.1g}" if "error" in row else "")
    return f"{caption}\n{_table(head, body)}"


def growth() -> str:
    """Return how time grows with each quantity: the slope of logarithms, and peaks of memory."""
    block = _largest("growth")
    body = []
    for what, found in block["varied"].items():
        last = found["rows"][-1]
        slopes = [f"{found['slopes'][key]:.2f}" for key in ("scores_seconds", "fit_seconds")]
        memory = [f"{last[key] - last['before_gb']:.2f} GB" for key in ("scores_gb", "fit_gb")]
        body.append((f"{what}, {found['values'][0]:,} to {found['values'][-1]:,}", *slopes, *memory))
    head = ("", "scores: slope of time", "fit: slope of time", "scores: memory at the largest", "fit: memory")
    return _table(head, body)


def whole_run() -> str:
    """Return where the time of a whole study goes."""
    block = _largest("whole_run")
    body = [(kind, f"{100 * share:.0f} %") for kind, share in block["shares"].items()]
    caption = _wrapped(
        f"`infuser run digits` with {block['probes']} probes, one thread: {block['seconds']:.0f} s,",
        f"{block['seconds_profiled']:.0f} s under the profiler.",
    )
    return f"{caption}\n{_table(('', 'share of the time'), body)}"


def models_a_minute() -> str:
    """Return how many small models a minute the batched training makes."""
    block = _largest("models_a_minute")
    ways = list(next(iter(block["rows"].values())))
    body = [(name, *(f"{row[way]:,.0f}" for way in ways)) for name, row in block["rows"].items()]
    caption = _wrapped(f"{block['models']} models at a time, {block['repeats']} repetitions, one thread, median.")
    return f"{caption}\n{_table(('models a minute', *ways), body)}"


def agreement() -> str:
    """Return what fits on samples cost and how their scores agree with the whole fit's."""
    block = _largest("fit_agreement")
    caption = _wrapped(f"{block['queries']} queries; Spearman over the documents with: {block['reference']}.")
    body = [
        (name, f"{row['forward_passes']:.1f}", _three_places(row["spearman"]), _three_places(row["lowest_query"]))
        for name, row in block["rows"].items()
    ]
    return f"{caption}\n{_table(('fitted on', 'forward passes', 'Spearman, mean', 'lowest query'), body)}"


def datamodeling() -> str:
    """Return linear datamodeling scores by method and data set, best first on the first of them."""
    found = results("lds")
    told = [
        f"{name}: {v['model']}, {v['n_documents']:,} documents, {v['n_subsets']} random halves under {len(v['seeds'])}"
        f" seeds, {v['n_queries']} queries; one seed foretold by the others: {_two(v['split_half'])}."
        for name, v in found.items()
    ]
    scores = {name: {row["method"]: row for row in v["rows"]} for name, v in found.items()}
    methods = list(dict.fromkeys(method for rows in scores.values() for method in rows))
    body = [(method, *(_share(_of(rows.get(method), "lds")) for rows in scores.values())) for method in methods]
    return f"{_wrapped(*told)}\n{_table(('LDS', *found), body)}"


def _of(row: Row | None, value: str = "value") -> Row | None:
    return None if row is None else {"value": row[value], "interval": row["ci95"]}


def _largest(name: str) -> Any:
    """Return the block of benchmarks/results.json of that name with most documents."""
    blocks = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    named = {key: value for key, value in blocks.items() if key.partition(",")[0] == name}
    if not named:
        raise LookupError(f"benchmarks/results.json has no {name}: run the benchmark of that name")
    return named[max(named, key=lambda key: int((re.findall(r"\d+", key) or ["0"])[0]))]


PLACES: Mapping[str, Callable[[], str]] = {
    "demo": demo,
    "fidelity": lambda: fidelity("Spearman with true self mu"),
    "fidelity-without-classes": lambda: fidelity("Spearman, without one-class groups"),
    "fidelity-points": fidelity_points,
    "recall-mnist": lambda: consistency("recall"),
    "jaccard-mnist": lambda: consistency("jaccard 0.2"),
    "audit-mnist": audit,
    **{f"detection-{name}": partial(detection, name) for name in WATCHED},
    **{f"removal-{name}": partial(removal, name) for name in WATCHED},
    "over-loss": over_loss,
    "cifar10": headline,
    "cifar10-foretold": foretold,
    "cifar10-beside": beside_published,
    **{f"cifar10-{name}": partial(published, f"cifar10_{name}") for name in PUBLISHED},
    "stories": stories,
    "caesar": caesar,
    "attribution-cost": lambda: cost("attribution_cost"),
    "attribution-cost-kept": lambda: cost("attribution_cost with kept memory"),
    "fit-parts": lambda: cost("fit_parts"),
    "document-gradient": lambda: cost("document_gradient"),
    "transformer-cost": lambda: cost("transformer_cost"),
    "language-peers": lambda: cost("language_peers"),
    "curvature-peers": lambda: cost("curvature_peers"),
    "projection-peers": lambda: cost("projection_peers"),
    "half-precision": lambda: cost("half_precision"),
    "models-a-minute": models_a_minute,
    "growth": growth,
    "whole-run": whole_run,
    "lds": datamodeling,
    "fit-agreement": agreement,
}


def renewed(text: str) -> str:
    """Return a page with its places filled anew."""
    return _PLACE.sub(lambda found: f"{found[1]}{PLACES[found['name']]()}{found[4]}", text)


def _wrapped(*parts: str) -> str:
    return textwrap.fill(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _effect(row: Row) -> str:
    return f"{row['mean']:+.2f} [{row['ci95'][0]:+.2f}, {row['ci95'][1]:+.2f}]"


def _estimate(row: Row) -> str:
    return f"{row['mean']:+.2f}" if row["ci95"] is None else _effect(row)


def _range(row: Row) -> str:
    return f"{row['forward_passes']:.1f} [{row['lowest']:.1f}, {row['highest']:.1f}]"


def _three_places(value: float) -> str:
    return _short(f"{value:.3f}")


def _share(row: Row | None) -> str:
    return "–" if row is None else f"{_two(row['value'])} [{_two(row['interval'][0])}, {_two(row['interval'][1])}]"


def _percent(row: Row) -> str:
    ends = row.get("interval") if isinstance(row.get("interval"), list) else row.get("ci95")
    # An interval of a share, not of what a share cannot be.
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    return f"{100 * row['value']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _two(value: float) -> str:
    return _short(f"{value:.2f}")


def _short(number: str) -> str:
    """Return 0.5 as .5 and -0.5 as -.5."""
    return re.sub(r"^(-?)0\.", r"\1.", number)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"renewed {page}")
