"""A process goes by the cores and the memory of its container, and not by those of the machine."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigurationError
from app.settings import Settings, read
from app.users.container import Container, Limit, container
from app.users.hashing_room import BEFORE_REQUESTS, FOR_REQUESTS, MIB, WAITS_IN, HashingRoom
from tests.servers import Redis
from tests.test_races import serve

MACHINE = 64 * 1024 * MIB
NONE_V1 = "9223372036854771712"


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Writes `/proc` and `/sys` as a process in these control groups sees them, on a machine of 64 GiB."""
    all_files = {"proc/self/cgroup": groups, "proc/meminfo": f"MemTotal:  {MACHINE // 1024} kB\nMemFree: 1 kB\n"}
    for name, text in {**all_files, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    return root


def found(root: Path, groups: str, files: dict[str, str]) -> Container:
    return container(tree(root, groups, files))


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setattr(os, "cpu_count", lambda: 32)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {"cpu.max": "150000 100000", "memory.max": "536870912", "pids.max": "100"}),
        (
            "0::/pod/app",
            {"pod/app/cpu.max": "150000 100000", "pod/app/memory.max": "536870912", "pod/app/pids.max": "100"},
        ),
        # The path is the one on the machine, but the container has only its own group mounted.
        ("0::/docker/4f", {"cpu.max": "150000 100000", "memory.max": "536870912", "pids.max": "100"}),
        # Each limit stands at another level of the tree, and the smallest one counts.
        (
            "0::/a/b/c",
            {
                "a/cpu.max": "150000 100000",
                "a/memory.max": "1073741824",
                "a/b/memory.high": "536870912",
                "a/b/c/memory.max": "max",
                "a/b/c/memory.high": "max",
                "a/b/c/cpu.max": "max 100000",
                "a/b/cpu.max": "400000 100000",
                "a/pids.max": "300",
                "a/b/c/pids.max": "100",
            },
        ),
        (
            "4:memory:/docker/4f\n3:pids:/docker/4f\n2:cpu,cpuacct:/docker/4f\n1:name=systemd:/docker/4f",
            {
                "memory/docker/4f/memory.limit_in_bytes": "536870912",
                "memory/memory.limit_in_bytes": NONE_V1,
                "cpu,cpuacct/docker/4f/cpu.cfs_quota_us": "75000",
                "cpu,cpuacct/docker/4f/cpu.cfs_period_us": "50000",
                "pids/docker/4f/pids.max": "100",
            },
        ),
        (
            "4:memory:/pod/4f\n3:pids:/\n2:cpuacct,cpu:/pod/4f\n0::/",
            {
                "memory/memory.limit_in_bytes": "536870912",
                "cpu/cpu.cfs_quota_us": "150000",
                "cpu/cpu.cfs_period_us": "100000",
                "pids/pids.max": "100",
            },
        ),
        (
            "0::/app\n1:name=systemd:/",
            {"unified/app/cpu.max": "150000 100000", "unified/memory.max": "536870912", "unified/pids.max": "100"},
        ),
    ],
    ids=["v2", "v2 nested", "v2 own group mounted", "v2 at each height", "v1", "v1 own group mounted", "both versions"],
)
def test_the_smallest_limit_of_the_control_groups_counts(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    limits = found(tmp_path, groups, files)
    assert limits.cores.amount == 1.5
    assert limits.memory is not None
    assert limits.memory.amount == 512 * MIB
    assert "memory." in limits.memory.source
    assert limits.threads is not None
    assert limits.threads.amount == 100


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {}),
        ("nothing that is known", {}),
        ("0::/", {}),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max", "memory.high": "max"}),
        ("0::/", {"cpu.max": "", "memory.max": "a lot"}),
        ("0::/", {"cpu.max": "100000 0", "memory.max": ""}),
        (
            "2:cpu:/\n3:memory:/",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": NONE_V1},
        ),
        ("2:cpu:/\n3:memory:/", {"cpu/cpu.cfs_quota_us": "100000"}),
    ],
)
def test_without_a_limit_it_is_the_machine_s(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    limits = found(tmp_path, groups, files)
    assert limits.cores.amount == 32
    assert limits.memory == Limit(MACHINE, "the machine's memory")


def test_without_proc_nothing_is_known_and_nothing_fails(tmp_path: Path) -> None:
    assert container(tmp_path).memory is None


# -- slots and memory for hashes


def room(
    cores: float = 32,
    mib: float | None = None,
    *,
    addresses: float | None = None,
    threads: int | None = None,
    **more: str,
) -> HashingRoom:
    limits = Container(
        cores=Limit(cores, "the test"),
        memory=None if mib is None else Limit(mib * MIB, "memory.max"),
        address_space=None if addresses is None else Limit(addresses * MIB, "RLIMIT_AS"),
        threads=None if threads is None else Limit(threads, "pids.max"),
    )
    return HashingRoom.of(settings(**more), limits)


def settings(**more: str) -> Settings:
    return read({f"KEYTURN_{name.upper()}": value for name, value in more.items()})


@pytest.mark.parametrize(
    ("cores", "workers", "slots"),
    [
        (0.2, 1, 1),
        (1, 1, 1),
        (1.5, 1, 1),
        (2, 1, 1),
        (2.9, 1, 1),
        (3, 1, 2),
        (8, 1, 7),
        (2, 2, 1),
        (8, 2, 3),
        (8, 7, 1),
        (8, 8, 1),
    ],
)
def test_one_core_is_left_to_the_event_loops(cores: float, workers: int, slots: int) -> None:
    assert (room(cores, workers=str(workers)).slots, room(cores, workers=str(workers)).queue) == (slots, 32)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("mib", [512, 700, 1024, 2048])
@pytest.mark.parametrize("one", ["8192", "65536", "131072"])
@pytest.mark.parametrize("asked", [{}, {"hashing_slots": "64"}, {"hashing_queue": "10000"}])
def test_all_processes_with_all_that_they_hash_and_hold_fit_into_the_memory(
    workers: int, mib: int, one: str, asked: dict[str, Any]
) -> None:
    found = room(mib=mib, argon2_memory=one, workers=str(workers), **asked)
    if found.missing:
        assert (workers, mib) not in {(1, 512), (2, 1024)}
        return
    each = BEFORE_REQUESTS + found.slots * int(one) * 1024 + found.queue * WAITS_IN
    assert (workers + (workers > 1)) * each <= mib * MIB
    if found.slots > 1:
        assert (workers + (workers > 1)) * (BEFORE_REQUESTS + FOR_REQUESTS + found.slots * int(one) * 1024) <= mib * MIB


def test_a_container_of_512_mib_on_32_cores_hashes_five_at_a_time() -> None:
    assert (room(mib=512).slots, room(mib=512).queue, room(mib=512).advice) == (5, 32, "")


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"mib": 128}, "memory.max leaves 16 MiB"),
        ({"mib": 10}, "memory.max leaves 0 KiB"),
        ({"addresses": 63}, "RLIMIT_AS leaves 63 MiB"),
        ({"mib": 0}, "memory.max"),
    ],
)
def test_a_limit_below_one_hash_is_named_and_stops_the_start(limits: dict[str, float], named: str) -> None:
    found = room(**limits)  # type: ignore[arg-type]  # mypy cannot match each name with its type
    assert "one password hash takes 64 MiB" in found.advice
    assert named in found.advice
    assert (found.slots, found.slots_of(65536)) == (1, 0)
    with pytest.raises(ConfigurationError, match="ARGON2_MEMORY"):
        found.require_one()


