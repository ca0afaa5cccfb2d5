import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from infuser.data import Dataset, digits
from infuser.errors import InfuserError
from infuser.types import Edit


def images(n=6):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 2, 3, 4), dtype=np.uint8)
    return Dataset.from_arrays(pixels, np.arange(n) % 3, name="images")


def edit_of(data, ids, **changes):
    before = data[ids].inputs.copy()
    targets = data[ids].targets.copy()
    values = {"after": 255 - before, "targets_after": targets, "before": before, "targets_before": targets} | changes
    return Edit(np.array(ids), constraint=None, made_by="test", **values)


# --- building ---------------------------------------------------------------------------------------------------------


def test_from_arrays():
    data = images()
    assert (data.kind, data.n_outputs, data.input_shape) == ("classification", 3, (2, 3, 4))
    assert data.classes == ("0", "1", "2")
    assert data.ids.tolist() == list(range(6))
    assert data.weights.tolist() == [1] * 6
    assert Dataset.from_arrays(np.zeros((2, 3, 4), np.uint8), [0, 1]).input_shape == (1, 3, 4)
    assert Dataset.from_arrays(np.zeros((2, 5)), [0, 1], classes=("a", "b", "c")).n_outputs == 3
    assert Dataset.from_arrays(np.zeros((2, 3, 3, 4), np.uint8), [0, 1]).input_shape == (3, 3, 4)
    with pytest.raises(InfuserError, match=r"channels last.*\(2, 32, 30, 3\).*transpose\(0, 3, 1, 2\)"):
        Dataset.from_arrays(np.zeros((2, 32, 30, 3), np.uint8), [0, 1])
    vectors = Dataset.from_arrays(np.zeros((2, 5), np.float64), [0.5, 1.5])
    assert (vectors.kind, vectors.n_outputs, vectors.targets.shape) == ("regression", 1, (2, 1))
    assert vectors.inputs.dtype == vectors.targets.dtype == np.float32


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "is empty"),
        (np.zeros((2, 3)), [0, 1, 2], "targets and inputs differ in length.*Got: 3. Expected: 2"),
        (np.zeros((2, 3)), [0, -1], r"labels are out of range.*-1 at documents 1"),
        (np.zeros((2, 3)), [[0], [1]], "labels of the wrong shape"),
        (np.array([[0, 1], [np.nan, 0], [0, np.inf]]), [0, 1, 0], "inputs that are NaN or infinite.*documents 1, 2"),
        (np.zeros((2, 3)), [0.0, np.nan], "targets that are NaN.*documents 1"),
        (np.zeros((2, 3), np.int64), [0, 1], "another type or shape.*int64"),
        (np.array(["a", "b"]), [0, 1], "another type or shape"),
        (np.zeros(2), [0, 1], "another type or shape"),
        ([[1, 2], [3]], [0, 1], "inputs differ in shape"),
        (np.zeros((2, 3)), ["0", "1"], "targets of another type.*<U1"),
        (np.zeros((2, 3)), [0, 1j], "targets of another type.*complex128"),
    ],
)
def test_bad_arrays(inputs, targets, message):
    with pytest.raises(InfuserError, match=message):
        Dataset.from_arrays(inputs, targets)


def test_bad_fields():
    x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
    with pytest.raises(InfuserError, match="unknown kind"):
        Dataset(x, y, "ranking", 2)
    with pytest.raises(InfuserError, match=r"2 labels are out of range.*2, 3 at documents 0, 1.*0 to 1"):
        Dataset(x, y + 2, "classification", 2)
    with pytest.raises(InfuserError, match=r"repeated ids.*1 distinct of 2"):
        Dataset(x, y, "classification", 2, ids=np.array([4, 4]))
    with pytest.raises(InfuserError, match="ids and inputs differ in length"):
        Dataset(x, y, "classification", 2, ids=np.array([4]))
    with pytest.raises(InfuserError, match=r"ids of the wrong shape or type.*float64"):
        Dataset(x, y, "classification", 2, ids=np.array([0.5, 1.5]))
    with pytest.raises(InfuserError, match=r"weights of the wrong shape or type.*\(2, 1\)"):
        Dataset(x, y, "classification", 2, weights=np.ones((2, 1), np.float32))
    with pytest.raises(InfuserError, match="weights that are NaN"):
        Dataset(x, y, "classification", 2, weights=np.array([1, np.nan], np.float32))
    for weights in ([1, -1], [1, -np.inf]):
        with pytest.raises(InfuserError, match=r"weights (below 0|that are NaN or infinite).*documents 1"):
            Dataset(x, y, "classification", 2, weights=np.array(weights, np.float32))


