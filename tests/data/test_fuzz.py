"""Whatever bytes a reader is given, it returns data or raises InfuserError."""

import gzip
import warnings
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infuser.data.cifar10 import read_binary
from infuser.data.dataset import Dataset
from infuser.data.mnist import mnist, read_idx
from infuser.data.parquet import parquet
from infuser.data.untrusted import decode_image
from infuser.errors import InfuserError
from tests.data.files import damaged, encoded, idx, image_table, mnist_arrays, npz, parquet_bytes, pixels

IDX = idx(pixels(0, 3, 4, 5))
NPZ = npz(mnist_arrays(3, 2))
NPZ_SMALL = npz(mnist_arrays(3, 2), compressed=True)
_RAW = [encoded(pixels(i, 4, 5, 3)) for i in range(3)]
_PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
PARQUETS = [
    parquet_bytes(image_table(_RAW, [0, 1, 0]), **_PLAIN),
    parquet_bytes(image_table(_RAW, [0, 1, 0], struct_column=False)),
    parquet_bytes(image_table(_RAW, ["a", "b", "a"]), compression="zstd"),
]
IMAGES = [
    encoded(pixels(0, 6, 7, 3), "PNG"),
    encoded(pixels(0, 6, 7), "PNG"),
    encoded(pixels(0, 16, 16, 3), "JPEG"),
    encoded(pixels(0, 6, 7, 3), "WEBP", lossless=True),
    encoded(pixels(0, 6, 7, 3), "BMP"),
    encoded(pixels(0, 6, 7), "GIF"),
    encoded(pixels(0, 6, 7, 3), "PPM"),
]


def _is_array(read, path):
    array = read(path)
    assert array.dtype == np.uint8
    assert array.size


def _is_image(raw):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata
        image = decode_image(raw, "x")
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert len(image) in (1, 3)


def _is_pair(path):
    for part in mnist(path):
        assert isinstance(part, Dataset)
        assert part.n_outputs == 10


def _is_dataset(path):
    data = parquet(path)
    assert len(data.inputs) == len(data.targets) == len(data)


def _is_batch(path):
    images, labels = read_binary(path)
    assert images.shape == (len(labels), 3, 32, 32)


# Reader -> (what is asserted of its result, the bytes it is given).
READERS = {
    "idx": (
        lambda path: _is_array(read_idx, path),
        damaged(IDX) | damaged(gzip.compress(IDX, mtime=0)) | st.binary(max_size=60),
    ),
    "npz": (_is_pair, damaged(NPZ) | damaged(NPZ_SMALL)),
    "image": (lambda path: _is_image(path.read_bytes()), st.one_of(*map(damaged, IMAGES), st.binary(max_size=60))),
    "parquet": (_is_dataset, st.one_of(*map(damaged, PARQUETS))),
    "binary": (_is_batch, damaged(bytes(2 * 3073))),
}


def _fuzz(folder, reader, examples):
    check, given_bytes = READERS[reader]
    path = folder / "file"
    outcomes = {"read": 0, "refused": 0}

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(given_bytes)
    def run(raw):
        path.write_bytes(raw)
        with suppress(InfuserError):
            outcomes["refused"] += 1
            check(path)
            outcomes["refused"] -= 1
            outcomes["read"] += 1

    run()
    # Both must occur, else the damage is too slight or too heavy to test anything.
    assert outcomes["read"] > 0
    assert outcomes["refused"] > 0


@pytest.mark.parametrize("reader", READERS)
def test_readers_raise_nothing_but_their_own_error(tmp_path, reader):
    _fuzz(tmp_path, reader, 100)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_readers_raise_nothing_but_their_own_error_ten_thousand_times(tmp_path, reader):
    _fuzz(tmp_path, reader, 10_000)


def test_the_fuzzer_would_notice_a_crash(tmp_path, monkeypatch):
    monkeypatch.setitem(READERS, "naive", (np.load, READERS["npz"][1]))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        _fuzz(tmp_path, "naive", 100)
    assert not isinstance(caught.value, InfuserError | AssertionError)
