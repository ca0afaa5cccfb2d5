"""Where jobs run. An executor maps a function over jobs and returns the results in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

J = TypeVar("J")
R = TypeVar("R")


class Executor(Protocol):
    """Runs independent jobs."""

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> list[R]:
        """Return [fn(job) for job in jobs], in that order."""
        ...


@dataclass(frozen=True)
class Local:
    """Runs jobs one after another in this process.

    >>> Local().map(lambda job: job * 2, [1, 2])
    [2, 4]
    """

    def map(self, fn: Callable[[J], R], jobs: Iterable[J]) -> list[R]:
        """Return [fn(job) for job in jobs]."""
        return [fn(job) for job in jobs]