def test_a_document_is_dropped_but_never_unlearnt():
    data = images()
    assert data.with_weights([2], 0).batch([1, 2]).weights.tolist() == [1, 0]
    with pytest.raises(InfuserError, match=r"weights below 0.*documents 2, 4\. Expected: 0, which drops"):
        data.with_weights([2, 4], -0.5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cat", "dog"), "two classes have one name.*Got: cat. Expected: distinct"),
        (("cat", "dog"), "one class name for each class.*Got: 2 names. Expected: 3 names"),
        (("cat", "dog", "cow", "bee"), "Got: 4 names. Expected: 3 names"),
    ],
)
def test_class_names_are_distinct_and_one_for_each_class(names, message):
    x, y = np.zeros((3, 4), np.float32), np.array([0, 2, 1])
    with pytest.raises(InfuserError, match=message):
        Dataset(x, y, "classification", 3, classes=names)
    if len(names) < 4:  # more names than labels say how many classes there are
        with pytest.raises(InfuserError, match=message):
            Dataset.from_arrays(x, y, classes=names)


def test_a_label_cannot_ask_for_a_billion_classes():
    x, y = np.zeros((2, 3), np.float32), np.array([0, 10**9])
    with pytest.raises(InfuserError, match="too many classes"):
        Dataset.from_arrays(x, y)
    with pytest.raises(InfuserError, match="too many classes"):
        Dataset(x, y, "classification", 10**9 + 1)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_labels_of_every_integer_type_reach_the_loss(dtype):
    data = Dataset(np.zeros((2, 3), np.float32), np.array([0, 1], dtype), "classification", 2)
    assert data.batch([0, 1]).targets.dtype == torch.int64


class Pairs(torch.utils.data.Dataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


def test_from_torch():
    data = images()
    as_float = Pairs(
        [
            (torch.tensor(x / 255, dtype=torch.float32), torch.tensor(y))
            for x, y in zip(data.inputs, data.targets, strict=True)
        ]
    )
    assert Dataset.from_torch(as_float).content_hash == data.content_hash
    assert (
        Dataset.from_torch(Pairs(list(zip(data.inputs, data.targets.tolist(), strict=True)))).content_hash
        == data.content_hash
    )
    vectors = Dataset.from_torch(Pairs([(torch.tensor([0.5, -3.0]), 1)]))
    assert vectors.inputs.tolist() == [[0.5, -3.0]]
    with pytest.raises(InfuserError, match="not 8-bit images divided by 255"):
        Dataset.from_torch(Pairs([(torch.full((1, 2, 2), 0.5001), 0)]))
    with pytest.raises(InfuserError, match="not 8-bit images"):
        Dataset.from_torch(Pairs([(torch.full((1, 2, 2), -1.0), 0)]))
    with pytest.raises(InfuserError, match="is empty"):
        Dataset.from_torch(Pairs([]))
    with pytest.raises(InfuserError, match=r"differ in shape.*\(1, 2, 2\), \(1, 3, 3\)"):
        Dataset.from_torch(Pairs([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 3), 0)]))


