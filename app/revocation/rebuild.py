"""The rebuild makes Redis complete if the marker is not the fence's epoch. If it can't, it reports the reason.

1. The rebuild makes a new epoch, and puts it into the keyspace as the nonce.
2. A transaction claims the fence for this epoch and this server. The claim waits for every transaction that ends
   sessions.
3. The rebuild reads which sessions ended lately, and sets their keys.
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
from ..metrics import REBUILDS
from ..storage.database import Database
from ..storage.locks import ENDINGS
from ..storage.tables import CacheFence, Session
from .fence import FenceReader
from .lifetimes import KEY_LIVES, LONGEST_STEP, LOOK_BACK, MARKER_LIVES, STEP, VOUCHES_FOR
from .redis_server import (
    CHUNK,
    MARKER,
    NONCE,
    Command,
    RedisAwayError,
    RedisRefusedError,
    RedisServer,
    Server,
    key_name,
    whole_seconds,
)

CacheState = Literal[
    "complete",
    "not filled",
    "may evict",
    "not identified",
    "another Redis",
    "shared with another Keyturn",
    "refuses commands",
    "away",
    "none",
]
"""What a process sees of Redis. In every state but "complete" the database answers. "none": no Redis is configured."""

_SHARED_FOR = timedelta(seconds=60)
"""How long Redis counts as shared after another Keyturn's marker was seen. Two Keyturns fill it in turns until then."""

CLAIM_AFTER = timedelta(seconds=10)
"""How long a claim of the fence is safe from a process that sees another server. Where two servers are in use (a split
brain), processes would otherwise take the fence from each other without pause."""

_NONCE_LIVES = "15"
"""The nonce's time to live, in seconds. If the process that rebuilds dies, another one may rebuild after this."""

_FILL_LIMIT = timedelta(seconds=2)

