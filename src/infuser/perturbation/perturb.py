"""The verb: choose documents and edit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Protocol, runtime_checkable

import numpy as np

from infuser.attribution.scoring import inner_products
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.params import trainable
from infuser.perturbation.select import STRATEGIES, PostEdit, Strategy, choose, needs_scores, pool_of, scores_over
from infuser.types import Array, Direction, Edit, Scores


@runtime_checkable
class Perturber(Protocol):
    """Edits given documents so that f rises along a direction."""

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Edit:
        """Return the edit of the documents `ids`, in that order, with predicted gains where there are any."""
        ...


@runtime_checkable
class Hinting(Protocol):
    """A perturber that can say cheaply which documents are worth editing."""

    def potential(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> Array:
        """Return a first-order bound on what an edit of each of the documents `ids` could gain, (k,) in units of f."""
        ...


def perturb(
    method: Perturber,
    direction: Direction,
    run: Run,
    data: Dataset,
    k: int | None = None,
    *,
    select: Strategy | PostEdit | None = None,
    scores: Scores | None = None,
    ids: Sequence[int] | Array | None = None,
    seed: int = 0,
) -> Edit:
    """Return the edit of k documents that raises f along `direction`, first choice first.

    Args:
        method: PGD, UnrolledPGD, GradientMatching, or any Perturber.
        direction: v; several queries count as their mean.
        run: trained on `data`.
        data: N documents, as the run was trained on them.
        k: documents to edit, 1 to N; not needed with `ids`.
        select: how they are chosen (see select.choose); post_edit edits a pool of several k: documents of the highest
            score and, in turn, those that the method's `potential` ranks highest (random ones where it gives no such
            hint), and keeps the k whose edited version has the highest predicted effect. That is the default, but for
            methods that edit their documents jointly, of which no part can be kept: theirs is potential.
        scores: to choose by, of `data`; by default -(1/N) <v, grad L_i>.
        ids: the documents themselves, instead of a choice.
        seed: of random choices.

    A document counts by its weight in the training: predicted gains and the scores that documents are chosen by are
    multiplied by it, and documents of weight 0 are not chosen.

    Raises:
        InfuserError: k or `ids` do not fit the data, or name documents of weight 0; the data are not those that the run
            was trained on; the method cannot be asked for what the strategy needs.
    """
    _check_data(run, data)
    able = data if (data.weights > 0).all() else data[data.ids[data.weights > 0]]
    if ids is not None:
        _check_ids(np.asarray(ids), data, k)
        wanted = np.asarray(ids, dtype=np.int64)
        _check_trained_on(wanted, able)
        return _edited(method, direction, run, data, wanted)
    size = _checked_k(k, able)
    joint = getattr(method, "joint", False)
    select = select or ("potential" if joint else "post_edit")
    if isinstance(select, PostEdit) or select == "post_edit":
        if joint:
            raise InfuserError(
                "post_edit keeps a part of what it edits, and this method edits documents jointly",
                got=type(method).__name__,
                remedy="choose by another strategy: potential, top, random, ...",
            )
        settings = select if isinstance(select, PostEdit) else PostEdit()
        return _post_edit(method, direction, run, data, able, size, settings, scores, seed)
    if select not in STRATEGIES:
        raise InfuserError("unknown strategy", got=select, expected=", ".join(STRATEGIES))
    ranked = _scores(scores, direction, run, data, able) if needs_scores(select) else None
    if select == "potential":
        if not isinstance(method, Hinting):
            raise InfuserError("this method has no potential to choose by", got=type(method).__name__)
        ranked = method.potential(direction, run, data, able.ids) * able.weights
    edit = _edited(method, direction, run, data, choose(select, able, run, size, scores=ranked, seed=seed))
    return replace(edit, made_by=f"{edit.made_by}; {_chosen(size, len(data), select, seed)}")


def _edited(method: Perturber, direction: Direction, run: Run, data: Dataset, ids: Array) -> Edit:
    """Return the edit of `ids`, each document's gain times its weight."""
    edit = method.edit(direction, run, data, ids)
    if edit.gains is None:
        return edit
    return replace(edit, gains=edit.gains * data.weights[data.positions(edit.ids)])


def direction_scores(direction: Direction, run: Run, data: Dataset, ids: Array | None = None) -> Array:
    """Return -(1/N) <v, grad L_i> for the mean of the direction's queries, N being all documents of `data`.

    Shape (N,), or that of `ids` where only these documents are asked for.
    """
    model = run.model()
    v = {name: value.detach().to(run.device) for name, value in direction.mean().params.items()}
    products = inner_products(model, trainable(model), data if ids is None else data[ids], v)[0]
    return np.asarray(products.double().cpu().numpy() / -len(data))