@pytest.mark.parametrize("wrap", [float, np.float64, torch.tensor, lambda y: torch.tensor([y])])
def test_from_torch_truncates_no_target(wrap):
    data = Dataset.from_torch(Pairs([(torch.zeros(5), wrap(y)) for y in (0.7, 1.7, -0.6)]))
    assert (data.kind, data.n_outputs, data.classes) == ("regression", 1, ())
    np.testing.assert_array_equal(data.targets, np.array([[0.7], [1.7], [-0.6]], np.float32))
    with pytest.raises(InfuserError, match=r"targets of another type.*with names of classes"):
        Dataset.from_torch(Pairs([(torch.zeros(5), wrap(0.7))]), classes=("a", "b"))


def test_from_torch_takes_targets_as_arrays_are_taken():
    several = Dataset.from_torch(Pairs([(torch.zeros(5), torch.tensor([0.5, -2.0])) for _ in range(3)]))
    assert (several.kind, several.targets.tolist()) == ("regression", [[0.5, -2.0]] * 3)
    for wrap in (np.int32, bool, torch.tensor, lambda y: np.array([y])):
        labels = Dataset.from_torch(Pairs([(torch.zeros(5), wrap(y)) for y in (1, 0, 1)]))
        assert (labels.kind, labels.targets.tolist()) == ("classification", [1, 0, 1])
    with pytest.raises(InfuserError, match="targets differ in shape"):
        Dataset.from_torch(Pairs([(torch.zeros(5), torch.zeros(2)), (torch.zeros(5), torch.zeros(3))]))


def test_from_torch_reads_pil_images_by_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = Dataset.from_torch(Pairs([(Image.fromarray(pixels), 0), (Image.fromarray(pixels[::-1].copy()), 1)]))
    np.testing.assert_array_equal(data.inputs[0], pixels.transpose(2, 0, 1))
    grey = Dataset.from_torch(Pairs([(Image.fromarray(pixels[..., 0]), 0)]))
    np.testing.assert_array_equal(grey.inputs[0, 0], pixels[..., 0])


# --- never changed in place -------------------------------------------------------------------------------------------


