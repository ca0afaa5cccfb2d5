"""Retrain every arm under every seed from the same start, and measure.

A regime is where retraining begins: `last_epoch` (from the last-but-one checkpoint), `half`, `scratch`, or an epoch's
number. From a checkpoint, seeds vary the order of the replayed part (and dropout and augmentation); from scratch also
the initialisation. With seed = recipe.seed and clean data the stored final checkpoint comes out again, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from infuser.checkpoints import Checkpoint, Run, build, load_weights
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError, listed
from infuser.executors import Executor, Local
from infuser.measure import query_names
from infuser.params import trainable
from infuser.storage import hash_arrays, plain
from infuser.training import first_outputs, train
from infuser.types import Arm, Builder, Measurement, Recipe, Trials

Start: TypeAlias = Literal["last_epoch", "half", "scratch"]
Row: TypeAlias = tuple[str, int, str, str, float]


class TrainFn(Protocol):
    """Anybody's training loop; the arms share whatever it does with `seed` and `start`."""

    def __call__(self, data: Dataset, seed: int, start: Checkpoint | None) -> Mapping[str, Tensor]:
        """Return the state_dict of a model trained on `data`, from `start` or, where it is None, from scratch."""
        ...


@dataclass(frozen=True)
class Setting:
    """What all jobs of one call share, picklable wherever the builder, the measures and train_fn are.

    Attributes:
        builder: of the model.
        recipe: of the run; a job replaces its seed.
        begin: the checkpoint to start from; None is the initialisation by the job's seed.
        measures: what is read off every retrained model.
        train_fn: instead of infuser's own loop.
        device: where to train.
    """

    builder: Builder
    recipe: Recipe
    begin: Checkpoint | None
    measures: tuple[Measurement, ...]
    train_fn: TrainFn | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """One model to train: an arm under a seed."""

    arm: Arm
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one job gave.

    Attributes:
        rows: (arm, seed, probe, measure, value).
        start: digests of everything that the arms of a comparison must share.
    """

    rows: tuple[Row, ...]
    start: str


def retrain(
    run: Run,
    arms: Sequence[Arm],
    measures: Measurement | Sequence[Measurement],
    seeds: Sequence[int],
    start: Start | int = "last_epoch",
    train_fn: TrainFn | None = None,
    executor: Executor | None = None,
) -> Trials:
    """Return what every arm gives under every seed: one row per arm, seed, measure and query.

    Args:
        run: where retraining starts and how it is done; it is not changed.
        arms: data sets with the same ids; those of one probe, or a clean arm that is shared (see Trials.concat).
        measures: one or several; each gives a row per query, named by its `queries` ("" for the whole model).
        seeds: distinct; an effect seen on the recipe's own seed alone is one order's effect.
        start: last_epoch, half, scratch, or the number of epochs done.
        train_fn: a training loop of one's own, (data, seed, start) -> state_dict. A run of a model trained elsewhere
            holds one checkpoint, which is its start.
        executor: where the jobs run; the results do not depend on it.

    Raises:
        InfuserError: the arms cannot be compared (other documents, or clean data that the run was not trained on), a
            checkpoint is missing, training diverged, a measurement is not finite (arm and seed are named), or the
            builder draws what weights do not hold.
    """
    chosen = tuple(measures) if isinstance(measures, Sequence) else (measures,)
    numbers = _checked_seeds(seeds)
    _check_arms(run, arms, start)
    if train_fn is None:
        _check_builder(run, arms[0].data)
    setting = Setting(run.builder, run.recipe, begin(run, start, train_fn), chosen, train_fn, run.device)
    jobs = [Job(arm, seed) for seed in numbers for arm in arms]
    outcomes = list((executor or Local()).map(partial(perform, setting), jobs))
    for seed in numbers:
        begun = {o.start: job.arm.name for job, o in zip(jobs, outcomes, strict=True) if job.seed == seed}
        if len(begun) > 1:
            raise InfuserError(
                f"the arms did not start alike under seed {seed}, so they cannot be paired",
                got="; ".join(f"{name}: {digest}" for digest, name in begun.items()),
                causes=["the model's builder draws randomness that no seed controls"],
                remedy="draw parameters from torch's generator when the builder is called",
            )
    rows = [row for outcome in outcomes for row in outcome.rows]
    starts = {f"{job.arm.name}/{job.seed}": o.start for job, o in zip(jobs, outcomes, strict=True)}
    return Trials.from_rows(rows, str(start) if isinstance(start, str) else f"epoch {start}", starts)


def begin(run: Run, start: Start | int, train_fn: TrainFn | None = None) -> Checkpoint | None:
    """Return the checkpoint that a regime starts from; None for the initialisation by seed.

    Raises:
        InfuserError: the regime is unknown, or the run did not keep that checkpoint.
    """
    epochs = run.recipe.epochs
    named: dict[Any, int | None] = {"last_epoch": epochs - 1, "half": epochs // 2, "scratch": None}
    if isinstance(start, bool) or (start not in named and not isinstance(start, int)):
        raise InfuserError("unknown regime", got=start, expected="last_epoch, half, scratch or a number of epochs")
    epoch = named[start] if start in named else cast(int, start)
    if epoch is None:
        return None
    if not 0 <= epoch < epochs:
        raise InfuserError(
            "nothing is left to retrain", got=f"start after epoch {epoch}", expected=f"0 to {epochs - 1}"
        )
    if train_fn is not None and len(run.checkpoints) == 1:
        return run.checkpoints[0]
    if len(run.checkpoints) == 1:
        run.at(max(epoch, 1))  # raises: the one checkpoint of a model trained elsewhere is no initialisation
    return run.at(epoch)


def perform(setting: Setting, job: Job) -> Outcome:
    """Train one model and measure it.

    Raises:
        InfuserError: training diverged or a value is not finite; the arm and the seed are named.
    """
    try:
        weights, initial = _trained(setting, job)
        rows = _measured(setting, job, weights)
    except InfuserError as error:
        raise InfuserError(
            f"arm {job.arm.name}, seed {job.seed}: {error.fact}",
            got=error.got,
            expected=error.expected,
            causes=error.causes,
            remedy=error.remedy,
        ) from error
    recipe = setting.recipe.with_(seed=job.seed)
    optimizer = setting.begin.optimizer if setting.begin else {}
    loop = f"own loop, seed {job.seed}" if setting.train_fn else asdict(recipe)
    parts = {
        "weights": initial.content_hash if initial else f"seed-{job.seed}",
        "optimizer": _hash_state(optimizer),
        "ids": hash_arrays({"ids": job.arm.data.ids}),
        "recipe": hash_arrays({"recipe": np.array(json.dumps(plain(loop), sort_keys=True))}),
    }
    return Outcome(tuple(rows), " ".join(f"{name}={digest[:12]}" for name, digest in parts.items()))


def _trained(setting: Setting, job: Job) -> tuple[Mapping[str, Tensor], Checkpoint | None]:
    """Return the trained weights, and what training started from where that is known."""
    data = job.arm.data
    if setting.train_fn is not None:
        with torch.random.fork_rng(devices=[]):
            weights = setting.train_fn(data, job.seed, setting.begin)
        return weights, setting.begin
    recipe = setting.recipe.with_(seed=job.seed)
    trained = train(setting.builder, data, recipe, start=setting.begin, device=setting.device)
    return trained.checkpoints[-1].weights, trained.checkpoints[0]


def _measured(setting: Setting, job: Job, weights: Mapping[str, Tensor]) -> list[Row]:
    data = job.arm.data
    model = build(setting.builder, data.input_shape, data.n_outputs, setting.recipe.seed)
    load_weights(model, weights)
    model = model.to(setting.device).eval()
    params, rows = trainable(model), []
    for measure in setting.measures:
        with torch.no_grad():
            values = measure(model, params).double().cpu()
        if values.ndim != 1:
            raise InfuserError(f"{measure.name} is not one value per query", got=tuple(values.shape), expected="(Q,)")
        names = query_names(measure, len(values))
        bad = [name for name, value in zip(names, values.tolist(), strict=True) if not np.isfinite(value)]
        if bad:
            raise InfuserError(
                f"{measure.name} is not finite", got=f"at {listed(bad)}", causes=["the retrained model diverged"]
            )
        rows += [(job.arm.name, job.seed, n, measure.name, v) for n, v in zip(names, values.tolist(), strict=True)]
    return rows


def _check_builder(run: Run, data: Dataset) -> None:
    """Raise where models of two seeds differ though they have the same weights: nobody could say whose is measured."""

    def outputs(seed: int) -> list[float]:
        model = build(run.builder, run.input_shape, run.n_outputs, seed)
        load_weights(model, run.checkpoints[-1].weights)
        return first_outputs(model.to(run.device), data)

    one, other = outputs(run.recipe.seed), outputs(run.recipe.seed + 1)
    if not np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InfuserError(
            "the builder draws something that the weights do not hold",
            got="two seeds, the same weights, other outputs",
            causes=[
                "a buffer with persistent=False, or a tensor that is no parameter, is drawn when the model is built"
            ],
            remedy="register it as a persistent buffer, or draw it from a seed of its own",
        )


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(seeds, Iterable):
        raise InfuserError("seeds must be a sequence", got=seeds, expected="whole numbers", remedy=f"pass [{seeds}]")
    numbers = tuple(int(seed) for seed in seeds)
    if not numbers or len(set(numbers)) != len(numbers) or list(numbers) != list(seeds):
        raise InfuserError("seeds must be distinct whole numbers, and at least one", got=listed(seeds))
    return numbers


def _check_arms(run: Run, arms: Sequence[Arm], start: Start | int) -> None:
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) != len(names):
        raise InfuserError("arms must have distinct names, and be at least one", got=listed(names))
    first = arms[0]
    for arm in arms:
        if not np.array_equal(arm.data.ids, first.data.ids):
            raise InfuserError(
                f"arms {first.name} and {arm.name} hold other documents or another order, so they cannot be paired",
                got=f"{len(first.data)} and {len(arm.data)} documents",
                expected="the same ids in the same order",
                remedy="edit documents in place; drop them with data.with_weights(ids, 0), which keeps N and batches",
            )
        if (arm.data.input_shape, arm.data.n_outputs, arm.data.kind) != (run.input_shape, run.n_outputs, run.kind):
            raise InfuserError(f"arm {arm.name} does not fit the run's model", got=arm.data, expected=run.input_shape)
        if arm.name == "clean" and start != "scratch" and arm.data.content_hash != run.data_hash:
            raise InfuserError(
                "the clean arm is not the data that the run was trained on",
                got=f"data {arm.data.content_hash[:12]}",
                expected=f"data {run.data_hash[:12]}",
                causes=["the data were limited or edited since", "the arm is clean in name only"],
                remedy="pass the run's training data, or give the arm another name",
            )


def _hash_state(state: Mapping[str, Any]) -> str:
    """Return a hash of an optimiser's tensors and numbers."""
    arrays: dict[str, Any] = {}
    for key, slot in state.get("state", {}).items():
        for name, value in slot.items():
            arrays[f"{key}/{name}"] = value.cpu().numpy() if isinstance(value, Tensor) else np.array(str(value))
    return hash_arrays(arrays)
