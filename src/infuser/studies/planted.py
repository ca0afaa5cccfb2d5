"""What a planting tells of each detector: ranking metrics after it, their lift over the same documents before, ROC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infuser.evaluation.finding import find, lift
from infuser.types import Array, Estimate, Suspicion

_POINTS = 200  # of a stored curve
_DRAWN = 4  # curves in a report: more cannot be told apart


def finding(ids: Array, before: Mapping[str, Any], planted: Mapping[str, Any], ranked_by: str) -> dict[str, Any]:
    """Return rows and curves of every detector that searched both the data as they are and with planted faults.

    Args:
        ids: (N,) of the documents.
        before: facts of the search of the data as they are, with "suspicions": detector -> (N,).
        planted: facts of the search with faults, with "suspicions" and the "ids" of the faults.
        ranked_by: the detector that a report draws first.
    """
    wanted, rows, curves = np.asarray(planted["ids"]), [], {}
    for name, values in planted["suspicions"].items():
        after = Suspicion(np.array(values), ids, name)
        early = Suspicion(np.array(before["suspicions"][name]), ids, name)
        said, raised = find(after, wanted).estimates, lift(after, early, wanted)
        rows += [
            {"detector": name, "metric": m, "k": len(wanted), "after": _block(e), "lift": _block(raised[m])}
            for m, e in said.items()
            if e is not None
        ]
        curves[name] = roc(after, wanted)
    best = sorted((r for r in rows if r["metric"] == "roc_auc"), key=lambda r: -r["after"]["value"])
    names = [row["detector"] for row in best]
    drawn = list(dict.fromkeys([ranked_by, *(["loss"] if "loss" in curves else []), *names]))[:_DRAWN]
    return {"k": len(wanted), "rows": rows, "curves": {name: curves[name] for name in drawn}, "drawn": drawn}


def roc(suspicion: Suspicion, wanted: Array) -> dict[str, list[float]]:
    """Return the rates of false and true positives at every depth that matters, thinned to a few hundred points.

    >>> roc(Suspicion(np.array([3.0, 2.0, 1.0]), np.arange(3), "x"), np.array([0]))
    {'fpr': [0.0, 0.0, 1.0], 'tpr': [0.0, 1.0, 1.0]}
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(np.isin(suspicion.ids, wanted), suspicion.values)
    # Even in the order of the curve: it is dense where it rises, which is where false positives are few.
    kept = np.unique(np.linspace(0, len(fpr) - 1, min(len(fpr), _POINTS)).round().astype(int))
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}


def _block(estimate: Estimate) -> dict[str, Any]:
    ends = None if estimate.interval is None else list(estimate.interval)
    return {"value": estimate.value, "ci95": ends, "method": estimate.method}
