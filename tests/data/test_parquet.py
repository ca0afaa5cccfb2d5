import numpy as np
import pyarrow as pa
import pytest

from infuser.data.parquet import parquet
from infuser.errors import InfuserError
from tests.data.files import encoded, image_table, parquet_bytes, pixels

IMAGES = [pixels(i, 4, 5, 3) for i in range(4)]
RAW = [encoded(image) for image in IMAGES]
STACKED = np.stack(IMAGES).transpose(0, 3, 1, 2)


def write(path, table, **options):
    (path / "a.parquet").write_bytes(parquet_bytes(table, **options))
    return path / "a.parquet"


@pytest.mark.parametrize("struct_column", [True, False])
def test_struct_or_plain_bytes(tmp_path, struct_column):
    # Row groups of one row, so that more than one batch is read.
    data = parquet(write(tmp_path, image_table(RAW, [0, 2, 1, 2], struct_column), row_group_size=1))
    np.testing.assert_array_equal(data.inputs, STACKED)
    assert data.targets.tolist() == [0, 2, 1, 2]
    assert data.n_outputs == 3
    assert data.ids.tolist() == [0, 1, 2, 3]
    assert data.name == "a"


def test_many_rows_keep_their_order(tmp_path):
    count = 600  # more than one batch of rows
    table = image_table([RAW[i % 4] for i in range(count)], [i % 4 for i in range(count)])
    data = parquet(write(tmp_path, table))
    np.testing.assert_array_equal(data.inputs, STACKED[np.arange(count) % 4])


def test_columns_by_name_and_ids(tmp_path):
    table = image_table(RAW, [0, 1, 0, 1], number=pa.array([7, 5, 3, 1]), second=pa.array(RAW[::-1]))
    path = write(tmp_path, table.rename_columns(["image", "y", "number", "second"]))
    data = parquet(path, image="second", label="y", ids="number")
    np.testing.assert_array_equal(data.inputs, STACKED[::-1])
    assert data.ids.tolist() == [7, 5, 3, 1]
    with pytest.raises(InfuserError, match="2 columns of images"):
        parquet(path, label="y")


@pytest.mark.parametrize("dictionary", [False, True])
def test_labels_that_are_words_are_numbered_in_sorted_order(tmp_path, dictionary):
    words = pa.array(["dog", "cat", "dog", "ant"])
    data = parquet(write(tmp_path, image_table(RAW, words.dictionary_encode() if dictionary else words)))
    assert data.classes == ("ant", "cat", "dog")
    assert data.targets.tolist() == [2, 1, 2, 0]
    with pytest.raises(InfuserError, match=r"out of range.*dog"):
        parquet(tmp_path / "a.parquet", classes=("ant", "cat"))


def test_the_path_beside_the_bytes_is_never_opened(tmp_path):
    target = tmp_path / "secret.png"
    target.write_bytes(RAW[0])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": str(target)}], kind)
    with pytest.raises(InfuserError, match=r"row 0 .* no image bytes.*never opened"):
        parquet(write(tmp_path, pa.table({"image": column, "label": [0]})))


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (image_table(RAW, [0, 1, -1, 0]), {}, r"1 labels of a are out of range.*-1 at rows 2"),
        (image_table(RAW, [0, 1, 10**9, 0]), {}, "out of range"),
        (image_table(RAW, [0, 1, 2, 0]), {"classes": ("a", "b")}, r"out of range.*Expected: 0 to 1"),
        (image_table(RAW, [0, 1, None, 0]), {}, "lacks values.*1 of 4"),
        (image_table(RAW, [0.0, 1.0, 2.0, 0.0]), {}, "wrong type.*double"),
        (image_table(RAW, pa.array([0, 1, 2, 2**63], pa.uint64())), {}, "can be read"),
        (image_table(RAW, [0, 1, 2, 0]), {"label": "y"}, "no column y"),
        (image_table(RAW, [0, 1, 2, 0]), {"image": "label"}, "no image column 'label'"),
        (image_table(RAW, [0, 1, 2, 0]), {"image": "img"}, "no image column 'img'"),
        (image_table(RAW, [0, 1, 2, 0]), {"ids": "number"}, "no column number"),
        (image_table(RAW, [0, 1, 2, 0], n=[1, 2, 2, 3]), {"ids": "n"}, "repeated ids"),
        (pa.table({"label": [0]}), {}, "0 columns of images"),
        (image_table([RAW[0], None], [0, 1]), {}, "row 1 of a has no image bytes"),
        (image_table([RAW[0], b"junk"], [0, 1]), {}, "row 1 of a is not an image"),
        (image_table([RAW[0], RAW[1][:-40]], [0, 1]), {}, "row 1 of a is not an image"),
        (image_table([RAW[0], encoded(pixels(0, 3, 3, 3))], [0, 1]), {}, "images of 2 sizes.*5 x 4.*3 x 3"),
        (image_table([], pa.array([], pa.int64())), {}, "a is empty"),
    ],
)
def test_wrong_columns_and_values(tmp_path, table, options, message):
    with pytest.raises(InfuserError, match=message):
        parquet(write(tmp_path, table), **options)


def test_files_that_are_not_parquet(tmp_path):
    whole = parquet_bytes(image_table(RAW, [0, 1, 2, 0]))
    for raw in (b"", b"PAR1", b"x" * 100, whole[:-9], whole[: len(whole) // 2], whole[100:]):
        (tmp_path / "a.parquet").write_bytes(raw)
        with pytest.raises(InfuserError, match="not a parquet file that can be read"):
            parquet(tmp_path / "a.parquet")
    with pytest.raises(InfuserError, match=r"b\.parquet is missing"):
        parquet(tmp_path / "b.parquet")
    with pytest.raises(InfuserError, match="not a regular file"):
        parquet(tmp_path)
