"""Models that were edited for other probes as a control: as many documents edited as far, none of them for this one.

It costs no training: every model is read off on the other probes as well. What an edit does to its own probe beyond
what edits for others do to it is aimed at it; the rest is retraining on edited data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor, nn

from infuser.evaluation.compare import PRIMARY
from infuser.measure import LogProb, Margin
from infuser.types import Params, Trials

PLACEBO = "placebo"  # the arm


@final
@dataclass(frozen=True)
class Elsewhere:
    """The log-odds of the probes that a model was not edited for, in a measure of their own.

    Args:
        probes: all of them; at least two.
        own: number of the one that the model is edited for.
    """

    probes: LogProb | Margin
    own: int
    name = "elsewhere"
    unit = "log-odds"

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return one value per other probe, shape (Q - 1,)."""
        return self._others(model, params)

    def __len__(self) -> int:
        return len(self.probes) - 1

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the other probes."""
        return self._others.queries

    @property
    def _others(self) -> Margin:
        rest = np.delete(np.arange(len(self.probes)), self.own)
        documents = self.probes.documents
        return Margin(documents[documents.ids[rest]], np.asarray(self.probes.labels)[rest])


def with_placebo(trials: Trials, arm: str = "edit") -> Trials:
    """Return the trials with an arm `placebo`: the mean log-odds of each probe in the models edited for others.

    Its models are those of `arm` under the same seed. They are shared between probes, so that the differences of
    probes from it are not wholly independent: each model weighs by one over the number of the others.

    Args:
        trials: rows of all probes, with those of `Elsewhere`; without them for every probe and seed nothing is added.
        arm: whose models they are.
    """
    seen: dict[tuple[str, int], list[float]] = {}
    for probe, seed, value in _cells(trials.where(arm=arm, measure=Elsewhere.name)):
        seen.setdefault((probe, seed), []).append(value)
    wanted = [(probe, seed) for probe, seed, _ in _cells(trials.where(arm=arm, measure=PRIMARY))]
    if not wanted or not {*wanted} <= {*seen}:
        return trials
    rows = [(PLACEBO, seed, probe, PRIMARY, float(np.mean(seen[probe, seed]))) for probe, seed in wanted]
    keys = {f"{arm}/{seed}": f"{PLACEBO}/{seed}" for _, seed in wanted}
    starts = {keys[key]: value for key, value in trials.starts.items() if key in keys}
    return Trials.concat([trials, Trials.from_rows(rows, trials.start, starts)])


def _cells(trials: Trials) -> Sequence[tuple[str, int, float]]:
    return list(zip(trials.probe.tolist(), trials.seed.tolist(), trials.value.tolist(), strict=True))
