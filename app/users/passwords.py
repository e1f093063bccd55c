"""Passwords: Argon2id (RFC 9106) off the event loop, as many at a time as the container has room for.

By design, a hash takes 64 MiB and tens of milliseconds of a core. So only a few run at a time and some may wait; all
others are answered 503 with Retry-After. Then a flood of logins can't exhaust memory or starve refreshes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, VerifyMismatchError

from ..errors import TemporarilyUnavailable
from ..log import get_logger
from ..settings import MOST_ARGON2_LANES, MOST_ARGON2_MEMORY, MOST_ARGON2_PASSES, Settings
from .hashing_room import HashingRoom

LONGEST = 1024
"""The most bytes of a password in UTF-8. A password is compared as it was sent: never cut, trimmed or normalised."""

WAITS_FOR = timedelta(seconds=5)
"""How long a hash may wait for its turn. Few clients wait longer for an answer."""

TAKES_AT_MOST = timedelta(seconds=30)
"""How long a caller waits for a hash that has begun. The hash runs only while no other thread wants the core."""

_COME_AGAIN = timedelta(seconds=2)

_DECOYS_WORK = 4 * 1024 * 1024
"""The most work (KiB times passes) of all decoys together, or four hashes with today's parameters if that is more.

The work takes about two seconds of a core.
"""

_T = TypeVar("_T")
_log = get_logger()


class Cost(NamedTuple):
    """The cost of a hash, which decides how long it takes: the beginning of its PHC string, and the numbers there."""

    parameters: str
    memory: int
    passes: int
    lanes: int

    @property
    def work(self) -> int:
        """KiB that are filled, all passes together."""
        return self.memory * self.passes


# Only forms that Argon2 accepts: one spelling of each number, and the versions 1.0 (0x10) and 1.3 (0x13, the newest).
_NUMBER = "([1-9][0-9]{0,9})"
_STORED = re.compile(
    rf"(\$argon2(?:id|i|d)(?:\$v=(?:16|19))?\$m={_NUMBER},t={_NUMBER},p={_NUMBER})"
    r"\$([A-Za-z0-9+/]{11,})\$([A-Za-z0-9+/]{6,})",
    re.ASCII,
)
_LONGEST_STORED = 255


def cost_of(stored: str) -> Cost | str:
    """The cost of a stored hash, or why it is never computed: in words that repeat nothing of the hash.

    The bounds are those of the settings, so each hash that Keyturn ever made stays valid. Keyturn never made a
    costlier hash. To compute one that an attacker has stored would be the attack.
    """
    found = _STORED.fullmatch(stored) if len(stored) <= _LONGEST_STORED else None
    if found is None or not all(map(_is_base64, found.groups()[4:])):
        return "it is no Argon2 hash, or was cut"
    cost = Cost(found[1], *map(int, found.groups()[1:4]))
    if cost.memory < 8 * cost.lanes:  # RFC 9106 section 3.1
        return "it is no Argon2 hash, or was cut"
    if cost.memory > MOST_ARGON2_MEMORY or cost.passes > MOST_ARGON2_PASSES or cost.lanes > MOST_ARGON2_LANES:
        return "its parameters are beyond all that the settings allow"
    return cost


def _is_base64(text: str) -> bool:
    """Whether the text is base64 in the one spelling of Argon2: no padding, spare bits zero."""
    try:
        return _unpadded(base64.b64decode(text + "=" * (-len(text) % 4), validate=True)) == text
    except binascii.Error:
        return False


def _unpadded(raw: bytes) -> str:
    return base64.b64encode(raw).rstrip(b"=").decode()


def _decoy(cost: Cost) -> str:
    """A hash of this cost that no known password matches: its hash part is random."""
    return f"{cost.parameters}${_unpadded(os.urandom(16))}${_unpadded(os.urandom(32))}"


def _stand_back() -> None:
    """Gives the event loop the core first, so that a flood of sign-ins does not slow refreshes down.

    On Linux each thread has its own scheduling policy, and the threads that it starts (Argon2's lanes) inherit it.
    Elsewhere the policy would hold for the whole process, so nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


class Passwords:
    """Hashes and verifies passwords, a few at a time."""

    def __init__(self, settings: Settings, room: HashingRoom) -> None:
        """Computes nothing yet."""
        self.room = room
        self._hasher = PasswordHasher(
            time_cost=settings.argon2_passes,
            memory_cost=settings.argon2_memory,
            parallelism=settings.argon2_lanes,
            type=Type.ID,
        )
        m, t, p = settings.argon2_memory, settings.argon2_passes, settings.argon2_lanes
        self._today = Cost(f"$argon2id$v=19$m={m},t={t},p={p}", m, t, p)
        self._slots = asyncio.Semaphore(room.slots)
        self._turn = asyncio.Lock()
        self._busy = 0
        # One decoy for each cost that users' hashes have, today's first. A wrong password costs all (see `verify`).
        self._decoys = {self._today: _decoy(self._today)}

    def admit(self) -> None:
        """Checks that one more hash may wait. Callers ask before they look anything up for it.

        Raises:
            TemporarilyUnavailable: too many wait already.
        """
        if self._busy >= self.room.slots + self.room.queue:
            raise TemporarilyUnavailable("the hashing queue is full", retry_after=_COME_AGAIN)

    async def hash(self, password: bytes) -> str:
        """The PHC string of a new password.

        Raises:
            TemporarilyUnavailable: too many hashes wait, this one waited too long, or memory or threads are short.
        """
        return await self._run(self._today.memory, lambda: self._hasher.hash(password))

    async def verify(self, hashed: str | None, password: bytes) -> bool:
        """Whether a password is the one that was hashed. No hash (no such user) takes as long and is never right.

        1. If the stored hash is never computed (see `cost_of`), the password counts as wrong.
        2. If the stored hash needs more memory than there is, this raises, because the password may be right.
        3. If the users' hashes have several costs, a wrong password costs one hash of each, one after another.
           Otherwise its time would tell a user from a stranger.

        Raises:
            TemporarilyUnavailable: too many hashes wait, this one waited too long, or memory or threads are short. The
                password may be right or wrong then.
        """
        cost = self.learn(hashed)
        decoys = [decoy for other, decoy in self._decoys.items() if other != cost]
        memory = max(known.memory for known in (*self._decoys, *([cost] if cost else [])))

        def is_right() -> bool:
            if hashed is not None and cost is not None and self._matches(hashed, password):
                return True
            for decoy in decoys:
                self._matches(decoy, password)
            return False

        try:
            return await self._run(memory, is_right)
        except _Failed as e:
            _log.error("hash_failed", cause=e.cause)
            raise

    def learn(self, hashed: str | None) -> Cost | None:
        """The cost of a stored hash, or None if it is never computed. From now on, a wrong password costs it too.

        A few hashes with very high parameters must not slow down every wrong password, or need memory that is not
        there. So their cost is not kept, and the time of a wrong password can tell these users from strangers.
        """
        cost = cost_of(hashed) if hashed is not None else None
        if not isinstance(cost, Cost):
            return None
        all_work = cost.work + sum(known.work for known in self._decoys if known != self._today)
        if (
            cost not in self._decoys
            and all_work <= max(_DECOYS_WORK, 4 * self._today.work)
            and self.room.slots_of(cost.memory)
        ):
            self._decoys[cost] = _decoy(cost)
        return cost

    def obstacle(self, hashed: str) -> str:
        """Why this process does not compute a stored hash, in words that repeat nothing of it; empty if it does."""
        cost = cost_of(hashed)
        if isinstance(cost, str):
            return cost
        return "" if self.room.slots_of(cost.memory) else "it needs more memory than there is here"

    def outdated(self, hashed: str) -> bool:
        """Whether a hash was made with other parameters than today's. If so, the password should be hashed again."""
        return self._hasher.check_needs_rehash(hashed)

    def _matches(self, hashed: str, password: bytes) -> bool:
        """Whether the password matches. Any error but a mismatch says nothing about the password, and is raised."""
        try:
            return self._hasher.verify(hashed, password)
        except VerifyMismatchError:
            return False

    async def _run(self, memory: int, function: Callable[[], _T]) -> _T:
        """Waits for its turn, and runs a function that takes this much memory (KiB) in a thread of its own."""
        slots = self.room.slots_of(memory)
        if not slots:
            raise _Failed(f"a hash of {memory} KiB has no room in {self.room.memory} KiB")
        self.admit()
        self._busy += 1
        try:
            # If a client leaves while it waits here, its hash is not computed.
            async with asyncio.timeout(WAITS_FOR.total_seconds()):
                await self._take(slots)
        except BaseException as e:
            self._busy -= 1
            if isinstance(e, TimeoutError):
                raise TemporarilyUnavailable("waited too long to be hashed", retry_after=_COME_AGAIN) from None
            raise
        try:
            future = _in_a_thread(function)
        except (RuntimeError, MemoryError) as e:  # RuntimeError: the system gives no more threads
            self._give_back(slots)
            raise _Failed(f"{type(e).__name__}: {e}") from None
        future.add_done_callback(lambda _: self._give_back(slots))
        # If a client leaves now, its hash goes on: a thread can't be stopped, and its slots count until it ends.
        try:
            async with asyncio.timeout(TAKES_AT_MOST.total_seconds()):
                return await asyncio.shield(future)
        except TimeoutError:
            raise TemporarilyUnavailable("a hash takes too long", retry_after=_COME_AGAIN) from None
        except (Argon2Error, MemoryError) as e:
            raise _Failed(f"{type(e).__name__}: {e}") from None

    async def _take(self, slots: int) -> None:
        """Takes slots in the order of arrival, so that a hash that needs several is not overtaken by smaller ones."""
        taken = 0
        try:
            async with self._turn:
                while taken < slots:
                    await self._slots.acquire()
                    taken += 1
        except BaseException:
            for _ in range(taken):
                self._slots.release()
            raise

    def _give_back(self, slots: int) -> None:
        self._busy -= 1
        for _ in range(slots):
            self._slots.release()


class _Failed(TemporarilyUnavailable):
    """Memory or threads are short. The operator has to act, while a full queue passes by itself."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"no hash could be computed: {cause}", retry_after=_COME_AGAIN)


def _in_a_thread(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Runs a function in a new thread, whose start takes a thousandth of a hash's time.

    A pool of threads would not do: it keeps work for which it got no thread, and breaks if its first thread fails.

    Raises:
        RuntimeError: the system gives no more threads.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            _stand_back()
            done.set_result(function())
        except BaseException as e:  # noqa: BLE001  # it is raised where the future is awaited
            done.set_exception(e)

    threading.Thread(target=run, name="argon2").start()
    return asyncio.wrap_future(done)
