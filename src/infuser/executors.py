"""Where jobs run. An executor maps a function over jobs and yields the results in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from infuser.errors import InfuserError

J = TypeVar("J")
R = TypeVar("R")


class Executor(Protocol):
    """Runs independent jobs.

    What all jobs share travels inside `fn` (a functools.partial): it is shipped once to each worker, not once per job.
    """

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield fn(job) for each job, in that order, each as soon as it and those before it are done."""
        ...


@dataclass(frozen=True)
class Local:
    """Runs jobs one after another in this process.

    >>> list(Local().map(lambda job: job * 2, [1, 2]))
    [2, 4]
    """

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield fn(job) for each job."""
        return (fn(job) for job in jobs)


@dataclass(frozen=True)
class Pool:
    """Runs jobs in worker processes of one machine.

    The threads of a worker are part of what fixes the bits of its results, hence a field and not a guess.

    Attributes:
        workers: processes; None means one per core.
        threads: torch threads of each worker.
    """

    workers: int | None = None
    threads: int = 1

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield fn(job) for each job; `fn`, jobs and results must be picklable.

        Raises:
            InfuserError: a worker process died.
        """
        todo = list(jobs)
        workers = min(self.workers or os.cpu_count() or 1, max(len(todo), 1))
        # Spawned, not forked: a fork after torch has started its threads can hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _begin, (fn, self.threads))
        try:
            for future in [pool.submit(_work, job) for job in todo]:
                yield future.result()
        except BrokenProcessPool as error:
            raise InfuserError(
                "a worker process died",
                causes=["it ran out of memory", "it was killed"],
                remedy="run the same command again with --resume, with fewer workers",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}  # of a worker process, filled by _begin; the parent process never touches it


def _begin(fn: Callable[[Any], Any], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _worker["fn"] = fn


def _work(job: Any) -> Any:
    return _worker["fn"](job)
