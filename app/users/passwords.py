"""Passwords: Argon2id (RFC 9106) off the event loop, as many at a time as the container has room for.

By design, a hash takes 64 MiB and tens of milliseconds of a core. So only a few run at a time and some may wait
(app/users/hashing.py). Then a flood of logins can't exhaust memory or starve refreshes.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, VerifyMismatchError

from ..log import get_logger
from ..settings import MOST_ARGON2_LANES, MOST_ARGON2_MEMORY, MOST_ARGON2_PASSES, Settings
from .hashing import ITSELF, Asker, HashFailed, Hashing
from .hashing_room import HashingRoom

LONGEST = 1024
"""The most bytes of a password in UTF-8. A password is compared as it was sent: never cut, trimmed or normalised."""

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
        self.hashing = Hashing(room, settings)
        # One decoy for each cost that users' hashes have, today's first. A wrong password costs all (see `verify`).
        self._decoys = {self._today: _decoy(self._today)}

    async def hash(self, password: bytes, asker: Asker = ITSELF) -> str:
        """The PHC string of a new password.

        Raises:
            SlowDown: those of the asker's network take its share of the queue already, and others wait too.
            TemporarilyUnavailable: too many hashes wait, this one waited too long, or memory or threads are short.
        """
        return await self._run(self._today.memory, lambda: self._hasher.hash(password), asker)

    async def verify(self, hashed: str | None, password: bytes, asker: Asker = ITSELF) -> bool:
        """Whether a password is the one that was hashed. No hash (no such user) takes as long and is never right.

        1. If the stored hash is never computed (see `cost_of`), the password counts as wrong.
        2. If the stored hash needs more memory than there is, this raises, because the password may be right.
        3. If the users' hashes have several costs, a wrong password costs one hash of each, one after another.
           Otherwise its time would tell a user from a stranger.

        Raises:
            SlowDown: as `hash`. The password may be right or wrong then.
            TemporarilyUnavailable: as `hash`, likewise.
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
            return await self._run(memory, is_right, asker)
        except HashFailed as e:
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

    async def _run(self, memory: int, function: Callable[[], _T], asker: Asker) -> _T:
        try:
            return await self.hashing.run(memory, function, asker)
        except Argon2Error as e:
            raise HashFailed(f"{type(e).__name__}: {e}") from None

    def _matches(self, hashed: str, password: bytes) -> bool:
        """Whether the password matches. Any error but a mismatch says nothing about the password, and is raised."""
        try:
            return self._hasher.verify(hashed, password)
        except VerifyMismatchError:
            return False