_BEGIN = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return false end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[3])
"""
# From the third argument on: each key's time to live in seconds. The second argument is the nonce's.
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
        self._redis_ahead: tuple[str, float] | None = None  # a server, and the seconds its clock leads `monotonic`
        self._noted = "", ""
        self._completed = "", ""  # the epoch and the server under which Redis was complete last
        self._shared_until = float("-inf")
        self.cache: CacheState = "not filled" if redis.is_configured else "none"
        """The state of Redis as `keep_complete` last found it."""

    async def keep_complete(self) -> None:
        """Renews the marker, and rebuilds if the marker is not the fence's epoch. Raises nothing."""
        try:
            renew = ("GETEX", MARKER, "EX", whole_seconds(MARKER_LIVES))
            server, (marker, time) = await self._redis.send([renew, ("TIME",)])
            if server.evicts:
                # Redis may drop keys at any moment, and may have done so. So delete the marker.
                await self._redis.send([("DEL", MARKER)])
                self._note("may evict", "redis_may_evict", "Redis may evict keys: set maxmemory-policy noeviction")
                return
            if server.identity is None:
                self._note("not identified", "redis_not_trusted", "Redis tells no identity: the database answers")
                return
            if self._ran_ahead(server.identity, int(time[0])) and self._fence.last is not None:
                self._fence.disbelieve()
                await self._fence.read()
            if not self._fence.names(server, marker):
                # If the fence was read before the marker, a rebuild that another process has just ended looks like a
                # fault. Then two processes would rebuild in turns. So read the fence again.
                await self._fence.read()
            fence = self._fence.last
            if fence is None or monotonic() - fence.began > VOUCHES_FOR.total_seconds():
                return
            if self._fence.names(server, marker):
                self._note_complete(server)
                return
            self._look_for_another_keyturn(server, marker)
            await self._rebuild(server, marker or b"")
        except RedisRefusedError as e:
            self._note("refuses commands", "redis_away", f"{e.cause}; the database answers in its place")
        except RedisAwayError as e:
            self._note("away", "redis_away", f"{e.cause}; the database answers in its place")
        except TemporarilyUnavailable as e:
            self._note("not filled", "redis_not_filled", f"the database went away while Redis was filled ({e.cause})")

    def _look_for_another_keyturn(self, server: Server, marker: bytes | None) -> None:
        fence = self._fence.last
        if marker and fence is not None and (fence.epoch, server.identity) == self._completed:
            # The marker was this epoch, and the fence has not changed since. So no process of this database has written
            # the marker that is there now.
            self._shared_until = monotonic() + _SHARED_FOR.total_seconds()
        if self.cache != "shared with another Keyturn":
            self.cache = "not filled"

    def _ran_ahead(self, identity: str, time: int) -> bool:
        """Whether Redis's clock has stepped ahead, so that keys may have expired too early."""
        ahead = time - monotonic()
        known = self._redis_ahead
        before = known[1] if known is not None and known[0] == identity else ahead
        ran = ahead > before + STEP.total_seconds()
        self._redis_ahead = identity, ahead if ran else min(before, ahead)
        return ran

    async def _rebuild(self, server: Server, marker: bytes) -> None:
        """Makes Redis complete. Only one of several processes does so, and none if the marker has changed meanwhile.

        Raises:
            TemporarilyUnavailable: Redis or the database went away half-way; the marker was not set.
        """
        assert server.identity is not None
        epoch = secrets.token_hex(16)
        if not await self._on(server, ("EVAL", _BEGIN, "2", NONCE, MARKER, epoch, marker, _NONCE_LIVES)):
            return
        try:
            if not await self._claim(server.identity, epoch):
                REBUILDS.count("another_server")
                text = "the fence names another Redis, or another database of it: look at REDIS_URL of each instance"
                self._note("another Redis", "redis_not_the_one", text)
            elif await self._fill(server, epoch):
                REBUILDS.count("done")
                await self._fence.read()
                self._note_complete(server)
                return
            else:
                REBUILDS.count("lost")
        except TemporarilyUnavailable:
            REBUILDS.count("failed")
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
            # A `changed_at` in the future is from before the database's clock went back, and must not delay a claim.
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
        """The next sessions that ended within `LOOK_BACK`, in the order of their ends.

        Each ending that the rebuild has to find was committed before the claim. So the statements after the claim need
        no common snapshot.
        """
        last = Session.ended_at, Session.id
        async with self._db.look() as connection:
            if after is None:
                now: datetime = (await connection.execute(select(self._db.now()))).scalar_one()
                after = now - LOOK_BACK, UUID(int=0)
            rows = await connection.execute(
                select(Session.id, Session.ended_at, self._db.now().label("now"))
                .where(Session.ended_at.is_not(None), Session.ended_at >= after[0])
                .where(tuple_(*last) > tuple_(*after, types=[column.type for column in last]))
                .order_by(*last)
                .limit(CHUNK)
            )
            return rows.all()

    @staticmethod
    def _life(row: Any) -> str:
        # The whole `KEY_LIVES`, because only a clock, which may have stepped, tells how long ago the session ended. If
        # the session ended later than now, the key lives longer by the difference.
        return whole_seconds(max(timedelta(0), row.ended_at - row.now) + KEY_LIVES)

    async def _on(self, server: Server, command: Command) -> Any:
        return (await self._redis.send_to(server, [command]))[0]

    def _note_complete(self, server: Server) -> None:
        if self._fence.last is not None:
            self._completed = self._fence.last.epoch, server.identity or ""
        if monotonic() < self._shared_until:
            text = "another Keyturn uses this database of Redis: give each its own number in REDIS_URL"
            self._note("shared with another Keyturn", "redis_shared", text)
        else:
            self._note("complete", "redis_complete", "Redis holds every revocation and is believed")

    def _note(self, cache: CacheState, event: str, text: str) -> None:
        self.cache = cache
        if (event, text) != self._noted:
            self._noted = event, text
            self._report(event, level="info" if cache == "complete" else "warning", detail=text)
