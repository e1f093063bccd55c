"""The room that a process has: cores, memory and threads, by its control groups (Linux), its limits and the machine.

A container sees its machine's cores and memory, and is stopped or killed at its own. So the files of the control groups
are read, of version 1 and 2, of the process's own group and of each one above it that is mounted: the smallest counts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":
    import resource

_MOUNTED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
"""Where version 2 is mounted: alone, or beside version 1, whose controllers have a folder each in the first."""

_MEMORY = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""A group that is killed at the first crawls at the second. The third is version 1's."""


class Limit(NamedTuple):
    """How much there is, and the file or name that says so."""

    amount: float
    source: str


@dataclass(frozen=True, slots=True)
class Container:
    """The room of this process. None: nothing is known to limit it."""

    cores: Limit
    """Of all processes of the container together; 0.5 is half the time of one."""
    memory: Limit | None
    """Bytes, of all processes of the container together."""
    address_space: Limit | None
    """Bytes that this process may still map."""
    threads: Limit | None
    """Of all processes of the container together."""


def container(root: Path = Path("/")) -> Container:
    """Reads all limits of this process. `root` is the folder in which ``proc`` and ``sys`` are."""
    groups = list(dict.fromkeys(_groups(root)))
    return Container(
        cores=min((_cores(), *_quotas(groups))),
        memory=min((*_machines(root), *_numbers(groups, *_MEMORY)), default=None),
        address_space=min(_address_space(), default=None),
        threads=min((*_numbers(groups, "pids.max"), *_threads()), default=None),
    )


def _groups(root: Path) -> Iterator[Path]:
    """The folders of each control group that holds this process, and of those above it.

    Inside a container the path may be the machine's, and only the group itself be mounted. Then the path's folder is
    not there, and the mounted one is read.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        names = dict.fromkeys((controllers, *controllers.split(",")))  # "cpu,cpuacct": one folder, or a link for each
        for mounted in _MOUNTED if controllers == "" else [f"{_MOUNTED[0]}/{name}" for name in names]:
            top = root / mounted
            inner = top / path.strip("/")
            yield from (inner, *inner.parents[: len(inner.parts) - len(top.parts)])


def _quotas(groups: Iterable[Path]) -> Iterator[Limit]:
    for group in groups:
        quota, _, period = _read(group / "cpu.max").partition(" ")
        source = group / "cpu.max"
        if not quota:
            source = group / "cpu.cfs_quota_us"
            quota, period = _read(source), _read(group / "cpu.cfs_period_us")
        with suppress(ValueError, ZeroDivisionError):  # "max", or nothing
            if int(quota) > 0:  # -1 is none
                yield Limit(int(quota) / int(period), str(source))


def _numbers(groups: Iterable[Path], *names: str) -> Iterator[Limit]:
    for file in (group / name for group in groups for name in names):
        with suppress(ValueError):  # "max", or nothing
            yield Limit(int(_read(file)), str(file))


def _cores() -> Limit:
    if sys.platform == "linux":
        return Limit(len(os.sched_getaffinity(0)), "the cores that the process may use")
    return Limit(os.cpu_count() or 1, "the machine's cores")


def _machines(root: Path) -> Iterator[Limit]:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            yield Limit(int(amount.split()[0]) * 1024, "the machine's memory")


def _address_space() -> Iterator[Limit]:
    if sys.platform != "linux":
        return
    # proc(5): all pages that are mapped come first, those of data and stack sixth.
    pages = _read(Path("/proc/self/statm")).split() or ["0"] * 6
    for name, limit, taken in (
        ("RLIMIT_AS", resource.RLIMIT_AS, pages[0]),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, pages[5]),
    ):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield Limit(max(0, most - int(taken) * resource.getpagesize()), name)


def _threads() -> Iterator[Limit]:
    if sys.platform == "linux" and os.geteuid() != 0:  # it does not hold for root
        most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        if most != resource.RLIM_INFINITY:
            yield Limit(most, "RLIMIT_NPROC")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
