import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import infuser as inf
from infuser.checkpoints import Checkpoint, load_run
from infuser.data import Dataset
from infuser.errors import InfuserError
from infuser.training import epoch_order, scheduled, train, without_traces

MOMENTUM = inf.Recipe(epochs=3, batch_size=5, lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine", seed=4)
ADAMW = inf.Recipe(epochs=3, batch_size=5, lr=0.003, optimizer="adamw", weight_decay=0.1, schedule="linear", seed=4)


def images(n=23, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 1, 6, 6), dtype=np.uint8)
    return Dataset.from_arrays(pixels, rng.permutation(np.arange(n) % 3), name="images")


def noisy(shape, n_outputs):
    """Everything that has a state or draws numbers: convolution, BatchNorm, dropout."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * (shape[1] - 2) * (shape[2] - 2), n_outputs),
    )


def assert_same(a, b):
    assert (a.epoch, a.step) == (b.epoch, b.step)
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    for slot, state in a.optimizer["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b.optimizer["state"][slot][key]))


def assert_same_run(a, b):
    assert [c.epoch for c in a.checkpoints] == [c.epoch for c in b.checkpoints]
    for x, y in zip(a.checkpoints, b.checkpoints, strict=True):
        assert_same(x, y)


class Recorder:
    """An observer that keeps what it is shown, and does whatever it is told to."""

    def __init__(self, act=lambda moment: None, name="recorder"):
        self.moments, self.act, self.name = [], act, name

    def step(self, moment):
        weights = {name: p.detach().clone() for name, p in moment.model.named_parameters()}
        grads = {name: p.grad.clone() for name, p in moment.model.named_parameters()}
        self.moments.append((moment, weights, grads, moment.model.training))
        self.act(moment)

    def trace(self):
        return len(self.moments)


# --- against an independent loop --------------------------------------------------------------------------------------


def by_hand(data, recipe, weights_start, order):
    """A few lines of plain torch for the same recipe, in the order of documents that is passed in."""
    model = inf.models.mlp(data.input_shape, data.n_outputs)
    model.load_state_dict(weights_start)
    options = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    maker = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.AdamW
    optimizer = maker(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, **options)
    total = recipe.epochs * math.ceil(len(data) / recipe.batch_size)
    step = 0
    for epoch in range(recipe.epochs):
        for rows in np.array_split(order(epoch), range(recipe.batch_size, len(data), recipe.batch_size)):
            done = step / total
            factor = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[recipe.schedule]
            optimizer.param_groups[0]["lr"] = recipe.lr * factor
            outputs = model(torch.tensor(data.inputs[rows] / 255, dtype=torch.float32))
            each = F.cross_entropy(outputs, torch.tensor(data.targets[rows]), reduction="none")
            optimizer.zero_grad()
            (each * torch.tensor(data.weights[rows])).sum().div(len(rows)).backward()
            optimizer.step()
            step += 1
    return model.state_dict()


@pytest.mark.parametrize("recipe", [MOMENTUM, ADAMW])
def test_training_is_the_loop_that_the_recipe_describes(recipe):
    data = images().with_weights([3, 7], 0.25)
    run = inf.train(inf.models.mlp, data, recipe)
    wanted = by_hand(data, recipe, run.checkpoints[0].weights, lambda e: epoch_order(data.ids, recipe, e))
    for name, value in run.checkpoints[-1].weights.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
    # The oracle can fail: another order gives other weights.
    other = by_hand(data, recipe, run.checkpoints[0].weights, lambda e: np.arange(len(data)))
    name = "1.weight"
    assert (run.checkpoints[-1].weights[name] - other[name]).abs().max() > 1e-3


def test_checkpoints_positions_and_start():
    run = inf.train(noisy, images(), MOMENTUM)
    assert [(c.epoch, c.step) for c in run.checkpoints] == [(0, 0), (1, 5), (2, 10), (3, 15)]
    again = inf.train(noisy, images(), MOMENTUM)
    assert_same_run(run, again)
    assert (
        inf.train(noisy, images(), MOMENTUM.with_(seed=5)).checkpoints[-1].content_hash
        != again.checkpoints[-1].content_hash
    )


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["none", "flip"])
@pytest.mark.parametrize("recipe", [MOMENTUM, ADAMW])
def test_resume_gives_the_bits_of_an_undisturbed_run(tmp_path, recipe, augmentation):
    recipe = recipe.with_(augmentation=augmentation)
    whole = inf.train(noisy, images(), recipe)
    inf.train(noisy, images(), recipe, folder=tmp_path)
    for epoch in (2, 3):
        shutil.rmtree(tmp_path / f"epoch-{epoch:04d}")
    torch.rand(17)  # whatever else the program drew in between
    resumed = inf.train(noisy, images(), recipe, folder=tmp_path)
    assert_same_run(whole, resumed)


def test_an_interrupt_keeps_the_epochs_that_are_done(tmp_path):
    def interrupt(moment):
        if moment.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inf.train(noisy, images(), ADAMW, observers=[Recorder(interrupt)], folder=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("epoch-*")) == ["epoch-0000", "epoch-0001"]
    with pytest.raises(InfuserError, match="observers would miss the epochs"):
        inf.train(noisy, images(), ADAMW, observers=[Recorder()], folder=tmp_path)
    assert_same_run(inf.train(noisy, images(), ADAMW, folder=tmp_path), inf.train(noisy, images(), ADAMW))


@pytest.mark.parametrize("recipe", [MOMENTUM, ADAMW])
def test_going_on_from_a_checkpoint_gives_the_same_bits_and_spares_it(recipe):
    whole = inf.train(noisy, images(), recipe)
    start = whole.checkpoints[1]
    before = {
        (s, k): torch.as_tensor(v).clone() for s, slot in start.optimizer["state"].items() for k, v in slot.items()
    }
    for _ in range(2):  # a second run from the same checkpoint would show what the first did to it
        run = inf.train(noisy, images(), recipe, start=start)
        assert [c.epoch for c in run.checkpoints] == [1, 2, 3]
        assert_same(run.checkpoints[-1], whole.checkpoints[-1])
    for (s, k), value in before.items():
        assert torch.equal(torch.as_tensor(start.optimizer["state"][s][k]), value)
    with pytest.raises(InfuserError, match="exclude each other"):
        inf.train(noisy, images(), recipe, start=start, folder="x")


def test_a_folder_of_another_run_is_refused(tmp_path):
    inf.train(noisy, images(), MOMENTUM, folder=tmp_path)
    with pytest.raises(InfuserError, match="another recipe"):
        inf.train(noisy, images(), ADAMW, folder=tmp_path)
    with pytest.raises(InfuserError, match="another data"):
        inf.train(noisy, images(seed=1), MOMENTUM, folder=tmp_path)


# --- order and weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fixed", "reshuffle"])
def test_order_is_a_permutation_by_seed_and_epoch(order):
    recipe = inf.Recipe(order=order, seed=2)
    ids = np.arange(200) * 7 + 3
    orders = [epoch_order(ids, recipe, e) for e in range(3)]
    assert all(sorted(o.tolist()) == list(range(200)) for o in orders)
    assert (orders[0] == orders[1]).all() == (order == "fixed")
    assert (orders[0] != epoch_order(ids, recipe.with_(seed=3), 0)).any()
    assert (orders[0] != np.arange(200)).any()


def test_removing_documents_keeps_the_order_of_the_others():
    data = images(60)
    recipe = inf.Recipe(seed=9)
    removed = [5, 17, 40]
    for epoch in range(3):
        full = data.ids[epoch_order(data.ids, recipe, epoch)]
        rest = data.without(removed)
        part = rest.ids[epoch_order(rest.ids, recipe, epoch)]
        assert [i for i in full.tolist() if i not in removed] == part.tolist()
        stored_otherwise = data.ids[::-1]
        assert stored_otherwise[epoch_order(stored_otherwise, recipe, epoch)].tolist() == full.tolist()


def test_weight_zero_keeps_the_batches_and_removes_the_loss():
    data, ids = images(), [4, 11]
    batches = {}
    for label, part in {"ones": data, "zero": data.with_weights(ids, 0)}.items():
        recorder = Recorder()
        inf.train(inf.models.mlp, part, MOMENTUM, observers=[recorder])
        batches[label] = [moment.batch.ids.tolist() for moment, *_ in recorder.moments]
    assert batches["ones"] == batches["zero"]
    # What a document of weight 0 shows has no influence on the weights at all.
    changed = data.inputs.copy()
    changed[ids] = 255 - changed[ids]
    other = Dataset.from_arrays(changed, data.targets)
    a = inf.train(inf.models.mlp, data.with_weights(ids, 0), MOMENTUM)
    b = inf.train(inf.models.mlp, other.with_weights(ids, 0), MOMENTUM)
    assert_same_run(a, b)
    c = inf.train(inf.models.mlp, other, MOMENTUM)
    assert c.checkpoints[-1].content_hash != inf.train(inf.models.mlp, data, MOMENTUM).checkpoints[-1].content_hash


# --- observers --------------------------------------------------------------------------------------------------------


def test_observers_see_the_weights_before_the_update():
    recorder = Recorder()
    recipe = inf.Recipe(epochs=2, batch_size=6, lr=0.1)
    run = inf.train(inf.models.mlp, images(), recipe, observers=[recorder])
    assert run.traces == {"recorder": 8}
    assert without_traces(run).traces == {}
    assert [m.step for m, *_ in recorder.moments] == list(range(8))
    assert [m.epoch for m, *_ in recorder.moments] == [0] * 4 + [1] * 4
    assert {m.steps for m, *_ in recorder.moments} == {8}
    assert not any(training for *_, training in recorder.moments)
    model = inf.models.mlp((1, 6, 6), 3)
    for i, (moment, weights, grads, _) in enumerate(recorder.moments):
        model.load_state_dict(weights)
        each = F.cross_entropy(model(moment.batch.inputs / 255), moment.batch.targets, reduction="none")
        torch.testing.assert_close(moment.losses, each.detach(), rtol=1e-5, atol=1e-6)
        model.zero_grad()
        each.mean().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-4, atol=1e-7)
            after = recorder.moments[i + 1][1][name] if i < 7 else run.checkpoints[-1].weights[name]
            torch.testing.assert_close(after, p.detach() - moment.lr * grads[name], rtol=1e-5, atol=1e-7)


def _meddle(moment):
    torch.rand(3)
    torch.manual_seed(1)
    moment.model.train()
    for p in moment.model.parameters():
        p.grad.mul_(2)
        p.requires_grad_(False)
    moment.model[1].requires_grad_(True)
    moment.model(moment.batch.inputs / 255).sum().backward()  # moves BatchNorm's statistics and adds to gradients
    moment.model.zero_grad()
    moment.model.eval()


@pytest.mark.parametrize("recipe", [MOMENTUM, ADAMW.with_(augmentation="flip")])
def test_weights_with_and_without_observers_are_equal_bit_for_bit(recipe):
    plain = inf.train(noisy, images(), recipe)
    watched = inf.train(noisy, images(), recipe, observers=[Recorder(), Recorder(_meddle, "meddler")])
    assert_same_run(plain, watched)
    assert watched.traces == {"recorder": 15, "meddler": 15}
    with pytest.raises(InfuserError, match="share a name"):
        inf.train(noisy, images(), recipe, observers=[Recorder(), Recorder()])


def test_an_observer_that_changes_the_weights_is_an_error():
    def write(moment):
        with torch.no_grad():
            moment.model[5].bias.add_(1)

    with pytest.raises(InfuserError, match=r"observer recorder changed the weights.*5\.bias"):
        inf.train(noisy, images(), MOMENTUM, observers=[Recorder(write)])


# --- state outside ----------------------------------------------------------------------------------------------------


def test_the_global_random_state_and_the_threads_stay():
    torch.manual_seed(7)
    state, numpy_state, threads = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    seen = []
    recipe = MOMENTUM.with_(threads=threads + 1, augmentation="flip_crop")
    inf.train(noisy, images(), recipe, observers=[Recorder(lambda m: seen.append(torch.get_num_threads()))])
    assert set(seen) == {threads + 1}
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002

    def fail(moment):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        inf.train(noisy, images(), recipe, observers=[Recorder(fail)])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_every_seed_is_allowed_without_a_warning(recwarn):
    for seed in (0, 2**31, 2**62 + 12345, 2**63 - 1):
        inf.train(inf.models.mlp, images(6), inf.Recipe(epochs=3, seed=seed))
    assert not recwarn.list


# --- divergence -------------------------------------------------------------------------------------------------------


def spiky(shape, n_outputs):
    """Gives NaN for documents whose first pixel is white."""

    class Spiky(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(math.prod(shape), n_outputs)

        def forward(self, x):
            hit = (x.flatten(1)[:, :1] == 1).float()
            return self.linear(x.flatten(1)) + torch.where(hit > 0, math.nan, 0.0)

    return Spiky()


def test_a_loss_that_is_not_finite_names_step_and_documents(tmp_path):
    pixels = np.zeros((12, 1, 2, 2), np.uint8)
    pixels[[2, 9], 0, 0, 0] = 255
    data = Dataset.from_arrays(pixels, np.arange(12) % 2)
    recipe = inf.Recipe(epochs=2, batch_size=12)
    with pytest.raises(InfuserError, match=r"loss is not finite at step 0 \(epoch 1\)") as caught:
        inf.train(spiky, data, recipe, folder=tmp_path)
    assert sorted(str(caught.value.got).removeprefix("documents ").split(", ")) == ["2", "9"]
    assert [p.name for p in tmp_path.glob("epoch-*")] == ["epoch-0000"]


def test_divergence_in_a_later_epoch_keeps_the_checkpoints_before(tmp_path):
    recipe = inf.Recipe(epochs=50, batch_size=6, lr=1e18)
    with pytest.raises(InfuserError, match=r"not finite at step \d+ .*checkpoints up to epoch (\d+) are kept"):
        inf.train(inf.models.mlp, images(), recipe, folder=tmp_path)
    for checkpoint in _kept(tmp_path, recipe):
        assert all(torch.isfinite(value).all() for value in checkpoint.weights.values())


def test_the_last_step_cannot_leave_a_checkpoint_that_is_not_finite(tmp_path):
    # One step an epoch: its loss is finite, the weights after it are not.
    recipe = inf.Recipe(epochs=2, batch_size=23, lr=3e38, momentum=0.9)
    data = Dataset.from_arrays(images().inputs.astype(np.float32) * 1e3, images().targets)
    with pytest.raises(InfuserError, match=r"weights are not finite at step 0 \(epoch 1\).*Got: documents"):
        inf.train(inf.models.mlp, data, recipe, folder=tmp_path)
    assert [c.epoch for c in _kept(tmp_path, recipe, data)] == [0]


def _kept(folder, recipe, data=None):
    return load_run(inf.models.mlp, images() if data is None else data, recipe, folder).checkpoints


# --- schedule and augmentation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [("constant", [2, 2, 2, 2]), ("linear", [2, 1.5, 1, 0.5]), ("cosine", [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])],
)
def test_schedule(schedule, wanted):
    got = [scheduled(inf.Recipe(lr=2.0, schedule=schedule), t, 4) for t in range(4)]
    assert got == pytest.approx(wanted, abs=1e-12)


def test_augmentation_shows_flips_and_crops_of_the_documents():
    seen = []

    def watching(shape, n_outputs):
        model = inf.models.mlp(shape, n_outputs)
        model.register_forward_pre_hook(lambda module, args: seen.extend([args[0].detach().clone()] * module.training))
        return model

    data = Dataset.from_arrays(np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8), np.zeros(40, int))
    recipe = inf.Recipe(epochs=1, batch_size=40, augmentation="flip")
    inf.train(watching, data, recipe)
    stored = torch.from_numpy(data.inputs[epoch_order(data.ids, recipe, 0)].copy()) / 255
    as_it_is = (seen[0] == stored).flatten(1).all(1)
    flipped = (seen[0] == stored.flip(-1)).flatten(1).all(1)
    assert (as_it_is ^ flipped).all()
    assert 8 <= int(flipped.sum()) <= 32  # 40 fair coins: outside with probability 1e-4
    seen.clear()
    inf.train(watching, data, recipe.with_(augmentation="flip_crop"))
    for image, original in zip(seen[0], stored, strict=True):
        options = [F.pad(x[None], (4, 4, 4, 4), mode="reflect")[0] for x in (original, original.flip(-1))]
        windows = torch.cat([x.unfold(1, 8, 1).unfold(2, 8, 1).reshape(-1, 8, 8) for x in options])
        assert (windows == image).flatten(1).all(1).any()
    vectors = Dataset.from_arrays(np.zeros((4, 3)), np.zeros(4, int))
    with pytest.raises(InfuserError, match="augmentation needs images"):
        train(inf.models.mlp, vectors, recipe)


def test_a_folder_of_another_model_is_refused_even_if_its_weights_would_fit(tmp_path):
    def with_(activation):
        def build(shape, n):
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), activation(), torch.nn.Linear(8, n))

        return build

    data, _ = inf.data.digits()
    few, recipe = data[data.ids[:40]], inf.Recipe(epochs=1)
    first = inf.train(with_(torch.nn.ReLU), few, recipe, folder=tmp_path)
    again = inf.train(with_(torch.nn.ReLU), few, recipe, folder=tmp_path)
    assert again.checkpoints[-1].content_hash == first.checkpoints[-1].content_hash
    with pytest.raises(inf.InfuserError, match="those of another model"):
        inf.train(with_(torch.nn.Tanh), few, recipe, folder=tmp_path)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda net: type("Pair", (nn.Module,), {"forward": lambda self, x: (net(x), x)}),
            "one tensor of floats.*tuple",
        ),
        (lambda net: type("Less", (nn.Module,), {"forward": lambda self, x: net(x)[:, :3]}), "do not fit the classes"),
        (lambda net: type("Double", (nn.Module,), {"forward": lambda self, x: net.double()(x)}), "cannot read"),
    ],
    ids=["tuple", "too few outputs", "another dtype"],
)
def test_a_model_that_does_not_fit_its_data_is_named_before_training(wrap, message):
    def build(shape, n):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, n))
        module = wrap(net)()
        module.net = net
        return module

    data, _ = inf.data.digits()
    with pytest.raises(InfuserError, match=message):
        inf.train(build, data[data.ids[:20]], inf.Recipe(epochs=1))


def damage(folder, how):
    match how:
        case "cut weights":
            path = folder / "weights.safetensors"
            path.write_bytes(path.read_bytes()[:-7])
        case "cut manifest":
            (folder / "manifest.json").write_text('{"epoch": 1, "st')
        case "no optimizer":
            (folder / "optimizer.pt").unlink()
        case _:
            shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["cut weights", "cut manifest", "no optimizer", "no folder"])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_damaged_checkpoints_are_made_again_bit_for_bit(tmp_path, how, epoch):
    whole = inf.train(noisy, images(), MOMENTUM, folder=tmp_path)
    damage(tmp_path / f"epoch-{epoch:04d}", how)
    if how == "no folder" and epoch == 3:  # nothing tells it from a run that was stopped before
        again = inf.train(noisy, images(), MOMENTUM, folder=tmp_path)
    else:
        with pytest.warns(UserWarning, match=r"made again: epoch-"):
            again = inf.train(noisy, images(), MOMENTUM, folder=tmp_path)
    assert_same_run(again, whole)
    assert_same_run(load_run(noisy, images(), MOMENTUM, tmp_path), whole)


def test_a_damaged_run_is_not_mended_by_whoever_only_reads_it(tmp_path):
    inf.train(noisy, images(), MOMENTUM, folder=tmp_path)
    damage(tmp_path / "epoch-0002", "cut weights")
    with pytest.raises(InfuserError, match="missing or damaged"):
        load_run(noisy, images(), MOMENTUM, tmp_path)


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.25), ("cosine", (1 + math.cos(0.75 * math.pi)) / 2)])
def test_fewer_documents_go_on_at_the_same_place_in_the_schedule(schedule, last):
    recipe = inf.Recipe(epochs=4, batch_size=5, lr=1e-6, schedule=schedule)
    many = images(20)
    start = train(noisy, many, recipe).at(3)
    rates, steps = [], []
    few = many[many.ids[:5]]
    run = train(noisy, few, recipe, start=start, observers=[Recorder(lambda moment: rates.append(moment.lr))])
    assert rates == pytest.approx([1e-6 * last])
    assert [(c.epoch, c.step) for c in run.checkpoints] == [(3, 3), (4, 4)]
    train(noisy, many, recipe, start=start, observers=[Recorder(lambda moment: steps.append(moment.step))])
    assert steps == [12, 13, 14, 15]


def test_going_on_keeps_to_the_recipe_and_not_to_the_checkpoints_options():
    plain = inf.Recipe(epochs=2, batch_size=5, lr=0.05)
    data = images()
    start = train(noisy, data, plain).checkpoints[-1]
    heavy = plain.with_(epochs=3, momentum=0.9, weight_decay=1.0)
    got = train(noisy, data, heavy, start=start).checkpoints[-1].weights
    # SGD holds no state of its own, so that the weights alone are the same start.
    bare = Checkpoint(start.epoch, start.step, start.weights)
    expected = train(noisy, data, heavy, start=bare).checkpoints[-1].weights
    assert all(torch.equal(got[name], expected[name]) for name in got)
    other = train(noisy, data, plain.with_(epochs=3), start=start).checkpoints[-1].weights
    assert not torch.equal(got["5.weight"], other["5.weight"])


def test_another_optimiser_than_the_checkpoints_is_refused():
    start = train(noisy, images(), MOMENTUM.with_(epochs=1)).checkpoints[-1]
    with pytest.raises(InfuserError, match="optimiser is not the recipe's"):
        train(noisy, images(), ADAMW, start=start)


def with_rate(p):
    def builder(shape, n_outputs):
        return nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(36, n_outputs))

    return builder


def frozen_bias(shape, n_outputs):
    model = with_rate(0.0)(shape, n_outputs)
    model[2].bias.requires_grad_(False)
    return model


def test_a_folder_of_a_model_that_differs_in_training_alone_is_refused(tmp_path):
    recipe = inf.Recipe(epochs=1, batch_size=5)
    train(with_rate(0.0), images(), recipe, folder=tmp_path)
    assert train(with_rate(0.0), images(), recipe, folder=tmp_path).checkpoints
    for other in (with_rate(0.9), frozen_bias):
        with pytest.raises(InfuserError, match="those of another model"):
            train(other, images(), recipe, folder=tmp_path)
