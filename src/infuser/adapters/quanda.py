"""Scores as an explainer of quanda, whose metrics and benchmarks compare methods of attribution.

quanda 0.5 asks for torchvision, captum, dattri, lightning and an older numpy, which do not install beside the torch and
numpy that this package is tested with (pip takes both to other versions). So the explainer is written against quanda's
documented interface, `quanda.explainers.Explainer`, and tested against a stand-in with the same constructor; quanda's
metrics take the (tests, N) tensors of `explain` and need nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from infuser.adapters.own_loop import Copy
from infuser.attribution.attribute import Attributor, attribute
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.errors import require
from infuser.measure import LogProb, Losses
from infuser.types import Array, Measurement


@final
@dataclass(frozen=True)
class Explainer:
    """What quanda asks of an explainer, on a run and a method of ours.

    Rows are our scores of f on each test input: positive = up-weighting the training document raises f, which is
    quanda's sign for proponents as well.

    Attributes:
        method: any attributor.
        run: trained on `data`.
        data: the N training documents, in the order of quanda's training set.
        measure: (documents, labels) -> f, one value each; log p of the label by default.
    """

    method: Attributor
    run: Run
    data: Dataset
    measure: Callable[[Dataset, Array], Measurement] = LogProb

    def explain(self, test_data: Any, targets: Sequence[int] | Tensor) -> Tensor:
        """Return the scores of all training documents for each test input, (tests, N) float32.

        Args:
            test_data: (tests, *shape) in the units of the training set: uint8, or floats in [0, 1] for images.
            targets: (tests,) the labels that are explained.

        Raises:
            InfuserError: inputs of another shape than the training documents', or labels that do not fit.
        """
        labels = np.asarray([int(y) for y in targets], dtype=np.int64)
        require("targets", len(labels), len(labels) == len(test_data), f"one label for each of {len(test_data)} tests")
        known = bool(((labels >= 0) & (labels < self.data.n_outputs)).all())
        require("targets", sorted(set(labels.tolist())), known, f"0 to {self.data.n_outputs - 1}")
        inputs = [x.detach().cpu() if isinstance(x, Tensor) else x for x in test_data]
        documents = Dataset.from_torch(list(zip(inputs, labels, strict=True)), classes=self.data.classes, name="tests")
        scores = attribute(self.method, self.run, self.data, self.measure(documents, labels))
        return torch.from_numpy(np.asarray(scores.values, dtype=np.float32))

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Return the score of every training document on its own loss, (N,): high = the model knows it by heart.

        f = -L_i, so that raising f lowers the document's own loss.
        """
        parts = []
        for start in range(0, len(self.data), batch_size):
            ids = self.data.ids[start : start + batch_size]
            scores = attribute(self.method, self.run, self.data, Losses(self.data[ids]))
            parts.append(np.asarray(scores.values)[np.arange(len(ids)), start + np.arange(len(ids))])
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def quanda_class(method: Callable[[Run, Dataset], Attributor]) -> type:
    """Return a subclass of `quanda.explainers.Explainer`, as quanda's benchmarks take it.

        Influenced = quanda_class(lambda run, data: inf.Influence(inf.fit_ekfac(run, data), damping=0.1))
        MislabelingDetection.load_pretrained(...).evaluate(explainer_cls=Influenced)

    The benchmark's model and training set are read once: images on the grid of 1/255 are needed, as everywhere here, so
    that a benchmark which normalises its inputs has to do so in its model.

    Args:
        method: (run, data) -> attributor.

    Raises:
        ImportError: quanda is not installed.
    """
    from quanda.explainers import Explainer as Base  # type: ignore[import-not-found]

    class Influenced(Base):  # type: ignore[misc]
        """Scores of infuser for one model and training set."""

        accepted_tasks = ["image_classification"]  # noqa: RUF012 - the base class declares a list

        def __init__(
            self,
            model: nn.Module,
            train_dataset: Any,
            checkpoints: Any = None,
            checkpoints_load_func: Any = None,
            **kwargs: Any,
        ) -> None:
            super().__init__(
                model=model,
                train_dataset=train_dataset,
                task="image_classification",
                checkpoints=checkpoints,
                checkpoints_load_func=checkpoints_load_func,
            )
            if self.checkpoints:
                self.load_last_checkpoint()
            data = Dataset.from_torch(train_dataset)
            run = Run.from_weights(Copy(self.model), self.model.state_dict(), data)
            self.inner = Explainer(method(run, data), run, data)

        def explain(self, test_data: Tensor, targets: Any) -> Tensor:
            """Return scores, (tests, N)."""
            return self.inner.explain(test_data, targets).to(self.device)

        def self_influence(self, batch_size: int = 32) -> Tensor:
            """Return the score of every training document on its own loss, (N,)."""
            return self.inner.self_influence(batch_size).to(self.device)

    return Influenced