def _post_edit(
    method: Perturber,
    direction: Direction,
    run: Run,
    data: Dataset,
    able: Dataset,
    k: int,
    settings: PostEdit,
    scores: Scores | None,
    seed: int,
) -> Edit:
    ranked = _scores(scores, direction, run, data, able)
    top = choose("top", able, run, len(able), scores=ranked)
    if isinstance(method, Hinting):
        count = min(settings.screened or len(able), len(able))
        seen = able if count == len(able) else able[choose("random", able, run, count, seed=seed)]
        other = choose("top", seen, run, count, scores=method.potential(direction, run, data, seen.ids) * seen.weights)
    else:
        other = choose("random", able, run, len(able), seed=seed)
    size = min(len(able), ceil(settings.pool * k))
    pool = _edited(method, direction, run, data, pool_of([top, other], size))
    if pool.gains is None or not np.isfinite(pool.gains).all():
        raise InfuserError(
            "post_edit needs the predicted gain of every edited document",
            got=type(method).__name__,
            remedy="choose another strategy: top, random, ...",
        )
    before = np.zeros(len(pool))
    if settings.criterion == "alignment":
        # Scores that are given may be of another method; then only the pool's are computed.
        given = scores is not None
        before = _scores(None, direction, run, data, data[pool.ids]) if given else ranked[able.positions(pool.ids)]
    kept = np.argsort(-(before + pool.gains), kind="stable")[:k]
    made_by = f"{pool.made_by}; {_chosen(k, len(data), 'post_edit', seed)} by {settings.criterion} from {len(pool)}"
    return take(pool, kept, made_by)


def take(edit: Edit, rows: Array, made_by: str) -> Edit:
    """Return some documents of an edit, by position, in the order given."""
    columns = ("ids", "before", "after", "targets_before", "targets_after")
    gains = None if edit.gains is None else edit.gains[rows]
    return replace(edit, **{name: getattr(edit, name)[rows] for name in columns}, made_by=made_by, gains=gains)


def _chosen(k: int, n: int, strategy: str, seed: int) -> str:
    return f"{k} of {n} documents, {strategy}" + (f" (seed {seed})" if strategy == "random" else "")


def _scores(scores: Scores | None, direction: Direction, run: Run, data: Dataset, able: Dataset) -> Array:
    """Return the scores of the documents `able`, each times its weight."""
    if scores is not None:
        return scores_over(scores, able) * able.weights
    return direction_scores(direction, run, data, None if able is data else able.ids) * able.weights


def _check_data(run: Run, data: Dataset) -> None:
    if run.data_hash != data.content_hash:
        raise InfuserError(
            "the data set is not the one that the run was trained on",
            got=f"{data.name}, hash {data.content_hash[:12]}",
            expected=f"hash {run.data_hash[:12]}",
            causes=["it was edited, filtered or reweighted since", "it is the test set"],
            remedy="pass the training data as it was; undo an edit with data.apply(edit.undo())",
        )


def _checked_k(k: int | None, data: Dataset) -> int:
    if k is None or isinstance(k, bool) or k != int(k) or not 1 <= k <= len(data):
        causes = ["k is larger than the data set"] if k is not None and k > len(data) else []
        raise InfuserError("k is out of range", got=k, expected=f"a whole number, 1 to {len(data)}", causes=causes)
    return int(k)


def _check_trained_on(ids: Array, able: Dataset) -> None:
    idle = ids[~np.isin(ids, able.ids)]
    if len(idle):
        raise InfuserError(
            "documents of weight 0 cannot be edited: the training does not see them",
            got=listed(idle.tolist()),
            remedy="give them a weight, or leave them out of ids",
        )


def _check_ids(ids: Array, data: Dataset, k: int | None) -> None:
    if ids.ndim != 1 or len(ids) == 0 or (k is not None and k != len(ids)):
        raise InfuserError("ids and k do not fit", got=f"{ids.size} ids, k = {k}", expected="k ids in one row, or no k")
    repeated = [int(i) for i, count in zip(*np.unique(ids, return_counts=True), strict=True) if count > 1]
    if repeated:
        raise InfuserError("ids name documents twice", got=listed(repeated))
    data.positions(ids)
