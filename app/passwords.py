"""Passwords: Argon2id (RFC 9106) off the event loop, in a bounded pool.

A hash takes 64 MiB and tens of milliseconds of a core by design. So only a few run at a time, some may wait, and
whatever comes beyond is told to come again: a storm of logins can't exhaust memory or starve refreshes.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from .errors import InvalidRequest, TemporarilyUnavailable
from .settings import Settings

SHORTEST, LONGEST = 8, 1024
"""UTF-8 bytes of a password. Nothing is cut, trimmed or normalised: it is compared as it was sent."""

WAITS_FOR = timedelta(seconds=5)
"""How long a hash may wait for its turn: whoever asked has hardly the patience for more."""

TAKES_AT_MOST = timedelta(seconds=30)
"""How long one is waited for that has begun: it runs only where nobody else wants the core."""

_COME_AGAIN = timedelta(seconds=2)

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Proof that a password was right for a user, as the user was then: it is checked again where it is used."""

    user_id: UUID
    password_hash: str = field(repr=False)


def acceptable(password: str) -> bytes:
    """A new password's bytes.

    Raises:
        InvalidRequest: it is shorter or longer than allowed, or has a NUL.
    """
    raw = password.encode()
    if not SHORTEST <= len(raw) <= LONGEST or 0 in raw:
        raise InvalidRequest(
            "password length or NUL",
            description=f"A password must have {SHORTEST} to {LONGEST} bytes of UTF-8 and no NUL.",
        )
    return raw


def _unpadded(raw: bytes) -> str:
    return base64.b64encode(raw).rstrip(b"=").decode()


def _nobodys(memory: int, passes: int, lanes: int) -> str:
    """A hash as costly as any of these parameters, and nobody's: its hash part is random."""
    salt, hashed = _unpadded(os.urandom(16)), _unpadded(os.urandom(32))
    return f"$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hashed}"


def _stand_back() -> None:
    """Lets the event loop go first: a storm of sign-ins must not slow the refreshes of those who are signed in.

    On Linux a thread has a policy of its own, and the threads that it starts (Argon2's lanes) take it over; elsewhere
    it would be the whole process's, so nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


class Passwords:
    """Hashes and verifies, a few at a time."""

    def __init__(self, settings: Settings) -> None:
        """Makes the pool's threads when they are first needed."""
        self._hasher = PasswordHasher(
            time_cost=settings.argon2_passes,
            memory_cost=settings.argon2_memory,
            parallelism=settings.argon2_lanes,
            type=Type.ID,
        )
        # A stored hash with more than this was not made by us, and computing it would be the attack.
        self._most_memory = max(4 * settings.argon2_memory, 262_144)
        self._most_passes = max(4 * settings.argon2_passes, 16)
        # One core is left to the event loops: two slots on two cores halved the rate of refreshes.
        slots = settings.hashing_slots or max(1, ((os.cpu_count() or 1) - 1) // settings.workers)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="argon2", initializer=_stand_back)
        self._slots = asyncio.Semaphore(slots)
        self._room = slots + settings.hashing_queue
        self._busy = 0
        # One for each cost that a user's hash has, today's first: a wrong password costs all of them (see `verify`).
        today = (settings.argon2_memory, settings.argon2_passes, settings.argon2_lanes)
        self._decoys = {today: _nobodys(*today)}

    def admit(self) -> None:
        """Before anything is looked up for a hash that could not begin.

        Raises:
            TemporarilyUnavailable: too many wait already.
        """
        if self._busy >= self._room:
            # At once, and not after a wait: the queue is as long as it may be.
            raise TemporarilyUnavailable("the hashing queue is full", retry_after=_COME_AGAIN)

    async def hash(self, password: bytes) -> str:
        """The PHC string of a new password.

        Raises:
            TemporarilyUnavailable: too many wait already, or it waited too long.
        """
        return await self._run(self._hasher.hash, password)

    async def verify(self, hashed: str | None, password: bytes) -> bool:
        """Whether a password is the one that was hashed. None (no such user) costs the same and is never right.

        A stored hash that is empty, cut or of another scheme is a wrong password, not an error.

        While some hashes are of other parameters than today's, whatever is wrong costs one hash of each, in one slot
        and one after another: with a single one, its time would tell a user from a stranger.

        Raises:
            TemporarilyUnavailable: too many wait already, or it waited too long.
        """
        cost = self.learn(hashed)
        decoys = [decoy for other, decoy in self._decoys.items() if other != cost]
        return await self._run(self._is_right, hashed if cost else None, password, decoys)

    def learn(self, hashed: str | None) -> tuple[int, int, int] | None:
        """What a stored hash costs, kept for what is wrong from now on; None if it is not to be computed."""
        if hashed is None or not self._reasonable(hashed):
            return None
        parameters = extract_parameters(hashed)
        cost = (parameters.memory_cost, parameters.time_cost, parameters.parallelism)
        if cost not in self._decoys:
            self._decoys[cost] = _nobodys(*cost)
        return cost

    def outdated(self, hashed: str) -> bool:
        """Whether a hash was made with other parameters than today's (then hash the password again)."""
        return self._hasher.check_needs_rehash(hashed)

    def close(self) -> None:
        """Lets the hashes under way end and drops those that wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_right(self, hashed: str | None, password: bytes, decoys: list[str]) -> bool:
        if hashed is not None and self._matches(hashed, password):
            return True
        for decoy in decoys:
            self._matches(decoy, password)
        return False

    def _matches(self, hashed: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (Argon2Error, InvalidHashError):
            return False

    def _reasonable(self, hashed: str) -> bool:
        try:
            parameters = extract_parameters(hashed)
        except (InvalidHashError, ValueError):
            return False
        return (
            parameters.memory_cost <= self._most_memory
            and parameters.time_cost <= self._most_passes
            and parameters.parallelism <= 64  # noqa: PLR2004  # lanes; our own setting allows 16
        )

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        assert not kwargs
        self.admit()
        self._busy += 1
        try:
            # Whoever goes away while waiting is dropped here, and costs no hash.
            async with asyncio.timeout(WAITS_FOR.total_seconds()):
                await self._slots.acquire()
        except BaseException as e:
            self._busy -= 1
            if isinstance(e, TimeoutError):
                raise TemporarilyUnavailable("waited too long to be hashed", retry_after=_COME_AGAIN) from None
            raise
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        future.add_done_callback(self._done)
        # Whoever goes away leaves the hash running: a thread can't be stopped, and its slot counts until it ends.
        try:
            async with asyncio.timeout(TAKES_AT_MOST.total_seconds()):
                return await asyncio.shield(future)
        except TimeoutError:
            raise TemporarilyUnavailable("a hash takes too long", retry_after=_COME_AGAIN) from None

    def _done(self, _future: asyncio.Future[Any]) -> None:
        self._busy -= 1
        self._slots.release()
