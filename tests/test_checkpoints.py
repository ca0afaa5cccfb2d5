import errno
import json
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

import infuser as inf
from infuser.checkpoints import (
    Checkpoint,
    build,
    load_checkpoint,
    load_run,
    load_weights,
    save_checkpoint,
    save_run,
    with_traces,
)
from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.storage import hash_file

RECIPE = inf.Recipe(epochs=2, batch_size=4, lr=0.05, momentum=0.9)


def data(n=10):
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(rng.integers(0, 256, (n, 1, 4, 4), dtype=np.uint8), rng.permutation(np.arange(n) % 3))


@pytest.fixture
def run():
    return inf.train(inf.models.mlp, data(), RECIPE)


def assert_same(a, b):
    assert (a.epoch, a.step) == (b.epoch, b.step)
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert a.optimizer["param_groups"] == b.optimizer["param_groups"]
    assert a.optimizer["state"].keys() == b.optimizer["state"].keys()
    for slot in a.optimizer["state"]:
        for key, value in a.optimizer["state"][slot].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b.optimizer["state"][slot][key]))


def test_a_run_on_disk_is_the_run_in_memory(run, tmp_path):
    save_run(run, tmp_path)
    loaded = load_run(inf.models.mlp, data(), RECIPE, tmp_path)
    assert [c.epoch for c in loaded.checkpoints] == [0, 1, 2]
    for a, b in zip(run.checkpoints, loaded.checkpoints, strict=True):
        assert_same(a, b)
        assert a.content_hash == b.content_hash
    assert run.checkpoints[2].optimizer["state"]  # momentum buffers were compared
    assert load_run(inf.models.mlp, data(), RECIPE, tmp_path / "none") is None


