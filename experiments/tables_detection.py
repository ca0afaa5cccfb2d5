"""Tables of the detection benchmark."""

from __future__ import annotations

from tables_format import Row, clipped_ends, ends_of, results, table, two_places, wrapped

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
    caption = wrapped(
        f"{value['n_train']:,} documents, {n}, each with {own} of its own; the head gives how many",
        "are edited. Recall of them among as many (t-interval, none where all seeds gave the same), in brackets the",
        "lift.",
    )
    return f"{caption}\n{table(head, body)}"


def over_loss() -> str:
    """Return what fusing blind detectors gains over the training loss alone, by data set and attack."""
    body = []
    for name, value in results("detection").items():
        rows = {(r["attack"], r["metric"]): r for r in value.get("rows", ()) if r["detector"] == "fused_blind"}
        for attack, shown in ATTACKS.items():
            if (attack, "roc_auc") in rows:
                told = [rows[attack, metric]["over_loss"] for metric in ("recall_at_k", "average_precision", "roc_auc")]
                body.append((f"{name}, {shown}", str(rows[attack, "roc_auc"]["n"]), *(_signed(one, 3) for one in told)))
    return table(("", "seeds", "recall", "average precision", "ROC-AUC"), body)


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
    return table(("", *(ATTACKS[attack] for attack in known), f"{value['intact']}, mean over attacks"), body)


def _lifted(row: Row) -> str:
    after = row["after"]
    # Seeds that all gave the same say nothing about their spread.
    ends = None if len(set(after["per_seed"])) == 1 else after["ci95"]
    return f"{two_places(after['value'])}{clipped_ends(ends)} ({row['lift']['value']:+.2f})"


def _signed(row: Row, places: int) -> str:
    return f"{row['value']:+.{places}f}{ends_of(row['ci95'], places)}"
