"""The cores, memory and threads that a process may use, by its control groups (Linux), its limits and the machine.

A process in a container sees the machine's cores and memory, but Linux stops or kills it at the container's limits. So
this file reads the control groups, of version 1 and 2: the process's own and each one above it that is mounted. The
smallest limit counts.
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
"""The folders where version 2 is mounted: the first one alone, the second one beside version 1.

Version 1 has a folder for each controller inside the first one.
"""

_MEMORY = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Linux kills a group at the first limit, and slows it down at the second. The third is the limit of version 1."""


class Limit(NamedTuple):
    """An amount, and the file or name that sets it."""

    amount: float
    source: str


@dataclass(frozen=True, slots=True)
class Container:
    """The limits of this process. None means that no limit is known."""

    cores: Limit
    """For all processes of the container together; 0.5 is half of the time of one core."""
    memory: Limit | None
    """Bytes, for all processes of the container together."""
    address_space: Limit | None
    """Bytes that this process may still map."""
    threads: Limit | None
    """For all processes of the container together."""


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
    """The folders of each control group of this process, and of the groups above it.

    Inside a container, the path may be the machine's while only the group itself is mounted. Then the path's folder
    does not exist, and the folder of the mount is read.
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
            if int(quota) > 0:  # -1 means no limit
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
    # proc(5): the first number counts all mapped pages, the sixth counts those of data and stack.
    pages = _read(Path("/proc/self/statm")).split() or ["0"] * 6
    for name, limit, taken in (
        ("RLIMIT_AS", resource.RLIMIT_AS, pages[0]),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, pages[5]),
    ):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield Limit(max(0, most - int(taken) * resource.getpagesize()), name)


def _threads() -> Iterator[Limit]:
    if sys.platform == "linux" and os.geteuid() != 0:  # the limit does not hold for root
        most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        if most != resource.RLIM_INFINITY:
            yield Limit(most, "RLIMIT_NPROC")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
