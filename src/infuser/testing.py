"""The contract suite: does an Attributor, Perturber, Detector or Executor of your own behave as the library's do?

    from infuser.testing import check_attributor
    check_attributor(MyMethod(), run, train_set, probes)

Each check raises AssertionError with what was broken: results finite and of the right shape, the same for the same
input, inputs and the process's state (random numbers, gradients, threads) as before, method picklable.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - that a method travels to a worker process is what is checked
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from infuser.attribution.attribute import Attributor, attribute
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.detect import Detector, detect
from infuser.executors import Executor
from infuser.perturbation.perturb import Perturber
from infuser.types import Array, Direction, Edit, Measurement, Scores, Suspicion

T = TypeVar("T")


def check_attributor(method: Attributor, run: Run, data: Dataset, probes: Measurement) -> Scores:
    """Check a method of attribution and return its scores."""
    _picklable(method)
    with _untouched(run, data):
        first = attribute(method, run, data, probes)
    with _untouched(run, data):
        second = attribute(method, run, data, probes)
    assert first.values.shape[1] == len(data), f"scores have shape {first.values.shape} for {len(data)} documents"
    assert np.array_equal(first.ids, data.ids), "scores are not in the order of the documents"
    explained = bool(first.reasons)
    assert explained or np.isfinite(first.values).all(), "scores are not finite, and no reason is given"
    assert np.array_equal(first.values, second.values, equal_nan=True), "the same call gave other scores"
    assert first.unit, "scores must say their unit"
    assert first.method, "scores must say their method"
    return first


def check_perturber(
    method: Perturber, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array
) -> Edit:
    """Check a method of editing and return its edit; that it keeps to its ball is checked by Edit itself."""
    _picklable(method)
    with _untouched(run, data):
        first = method.edit(direction, run, data, ids)
    with _untouched(run, data):
        second = method.edit(direction, run, data, ids)
    assert first.ids.tolist() == list(np.asarray(ids).tolist()), "the edit is not of the documents asked for, in order"
    assert np.array_equal(first.after, second.after), "the same call gave another edit"
    changed = data.apply(first)
    back = changed.apply(first.undo())
    assert back.content_hash == data.content_hash, "undoing the edit does not give the data back"
    return first


def check_detector(detector: Detector, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
    """Check a detector and return its suspicion; `run` holds the traces that it reads."""
    _picklable(detector)
    with _untouched(run, data):
        first = detect(detector, run, data, measurement)
    with _untouched(run, data):
        second = detect(detector, run, data, measurement)
    assert first.values.shape == (len(data),), f"suspicion has shape {first.values.shape} for {len(data)} documents"
    assert np.array_equal(first.ids, data.ids), "suspicion is not in the order of the documents"
    assert np.isfinite(first.values).all(), "suspicion is not finite"
    assert np.array_equal(first.values, second.values), "the same call gave another suspicion"
    assert first.detector, "suspicion must say its detector"
    assert first.told, "suspicion must say what the detector was told"
    return first


def check_executor(executor: Executor) -> None:
    """Check that an executor runs every job once and keeps their order, and that an error reaches the caller."""
    jobs = list(range(7))
    assert list(executor.map(_square, jobs)) == [job * job for job in jobs], (
        "results are not those of the jobs, in order"
    )
    assert list(executor.map(_square, [])) == [], "no jobs must give no results"
    try:
        list(executor.map(_fail, jobs))
    except ValueError as error:
        assert "job 0" in str(error), f"the error of the job was lost: {error}"  # noqa: PT017 - not a pytest module
    else:
        raise AssertionError("a failing job raised nothing")


def _square(job: int) -> int:
    return job * job


def _fail(job: int) -> int:
    raise ValueError(f"job {job} fails")


def _picklable(method: object) -> None:
    copy = pickle.loads(pickle.dumps(method))  # noqa: S301 - our own bytes
    assert repr(copy) == repr(method), "the method does not survive pickling"


@contextmanager
def _untouched(run: Run, data: Dataset) -> Iterator[None]:
    """Check that the block leaves the run, the data and the state of the process as they were."""
    before = {name: look() for name, look in _looks(run, data).items()}
    yield
    after = {name: look() for name, look in _looks(run, data).items()}
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"the call changed {', '.join(changed)}"


def _looks(run: Run, data: Dataset) -> dict[str, Callable[[], Any]]:
    def contents() -> tuple[int, ...]:
        arrays = (data.inputs, data.targets, data.ids, data.weights)
        return tuple(hash(array.tobytes()) for array in arrays)

    return {
        "the data": contents,
        "the run's weights": lambda: [checkpoint.content_hash for checkpoint in run.checkpoints],
        "torch's random state": lambda: torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": lambda: pickle.dumps(np.random.get_state()),  # noqa: NPY002 - the global one is meant
        "python's random state": random.getstate,
        "the gradient mode": torch.is_grad_enabled,
        "the default dtype": torch.get_default_dtype,
        "the thread count": torch.get_num_threads,
    }
