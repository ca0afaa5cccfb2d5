"""Jobs on a Ray cluster, or on a Ray of one machine. The only file that imports ray.

Ray's ports are open to whoever reaches them, and whoever reaches them runs code: see "Running on a cluster" in the
documentation before a head node is started.
"""

from __future__ import annotations

import logging
import pickle  # noqa: TID251 - jobs and results travel between our own processes; nothing from outside is read
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from infuser.allocator import keep_freed_memory
from infuser.errors import InfuserError, require
from infuser.executors import torch_threads

J = TypeVar("J")
R = TypeVar("R")

# What Ray raises when a job was lost without its own doing. By name, since releases add to them.
_LOST = (
    "WorkerCrashedError",
    "NodeDiedError",
    "ObjectLostError",
    "OwnerDiedError",
    "OutOfMemoryError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectReconstructionFailedError",
    "LocalRayletDiedError",
)


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs on Ray.

    What the jobs share is put into the object store once and unpickled once by each worker process. A job that is lost
    with its worker is run again; an error that it raises itself is not retried, and reaches the caller.

    Attributes:
        address: of the cluster: host:port, ray://host:port, or auto; None takes RAY_ADDRESS or a cluster that runs on
            this machine, and starts a Ray of this machine where there is none.
        cpus: cores that a job holds, and the torch threads that it runs with: cores are never shared.
        gpus: that a job holds; 0.25 lets four jobs share one.
        retries: of a job that was lost with its worker.
        backoff: seconds before the first retry; doubled for each further one.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    retries: int = 5
    backoff: float = 0.5

    def __post_init__(self) -> None:
        require("cpus", self.cpus, self.cpus >= 1, "at least 1")
        # More than one GPU can only be held whole.
        whole = self.gpus <= 1 or float(self.gpus).is_integer()
        require("gpus", self.gpus, self.gpus >= 0 and whole, "0 to 1, or a whole number")
        require("retries", self.retries, self.retries >= 0, "at least 0")
        require("backoff", self.backoff, self.backoff >= 0, "at least 0 seconds")

    @property
    def slots(self) -> int:
        """Jobs that run at a time on the cluster as it is now."""
        with self.connected() as ray:
            held = ray.cluster_resources()
        places = held.get("CPU", 0) // self.cpus
        return int(min(places, held.get("GPU", 0) // self.gpus) if self.gpus else places)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Yield ray, connected; a connection that is not there yet lasts as long as the block.

        Raises:
            InfuserError: ray is not installed, or the cluster cannot be reached.
        """
        try:
            import ray
        except ImportError as error:
            raise InfuserError("ray is not installed", remedy="pip install 'infuser[ray]'") from error
        if ray.is_initialized():
            yield ray
            return
        try:
            ray.init(self.address, include_dashboard=None if self.address else False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises whatever its parts raise
            raise InfuserError(
                "the Ray cluster cannot be reached",
                got=f"{self.address or 'a Ray of this machine'}: {error}",
                causes=["no head node runs at this address", "its port is closed", "another version of ray or python"],
                remedy="start one with `ray start --head`, or check the address with `ray status`",
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield fn(job) for each job, in order; `fn`, jobs and results must be picklable.

        Raises:
            InfuserError: a job was lost more than `retries` times, or Ray itself is gone.
        """
        todo = list(jobs)
        if not todo:
            return
        with self.connected() as ray:
            remote = ray.remote(_work).options(num_cpus=self.cpus, num_gpus=self.gpus or None, max_retries=0)
            shared = ray.put((sys.path, pickle.dumps(fn)))
            key = shared.hex()

            def submit(position: int) -> Any:
                return remote.remote(key, shared, pickle.dumps(todo[position]), self.cpus)

            try:
                yield from self._in_order(ray, submit, len(todo))
            except ray.exceptions.RayError as error:
                raise InfuserError(
                    "the Ray cluster was lost",
                    got=f"{type(error).__name__}: {error}",
                    remedy="start it again, then run the same command with --resume: finished jobs are kept",
                ) from error

    def _in_order(self, ray: Any, submit: Callable[[int], Any], count: int) -> Iterator[Any]:
        """Yield the results of jobs 0 to count - 1; every lost one is submitted again, after its own pause.

        Only so many are with Ray that no core waits for work: Ray runs jobs in the order in which they come, so that a
        lost one would otherwise come again after all others, and hold up what they gave.
        """
        waiting = [(0.0, position) for position in range(count)]  # (not before, position), the first job first
        flying: dict[Any, int] = {}
        done: dict[int, bytes] = {}
        losses: dict[int, int] = {}
        room = 0
        try:
            for wanted in range(count):
                while wanted not in done:
                    now = time.monotonic()
                    ripe = sorted((p for when, p in waiting if when <= now), reverse=True)
                    while ripe and (room := room or self._room()) > len(flying):
                        position = ripe.pop()
                        waiting = [(when, p) for when, p in waiting if p != position]
                        flying[submit(position)] = position
                    if not flying:
                        time.sleep(0.05)
                        continue
                    ready, _ = ray.wait(list(flying), timeout=1)
                    room = room if ready else 0  # the cluster may have grown or shrunk
                    for ref in ready:
                        position = flying.pop(ref)
                        try:
                            done[position] = ray.get(ref)
                        except ray.exceptions.RayError as error:
                            losses[position] = losses.get(position, 0) + 1
                            self._check(error, position, losses[position])
                            pause = self.backoff * 2 ** (losses[position] - 1)
                            waiting.append((time.monotonic() + pause, position))
                yield _opened(done.pop(wanted))
        finally:
            for ref in flying:
                ray.cancel(ref, force=True)

    def _room(self) -> int:
        return 2 * max(1, self.slots)

    def _check(self, error: Exception, position: int, losses: int) -> None:
        lost = any(name in _LOST for name in (cls.__name__ for cls in type(error).__mro__))
        if lost and losses <= self.retries:
            return
        raise InfuserError(
            f"job {position} was lost {losses} times" if lost else f"Ray could not run job {position}",
            got=f"{type(error).__name__}: {error}",
            causes=["it needs more memory than a node has", "nodes leave the cluster faster than the job ends"],
            remedy="run the same command again with --resume: finished jobs are kept",
        ) from error


_held: dict[str, Any] = {}  # of a worker process: the one fn that it works for; the driver never touches it


def _work(key: str, shared: tuple[list[str], bytes], job: bytes, threads: int) -> bytes:
    """Return the pickled outcome of one job: (True, its result) or (False, its error)."""
    try:
        if key not in _held:
            path, fn = shared
            sys.path.extend(entry for entry in path if entry not in sys.path)  # as a spawned process has it
            _held.clear()
            keep_freed_memory()
            _held[key] = pickle.loads(fn)  # noqa: S301 - written by the driver
        with torch_threads(threads):
            outcome = True, _held[key](pickle.loads(job))  # noqa: S301 - written by the driver
        return pickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001 - the driver raises it
        error.add_note("In a Ray worker:\n" + traceback.format_exc())
        try:
            # Unpickled too, since that is what the driver has to do.
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
            return pickle.dumps((False, error))
        except Exception:  # noqa: BLE001 - whatever its class's own reduction raises
            text = "".join(traceback.format_exception(error))
            return pickle.dumps((False, InfuserError("a job failed", got=text)))


def _opened(outcome: bytes) -> Any:
    whole, value = pickle.loads(outcome)  # noqa: S301 - written by a worker of ours
    if not whole:
        raise value
    return value
