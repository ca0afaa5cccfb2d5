from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from infuser.checkpoints import Run
from infuser.errors import InfuserError
from infuser.perturbation.balls import Linf
from infuser.perturbation.perturb import Hinting, Perturber, direction_scores, perturb
from infuser.perturbation.pgd import PGD
from infuser.perturbation.select import PostEdit, choose, of_class, pool_of, scores_over
from infuser.training import epoch_order
from infuser.types import Edit, Scores
from tests.perturbation import small

METHOD = PGD(Linf(6), steps=3)


def _perturb(k=3, **settings):
    return perturb(METHOD, small.direction(), small.run(), small.images(), k, **settings)


@dataclass(frozen=True)
class Counting:
    """A perturber without a hint: it adds one step to every pixel, and gains what `gain` says of the id."""

    seen: list
    known: bool = True

    def edit(self, direction, run, data, ids) -> Edit:
        self.seen.append(list(ids))
        chosen = data[ids]
        gains = chosen.ids.astype(float) if self.known else None
        args = (chosen.ids, chosen.inputs, np.minimum(chosen.inputs, 254) + 1, chosen.targets, chosen.targets)
        return Edit(*args, Linf(1), "counting", gains)


def test_scores_are_those_of_the_oracle():
    data = small.images()
    found = direction_scores(small.direction(), small.run(), data)
    expected = small.score_by_autograd(small.run(), data, small.direction().single(), len(data))
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(found + expected).max() > np.abs(expected).max()


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("top", [3, 1, 0]), ("bottom", [2, 4, 0]), ("absolute", [2, 3, 1])],
)
def test_ranked_choices(strategy, expected):
    data = replace(small.images(5), ids=np.arange(5))
    scores = np.array([0.1, 1.0, -3.0, 2.0, -0.5])
    assert choose(strategy, data, small.run(), 3, scores=scores).tolist() == expected


def test_last_is_what_the_last_epoch_saw_last():
    data, run = small.images(), small.run()
    seen = data.ids[epoch_order(data.ids, run.recipe, run.recipe.epochs - 1)]
    assert choose("last", data, run, 4).tolist() == seen[-4:][::-1].tolist()
    earlier = data.ids[epoch_order(data.ids, run.recipe, 0)]
    assert choose("last", data, run, 4).tolist() != earlier[-4:][::-1].tolist()