def test_tied_and_half_precision_weights_are_kept(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    weights = dict(model.state_dict())
    folder = save_checkpoint(Checkpoint(0, 0, weights), tmp_path)
    loaded = load_checkpoint(folder)
    assert loaded.weights["1.weight"].dtype == torch.bfloat16
    assert torch.equal(loaded.weights["1.weight"], model[0].weight)
    assert loaded.content_hash == Checkpoint(0, 0, weights).content_hash
    assert loaded.content_hash != Checkpoint(0, 0, {name: -value for name, value in weights.items()}).content_hash


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damaged_files_are_named(run, tmp_path, name, damage):
    folder = save_checkpoint(run.checkpoints[1], tmp_path)
    path = folder / name
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(InfuserError, match=f"checkpoint file {name} is missing or damaged"):
        load_checkpoint(folder)
    path.write_bytes(raw)
    assert_same(load_checkpoint(folder), run.checkpoints[1])


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("raw", [b"", b"junk" * 10, b"\x80\x04cos\nsystem\n.", (1 << 60).to_bytes(8, "little") + b"{}"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_whose_hash_was_forged_are_refused_too(run, tmp_path, name, raw):
    folder = save_checkpoint(run.checkpoints[1], tmp_path)
    (folder / name).write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = hash_file(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InfuserError, match=r"cannot read the checkpoint in epoch-0001"):
        load_checkpoint(folder)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(run.checkpoints[1], tmp_path)
    torch.save({"state": Hostile()}, folder / "optimizer.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["optimizer.pt"] = hash_file(folder / "optimizer.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InfuserError, match="cannot read the checkpoint"):
        load_checkpoint(folder)
    assert not (tmp_path / "unpickled").exists()
    torch.load(folder / "optimizer.pt", weights_only=False)  # the file does what it is meant to, if one lets it
    assert (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("sha256"),
        lambda m: m.update(sha256={}),
        lambda m: m["sha256"].update({"../../etc/passwd": "0"}),
        lambda m: m.update(epoch="1"),
        lambda m: m.pop("step"),
    ],
)
def test_a_manifest_of_something_else(run, tmp_path, change):
    folder = save_checkpoint(run.checkpoints[1], tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InfuserError, match="not that of a checkpoint"):
        load_checkpoint(folder)


def test_missing_or_broken_manifest(run, tmp_path):
    folder = save_checkpoint(run.checkpoints[1], tmp_path)
    for raw in ("[1]", "3"):
        (folder / "manifest.json").write_text(raw)
        with pytest.raises(InfuserError, match="not that of a checkpoint"):
            load_checkpoint(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InfuserError, match="not valid JSON"):
        load_checkpoint(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InfuserError, match=r"manifest\.json is missing"):
        load_run(inf.models.mlp, data(), RECIPE, tmp_path)


def test_another_recipe_or_data_set_is_refused(run, tmp_path):
    save_run(run, tmp_path)
    with pytest.raises(InfuserError, match="belongs to another recipe"):
        load_run(inf.models.mlp, data(), RECIPE.with_(lr=0.06), tmp_path)
    with pytest.raises(InfuserError, match="belongs to another data"):
        load_run(inf.models.mlp, data(9), RECIPE, tmp_path)


@pytest.mark.parametrize(
    "where", ["torch.save", "infuser.checkpoints.hash_file", "infuser.checkpoints.write_json", "os.fsync"]
)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_crash_in_the_middle_leaves_nothing_half_written(run, tmp_path, monkeypatch, where, failure):
    save_checkpoint(run.checkpoints[0], tmp_path)

    def crash(*args, **kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(where, crash)
        with pytest.raises((KeyboardInterrupt, InfuserError, OSError)) as caught:
            save_checkpoint(run.checkpoints[1], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0000"]
    assert_same(load_checkpoint(tmp_path / "epoch-0000"), run.checkpoints[0])
    if isinstance(failure, OSError) and where != "torch.save":  # that one writes to memory, and never meets the disk
        assert isinstance(caught.value, InfuserError)
        assert "disk is full" in str(caught.value)


def test_rewriting_a_checkpoint_replaces_it(run, tmp_path):
    save_checkpoint(run.checkpoints[1], tmp_path, note=1)
    folder = save_checkpoint(run.checkpoints[1], tmp_path, note=2)
    assert load_checkpoint(folder, note=2).epoch == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0001"]


def test_from_weights_runs_a_model_trained_elsewhere():
    torch.manual_seed(5)
    mine = inf.models.mlp((1, 4, 4), 3)
    run = inf.Run.from_weights(inf.models.mlp, mine.state_dict(), data())
    with torch.no_grad():
        mine[1].weight.add_(1)  # later changes of the user's model are not the run's
    model = run.model()
    assert not model.training
    assert torch.equal(model[1].weight + 1, mine[1].weight)
    assert run.data_hash == data().content_hash
    assert len(run.checkpoints) == 1
    with pytest.raises(InfuserError, match=r"no checkpoint after epoch 1.*from_weights"):
        run.at(1)


def test_weights_that_do_not_fit_are_listed(run):
    with pytest.raises(InfuserError, match=r"2 tensors.*5\.weight, 5\.bias"):
        inf.Run.from_weights(lambda shape, n: inf.models.mlp(shape, n + 1), run.checkpoints[-1].weights, data())
    weights = dict(run.checkpoints[-1].weights)
    weights["extra"] = weights.pop("1.bias")
    with pytest.raises(InfuserError, match=r"2 tensors.*1\.bias, extra"):
        load_weights(run.model(), weights)


def test_models_are_fresh_and_checkpoints_stay(run):
    before = run.checkpoints[-1].content_hash
    model = run.model()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert run.checkpoints[-1].content_hash == before
    assert not torch.equal(run.model()[1].weight, model[1].weight)
    assert torch.equal(run.model(0)[1].weight, run.model(run.at(0))[1].weight)
    assert not torch.equal(run.model(0)[1].weight, run.model(2)[1].weight)


def test_a_model_that_cannot_be_built_says_why():
    with pytest.raises(InfuserError, match=r"shape \(1, 4, 4\) and 3 outputs cannot be built.*negative dimension"):
        build(lambda shape, n: inf.models.simple_cnn(shape, n, width=-4), (1, 4, 4), 3, 0)


def test_building_is_seeded_and_keeps_the_global_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (build(inf.models.mlp, (1, 4, 4), 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a[1].weight, b[1].weight)
    assert not torch.equal(a[1].weight, c[1].weight)
    with pytest.raises(InfuserError, match="no trainable parameters"):
        build(lambda shape, n: nn.Flatten(), (1, 4, 4), 3, 0)
    with pytest.raises(InfuserError, match=r"no function.*'mlp'.*infuser\.models"):
        build("mlp", (1, 4, 4), 3, 0)


def test_traces_are_added(run):
    assert with_traces(with_traces(run, {"a": 1}), {"b": 2}).traces == {"a": 1, "b": 2}
    assert asdict(run.recipe) == asdict(RECIPE)
