"""Slots: where each worker process keeps the numbers of its metrics, so that any of them can add up all.

The parent makes one piece of memory without a name, which its workers share. It is cut into slots, and each worker
takes a free one. The worker's counts are there at once, without a system call. So a process that is killed loses none.

A slot belongs to a process as long as that holds the slot's lock, on the byte of the file that has the slot's number.
The kernel gives the lock back when the process ends, however it ends. The next worker takes the slot and counts on from
the numbers there. So the sum over all slots never falls, and no count is lost or doubled.

A gauge counts only while its process runs. A process shows that by the moment in its slot, of a clock that all
processes of the machine share. One that stands still for longer than `STILL` is left out, and comes back by itself.
A count of the database's rows is not about the process that made it, and stands after its end.

With one process there is no slot: its numbers stay in its own memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from multiprocessing import reduction
from time import monotonic
from typing import Any, NamedTuple

from .metric_kinds import Metric
from .metrics import METRICS

STILL = 5.0
"""Seconds after which the gauges of a process that does not move no longer count."""

_FLOAT = 8
_SIZES = [metric.size for metric in METRICS]
_MOVED, _COUNTED = 0, 1  # floats of a slot: when its process last moved, and last counted in the database (monotonic)
_NUMBERS = 2  # from here on: the numbers of the metrics
_LENGTH = _NUMBERS + sum(_SIZES)
_SPARE = 8
"""Slots beyond two for each worker: a new worker begins before the one that it replaces has ended."""


class Part(NamedTuple):
    """The numbers of one metric in one process."""

    cells: memoryview[float]
    runs: bool
    """Whether the process runs, so that its gauges count."""
    counted_at: float = 0.0
    """When the process last counted in the database, in seconds of the monotonic clock. 0: never."""


class Slots:
    """The slots of all workers. The parent makes the object, and multiprocessing hands it to each worker.

    Args:
        workers: how many processes there will be at the same time.
    """

    def __init__(self, workers: int) -> None:
        self.count = 2 * workers + _SPARE
        self._file = _nameless()
        os.ftruncate(self._file, self.count * _LENGTH * _FLOAT)

    def __getstate__(self) -> tuple[int, Any]:
        """For a worker: the descriptor, which multiprocessing duplicates."""
        return self.count, reduction.DupFd(self._file)

    def __setstate__(self, state: tuple[int, Any]) -> None:
        """In the worker."""
        self.count, descriptor = state
        self._file = descriptor.detach()

    def take(self) -> bool:
        """Takes a free slot for this process, and moves the numbers of all metrics there. False: none was free."""
        memory = memoryview(mmap.mmap(self._file, self.count * _LENGTH * _FLOAT)).cast("d")
        slots = [memory[start : start + _LENGTH] for start in range(0, self.count * _LENGTH, _LENGTH)]
        for number, slot in enumerate(slots):
            if _locked(self._file, number):
                # `_all` holds the mapping from now on. To close one would close a descriptor of the file, and then
                # POSIX gives back all locks that this process has there.
                _place(slot, slots)
                return True
        return False


def _nameless() -> int:
    """A file without a name, which vanishes with the last process that has it."""
    with suppress(AttributeError, OSError):  # Linux alone has it
        return os.memfd_create("keyturn-metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _locked(file: int, number: int) -> bool:
    """Whether the lock on a slot could be taken. It belongs to this process until that ends."""
    import fcntl  # noqa: PLC0415  # Windows has none, and no second worker

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError:
        return False
    return True


def _cut(slot: memoryview[float]) -> Iterator[tuple[Metric, memoryview[float]]]:
    """Each metric, and its numbers in a slot."""
    start = _NUMBERS
    for metric, size in zip(METRICS, _SIZES, strict=True):
        yield metric, slot[start : start + size]
        start += size


_own: memoryview[float] | None = None
_all: list[memoryview[float]] = []


def _place(slot: memoryview[float], slots: list[memoryview[float]]) -> None:
    global _own, _all  # the numbers are those of the process
    slot[_COUNTED] = 0.0  # before the gauges of the process that had the slot are replaced
    for metric, cells in _cut(slot):
        metric.place(cells)
    _own, _all = slot, slots
    moved()


def moved() -> None:
    """Notes that this process runs."""
    if _own is not None:
        _own[_MOVED] = monotonic()


def counted() -> None:
    """Notes that this process counted in the database just now."""
    if _own is not None:
        _own[_COUNTED] = monotonic()


def counted_at() -> float:
    """When any process with a slot last counted in the database, in seconds of the monotonic clock. -inf: none has."""
    return max((slot[_COUNTED] for slot in _all if slot[_COUNTED]), default=-inf)


def parts() -> dict[str, list[Part]]:
    """By the name of each metric: its numbers in each process that ever was."""
    if not _all:
        return {metric.name: [Part(metric.cells, runs=True)] for metric in METRICS}
    now = monotonic()
    found: dict[str, list[Part]] = {metric.name: [] for metric in METRICS}
    for slot in _all:
        if slot[_MOVED]:  # else no process has had it
            runs = abs(now - slot[_MOVED]) < STILL
            for metric, cells in _cut(slot):
                found[metric.name].append(Part(cells, runs, slot[_COUNTED]))
    return found