@pytest.mark.parametrize("limits", [{"mib": 176}, {"mib": 512}, {"addresses": 64}, {}])
def test_where_one_hash_fits_the_start_goes_on(limits: dict[str, float]) -> None:
    found = room(**limits)  # type: ignore[arg-type]  # mypy cannot match each name with its type
    found.require_one()
    assert found.slots_of(65536) == 1


def test_more_slots_or_waiting_ones_than_fit_are_cut_down_and_named() -> None:
    found = room(mib=512, hashing_slots="16", hashing_queue="5000")
    assert found.slots == 5
    assert found.queue < 5000
    assert f"set KEYTURN_HASHING_SLOTS to 5, set KEYTURN_HASHING_QUEUE to {found.queue}" in found.advice
    assert room(mib=512, hashing_slots="5").advice == ""


def test_threads_bound_the_slots_too() -> None:
    assert room(threads=100).slots == 10  # half of the threads, and five for each hash
    assert room(threads=100, argon2_lanes="16").slots == 2
    assert room(threads=4).slots == 1


@pytest.mark.parametrize("memory", [8, 65536, 65537, 131072, 200_000, 262_144, 1024 * 1024])
@pytest.mark.parametrize("mib", [300, 512, 1000, 4096])
def test_hashes_of_other_sizes_take_as_many_slots_as_keep_all_within_the_memory(memory: int, mib: int) -> None:
    found = room(mib=mib)
    taken = found.slots_of(memory)
    assert found.memory is not None
    if not taken:
        assert memory > found.memory
        return
    assert found.slots // taken * memory <= found.memory


def test_a_process_takes_no_more_memory_before_its_first_request_than_is_counted_for_it(
    database_url: str, redis: Redis, logs: Path
) -> None:
    """Otherwise a hash would begin that does not fit, and Linux would kill the process with all its requests."""
    with serve(database_url, logs, redis_url=redis.url(8)) as service:
        status = Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
    (own,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert int(own) * 1024 <= BEFORE_REQUESTS
