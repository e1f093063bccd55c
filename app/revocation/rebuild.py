"""The rebuild: makes Redis complete where its marker is not the fence's epoch, and says what stands in the way.

1. The rebuild makes a new epoch, and puts it into the keyspace as the nonce.
2. It claims the fence: this epoch, this server. The claim waits for every transaction that ends sessions.
3. It reads which sessions ended lately and sets their keys.
4. A script turns the nonce into the marker.

Each step on Redis does nothing unless the nonce is still there. The proof stands in docs/revocation.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func, select, tuple_, update

from ..errors import TemporarilyUnavailable
from ..storage.database import Database
from ..storage.locks import ENDINGS
from ..storage.tables import CacheFence, Session
from .fence import FenceReader
from .lifetimes import KEY_LIVES, LONGEST_STEP, LOOK_BACK, MARKER_LIVES, STEP, VOUCHES_FOR
from .redis_server import CHUNK, MARKER, NONCE, Command, RedisAwayError, RedisServer, Server, key_name, whole_seconds

CacheState = Literal["complete", "not complete", "away", "none"]

CLAIM_AFTER = timedelta(seconds=10)
"""A server that the fence does not name is made the one only after this time, so that processes that see two
servers (a split brain) don't take the fence from each other without pause."""

_NONCE_LIVES = "15"
"""Seconds after which another process may try, when the one that rebuilds has died."""

_FILL_LIMIT = timedelta(seconds=2)

