import sys

import numpy as np
import pyarrow as pa
import pytest

from infuser.data.hub import hub
from infuser.errors import InfuserError
from tests.data.files import encoded, pixels

pytest.importorskip("datasets", reason="the hf extra is not installed")
import datasets

RAW = [encoded(pixels(i, 6, 5, 3)) for i in range(4)]


@pytest.fixture
def loaded(monkeypatch):
    """What load_dataset would return, without the network; it can be changed by a test."""
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})

    def part(raw, labels):
        column = pa.array([{"bytes": r, "path": "/etc/passwd"} for r in raw], features["picture"].pa_type)
        return datasets.Dataset(
            pa.table({"picture": column, "kind": labels}), info=datasets.DatasetInfo(features=features)
        )

    parts = datasets.DatasetDict({"train": part(RAW[:3], [0, 1, 1]), "test": part(RAW[3:], [0])})
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: calls.append((name, options)) or parts)
    parts.calls, parts.part = calls, part
    return parts


def test_images_labels_and_classes(loaded):
    train, test = hub("someone/pets", revision="abc")
    np.testing.assert_array_equal(train.inputs, np.stack([pixels(i, 6, 5, 3) for i in range(3)]).transpose(0, 3, 1, 2))
    assert train.targets.tolist() == [0, 1, 1]
    assert train.classes == test.classes == ("cat", "dog")
    assert test.n_outputs == 2
    assert test.ids.tolist() == [3]
    assert loaded.calls == [("someone/pets", {"revision": "abc", "cache_dir": None})]


def test_a_local_folder_of_parquet(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        rows = {"image": [{"bytes": raw, "path": None} for raw in RAW], "label": [0, 1, 0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    train, _ = hub(str(tmp_path), cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(train.inputs[2], pixels(2, 6, 5, 3).transpose(2, 0, 1))
    assert train.classes == ("a", "b")


def test_wrong_columns_splits_and_values(loaded):
    with pytest.raises(InfuserError, match=r"no image column 'kind'.*picture: Image"):
        hub("x", image="kind")
    with pytest.raises(InfuserError, match="no label column 'picture'"):
        hub("x", label="picture")
    with pytest.raises(InfuserError, match=r"lacks a split.*Expected: train and validation"):
        hub("x", test="validation")
    loaded["test"] = loaded.part(RAW[3:], [-1])
    with pytest.raises(InfuserError, match="labels are out of range"):
        hub("x")
    loaded["test"] = loaded.part([None], [0])
    with pytest.raises(InfuserError, match="no image bytes"):
        hub("x")


def test_a_data_set_that_cannot_be_loaded(tmp_path, monkeypatch):
    def refuse(name, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InfuserError, match=r"someone/pets cannot be loaded.*no network"):
        hub("someone/pets")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InfuserError, match=r"datasets is not installed.*infuser\[hf\]"):
        hub("someone/pets")
