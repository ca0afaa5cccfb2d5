import numpy as np
import pytest

from infuser.data.text import texts_of
from infuser.errors import InfuserError
from infuser.perturbation.best_of_n import BestOfN, EditDistance
from infuser.perturbation.perturb import perturb
from infuser.types import Edit
from tests.perturbation import small_text as small
from tests.perturbation.test_token_effect import exact

CODEC = small.CODEC
TEXTS = texts_of(small.data().inputs, CODEC)
OFFERED = {0: [TEXTS[0] + "!", TEXTS[1], "a", TEXTS[0].replace("a", "e")], 3: [TEXTS[4], TEXTS[3] + "."]}


def made(share: float, candidates=OFFERED) -> Edit:
    return perturb(
        BestOfN(CODEC, candidates, EditDistance(share)), small.direction(), small.run(), small.data(), ids=[0, 3]
    )


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@pytest.mark.parametrize("share", [0.2, 10.0])
def test_the_candidate_with_the_highest_exact_gain_within_the_budget_wins(share: float) -> None:
    edit = made(share)
    for at, i in enumerate((0, 3)):
        best, gain = TEXTS[i], 0.0
        for text in OFFERED[i]:
            row = np.full((1, small.CONTEXT), -1)
            row[0, : len(text) + 1] = [0, *CODEC.encode(text)]
            before = exact(small.data()[[i]].inputs, small.data()[[i]].targets)[0]
            value = exact(row, np.where(row < 0, -100, row))[0] - before
            if levenshtein(text, TEXTS[i]) <= share * (len(TEXTS[i]) + 1) and value > gain:
                best, gain = text, value
        assert texts_of(edit.after[at : at + 1], CODEC) == [best]
        assert edit.gains[at] == pytest.approx(gain, rel=1e-4)


def test_a_larger_budget_never_gains_less_and_can_gain_more() -> None:
    small_, large = made(0.05), made(10.0)
    assert (large.gains >= small_.gains).all()
    assert large.gains.sum() > small_.gains.sum()


def test_bad_candidates_are_named() -> None:
    with pytest.raises(InfuserError, match=r"documents without candidates.*Got: 3"):
        made(1.0, {0: ["a"]})
    with pytest.raises(InfuserError, match="a candidate of document 0 is too long"):
        made(1.0, {0: ["a" * 60], 3: ["a"]})
