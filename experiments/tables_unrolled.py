"""Tables of the exact derivative of training."""

from __future__ import annotations

from tables_format import Row, results, share, shown, table, wrapped

UNROLLED = {
    "noise": "noise",
    "edit": "EK-FAC",
    "edit_views": "EK-FAC, four models",
    "unrolled": "exact, own order",
    "unrolled_orders": "exact, other orders",
    "unrolled_scratch": "exact, from scratch",
    "edit_potential": "EK-FAC, by its potential",
    "edit_checkpoints": "EK-FAC of checkpoints, by their potential",
    "edit_chosen": "EK-FAC, by the exact potential",
    "unrolled_chosen": "exact, by its potential",
}
# Where effects are measured: by what was made for it, then what nobody saw.
WHERE = {
    "own order": "own order",
    "crafted orders": "crafted orders",
    "last_epoch": "last epoch",
    "crafted scratch": "crafted scratch",
    "scratch": "scratch",
    "other architecture, last_epoch": "other architecture, last epoch",
    "other architecture, scratch": "other architecture, scratch",
}
UNSEEN = ("scratch", "other architecture, scratch", "last_epoch", "other architecture, last_epoch")
# What the exact derivative adds: to EK-FAC on the same documents, and to EK-FAC of as many models where it saw several.
ADDED = (
    ("unrolled", "edit"),
    ("unrolled_orders", "edit"),
    ("unrolled_orders", "edit_views"),
    ("unrolled_scratch", "edit"),
    ("unrolled_scratch", "edit_views"),
    ("edit_chosen", "edit"),
    ("unrolled_chosen", "edit_chosen"),
    ("unrolled_chosen", "edit_potential"),
    ("unrolled_chosen", "edit_checkpoints"),
    ("edit_checkpoints", "edit_potential"),
    ("edit_checkpoints", "edit"),
    ("edit_potential", "edit"),
    ("unrolled_chosen", "edit"),
)


def unrolled() -> str:
    """Return what each edit did wherever it was measured, by case, in log-odds."""
    tables = []
    for name, value in results("unrolled").items():
        found = {(where, e["arm"], e["control"]): e for where, rows in value["effects"].items() for e in rows}
        arms = [arm for arm in UNROLLED if any(key[1] == arm for key in found)]
        places = [where for where in WHERE if where in value["effects"]]
        model, other = (value[key].partition(" ")[0] for key in ("model", "other"))
        caption = wrapped(
            f"{name}: {model}, other architecture {other}; {value['edited']} of {value['documents']:,} documents",
            f"within {value['radius']:g}/255, {value['steps']} steps, {value['probes']} probes.",
        )
        body = [(UNROLLED[arm], *(shown(found[where, arm, "clean"]) for where in places)) for arm in arms]
        tables.append(f"{caption}\n{table(('', *(WHERE[where] for where in places)), body)}")
    return "\n".join(tables)


def unrolled_gain() -> str:
    """Return how much further the exact edits go than those along EK-FAC, on seeds that no edit was made for."""
    tables = []
    for name, value in results("unrolled").items():
        found = {where: {(e["arm"], e["control"]): e for e in value["effects"][where]} for where in UNSEEN}
        pairs = [pair for pair in ADDED if pair in found[UNSEEN[0]]]
        body = [
            (f"{UNROLLED[arm]} - {UNROLLED[control]}", *(shown(rows[arm, control]) for rows in found.values()))
            for arm, control in pairs
        ]
        tables.append(table((name, *(WHERE[where] for where in UNSEEN)), body))
    return "\n".join(tables)


def unrolled_agreement() -> str:
    """Return how EK-FAC's scores and document gradients agree with the exact ones, and those with each other."""
    found = results("unrolled")
    facts = list(dict.fromkeys(fact for value in found.values() for fact in value["agreement"]))
    facts.sort(key=lambda fact: ("rank", "cosine", "documents shared").index(fact.partition(":")[0]))
    body = [
        (_named(fact), *(_bounded(fact, value["agreement"].get(fact)) for value in found.values())) for fact in facts
    ]
    return table(("", *(f"{name}, {value['probes']} probes" for name, value in found.items())), body)


def _named(fact: str) -> str:
    what, _, both = fact.partition(": ")
    return f"{what}: {' and '.join(UNROLLED.get(each, each) for each in both.split(', '))}"


def _bounded(fact: str, row: Row | None) -> str:
    """Return an agreement with an interval of what can be."""
    if row is None:
        return "–"
    low = 0.0 if fact.startswith("documents") else -1.0
    ends = None if row["ci95"] is None else [max(low, row["ci95"][0]), min(1.0, row["ci95"][1])]
    return share({"value": row["value"], "interval": ends})


def unrolled_foretold() -> str:
    """Return the change of log-odds that each edit predicts of what it was made for, and the measured one."""
    body = []
    for name, value in results("unrolled").items():
        measured = {(where, e["arm"], e["control"]): e for where, rows in value["effects"].items() for e in rows}
        for arm, predicted in value["predicted"].items():
            effect = measured[value["predicts"][arm], arm, "clean"]
            told = shown({"mean": predicted["value"], "ci95": predicted["ci95"]})
            body.append((f"{name}: {UNROLLED[arm]}", value["predicts"][arm], told, shown(effect)))
    return table(("", "measured on", "predicted", "measured"), body)
