"""Names and numbers in words, the same wherever a report says them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infuser.html import number
from infuser.types import Effect, Estimate

# What a measure is called on an axis, and where it stands: log-odds first, since probabilities saturate.
MEASURES = {
    "log_odds": "change of log-odds of the target",
    "log_prob": "change of log p of the target, nats",
    "contrastive": "change of log p(target) − log p(other), nats",
    "contrast": "change of log p(target) − log p(probe), nats",
    "log_p_target": "change of log p(target), nats",
    "log_p_probe": "change of log p(probe), nats",
    "wins": "change of the share of inputs where the target wins",
    "neg_token_loss": "change of the mean log p a token on other documents, nats",
    "probability": "change of probability of the target",
}
# What a sentence calls what was moved, where it is not "the log-odds of the target".
MEASURED = {"contrast": "log p(target) − log p(probe), in nats,"}


def measure_name(measure: str) -> str:
    """Return a measure's name for an axis.

    >>> measure_name("log_odds")
    'change of log-odds of the target'
    """
    return MEASURES.get(measure.replace("-", "_"), f"change of {measure}")


def arm_name(arm: str) -> str:
    """Return an arm's name for people.

    >>> arm_name("no_curvature")
    'no curvature'
    """
    return arm.replace("_", " ")


def interval_text(estimate: Estimate) -> str:
    """Return the value and its interval with as many decimals as the interval's width has to tell.

    >>> interval_text(Estimate(0.8634, (-0.0211, 1.2), 20))
    '+0.86 [−0.02, 1.20]'
    """
    if estimate.interval is None:
        return number(estimate.value, signed=True)
    width = abs(estimate.interval[1] - estimate.interval[0])
    decimals = min(max(1 - math.floor(math.log10(width)), 0), 4) if width > 0 else 2
    # A bound beside zero keeps the digit that tells its side.
    while decimals < 4 and any(x and round(x, decimals) == 0 for x in estimate.interval):
        decimals += 1
    low, high = (f"{x:z.{decimals}f}" for x in estimate.interval)
    return f"{estimate.value:+z.{decimals}f} [{low}, {high}]".replace("-", "−")


def estimate_text(estimate: Estimate) -> str:
    """Return a statistic with what it rests on.

    >>> estimate_text(Estimate(0.51, (0.42, 0.6), 20, (1, 2)))
    '0.51 [0.42, 0.60] (n = 20 probes, 2 seeds)'
    """
    size = f"n = {estimate.n:,} {estimate.unit_of_n}" + (f", {len(estimate.seeds)} seeds" if estimate.seeds else "")
    return f"{interval_text(estimate).removeprefix('+')} ({size})"


def interval_only(estimate: Estimate) -> str:
    """Return the interval in words, or a dash.

    >>> interval_only(Estimate(0.8634, (0.7411, 0.9812), 20))
    '0.74 to 0.98'
    """
    return interval_text(estimate).partition("[")[2].rstrip("]").replace(", ", " to ") or "–"


def by_measure(effects: Sequence[Effect]) -> Mapping[str, list[Effect]]:
    """Return effects grouped by what was measured, log-odds before probabilities."""
    rank = {name: i for i, name in enumerate(MEASURES)}
    names = dict.fromkeys(e.measure for e in effects)
    ordered = sorted(names, key=lambda m: rank.get(m.replace("-", "_"), len(rank)))
    return {name: [e for e in effects if e.measure == name] for name in ordered}
