"""Revocation: how the end of a session reaches every verifier, and when Redis may be believed.

The database decides. Redis holds a key for each session that ended lately. A key means only "ask the database". Its
*absence* may be believed only with a proof. For Redis may lose keys and still look complete: by a flush, a restart from
an old snapshot, a promotion with lost writes, an eviction or a writer's partition.

The fence, one row of the database, names the one Redis server that may be believed and an epoch. A server's identity
is its run id (new with each start of the process) and its replication id (new with each change of role). An epoch is
random and stands in one keyspace alone: first as the nonce of the rebuild, then as the marker.

A verifier (`checks`) believes the absence of a key only under six conditions. docs/revocation.md has the same numbers.

1. Its reading of the fence began at most `VOUCHES_FOR` ago.
2. The server on this very connection has the identity that the fence names.
3. The marker, read in the same step as the session's key, is the fence's epoch.
4. That server can't evict keys.
5. The fence was written in this incarnation of the database (`Database.incarnation`).
6. The database knows the session: the token was issued after the fence was claimed, or the database showed the session
   to this process as live, under this epoch and at most `REMEMBERED_FOR` ago.

An ending (`publishing`) sets the key first and reads marker and nonce in the same step, then commits. Its transaction
compares the fence with these. If they differ, it gives the fence a new epoch and no server. The answer waits until no
reading from before that epoch counts.

A rebuild (`rebuild`) puts a new epoch into the keyspace as the nonce, and claims the fence. Then it sets the keys of
all sessions that ended lately. If the nonce is still there, the rebuild turns it into the marker.

A database that was restored, or a standby that took over, is another incarnation. Its fence names no server until a
rebuild claims it anew. If the database's clock goes back, or Redis's clock steps ahead, the process that notices no
longer believes the epoch of that moment. So Redis is rebuilt (`fence`, `rebuild`).

docs/revocation.md has the proof. tests/test_revocation_model.py explores the interleavings. If any one of these
safeguards is left out, the test finds a revoked token that is accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any

from ..errors import TemporarilyUnavailable
from ..metrics import LOOP_LAG
from ..settings import Settings
from ..storage.database import Database
from ..storage.tasks import TIME_LIMIT
from .checks import Checks
from .fence import FenceReader
from .lifetimes import VOUCHES_FOR
from .publishing import Publishing
from .rebuild import CacheState, Rebuild
from .redis_server import MARKER, RedisRefusedError, RedisServer

READ_EVERY = timedelta(milliseconds=500)

_LATE = timedelta(seconds=2)
"""How long after a turn of its loop, which comes each half second, a process counts as standing still."""
_STILL_LATE = timedelta(seconds=5)
"""How long after a late turn the requests that had waited for it are still being read."""

_LOOKS_FOR, _LOOKS_EVERY = timedelta(seconds=3), 0.05
_IN_TURNS = timedelta(seconds=5)
"""How long ago the fence changed at most, if two Keyturns fill one Redis in turns: ten turns."""


class Revocations:
    """The parts that deal with ended sessions, and the loop that keeps them up to date."""

    def __init__(self, db: Database, settings: Settings, report: Callable[..., object]) -> None:
        """Opens nothing yet.

        `report(event, level=…, detail=…)` is called once for each change that an operator should know.
        """
        self._report = report
        self.redis = RedisServer(settings.redis)
        self.fence = FenceReader(db, report)
        self.checks = Checks(db, self.fence, self.redis, settings.verify_without_database)
        self.publishing = Publishing(db, self.fence, self.redis)
        self.rebuild = Rebuild(db, self.fence, self.redis, report)
        self.check = self.checks.check
        self.on_turn: Callable[[], object] = lambda: None
        """Called in each turn of the loop, also while the database is away."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._late_from = float("inf")  # the next turn of the loop is late from then on (monotonic clock)
        self._still_late_until = float("-inf")

    # -- the loop

    async def watch(self) -> None:
        """Reads the fence twice a second, and rebuilds Redis if Redis may not be believed. Never returns.

        A reading does not wait for the one before. If the database accepts connections and never answers, each attempt
        is evidence of its own.
        """
        rebuild: asyncio.Task[None] | None = None
        if self.redis.is_configured:
            self._start(self._report_refusals())
        while True:
            now = monotonic()
            if now > self._late_from:
                self._still_late_until = now + _STILL_LATE.total_seconds()
            self._late_from = now + _LATE.total_seconds()
            self.checks.forget_what_is_over()
            self._start(self.fence.read())
            if self.redis.is_configured and (rebuild is None or rebuild.done()):
                rebuild = self._start(self.rebuild.keep_complete())
            self.on_turn()
            due = monotonic() + READ_EVERY.total_seconds()
            await asyncio.sleep(READ_EVERY.total_seconds())
            LOOP_LAG.observe(max(0.0, monotonic() - due))

    def stood_still(self) -> bool:
        """Whether this process was suspended or starved of CPU within the last seconds: its loop comes too late.

        Requests that arrived meanwhile waited in the kernel, and some of their clients have given up.
        """
        now = monotonic()
        return now > self._late_from or now < self._still_late_until

    async def _report_refusals(self) -> None:
        # If Redis refuses a command that this loop does not send, each logout meets the refusal, and fences each time.
        with suppress(TemporarilyUnavailable):
            for refusal in await self.redis.refusals():
                self._report("redis_refuses", level="warning", detail=refusal)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- health and the end

    async def ping(self) -> CacheState:
        """The state of Redis now. Asks Redis once.

        The command is that of a verification, so that a Redis that refuses the command is never called complete.
        """
        if not self.redis.is_configured:
            return "none"
        try:
            server, ((marker,),) = await self.redis.send([("MGET", MARKER)])
        except RedisRefusedError:
            return "refuses commands"
        except TemporarilyUnavailable:
            return "away"
        if server.evicts or server.identity is None:
            return "may evict" if server.evicts else "not identified"
        if self.fence.believes(server, marker, monotonic(), VOUCHES_FOR):
            return "complete"
        return "another Redis" if self.fence.names_another(server) else "not filled"

    async def is_shared(self) -> bool:
        """Whether another Keyturn, with another database, fills the same Redis now. Looks for some seconds at most.

        Both fill Redis in turns then, twice a second. So where the fence has had its epoch for long, nobody does.

        Raises:
            TemporarilyUnavailable: Redis or the database is away.
        """
        complete, until = None, monotonic() + _LOOKS_FOR.total_seconds()
        while monotonic() < until and await self.fence.age() < _IN_TURNS:
            server, (marker,) = await self.redis.send([("GET", MARKER)])
            known = self.fence.last
            if self.fence.names(server, marker):
                complete = known
            elif complete is not None and marker and server.identity == complete.server:
                asked = monotonic()
                await self.fence.read()
                now = self.fence.last
                if now is not None and now.began >= asked and now.epoch == complete.epoch:
                    # As in `Rebuild`: no process of this database has written this marker over that of its fence.
                    return True
            await self.fence.read()
            await asyncio.sleep(_LOOKS_EVERY)
        return False

    async def close(self) -> None:
        """Waits for a reading or rebuild under way, which would open a connection again, and closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIME_LIMIT.total_seconds())
        await self.redis.close()
