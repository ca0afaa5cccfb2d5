"""Where jobs run. An executor maps a function over jobs and yields the results in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle  # noqa: TID251 - a pool pickles whatever it ships; nothing from outside is read
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from infuser.allocator import keep_freed_memory
from infuser.errors import InfuserError

J = TypeVar("J")
R = TypeVar("R")


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use this many threads within the block; None leaves its setting alone."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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

    Attributes:
        threads: torch threads while a job runs, so that its bits are those of a `Pool` with as many; None keeps torch's
            setting.

    >>> list(Local().map(lambda job: job * 2, [1, 2]))
    [2, 4]
    """

    threads: int | None = None

    @property
    def slots(self) -> int:
        """Jobs that run at a time."""
        return 1

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield fn(job) for each job."""
        return (self._done(fn, job) for job in jobs)

    def _done(self, fn: Callable[[J], R], job: J) -> R:
        with torch_threads(self.threads):
            return fn(job)


@dataclass(frozen=True)
class Pool:
    """Runs jobs in worker processes of one machine.

    The threads of a worker are part of what fixes the bits of its results, hence a field and not a guess.

    Attributes:
        workers: processes; None means as many as have `threads` cores each.
        threads: torch threads of each worker.
        retries: how often the pool is set up again after a worker has died, with what was not finished.
        backoff: seconds before the first retry; doubled for each further one.
    """

    workers: int | None = None
    threads: int = 1
    retries: int = 0
    backoff: float = 0.5

    @property
    def slots(self) -> int:
        """Jobs that run at a time."""
        return self.workers or max(1, (os.cpu_count() or 1) // self.threads)

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield fn(job) for each job; `fn`, jobs and results must be picklable.

        Raises:
            InfuserError: a worker process died, and did so again at every retry.
        """
        todo = list(jobs)
        # Spawned, not forked: a fork after torch has started its threads can hang.
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder:
            # Through a file, not through the arguments: a worker that dies before it has read more than a pipe holds
            # would leave this process waiting for ever.
            shared = os.path.join(folder, "fn")  # noqa: PTH118
            with open(shared, "wb") as file:
                pickle.dump(fn, file)
            for left in range(self.retries, -1, -1):
                workers = min(self.slots, max(len(todo), 1))
                pool = ProcessPoolExecutor(workers, context, _begin, (shared, self.threads))
                try:
                    futures = [pool.submit(_work, job) for job in todo]
                    for future in futures:
                        yield future.result()
                        todo.pop(0)
                    return
                except BrokenProcessPool as error:
                    if not left:
                        raise _died() from error
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
                time.sleep(self.backoff * 2 ** (self.retries - left))


def _died() -> InfuserError:
    return InfuserError(
        "a worker process died",
        causes=[
            "it ran out of memory or was killed",
            "the calling script runs at import: guard it with if __name__ == '__main__'",
        ],
        remedy="run the same command again with --resume, with fewer workers",
    )


_worker: dict[str, Any] = {}  # of a worker process, filled by _begin; the parent process never touches it


def _begin(shared: str, threads: int) -> None:
    import torch

    # A pool's worker holds both ends of its queue, so that nothing tells it that the driver was killed: it would work
    # through what is queued, and then wait for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    with open(shared, "rb") as file:
        _worker["fn"] = pickle.load(file)  # noqa: S301 - written by the parent process a moment ago


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _work(job: Any) -> Any:
    return _worker["fn"](job)
