"""quanda does not install beside the pinned torch: the class is tested on a stand-in with its constructor."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import infuser as inf
from infuser.errors import InfuserError

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (30, 1, 3, 3)).astype(np.uint8), np.arange(30) % 3
DATA = inf.Dataset.from_arrays(IMAGES, LABELS)
FLOATS = [(torch.tensor(x).float() / 255, int(y)) for x, y in zip(IMAGES, LABELS, strict=True)]


def net(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, n_classes))


def method(run: inf.Run, data: inf.Dataset) -> inf.Influence:
    return inf.Influence(inf.fit_ekfac(run, data, seed=0), damping=0.1)


def run() -> inf.Run:
    return inf.train(net, DATA, inf.Recipe(epochs=4, batch_size=10, lr=0.2, seed=0))


def test_rows_are_the_scores_of_each_test_input() -> None:
    trained = run()
    influence = method(trained, DATA)
    explainer = inf.adapters.Explainer(influence, trained, DATA)
    tests = torch.stack([x for x, _ in FLOATS[:4]])
    rows = explainer.explain(tests, torch.tensor([1, 2, 0, 1]))
    assert rows.dtype == torch.float32
    wanted = inf.attribute(influence, trained, DATA, inf.measure.LogProb(DATA[DATA.ids[:4]], np.array([1, 2, 0, 1])))
    np.testing.assert_allclose(rows.numpy(), wanted.values, rtol=1e-5)
    other = explainer.explain(tests, [0, 0, 0, 0])
    assert not torch.allclose(rows[0], other[0])  # the labels are what is explained
    assert torch.equal(rows[2], other[2])


def test_self_influence_is_the_diagonal_of_explaining_every_document() -> None:
    trained = run()
    explainer = inf.adapters.Explainer(method(trained, DATA), trained, DATA)
    everything = explainer.explain(torch.stack([x for x, _ in FLOATS]), LABELS)
    torch.testing.assert_close(explainer.self_influence(batch_size=7), everything.diag())
    assert (everything.diag() >= 0).all()


@pytest.mark.parametrize("labels", [[0, 3], [0, -1], [0]])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    trained = run()
    with pytest.raises(InfuserError, match="targets"):
        inf.adapters.Explainer(method(trained, DATA), trained, DATA).explain([x for x, _ in FLOATS[:2]], labels)


def test_inputs_of_another_shape_are_refused() -> None:
    trained = run()
    with pytest.raises((InfuserError, RuntimeError)):
        inf.adapters.Explainer(method(trained, DATA), trained, DATA).explain(torch.zeros(2, 1, 5, 5), [0, 1])


class Base:
    """The constructor of quanda.explainers.Explainer, 0.5.0, in outline."""

    accepted_tasks: list[str] = []  # noqa: RUF012

    def __init__(self, model: Any, train_dataset: Any, task: str, checkpoints: Any, checkpoints_load_func: Any) -> None:
        if task not in self.accepted_tasks:
            raise ValueError(task)
        self.model, self.train_dataset, self.device = model, train_dataset, "cpu"
        self.checkpoints = [] if checkpoints is None else [checkpoints]
        self.loaded = False

    def load_last_checkpoint(self) -> None:
        self.loaded = True


def test_the_class_is_what_a_benchmark_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("quanda.explainers")
    package.Explainer = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quanda", ModuleType("quanda"))
    monkeypatch.setitem(sys.modules, "quanda.explainers", package)
    made = inf.adapters.quanda_class(method)
    trained = run()
    # As quanda.benchmarks makes it: by these names alone.
    explainer = made(model=trained.model(), checkpoints="x", train_dataset=FLOATS, checkpoints_load_func=None)
    assert isinstance(explainer, Base)
    assert explainer.loaded
    tests = torch.stack([x for x, _ in FLOATS[:3]])
    wanted = inf.adapters.Explainer(method(trained, DATA), trained, DATA).explain(tests, [0, 1, 2])
    torch.testing.assert_close(explainer.explain(test_data=tests, targets=torch.tensor([0, 1, 2])), wanted)
    assert explainer.self_influence().shape == (30,)


def test_without_quanda_the_import_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quanda", None)
    with pytest.raises(ImportError, match="quanda"):
        inf.adapters.quanda_class(method)
