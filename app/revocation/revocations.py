"""Revocation: how the end of a session reaches every verifier, and when Redis may be believed.

The database is the truth. Redis holds a key for each session that ended lately. A key there means only "ask the
database". Its *absence* may be believed only under proof: a flush, a restart from an old snapshot, a promotion with
lost writes, an eviction or a writer's partition each lose keys and leave Redis looking whole.

The fence, one row of the database, names the one Redis server that may be believed and an epoch. A server's identity
is its run id (new with each start of the process) and its replication id (new with each change of role). An epoch is
random and stands in one keyspace alone: first as the nonce of the rebuild, then as the marker.

1. A verifier (`checks`) believes silence only if its reading of the fence began at most `VOUCHES_FOR` ago, the server
   on this very connection is the one that the fence names, the marker read in the same step is the fence's epoch, that
   server can't evict keys, and the session is known to the database: the token was issued after the claim, or the
   database told this process so under this epoch, at most `REMEMBERED_FOR` ago.
2. An ending (`publishing`) sets the key first and reads marker and nonce in the same step, then commits. Its
   transaction compares the fence with what it saw, and gives the fence a new epoch and no server where they differ.
   The answer waits until no reading from before that epoch counts.
3. A rebuild (`rebuild`) puts a new epoch into the keyspace as the nonce, claims the fence, sets the keys of all
   sessions that ended lately, and turns the nonce into the marker if the nonce is still there.
4. A database that was restored, or a standby that took over, is another incarnation: its fence names no server until
   it is claimed anew (`Database.incarnation`).
5. If the database's clock goes back, or Redis's clock runs ahead, the process that sees it no longer believes the epoch
   of that moment, so that Redis is rebuilt (`fence`, `rebuild`).

docs/revocation.md has the proof. tests/test_revocation_model.py explores the interleavings; if any one of these
safeguards is left out, it finds a revoked token accepted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import TemporarilyUnavailable
from ..settings import Settings
from ..storage.database import TIME_LIMIT, Database, monotonic
from ..storage.tables import CacheFence
from .checks import Checks
from .fence import LOCK, NEVER_CLAIMED, FenceReader
from .lifetimes import KEY_LIVES, SETTLES_IN, VOUCHES_FOR
from .rebuild import CacheState, Rebuild
from .redis_server import CHUNK, MARKER, NONCE, Command, RedisServer, key_name, whole_seconds

READ_EVERY = timedelta(milliseconds=500)

_SHARE_LOCK = select(func.pg_advisory_xact_lock_shared(LOCK))
_FENCE = select(CacheFence.epoch, CacheFence.server)
_PUBLISH = """
for i = 3, #KEYS do redis.call('SET', KEYS[i], '1', 'EX', ARGV[1]) end
return redis.call('MGET', KEYS[1], KEYS[2])
"""


@dataclass
class Ending:
    """A transaction that ends sessions."""

    tx: AsyncConnection
    published: set[UUID]
    ended: set[UUID] = field(default_factory=set)
    lived: int = 0
    """How many of the ended ones were not over before, by their deadline."""
    settles_at: float = float("inf")
    """On the monotonic clock: from when on nobody vouches for what was so before; known once it has committed."""


async def settled(at: float) -> None:
    """Returns at that moment of the monotonic clock, or at once if it is past."""
    if (wait := at - monotonic()) > 0:
        await asyncio.sleep(wait)


class Revocations:
    """The parts that know of ended sessions, and the loop that keeps them up to date."""

    def __init__(self, db: Database, settings: Settings, report: Callable[..., object]) -> None:
        """Opens nothing yet.

        `report(event, level=…, detail=…)` gets what an operator should know, once for each change.
        """
        self._db = db
        self._report = report
        self.redis = RedisServer(settings.redis)
        self.fence = FenceReader(db, report)
        self.checks = Checks(db, self.fence, self.redis, settings.verify_without_database)
        self.rebuild = Rebuild(db, self.fence, self.redis, report)
        self.check = self.checks.check
        self._tasks: set[asyncio.Task[None]] = set()

    # -- end

    @asynccontextmanager
    async def ending(self, ids: Iterable[UUID]) -> AsyncIterator[Ending]:
        """A transaction that ends sessions; when the block is left, no verifier accepts their tokens any more.

        `ids` are those that are going to end; those that did are put into `Ending.ended` in the block. To end one
        again does no harm and publishes it again.

        Raises:
            TemporarilyUnavailable: the database is away; nothing was ended, or it is not known.
        """
        async with self.committing(ids) as ending:
            yield ending
        await settled(ending.settles_at)

    @asynccontextmanager
    async def committing(self, ids: Iterable[UUID]) -> AsyncIterator[Ending]:
        """As `ending`, but whoever answers must first wait until `Ending.settles_at`, and may do so elsewhere."""
        ending_ids = set(ids)
        server, epochs = await self._publish(ending_ids)
        async with self._db.begin() as tx:
            if self._db.is_postgres:
                await tx.execute(_SHARE_LOCK)
            ending = Ending(tx, ending_ids)
            yield ending
            fence = (await tx.execute(_FENCE)).one()
            told = server is not None and server == fence.server and fence.epoch.encode() in epochs
            fenced = fence.server is not None and not (told and ending.ended <= ending.published)
            if fenced:
                # Someone may believe a server that does not have all the keys.
                await tx.execute(
                    update(CacheFence).values(epoch=secrets.token_hex(16), server=None, changed_at=self._db.now())
                )
        ending.settles_at = monotonic() + SETTLES_IN.total_seconds()
        if not fenced:
            # The epoch is someone else's, and may be so young that readings from before it still vouch.
            known = self.fence.last
            if fence.epoch == NEVER_CLAIMED:
                ending.settles_at = float("-inf")
            elif known is not None and known.epoch == fence.epoch:
                ending.settles_at = known.known_since + SETTLES_IN.total_seconds()

    async def _publish(self, ids: set[UUID]) -> tuple[str | None, set[bytes]]:
        """Sets the keys. The server that acknowledged them, if one did, and the epochs beside all of them."""
        if not self.redis.is_configured:
            return None, set()
        names, lives = [key_name(i) for i in ids], whole_seconds(KEY_LIVES)
        commands: list[Command] = []
        for start in range(0, len(names), CHUNK):
            keys = (MARKER, NONCE, *names[start : start + CHUNK])
            commands.append(("EVAL", _PUBLISH, str(len(keys)), *keys, lives))
        try:
            server, replies = await self.redis.send(commands)
        except TemporarilyUnavailable:
            return None, set()
        seen = [set(filter(None, reply)) for reply in replies]
        return server.identity, set.intersection(*seen) if seen else set()

    # -- the loop

    async def watch(self) -> None:
        """Reads the fence twice a second, and rebuilds Redis where it is not to be believed. Never returns.

        A reading does not wait for the one before: where the database accepts and never answers, each attempt is
        evidence of its own.
        """
        rebuild: asyncio.Task[None] | None = None
        if self.redis.is_configured:
            self._start(self._report_refusals())
        while True:
            self.checks.forget_what_is_over()
            self._start(self.fence.read())
            if self.redis.is_configured and (rebuild is None or rebuild.done()):
                rebuild = self._start(self.rebuild.keep_complete())
            await asyncio.sleep(READ_EVERY.total_seconds())

    async def _report_refusals(self) -> None:
        # A command that this loop does not send itself would be refused to a logout, which would fence each time.
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
        """The state of Redis now, by one question to it."""
        if not self.redis.is_configured:
            return "none"
        try:
            server, (marker,) = await self.redis.send([("GET", MARKER)])
        except TemporarilyUnavailable:
            return "away"
        return "complete" if self.fence.believes(server, marker, monotonic(), VOUCHES_FOR) else "not complete"

    async def close(self) -> None:
        """Lets a reading or rebuild under way end (it would open again what is closed), then closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIME_LIMIT.total_seconds())
        await self.redis.close()