_BEGIN = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return false end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[3])
"""
# Each key's life in seconds; the nonce's own is the second argument.
_FILL = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('EXPIRE', KEYS[1], ARGV[2])
for i = 2, #KEYS do redis.call('SET', KEYS[i], '1', 'EX', ARGV[i + 1]) end
return 1
"""
_FINISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('DEL', KEYS[1])
return 1
"""
_LEAVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Rebuild:
    """Keeps Redis complete."""

    def __init__(self, db: Database, fence: FenceReader, redis: RedisServer, report: Callable[..., object]) -> None:
        """Does nothing yet. `report` is that of `Revocations`."""
        self._db = db
        self._fence = fence
        self._redis = redis
        self._report = report
        self._redis_ahead: tuple[str, float] | None = None  # of the monotonic clock, in seconds, and on which server
        self._noted = "", ""
        self.cache: CacheState = "not complete" if redis.is_configured else "none"
        """The state of Redis when `keep_complete` last looked."""

    async def keep_complete(self) -> None:
        """Renews the marker, and rebuilds where the marker is not the fence's. Raises nothing."""
        try:
            renew = ("GETEX", MARKER, "EX", whole_seconds(MARKER_LIVES))
            server, (marker, time) = await self._redis.send([renew, ("TIME",)])
            if server.evicts:
                # Keys may go at any moment, and may have gone: the marker must not outlive this.
                await self._redis.send([("DEL", MARKER)])
                self._note("not complete", "redis_may_evict", "Redis may evict keys: set maxmemory-policy noeviction")
                return
            if server.identity is None:
                self._note("not complete", "redis_not_trusted", "Redis tells no identity: the database answers")
                return
            if self._ran_ahead(server.identity, int(time[0])) and self._fence.last is not None:
                self._fence.disbelieve()
                await self._fence.read()
            if not self._fence.names(server, marker):
                # A fence read before the marker was would make the rebuild that another process just ended look like
                # a fault, and so would this one look to that process.
                await self._fence.read()
            fence = self._fence.last
            if fence is None or monotonic() - fence.began > VOUCHES_FOR.total_seconds():
                return
            if self._fence.names(server, marker):
                self._note("complete", "redis_complete", "Redis holds every revocation and is believed")
                return
            self.cache = "not complete"
            await self._rebuild(server, marker or b"")
        except RedisAwayError as e:
            self._note("away", "redis_away", f"{e.cause}; the database answers in its place")
        except TemporarilyUnavailable as e:
            self._note("not complete", "redis_not_filled", f"the database went away while Redis was filled ({e.cause})")

    def _ran_ahead(self, identity: str, time: int) -> bool:
        """Whether Redis's clock is further ahead than it was, so that keys may have gone before their time."""
        ahead = time - monotonic()
        known = self._redis_ahead
        before = known[1] if known is not None and known[0] == identity else ahead
        ran = ahead > before + STEP.total_seconds()
        self._redis_ahead = identity, ahead if ran else min(before, ahead)
        return ran

    async def _rebuild(self, server: Server, marker: bytes) -> None:
        """Makes Redis complete. Of several processes one does it, unless the marker is another by now than was seen.

        Raises:
            TemporarilyUnavailable: Redis or the database went away half-way; the marker was not set.
        """
        assert server.identity is not None
        epoch = secrets.token_hex(16)
        if not await self._on(server, ("EVAL", _BEGIN, "2", NONCE, MARKER, epoch, marker, _NONCE_LIVES)):
            return
        try:
            if not await self._claim(server.identity, epoch):
                text = "the fence names another Redis, or another database of it: look at REDIS_URL of each instance"
                self._note("not complete", "redis_not_the_one", text)
            elif await self._fill(server, epoch):
                await self._fence.read()
                self._note("complete", "redis_complete", "Redis holds every revocation and is believed")
                return
        except TemporarilyUnavailable:
            with suppress(TemporarilyUnavailable):  # so that no process has to wait until the nonce expires
                await self._on(server, ("EVAL", _LEAVE, "1", NONCE, epoch))
            raise
        await self._on(server, ("EVAL", _LEAVE, "1", NONCE, epoch))

    async def _claim(self, identity: str, epoch: str) -> bool:
        async with self._db.begin() as tx:
            if self._db.is_postgres:
                await tx.execute(select(func.pg_advisory_xact_lock(ENDINGS)))
            columns = CacheFence.server, CacheFence.changed_at, CacheFence.vouches_from
            fence = (await tx.execute(select(*columns, self._db.now().label("now")))).one()
            # A change in the future is one from before the clock went back.
            if fence.server not in {None, identity} and timedelta(0) <= fence.now - fence.changed_at < CLAIM_AFTER:
                return False
            latest = min(max(fence.vouches_from, self._fence.stepped_from), fence.now + LONGEST_STEP)
            claim = update(CacheFence).values(
                epoch=epoch,
                server=identity,
                changed_at=self._db.now(),
                vouches_from=max(latest, fence.now),
                incarnation=self._db.incarnation(writing=True),
            )
            await tx.execute(claim)
            return True

    async def _fill(self, server: Server, epoch: str) -> bool:
        after = None
        while ended := await self._ended_lately(after):
            names, lives = [key_name(row.id) for row in ended], [self._life(row) for row in ended]
            keys = str(len(names) + 1)
            fill = ("EVAL", _FILL, keys, NONCE, *names, epoch, _NONCE_LIVES, *lives)
            if not (await self._redis.send_to(server, [fill], limit=_FILL_LIMIT))[0]:
                return False
            after = ended[-1].ended_at, ended[-1].id
        finish = ("EVAL", _FINISH, "2", NONCE, MARKER, epoch, epoch, whole_seconds(MARKER_LIVES))
        return bool(await self._on(server, finish))

    async def _ended_lately(self, after: tuple[datetime, UUID] | None) -> Sequence[Any]:
        """The next sessions that ended within the look-back, in the order of their ends.

        Every session that the rebuild has to find is committed before the claim. So the statements after the claim
        need no common snapshot.
        """
        async with self._db.look() as connection:
            if after is None:
                now: datetime = (await connection.execute(select(self._db.now()))).scalar_one()
                after = now - LOOK_BACK, UUID(int=0)
            rows = await connection.execute(
                select(Session.id, Session.ended_at, self._db.now().label("now"))
                .where(Session.ended_at.is_not(None), Session.ended_at >= after[0])
                .where(tuple_(Session.ended_at, Session.id) > tuple_(*after))
                .order_by(Session.ended_at, Session.id)
                .limit(CHUNK)
            )
            return rows.all()

    @staticmethod
    def _life(row: Any) -> str:
        # In full, because only a clock says how long ago the session ended. Longer, where it ended later than now.
        return whole_seconds(max(timedelta(0), row.ended_at - row.now) + KEY_LIVES)

    async def _on(self, server: Server, command: Command) -> Any:
        return (await self._redis.send_to(server, [command]))[0]

    def _note(self, cache: CacheState, event: str, text: str) -> None:
        self.cache = cache
        if (event, text) != self._noted:
            self._noted = event, text
            self._report(event, level="info" if cache == "complete" else "warning", detail=text)
