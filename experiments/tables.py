"""Numbers of README and docs, written from experiments/results into marked places, so that nobody types them.

A place begins with `<!-- numbers: NAME -->` and ends with `<!-- end of numbers -->`. `python experiments/tables.py`
renews all of them; a test fails where a page and the results differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from tables_cifar10 import PUBLISHED, beside_published, foretold, headline, machines, published
from tables_costs import agreement, cost, growth, models_a_minute, whole_run
from tables_detection import WATCHED, detection, over_loss, removal
from tables_f_ine import audit, consistency, fidelity, fidelity_points
from tables_format import ROOT, results, row_of, share, shown, table, two_places, wrapped
from tables_unrolled import unrolled, unrolled_agreement, unrolled_foretold, unrolled_gain

PAGES = (
    "README.md",
    "docs/cifar10.md",
    "docs/detection.md",
    "docs/f_ine.md",
    "docs/performance.md",
    "docs/reproducibility.md",
    "docs/unrolled.md",
    *(f"docs/guides/{name}.md" for name in ("attribute", "detect", "language")),
)
_PLACE = re.compile(r"(<!-- numbers: (?P<name>[\w-]+) -->\n)(?P<text>.*?)(<!-- end of numbers -->)", re.DOTALL)
ENOUGH_PAIRS = 3  # of words, for an interval over them


def demo() -> str:
    """Return what the demo finds, in a sentence."""
    value = results("digits")
    block = value["regimes"]["last_epoch"]
    effects = {(e["arm"], e["control"]): e for e in block["effects"]}
    edit, beyond, insert = (
        effects[pair] for pair in (("edit", "clean"), ("edit", "random_docs"), ("insert_1", "clean"))
    )
    flips, cases = block["arms"]["edit"]["flips"], block["arms"]["edit"]["n_nontrivial"]
    return wrapped(
        f"{value['n_edited']} of {value['n_train']:,} digits, each changed by at most {value['radius']:g}/255 a pixel,",
        f"move the log-odds of a wrong label by {shown(edit)} against clean retraining and by {shown(beyond)}",
        f"against the same edit of random documents ({edit['n_probes']} probes, {edit['n_seeds']} data orders, one",
        f"base model). {flips} of {cases} predictions flip, and one inserted copy of the probe moves the log-odds by",
        f"{insert['mean']:+.2f}.",
    )


def stories() -> str:
    """Return what arms did to the held-out contrast, by variant of the study."""
    variants = {name: v for name, v in results("stories")["variants"].items() if v["aims"]["pairs"] >= ENOUGH_PAIRS}
    effects = {n: {(e["arm"], e["control"]): e for e in v["effects"]} for n, v in variants.items()}
    compared = dict.fromkeys(pair for found in effects.values() for pair in found)
    head = ("", *(f"{name}, {v['aims']['pairs']} pairs" for name, v in variants.items()))
    body = [
        (
            f"{arm} - {control}",
            *(shown(found[arm, control]) if (arm, control) in found else "–" for found in effects.values()),
        )
        for arm, control in compared
    ]
    return table(head, body)


def caesar() -> str:
    """Return targeting scores by alphabet and arm."""
    found = results("caesar")["alphabets"]
    head = ("targeting score", *(f"{a} symbols, {v['targeting']['edit']['n']} models" for a, v in found.items()))
    body = [
        (arm, *(shown(v["targeting"][arm]) for v in found.values())) for arm in ("edit", "clean_rewrite", "embedding")
    ]
    return table(head, body)


def datamodeling() -> str:
    """Return linear datamodeling scores by method and data set, best first on the first of them."""
    found = results("lds")
    told = [
        f"{name}: {v['model']}, {v['n_documents']:,} documents, {v['n_subsets']} random halves under {len(v['seeds'])}"
        f" seeds, {v['n_queries']} queries; one seed foretold by the others: {two_places(v['split_half'])}."
        for name, v in found.items()
    ]
    scores = {name: {row["method"]: row for row in v["rows"]} for name, v in found.items()}
    methods = list(dict.fromkeys(method for rows in scores.values() for method in rows))
    body = [(method, *(share(row_of(rows.get(method), "lds")) for rows in scores.values())) for method in methods]
    return f"{wrapped(*told)}\n{table(('LDS', *found), body)}"


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
    "machines": machines,
    **{f"cifar10-{name}": partial(published, f"cifar10_{name}") for name in PUBLISHED},
    "unrolled": unrolled,
    "unrolled-gain": unrolled_gain,
    "unrolled-agreement": unrolled_agreement,
    "unrolled-foretold": unrolled_foretold,
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


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"renewed {page}")
