"""Which documents to edit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, get_args

import numpy as np

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.training import epoch_order
from infuser.types import Array, Scores

Strategy = Literal["top", "bottom", "absolute", "random", "last", "post_edit", "potential"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclass(frozen=True)
class PostEdit:
    """Edit a pool several times larger than k, and keep the documents whose edited version does most.

    Args:
        pool: documents edited per document kept.
        criterion: `alignment` keeps the highest predicted effect of the *edited* document (its score before plus its
            gain), `gain` the largest change alone.
        screened: documents, drawn by the seed of `perturb`, that the method's `potential` is asked about; None for all.
            A hint takes two gradients by the pixels a document, so that on large data it can cost more than retraining.
    """

    pool: float = 5.0
    criterion: Literal["alignment", "gain"] = "alignment"
    screened: int | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.pool) and self.pool >= 1):
            raise InfuserError("the pool of post_edit is out of range", got=self.pool, expected="at least 1 (times k)")
        if self.criterion not in ("alignment", "gain"):
            raise InfuserError("unknown criterion", got=self.criterion, expected="alignment or gain")
        if self.screened is not None and self.screened < 1:
            raise InfuserError("screened is out of range", got=self.screened, expected="at least 1, or None for all")


def needs_scores(strategy: str) -> bool:
    """Return whether a strategy reads scores of the documents as they are."""
    return strategy in ("top", "bottom", "absolute")


def choose(strategy: str, data: Dataset, run: Run, k: int, *, scores: Array | None = None, seed: int = 0) -> Array:
    """Return the ids of k documents, first choice first.

    Args:
        strategy: top, bottom (most positive, most negative score), absolute (largest size), potential (most positive,
            the scores being what a method's edit could gain), random (by `seed`), last (those that the run's last epoch
            saw last, the very last first).
        data: N documents.
        run: its recipe gives the order of the last epoch.
        k: 1 to N.
        scores: (N,) in the order of data.ids, for the strategies that rank by them; ties go to what is stored first.
        seed: of the random choice.
    """
    if strategy == "random":
        return np.asarray(np.random.default_rng(seed).choice(data.ids, k, replace=False))
    if strategy == "last":
        order = epoch_order(data.ids, run.recipe, max(run.checkpoints[-1].epoch, 1) - 1)
        return np.asarray(data.ids[order[::-1][:k]])
    if scores is None or not (needs_scores(strategy) or strategy == "potential"):
        raise InfuserError("unknown strategy", got=strategy, expected=", ".join(STRATEGIES))
    keys = {"top": -scores, "potential": -scores, "bottom": scores, "absolute": -np.abs(scores)}[strategy]
    return np.asarray(data.ids[np.argsort(keys, kind="stable")[:k]])


def pool_of(rankings: list[Array], size: int) -> Array:
    """Return `size` distinct ids, taken in turn from the rankings until each is used up.

    >>> pool_of([np.array([1, 2, 3]), np.array([1, 9])], 4).tolist()
    [1, 2, 9, 3]
    """
    taken: dict[int, None] = {}
    for row in zip_longest(*(ranking.tolist() for ranking in rankings)):
        for i in row:
            if i is not None and len(taken) < size:
                taken.setdefault(int(i))
    return np.array(list(taken), dtype=np.int64)


def of_class(data: Dataset, label: int, k: int, seed: int = 0) -> Array:
    """Return the ids of k random documents with this label: where gradient matching makes its edits.

    Raises:
        InfuserError: the class has fewer than k documents.
    """
    if data.kind != "classification":
        raise InfuserError("only classification data has classes", got=data.kind)
    members = data.ids[data.targets == label]
    if not 1 <= k <= len(members):
        raise InfuserError("k is out of range", got=k, expected=f"1 to {len(members)}, the documents of class {label}")
    return np.asarray(np.random.default_rng(seed).choice(members, k, replace=False))


def scores_over(scores: Scores, data: Dataset) -> Array:
    """Return the mean scores over all queries in the order of data.ids, shape (N,).

    Raises:
        InfuserError: the scores do not cover the documents, or are not finite.
    """
    at = {int(i): position for position, i in enumerate(scores.ids)}
    missing = [int(i) for i in data.ids if int(i) not in at]
    if missing:
        raise InfuserError(
            f"{len(missing)} documents have no score",
            got=f"scores of {len(scores.ids)} documents",
            expected=f"one for each of {len(data)}",
            causes=["the scores were computed on other data"],
        )
    values = scores.mean().values[0][[at[int(i)] for i in data.ids]]
    if not np.isfinite(values).all():
        raise InfuserError("the scores hold NaN", got=scores.method, expected="finite numbers to rank by")
    return np.asarray(values)
