import numpy as np
import pytest

from infuser.data.caesar import CaesarCodec, caesar, caesar_dataset, documents
from infuser.data.dataset import IGNORED
from infuser.errors import InfuserError


@pytest.mark.parametrize("alphabet", [10, 26, 29])
def test_every_document_reads_as_a_correct_cipher(alphabet: int) -> None:
    train, _ = caesar(alphabet, n_train=50, n_test=5, length=6)
    codec = CaesarCodec(alphabet)
    symbols = codec.pieces[:alphabet]
    for row in train.inputs:
        text = codec.decode(row)
        head, rest = text.removeprefix("<bos>").removesuffix("<eos>").split(" C: ")
        plain, cipher = rest.split(" P: ")
        k = int(head.removeprefix("<s=").removesuffix(">"))
        # By rotating the alphabet, not by arithmetic on ids.
        rotated = dict(zip(symbols, symbols[k:] + symbols[:k], strict=True))
        assert "".join(rotated[c] for c in plain) == cipher
        assert codec.encode(text) == row.tolist()


def test_a_document_may_apply_another_shift_than_it_states() -> None:
    codec = CaesarCodec(26)
    row = documents(np.array([[0, 25]]), np.array([3]), np.array([5]), codec)
    assert codec.decode(row[0]) == "<bos><s=3> C: az P: fe<eos>"


def test_the_loss_is_on_the_answer_alone() -> None:
    codec = CaesarCodec(26)
    ids = documents(np.array([[0, 1, 2]]), np.array([1]), np.array([1]), codec)
    targets = caesar_dataset(ids, codec).targets[0]
    assert codec.decode(targets[targets != IGNORED]) == "bcd<eos>"


def test_parts_are_disjoint_and_follow_from_the_seed() -> None:
    train, test = caesar(26, 200, 50, seed=1)
    again, _ = caesar(26, 200, 50, seed=1)
    other, _ = caesar(26, 200, 50, seed=2)
    assert train.content_hash == again.content_hash != other.content_hash
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert not {tuple(r[3:13]) for r in train.inputs} & {tuple(r[3:13]) for r in test.inputs}


def test_bad_input_is_named() -> None:
    with pytest.raises(InfuserError, match="alphabet is too small or too large"):
        CaesarCodec(40)
    with pytest.raises(InfuserError, match="not a cipher document"):
        CaesarCodec(10).encode("<s=3> C: xyz P: abc")
    with pytest.raises(InfuserError, match="too few distinct texts"):
        caesar(10, length=2)


def test_marks_and_shifts_are_never_editable() -> None:
    codec = CaesarCodec(26)
    assert codec.editable.isdisjoint(codec.specials)
    assert {codec.pieces[i] for i in codec.editable} == set("abcdefghijklmnopqrstuvwxyz")
