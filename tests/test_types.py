"""Values that are written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infuser.errors import InfuserError
from infuser.types import Scores, Suspicion, Trials


def test_scores_come_back_from_parquet(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3))
    scores = Scores(values, np.array([7, -1, 10**17]), "influence", "nats", ("3->1", "a: b"))
    scores.to_parquet(tmp_path / "s.parquet")
    back = Scores.from_parquet(tmp_path / "s.parquet")
    assert np.array_equal(back.values, values)
    assert back.ids.tolist() == [7, -1, 10**17]
    assert (back.method, back.unit, back.queries) == ("influence", "nats", ("3->1", "a: b"))


def test_documents_are_ranked_by_query() -> None:
    scores = Scores(np.array([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]]), np.array([7, 8, 9]), "influence", "nats", ("a", "b"))
    assert scores.top(2).tolist() == [8, 9]
    assert scores.bottom(1, q=1).tolist() == [8]
    with pytest.raises(InfuserError, match=r"no such query.*2.*0 to 1"):
        scores.top(1, q=2)


@pytest.mark.parametrize("k", [-2, -1, 4, 99])
def test_a_head_is_as_long_as_asked_or_refused(k: int) -> None:
    values, ids = np.array([1.0, 3.0, 1.0]), np.array([7, 8, 9])
    scores, suspicion = Scores(values, ids, "influence", "nats"), Suspicion(values, ids, "loss")
    assert suspicion.top(3).tolist() == scores.top(3).tolist() == [8, 7, 9]
    assert scores.bottom(2).tolist() == [7, 9]
    assert len(suspicion.top(0)) == len(scores.top(0)) == 0
    for head in (suspicion.top, scores.top, scores.bottom):
        with pytest.raises(InfuserError, match=rf"k does not fit the number of documents. Got: {k}. Expected: 0 to 3"):
            head(k)


def test_trials_of_no_rows_change_nothing_where_they_are_pooled() -> None:
    none = Trials.from_rows([], "last_epoch")
    some = Trials.from_rows(iter([("edit", 3, "p", "log_odds", 0.5)]), "last_epoch", {"edit/3": "weights=a"})
    assert len(none) == len(none.where(arm="edit")) == 0
    for pooled in (Trials.concat([none, some]), Trials.concat([some, none])):
        for name in ("arm", "seed", "probe", "measure", "value"):
            column, alone = getattr(pooled, name), getattr(some, name)
            assert (column.tolist(), column.dtype) == (alone.tolist(), alone.dtype)


def test_files_that_hold_no_scores_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with pytest.raises(InfuserError, match=r"cannot read the scores in s\.parquet"):
        Scores.from_parquet(path)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InfuserError, match=r"cannot read the scores in s\.parquet"):
        Scores.from_parquet(path)
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(InfuserError, match="does not hold scores"):
        Scores.from_parquet(path)
