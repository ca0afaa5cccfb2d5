"""What is read off trials: probability, flips, accuracy and collateral, and the blocks that results.json holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.evaluation.compare import PRIMARY, paired
from infuser.evaluation.stats import mean_estimate, table_estimate, wilson
from infuser.measure import Correct
from infuser.types import Array, Effect, Estimate, Params, Trials


@final
@dataclass(frozen=True)
class Collateral:
    """What becomes of the test inputs around each probe: one share per probe, over its neighbours.

    Args:
        documents: all neighbours, each once.
        rows: (Q, k) positions in `documents` of each probe's neighbours.
        labels: (Q, k) the label that counts as a hit.
        queries: (Q,) names of the probes.
        name: collateral, or collateral_target.
    """

    documents: Dataset
    rows: Array
    labels: Array
    queries: tuple[str, ...]
    name: str = "collateral"
    unit: str = field(default="share", init=False)

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return the share of each probe's neighbours that get the label, shape (Q,)."""
        return torch.stack([self._share(q, model, params) for q in range(len(self))])

    def _share(self, q: int, model: nn.Module, params: Params) -> Tensor:
        near = self.documents[self.documents.ids[self.rows[q]]]
        return Correct(near, self.labels[q])(model, params).mean()

    def __len__(self) -> int:
        return len(self.rows)


def collateral(test: Dataset, probes: Any, k: int = 20, towards: Literal["own", "target"] = "own") -> Collateral:
    """Return a measurement of the k test inputs nearest to each probe in pixel space, the probe itself left out.

    Args:
        test: held-out documents.
        probes: a measurement of Q documents, with `.documents`, `.labels` and `.queries`.
        k: neighbours a probe.
        towards: the share that keeps its own label, or the share that is given the probe's target.

    Raises:
        InfuserError: fewer than k other test inputs.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k <= len(test) - 1:
        raise InfuserError("not that many neighbours", got=f"k = {k}", expected=f"1 to {len(test) - 1} test inputs")
    flat = test.inputs.reshape(len(test), -1).astype(np.float32)
    wanted = probes.documents.inputs.reshape(len(probes), -1).astype(np.float32)
    order = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(flat).kneighbors(wanted, return_distance=False)
    near = np.stack([row[test.ids[row] != i][:k] for row, i in zip(order, probes.documents.ids, strict=True)])
    used, rows = np.unique(near, return_inverse=True)
    rows = rows.reshape(near.shape)
    documents = test[test.ids[used]]
    if towards == "own":
        return Collateral(documents, rows, documents.targets[rows], probes.queries)
    targets = np.repeat(np.asarray(probes.labels)[:, None], k, axis=1)
    return Collateral(documents, rows, targets, probes.queries, "collateral_target")


@final
@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the documents of each class that occurs; one value per class.

    Args:
        documents: a labelled set.
    """

    documents: Dataset
    name: str = field(default="class_accuracy", init=False)
    unit: str = field(default="share", init=False)

    def __call__(self, model: nn.Module, params: Params) -> Tensor:
        """Return the share of correct labels per class, shape (C,)."""
        correct = Correct(self.documents)(model, params)
        labels = self.documents.targets
        return torch.stack([correct[torch.from_numpy(labels == c)].mean() for c in self._classes])

    @property
    def _classes(self) -> list[int]:
        return cast("list[int]", np.unique(self.documents.targets).tolist())

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the classes."""
        names = self.documents.classes
        return tuple(f"class {names[c] if names else c}" for c in self._classes)

    def __len__(self) -> int:
        return len(self._classes)


@dataclass(frozen=True)
class Flips:
    """Probes that an arm turned into their target.

    Attributes:
        share: flipped among non-trivial probes, with its Wilson interval.
        flipped: names of those whose target is top-1 in more than half of the arm's models.
        trivial: names of those whose target is top-1 in a control model already, under any seed: not counted.
    """

    share: Estimate
    flipped: tuple[str, ...]
    trivial: tuple[str, ...]


def flips(trials: Trials, arm: str, control: str = "clean", measure: str = "correct") -> Flips:
    """Return which probes of `arm` have their target on top, among those where no control model has.

    Raises:
        InfuserError: the trials lack `measure` (measure.Correct of the probes under their targets).
    """
    if measure not in trials.measure.tolist():
        raise InfuserError(
            "flips need to know which label is on top",
            got=f"measures {sorted(set(trials.measure.tolist()))}",
            remedy="add measure.Correct(probes.documents, probes.labels) to the measures of retrain",
        )
    pairs = paired(trials, arm, control, measure)
    trivial = pairs.control.max(1) > 0.5
    flipped = (pairs.arm.mean(1) > 0.5) & ~trivial
    names = np.array(pairs.probes)
    share = wilson(int(flipped.sum()), int((~trivial).sum()), "non-trivial probes", pairs.seeds)
    return Flips(share, tuple(names[flipped].tolist()), tuple(names[trivial].tolist()))


def arm_block(trials: Trials, arm: str, control: str = "clean") -> dict[str, Any]:
    """Return what results.json says of an arm against its control; measures that were not taken are None.

    `ci95` is the interval of mean_delta_p; `raised` the share of probes whose mean probability rises; `flips` counts
    non-trivial probes, `flips_ci95` is the Wilson interval of their share; `log_odds` is the mean change;
    `test_accuracy` the mean itself.
    """
    block: dict[str, Any] = dict.fromkeys(("mean_delta_p", "median_delta_p", "ci95", "raised"))
    block |= dict.fromkeys(("flips", "n_nontrivial", "flips_ci95"))
    block |= {"n": len({probe for probe in trials.where(arm=arm).probe.tolist() if probe}) or 1}
    measured = set(trials.where(arm=arm).measure.tolist())
    if "probability" in measured:
        pairs = paired(trials, arm, control, "probability")
        per_probe = pairs.difference.mean(1)
        interval = None if arm == control else table_estimate(pairs.difference, pairs.seeds).interval
        block |= {"mean_delta_p": float(per_probe.mean()), "median_delta_p": float(np.median(per_probe))}
        block |= {"ci95": None if interval is None else list(interval), "raised": float((per_probe > 0).mean())}
        block |= {"n": len(pairs.probes)}
    if "correct" in measured:
        found = flips(trials, arm, control)
        ends = found.share.interval
        block |= {"flips": len(found.flipped), "n_nontrivial": found.share.n}
        block |= {"flips_ci95": None if ends is None else list(ends)}
    logs = PRIMARY in measured
    block["log_odds"] = float(paired(trials, arm, control, PRIMARY).difference.mean()) if logs else None
    rows = trials.where(arm=arm, measure="test_accuracy")
    block["test_accuracy"] = float(rows.value.mean()) if len(rows) else None
    return block


def effect_block(effect: Effect) -> dict[str, Any]:
    """Return what results.json says of an effect."""
    interval = effect.interval
    return {
        "arm": effect.arm,
        "control": effect.control,
        "mean": effect.value,
        "ci95": None if interval is None else list(interval),
        "p": effect.p,
        "n_probes": effect.estimate.n,
        "n_seeds": len(effect.estimate.seeds),
    }


def change(trials: Trials, arm: str, measure: str, control: str = "clean") -> dict[str, Estimate]:
    """Return the mean paired change of a measure per probe, class or whole-model row; the unit is the seed.

    For collateral by class: change(trials, "edit", "class_accuracy").
    """
    pairs = paired(trials, arm, control, measure)
    return {
        name: mean_estimate(row, "seeds", pairs.seeds) for name, row in zip(pairs.probes, pairs.difference, strict=True)
    }
