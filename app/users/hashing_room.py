"""How many password hashes one process computes at a time, and how many may wait, so that all fit into its container.

A hash takes all of its memory at once, and anyone can send wrong passwords. If a container exceeds its limit, Linux
kills it with every request that is under way. So no hash begins that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ..errors import ConfigurationError
from ..settings import Settings
from ..settings_sources import PREFIX
from .container import Container

MIB = 1024 * 1024

BEFORE_REQUESTS = 112 * MIB
"""Bytes that one process takes before its first request. Measured: 105 MiB."""

FOR_REQUESTS = 80 * MIB
"""Bytes that one process keeps for connections, requests and limits.

Measured: 1,500 waiting logins took 60 MiB, and the limits take 17 MiB in the longest storm.
"""

WAITS_IN = MIB // 16
"""Bytes that count for each login that waits. Measured: 40 KiB."""


@dataclass(frozen=True, slots=True)
class HashingRoom:
    """How many hashes one process may compute at a time, and why."""

    slots: int
    queue: int
    memory: int | None
    """KiB for all hashes that run at the same time. None means that no limit is known."""
    missing: str
    """Why no hash with the parameters in force fits, and what to do; empty if one fits."""
    advice: str
    """The change that an operator should make; empty if nothing is wrong."""
    words: str
    """The numbers of hashes and the limits that were found, in words for an operator."""

    @classmethod
    def of(cls, settings: Settings, found: Container) -> Self:
        """The room for hashes that settings and container leave."""
        one, processes = settings.argon2_memory * 1024, settings.workers + (settings.workers > 1)  # and their parent
        memory: int | None = None
        # One core is left to the event loops: two slots on two cores halved the rate of refreshes.
        slots = settings.hashing_slots or max(1, int((found.cores.amount - 1) // settings.workers))
        queue, missing = settings.hashing_queue, ""
        if found.threads is not None:
            # A hash has a thread of its own and one for each lane. Half of all threads are left to the rest.
            threads = int(found.threads.amount) // 2 // processes
            slots = max(1, min(slots, threads // (settings.argon2_lanes + 1)))
        left = [(found.memory.amount / processes - BEFORE_REQUESTS, found.memory.source)] if found.memory else []
        if found.address_space is not None:
            left.append(found.address_space)
        if left:
            most, source = min(left)
            # Several hashes at a time must leave memory for requests. A single one runs if it fits at all.
            memory = max(0, int(most) - FOR_REQUESTS, min(int(most), one))
            slots = max(1, min(slots, memory // one))
            queue = max(0, min(queue, (int(most) - slots * one) // WAITS_IN))
            if memory < one:
                missing = (
                    f"one password hash takes {_mib(one)}, and {source} leaves {_mib(memory)} for it: "
                    f"raise that limit or lower {PREFIX}ARGON2_MEMORY"
                )
        asked = {"HASHING_SLOTS": (settings.hashing_slots, slots), "HASHING_QUEUE": (settings.hashing_queue, queue)}
        too_many = [f"set {PREFIX}{name} to {fit}" for name, (wish, fit) in asked.items() if wish and wish > fit]
        return cls(
            slots=slots,
            queue=queue,
            memory=None if memory is None else memory // 1024,
            missing=missing,
            advice=missing or (f"no more fit: {', '.join(too_many)}, or raise the limits" if too_many else ""),
            words=f"{slots} at a time in each process, {_mib(one)} each, {queue} may wait ({', '.join(_found(found))})",
        )

    def require_one(self) -> None:
        """Checks that at least one hash fits.

        Raises:
            ConfigurationError: none fits, so nobody could sign in.
        """
        if self.missing:
            raise ConfigurationError(self.missing)

    def slots_of(self, memory: int) -> int:
        """How many slots a hash of this memory (KiB) takes, so that all running hashes fit; 0 if it never fits."""
        if self.memory is None:
            return 1
        return 0 if memory > self.memory else min(self.slots, -(-memory * self.slots // self.memory))


def _mib(amount: float) -> str:
    return f"{amount / MIB:,.0f} MiB" if amount >= MIB else f"{amount / 1024:,.0f} KiB"


def _found(found: Container) -> Iterator[str]:
    yield f"{found.cores.amount:g} cores: {found.cores.source}"
    if found.memory is not None:
        yield f"{_mib(found.memory.amount)}: {found.memory.source}"
    if found.address_space is not None:
        yield f"{_mib(found.address_space.amount)} of addresses: {found.address_space.source}"
    if found.threads is not None:
        yield f"{found.threads.amount:,.0f} threads: {found.threads.source}"