def test_random_is_a_function_of_the_seed():
    data, run = small.images(), small.run()
    drawn = [choose("random", data, run, 10, seed=s).tolist() for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10


def test_edits_come_in_the_order_of_the_choice():
    data = small.images()
    scores = direction_scores(small.direction(), small.run(), data)
    edit = _perturb(4, select="top")
    assert edit.ids.tolist() == data.ids[np.argsort(-scores)[:4]].tolist()
    assert edit.made_by.endswith("4 of 36 documents, top")
    assert "seed 5" in _perturb(2, select="random", seed=5).made_by
    given = Scores(-scores[None, ::-1], data.ids[::-1], "reversed", "f")
    assert _perturb(4, select="bottom", scores=given).ids.tolist() == edit.ids.tolist()


@pytest.mark.parametrize("criterion", ["alignment", "gain"])
def test_post_edit_keeps_the_best_edited_documents(criterion):
    data = small.images()
    edit = _perturb(4, select=PostEdit(pool=36 / 4, criterion=criterion))
    # The pool is the whole data set here, so that the best can be found by editing everything.
    whole = METHOD.edit(small.direction(), small.run(), data, data.ids)
    before = direction_scores(small.direction(), small.run(), data)
    key = whole.gains + before if criterion == "alignment" else whole.gains
    expected = data.ids[np.argsort(-key)[:4]].tolist()
    assert edit.ids.tolist() == expected
    np.testing.assert_allclose(edit.gains, whole.gains[data.positions(expected)], rtol=1e-3, atol=1e-7)
    assert f"post_edit by {criterion} from 36" in edit.made_by
    other = whole.gains if criterion == "alignment" else before
    assert expected != data.ids[np.argsort(-other)[:4]].tolist()


def test_post_edit_is_the_default_and_never_predicts_less_than_top():
    data = small.images()
    v = small.direction().single()
    predicted = {
        name: small.score_by_autograd(small.run(), replace(data[e.ids], inputs=e.after), v, len(data)).sum()
        for name, e in {"post_edit": _perturb(3), "top": _perturb(3, select="top")}.items()
    }
    assert predicted["post_edit"] >= predicted["top"] - 1e-7
    assert np.array_equal(_perturb(3).ids, _perturb(3, select="post_edit").ids)


def test_the_pool_takes_turns_between_score_and_potential():
    assert isinstance(METHOD, Hinting)
    data, run, v = small.images(), small.run(), small.direction()
    by_score = data.ids[np.argsort(-direction_scores(v, run, data), kind="stable")]
    by_hint = data.ids[np.argsort(-METHOD.potential(v, run, data, data.ids), kind="stable")]
    pool = pool_of([by_score, by_hint], 8)
    assert len(set(pool.tolist())) == 8
    assert {*by_score[:4].tolist(), *by_hint[:4].tolist()} <= {*pool.tolist()}
    seen: list = []

    @dataclass(frozen=True)
    class Hinted(Counting):
        def potential(self, direction, run, data, ids):
            return METHOD.potential(direction, run, data, ids)

    perturb(Hinted(seen), v, run, data, 2, select=PostEdit(pool=4))
    assert seen == [pool.tolist()]


def test_given_scores_fill_the_pool_of_post_edit_and_the_predicted_effect_still_chooses():
    data, run, v = small.images(), small.run(), small.direction()
    own = direction_scores(v, run, data)
    chosen = {name: _perturb(3, select=PostEdit(pool=4), scores=given).ids.tolist() for name, given in
              {"none": None, "equal": Scores(own[None], data.ids, "own", "f"),
               "worst first": Scores(-own[None], data.ids, "reversed", "f")}.items()}  # fmt: skip
    assert chosen["none"] == chosen["equal"] != chosen["worst first"]
    pool = pool_of([data.ids[np.argsort(own, kind="stable")],
                    data.ids[np.argsort(-METHOD.potential(v, run, data, data.ids), kind="stable")]], 12)  # fmt: skip
    edited = METHOD.edit(v, run, data, pool)
    after = direction_scores(v, run, data, pool) + edited.gains
    np.testing.assert_allclose(direction_scores(v, run, data, pool), own[data.positions(pool)], rtol=1e-6)
    assert chosen["worst first"] == pool[np.argsort(-after, kind="stable")[:3]].tolist()


def test_screening_asks_for_hints_about_so_many_documents_and_no_more():
    data, run, v = small.images(), small.run(), small.direction()
    asked: list[int] = []

    @dataclass(frozen=True)
    class Asked(Counting):
        def potential(self, direction, run, data, ids):
            asked.extend(ids.tolist())
            return METHOD.potential(direction, run, data, ids)

    seen: list = []
    perturb(Asked(seen), v, run, data, 2, select=PostEdit(pool=4, screened=9), seed=3)
    drawn = choose("random", data, run, 9, seed=3)
    assert sorted(asked) == sorted(drawn.tolist())
    whole = METHOD.potential(v, run, data, data.ids)[data.positions(drawn)]
    by_score = data.ids[np.argsort(-direction_scores(v, run, data), kind="stable")]
    assert seen == [pool_of([by_score, drawn[np.argsort(-whole, kind="stable")]], 8).tolist()]
    with pytest.raises(InfuserError, match="screened is out of range"):
        PostEdit(screened=0)


def test_a_perturber_without_a_hint_gets_random_documents_in_its_pool():
    data, run, v = small.images(), small.run(), small.direction()
    seen: list = []
    method = Counting(seen)
    assert isinstance(method, Perturber)
    assert not isinstance(method, Hinting)
    edit = perturb(method, v, run, data, 3, select=PostEdit(pool=4, criterion="gain"), seed=1)
    top = choose("top", data, run, len(data), scores=direction_scores(v, run, data))
    assert seen == [pool_of([top, choose("random", data, run, len(data), seed=1)], 12).tolist()]
    assert edit.ids.tolist() == sorted(seen[0], reverse=True)[:3]
    with pytest.raises(InfuserError, match="post_edit needs the predicted gain"):
        perturb(Counting([], known=False), v, run, data, 3)


def test_given_ids_are_edited_as_they_come():
    ids = small.images().ids[[5, 2]]
    edit = _perturb(None, ids=ids)
    assert edit.ids.tolist() == ids.tolist()
    with pytest.raises(InfuserError, match="ids and k do not fit"):
        _perturb(3, ids=ids)
    with pytest.raises(InfuserError, match=r"twice.*102"):
        _perturb(None, ids=[102, 102])
    with pytest.raises(InfuserError, match=r"1 ids are not in"):
        _perturb(None, ids=[102, 7])
    with pytest.raises(InfuserError, match=r"1 ids are not in.*102\.5"):
        _perturb(None, ids=[102.5])
    with pytest.raises(InfuserError, match="ids and k do not fit"):
        _perturb(None, ids=[])


@pytest.mark.parametrize("k", [0, -1, 37, 2.5, None, True])
def test_k_out_of_range(k):
    with pytest.raises(InfuserError, match=r"k is out of range.*1 to 36"):
        _perturb(k)


def test_k_above_n_names_its_cause():
    with pytest.raises(InfuserError, match="k is larger than the data set"):
        _perturb(37)


def test_every_document_may_be_edited():
    assert sorted(_perturb(36).ids.tolist()) == small.images().ids.tolist()


def test_other_data_than_the_run_was_trained_on():
    data = small.images()
    edit = _perturb(2)
    with pytest.raises(InfuserError, match=r"not the one that the run was trained on.*undo"):
        perturb(METHOD, small.direction(), small.run(), data.apply(edit), 2)
    with pytest.raises(InfuserError, match="not the one that the run was trained on"):
        perturb(METHOD, small.direction(), small.run(), data.without([100]), 2)


def test_unknown_strategies_and_settings():
    with pytest.raises(InfuserError, match=r"unknown strategy.*post_edit"):
        _perturb(2, select="best")
    with pytest.raises(InfuserError, match="pool of post_edit"):
        PostEdit(pool=0.5)
    with pytest.raises(InfuserError, match="unknown criterion"):
        PostEdit(criterion="beauty")


def test_scores_have_to_cover_the_data():
    data = small.images()
    short = Scores(np.zeros((1, 35)), data.ids[1:], "test", "f")
    with pytest.raises(InfuserError, match="1 documents have no score"):
        _perturb(2, select="top", scores=short)
    holes = Scores(np.full((1, 36), np.nan), data.ids, "test", "f", reasons={"all": "too few steps"})
    with pytest.raises(InfuserError, match="the scores hold NaN"):
        _perturb(2, select="top", scores=holes)
    two = Scores(np.stack([np.arange(36.0), np.ones(36)]), data.ids, "test", "f")
    assert scores_over(two, data)[-1] == 18.0


def test_of_class():
    data = small.images()
    drawn = of_class(data, 1, 5, seed=0)
    assert (data[drawn].targets == 1).all()
    assert drawn.tolist() == of_class(data, 1, 5, seed=0).tolist() != of_class(data, 1, 5, seed=1).tolist()
    with pytest.raises(InfuserError, match="documents of class 1"):
        of_class(data, 1, 36)
    vectors = replace(data, kind="regression", targets=np.zeros((36, 1), np.float32))
    with pytest.raises(InfuserError, match="only classification"):
        of_class(vectors, 1, 1)


def test_a_foreign_run_serves_as_well():
    data = small.images()
    run = Run.from_weights(small.smooth, small.run().checkpoints[-1].weights, data)
    assert np.array_equal(perturb(METHOD, small.direction(), run, data, 2).after, _perturb(2).after)
    assert len(perturb(METHOD, small.direction(), run, data, 2, select="last")) == 2


@pytest.mark.parametrize("select", ["top", "post_edit", "random", "last"])
def test_documents_that_are_not_trained_on_are_not_edited(select):
    data = small.images()
    idle = _perturb(6, select=select).ids[:4]  # those that would be chosen
    weighted = data.with_weights(idle, 0)
    run = Run.from_weights(small.smooth, small.run().checkpoints[-1].weights, weighted)
    edit = perturb(METHOD, small.direction(), run, weighted, 6, select=select)
    assert not np.isin(edit.ids, idle).any()
    with pytest.raises(InfuserError, match="weight 0 cannot be edited"):
        perturb(METHOD, small.direction(), run, weighted, ids=idle)
    with pytest.raises(InfuserError, match="1 to 32"):
        perturb(METHOD, small.direction(), run, weighted, 33, select=select)


def test_a_document_counts_by_its_weight():
    data = small.images()
    twice = data.with_weights(data.ids[::2], 2)
    run = Run.from_weights(small.smooth, small.run().checkpoints[-1].weights, twice)
    plain = perturb(METHOD, small.direction(), small.run(), data, ids=data.ids)
    edit = perturb(METHOD, small.direction(), run, twice, ids=twice.ids)
    np.testing.assert_allclose(edit.gains, plain.gains * twice.weights)
    scores = direction_scores(small.direction(), run, twice)
    top = perturb(METHOD, small.direction(), run, twice, 5, select="top")
    assert top.ids.tolist() == data.ids[np.argsort(-scores * twice.weights, kind="stable")[:5]].tolist()
    assert top.ids.tolist() != data.ids[np.argsort(-scores, kind="stable")[:5]].tolist()
