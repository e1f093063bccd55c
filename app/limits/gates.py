"""Gates: of all attempts on one account, a process checks a few at a time, in the order of arrival.

An attempt holds a part of its budget until its password was found right. A program may sign in to one account many
times at once, with the right password. Together these attempts would exhaust the budget, and some would be refused. The
gate lets so few through at a time that a handful of processes stays below the smallest default quota. Attempts on one
account also can't take all places in which hashes are computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from ..errors import RateLimit, SlowDown

AT_A_TIME = 2
WAITING = 64
"""How many attempts on one account may wait in one process; beyond: 429."""

WAITS_FOR = timedelta(seconds=5)
"""How long an attempt waits for its turn, as a password hash does."""


_TURNS = RateLimit("account_turns", AT_A_TIME)
_QUEUE = RateLimit("account_queue", AT_A_TIME + WAITING)


@dataclass(slots=True)
class _Gate:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_A_TIME))
    users: int = 0


class Gates:
    """The gates of one process: one for each account or device that is tried now."""

    def __init__(self) -> None:
        self._gates: dict[bytes, _Gate] = {}

    def __len__(self) -> int:
        return len(self._gates)

    @asynccontextmanager
    async def of(self, key: bytes) -> AsyncIterator[None]:
        """The turn of one attempt, for as long as the block runs.

        Raises:
            SlowDown: too many attempts wait already, or this one waited too long.
        """
        gate = self._gates.setdefault(key, _Gate())
        if gate.users >= _QUEUE.quota:
            raise SlowDown("too many attempts on one account at once", limit=_QUEUE)
        gate.users += 1
        try:
            try:
                async with asyncio.timeout(WAITS_FOR.total_seconds()):
                    await gate.room.acquire()
            except TimeoutError:
                raise SlowDown("other attempts on the account are before this one", limit=_TURNS) from None
            try:
                yield
            finally:
                gate.room.release()
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[key]