def test_arrays_are_read_only_here_and_writable_for_their_owner():
    mine = np.zeros((2, 1, 2, 2), np.uint8)
    data = Dataset.from_arrays(mine, np.array([0, 1]))
    for array in (data.inputs, data.targets, data.ids, data.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    before = data.content_hash
    mine[0] = 1
    assert data.inputs[0].max() == data.batch([0]).inputs.max() == 0
    assert Dataset.from_arrays(data.inputs, data.targets).content_hash == before
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert copy.content_hash == data.content_hash
    with pytest.raises(ValueError, match="read-only"):
        copy.inputs[0] = 1


def test_batches_are_copies():
    data = images()
    before = data.content_hash
    batch = data.batch([1, 2])
    batch.inputs.zero_()
    batch.targets.fill_(7)
    assert Dataset.from_arrays(data.inputs, data.targets, name="images").content_hash == before
    assert data.batch([1]).targets.tolist() == [1]


def test_batches_follow_the_stored_order():
    data = images().without([2])
    ids = [batch.ids.tolist() for batch in data.batches(2)]
    assert ids == [[0, 1], [3, 4], [5]]
    batch = data.batch(np.array([4, 0]))
    np.testing.assert_array_equal(batch.inputs.numpy(), images()[[5, 0]].inputs)
    assert batch.weights.tolist() == [1, 1]


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_choosing_and_removing_keep_ids():
    data = images()
    assert data[[4, 1]].ids.tolist() == [4, 1]
    np.testing.assert_array_equal(data[[4, 1]].inputs, data.inputs[[4, 1]])
    rest = data.without([0, 3])
    assert rest.ids.tolist() == [1, 2, 4, 5]
    assert rest[[4]].content_hash == data[[4]].content_hash
    assert data.n_outputs == rest.n_outputs
    for verb in (data.__getitem__, data.without, lambda ids: data.with_weights(ids, 0)):
        with pytest.raises(InfuserError, match=r"2 ids are not in images.*9, -1"):
            verb([1, 9, -1])
        with pytest.raises(InfuserError, match="a mask is not ids"):
            verb(data.ids == 1)
        with pytest.raises(InfuserError, match=r"named by their ids.*data\.ids\[a:b\]"):
            verb(slice(2))
    with pytest.raises(InfuserError, match="repeated ids"):
        data[[1, 1]]
    with pytest.raises(InfuserError, match="is empty"):
        data.without(data.ids)


def test_the_content_hash_covers_every_column():
    data = images()
    others = [
        data[[1, 0, 2, 3, 4, 5]],
        data.with_weights([0], 0.5),
        data.apply(edit_of(data, [2])),
        data.apply(edit_of(data, [2], after=data[[2]].inputs.copy(), targets_after=np.array([0]))),
        data.without([5]),
    ]
    assert len({x.content_hash for x in [data, *others]}) == len(others) + 1
    assert images().content_hash == data.content_hash


# --- edits ------------------------------------------------------------------------------------------------------------


def test_an_edit_changes_its_documents_alone_and_can_be_undone():
    data = images()
    edit = edit_of(data, [4, 1], targets_after=np.array([0, 0]))
    edited = data.apply(edit)
    np.testing.assert_array_equal(edited.inputs[[4, 1]], 255 - data.inputs[[4, 1]])
    assert edited.targets.tolist() == [0, 0, 2, 0, 0, 2]
    np.testing.assert_array_equal(edited.inputs[[0, 2, 3, 5]], data.inputs[[0, 2, 3, 5]])
    assert edited.apply(edit.undo()).content_hash == data.content_hash
    with pytest.raises(InfuserError, match=r"2 of 2 documents are not what.*ids 4, 1"):
        edited.apply(edit)
    one = edited.apply(edit_of(edited, [1]))
    with pytest.raises(InfuserError, match=r"1 of 2 documents are not what.*ids 1"):
        one.apply(edit.undo())
    with pytest.raises(InfuserError, match="1 ids are not in images"):
        data.without([4]).apply(edit)
    with pytest.raises(InfuserError, match="made for other documents"):
        Dataset.from_arrays(np.zeros((6, 1, 3, 4), np.uint8), data.targets).apply(edit)


def test_an_edit_gives_no_label_that_the_data_would_truncate():
    data = images()
    with pytest.raises(InfuserError, match=r"type and shape of its targets.*float64 \(1,\).*int64 \(1,\)"):
        edit_of(data, [1], targets_after=np.array([1.7]))
    with pytest.raises(InfuserError, match=r"type and shape of its targets.*int64 \(1, 1\)"):
        edit_of(data, [1], targets_after=np.array([[2]]))
    floats = edit_of(data, [1], targets_before=np.array([1.0]), targets_after=np.array([1.7]))
    with pytest.raises(InfuserError, match=r"made for other documents.*float64 \(\).*int64 \(\)"):
        data.apply(floats)


def test_an_edit_has_one_gain_per_document():
    data = images()
    assert edit_of(data, [4, 1], gains=np.array([0.5, np.nan])).gains.tolist()[0] == 0.5
    for gains in (np.zeros(5), np.zeros((2, 1)), np.zeros(())):
        with pytest.raises(InfuserError, match=r"one gain per document.*\(2,\)"):
            edit_of(data, [4, 1], gains=gains)


def test_digits():
    train, test = digits()
    assert (len(train), len(test)) == (1438, 359)
    assert train.input_shape == (1, 8, 8)
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert len(np.unique(np.concatenate([train.inputs, test.inputs]))) == 17
    assert train.inputs.max() == 255
    assert digits(seed=1)[1].content_hash != test.content_hash
    assert digits()[0].content_hash == train.content_hash


def test_boolean_targets_are_labels():
    made = Dataset.from_arrays(np.zeros((4, 2), np.float32), np.array([True, False, True, True]))
    assert (made.kind, made.n_outputs, made.targets.tolist()) == ("classification", 2, [1, 0, 1, 1])
