"""Sampling: the numbers that no event counts, noted twice a second: connections, states, memory.

What takes statements is counted only if somebody scrapes, and by one process a minute for all. So metrics cost the
database nothing unless they are used, and a scrape waits for no database.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic

from . import metric_slots, metrics
from .errors import Refusal
from .federation.owed import Owed
from .revocation.revocations import Revocations
from .sessions.statistics import Statistics
from .storage.database import Database
from .storage.tasks import keep

_COUNTED_EVERY = timedelta(minutes=1)
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
_MEMORY = Path("/proc/self/statm")


class Sampling:
    """Notes the numbers of this process."""

    def __init__(self, db: Database, revocations: Revocations, statistics: Statistics, owed: Owed) -> None:
        self._db = db
        self._revocations = revocations
        self._statistics = statistics
        self._owed = owed
        self._began_at = float("-inf")

    def sample(self) -> None:
        """Notes the gauges, without a statement."""
        metric_slots.moved()
        metrics.PROCESSES.set(1)
        for pool, used, idle in self._db.connections():
            metrics.CONNECTIONS.set((pool, "used"), used)
            metrics.CONNECTIONS.set((pool, "idle"), idle)
        fence = self._revocations.fence
        metrics.DATABASE.only("answers" if fence.database_answers() else "away")
        metrics.CACHE.only(_WORDS.get(self._revocations.rebuild.cache, "not_complete"))
        if fence.last is not None:
            metrics.FENCE_AGE.set(monotonic() - fence.last.began)
        with suppress(OSError, ValueError, IndexError):  # elsewhere than on Linux
            metrics.MEMORY.set(int(_MEMORY.read_bytes().split()[1]) * _PAGE)

    def count_soon(self) -> None:
        """Begins to count live sessions and orders, unless that was done within the last minute by any process."""
        now = monotonic()
        if now - max(self._began_at, metric_slots.counted_at()) >= _COUNTED_EVERY.total_seconds():
            self._began_at = now
            keep(asyncio.create_task(self._count()))

    async def _count(self) -> None:
        with suppress(Refusal):  # the database is away: the numbers stay as they are
            numbers = await self._statistics.count()
            metrics.SESSIONS_LIVE.set(sum(numbers.live.values()))
            waiting, given_up = await self._owed.count()
            metrics.OUTBOX.set("waiting", waiting)
            metrics.OUTBOX.set("given_up", given_up)
            metric_slots.counted()


_WORDS: dict[str, metrics.CacheWord] = {
    "complete": "complete",
    "refuses commands": "away",
    "away": "away",
    "none": "none",
}
"""All other states of Redis count as not complete."""
