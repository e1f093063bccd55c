"""Turns: sign-ins of one user that end others go one after the other within a process. So do those by one token.

The database keeps the turns of all processes, by a lock on a row or by a constraint. These turns only save work: a
sign-in that waits here holds no connection, so one user's sign-ins can't take the whole pool from all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from ..errors import TemporarilyUnavailable
from ..storage.tasks import QUEUE_LIMIT


class Turns:
    """One turn at a time for each user or token, in the order of arrival."""

    def __init__(self) -> None:
        # An entry goes by itself with the last one who waits for it or holds it.
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, whom: Hashable) -> AsyncIterator[None]:
        """The turn of a user (by id) or a token (by name), for as long as the block runs.

        Raises:
            TemporarilyUnavailable: others of this user or token were before, for longer than `QUEUE_LIMIT`.
        """
        lock = self._locks.setdefault(whom, asyncio.Lock())
        try:
            async with asyncio.timeout(QUEUE_LIMIT.total_seconds()):
                await lock.acquire()
        except TimeoutError:
            raise TemporarilyUnavailable("other sign-ins of this user are before this one") from None
        try:
            yield
        finally:
            lock.release()
