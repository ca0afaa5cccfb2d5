"""Ray gives what one process gives, and lost workers cost nothing but time."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from infuser.errors import InfuserError
from infuser.ray_executor import RayExecutor
from infuser.testing import check_executor
from tests.processes import once_killed

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'infuser[ray]'")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    made = RayExecutor(backoff=0.05)
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_worker_niceness", "0")  # else they give way to anything on a busy machine
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield made
    ray.shutdown()
    patch.undo()


def _threads_and_sum(shared: np.ndarray, job: int) -> tuple[int, float]:
    shared += 0  # what is shared may be written to, as in a process of one's own
    return torch.get_num_threads(), float(shared.sum()) * job


def _always_killed(job: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


class _UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("torn")


def _odd(job: int) -> int:
    raise _UnpicklableError(1, 2)


def _span(job: int) -> tuple[float, float]:
    begun = time.time()
    time.sleep(0.3)
    return begun, time.time()


def test_the_contract_holds(executor: RayExecutor) -> None:
    check_executor(executor)


def test_jobs_have_their_threads_and_what_they_share_is_writable(executor: RayExecutor) -> None:
    shared = np.ones(4)
    assert list(executor.map(partial(_threads_and_sum, shared), [1, 2])) == [(1, 4.0), (1, 8.0)]
    wide = RayExecutor(cpus=2)
    assert list(wide.map(partial(_threads_and_sum, shared), [3])) == [(2, 12.0)]


def test_cores_are_not_shared(executor: RayExecutor) -> None:
    assert executor.slots == 2
    assert RayExecutor(cpus=2).slots == 1
    spans = sorted(RayExecutor(cpus=2).map(_span, range(3)))
    assert all(end <= begun + 0.01 for (_, end), (begun, _) in pairwise(spans))


def test_a_job_that_dies_with_its_worker_is_run_again(executor: RayExecutor, tmp_path: Path) -> None:
    assert list(executor.map(partial(once_killed, tmp_path), range(2))) == [0, 1]


class _Queue:
    """Ray as far as the loop sees it: one worker that takes jobs in the order in which they come."""

    exceptions = ray.exceptions

    def __init__(self, lost: set[int]) -> None:
        self.lost, self.submitted, self.most = set(lost), [], 0

    def submit(self, position: int) -> tuple[int, int]:
        self.submitted.append(position)
        return position, len(self.submitted)

    def wait(self, refs: list[tuple[int, int]], timeout: float) -> tuple[list[tuple[int, int]], object]:
        self.most = max(self.most, len(refs))
        return [min(refs, key=lambda ref: ref[1])], None

    def get(self, ref: tuple[int, int]) -> bytes:
        if ref[0] in self.lost:
            self.lost.remove(ref[0])
            raise ray.exceptions.WorkerCrashedError
        return pickle.dumps((True, ref[0]))

    def cancel(self, ref: object, force: bool) -> None:
        raise AssertionError("nothing is left to cancel")


def test_a_lost_job_does_not_wait_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayExecutor, "_room", lambda _: 4)
    queue = _Queue({0, 7})
    got = RayExecutor(backoff=0.0)._in_order(queue, queue.submit, 100)
    assert list(got) == list(range(100))
    assert queue.most == 4
    again = [i for i, position in enumerate(queue.submitted) if position in (0, 7)]
    assert len(again) == 4
    assert again[1] <= 5  # the second time that job 0 was submitted
    assert again[3] <= 12


def test_a_job_that_always_dies_is_an_error_that_names_the_remedy(executor: RayExecutor) -> None:
    once = RayExecutor(retries=1, backoff=0.05)
    with pytest.raises(InfuserError, match=r"job 0 was lost 2 times.*--resume"):
        list(once.map(_always_killed, [1]))


def test_an_error_that_cannot_be_pickled_still_reaches_the_caller(executor: RayExecutor) -> None:
    with pytest.raises(InfuserError, match=r"(?s)a job failed.*torn"):
        list(executor.map(_odd, [1]))


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"gpus": -1}, {"gpus": 1.5}, {"retries": -1}, {"backoff": -1.0}])
def test_resources_out_of_range_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(InfuserError, match="out of range"):
        RayExecutor(**wrong)  # type: ignore[arg-type]
