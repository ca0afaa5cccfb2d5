"""Reports that people read: one HTML file of everything that was found, with its controls and caveats.

`infuser.report("report.html", effect, scores)` writes one; the records that a report can show beside the nouns are
here as well, `infuser.report.Summary` and so on. Nothing is computed here.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from infuser.report.material import (
    ArmStats,
    Caveat,
    ComparedRun,
    Detection,
    DetectorResult,
    Documents,
    EditView,
    Metric,
    PredictedMeasured,
    ProbeView,
    Provenance,
    Regime,
    Roc,
    Sheet,
    Summary,
    TokenDiff,
    TradeOff,
    TransferMatrix,
)
from infuser.report.report import report
from infuser.report.results import compare_results, from_results

__all__ = [
    "ArmStats",
    "Caveat",
    "ComparedRun",
    "Detection",
    "DetectorResult",
    "Documents",
    "EditView",
    "Metric",
    "PredictedMeasured",
    "ProbeView",
    "Provenance",
    "Regime",
    "Roc",
    "Sheet",
    "Summary",
    "TokenDiff",
    "TradeOff",
    "TransferMatrix",
    "compare_results",
    "from_results",
    "report",
]


class _Verb(ModuleType):
    """A package that can be called: the verb `infuser.report(...)` and its package share one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
