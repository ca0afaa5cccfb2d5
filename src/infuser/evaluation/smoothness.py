"""Is training smooth in its data? Where it is not, no derivative through training foretells an edit of finite size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from infuser.errors import InfuserError, require
from infuser.evaluation.stats import Bootstrap, finite
from infuser.types import Array, Edit, Estimate


def part_of(edit: Edit, share: float) -> Edit:
    """Return the edit that goes this share of the way from each document to its edited version.

    8-bit documents are rounded, so that a small share of a small edit can be none. Labels are those of the edit.

    Raises:
        InfuserError: the documents are not pixels or floats, or the share is not between 0 and 1.
    """
    require("share", share, 0 <= share <= 1, "0 to 1")
    if edit.before.dtype != np.uint8 and not np.issubdtype(edit.before.dtype, np.floating):
        raise InfuserError("a part of this edit is not defined", got=edit.before.dtype, expected="pixels or floats")
    moved = edit.before + share * (edit.after.astype(np.float64) - edit.before)
    after = (np.rint(moved) if edit.before.dtype == np.uint8 else moved).astype(edit.before.dtype)
    return replace(edit, after=after, gains=None, made_by=f"{share:g} of: {edit.made_by}")


def metasmoothness(first: Array, second: Array, bootstrap: Bootstrap | None = None) -> Estimate:
    """Return how far f keeps its course when the data are moved on: sum_q |a_q| sign(a_q) sign(b_q) / sum_q |a_q|.

    a_q is the change of f_q when the data are moved half of the way, b_q that of the second half (see `part_of`). 1: f
    goes on as it began, so that a derivative can foretell the whole; 0: the second half forgets the first; -1: it
    turns.

    What the half-way training has of chance is in a_q and, with the other sign, in b_q: where f does nothing but
    jitter the value is near -1/2, not 0, so that a value below 0 tells of a turn only if a_q is well above the noise.

    Args:
        first: (n,) a_q, one value a probe: the mean over seeds of arm minus clean.
        second: (n,) b_q.
        bootstrap: over probes, from 8 of them on.

    Raises:
        InfuserError: the lengths differ, a value is not finite, or nothing changed.

    Source: after the empirical metasmoothness of Engstrom et al., arXiv 2503.13751.
    """
    a, b, how = finite(first), finite(second), bootstrap or Bootstrap()
    if a.shape != b.shape or a.ndim != 1:
        raise InfuserError("two changes a probe are needed", got=f"{a.shape} and {b.shape}")
    if not np.abs(a).sum() > 0:
        raise InfuserError("f did not change", remedy="move the data further")
    agreed, size = np.abs(a) * np.sign(a) * np.sign(b), np.abs(a)
    value, n = float(agreed.sum() / size.sum()), len(a)
    if n < 8:
        return Estimate(value, None, n, (), "probes", "none: fewer than 8 probes", how.level)
    rows = np.random.default_rng(how.seed).integers(0, n, (how.resamples, n))
    sizes = size[rows].sum(1)
    ratios = agreed[rows].sum(1)[sizes > 0] / sizes[sizes > 0]
    if np.ptp(ratios) == 0:  # all probes agree: resampling them cannot show how often another one would not
        return Estimate(value, None, n, (), "probes", "none: nothing varies", how.level)
    low, high = np.quantile(ratios, [(1 - how.level) / 2, (1 + how.level) / 2])
    method = f"bootstrap over {n} probes, {how.resamples} resamples"
    return Estimate(value, (float(low), float(high)), n, (), "probes", method, how.level)
