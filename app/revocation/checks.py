"""Checks: whether the session of an access token has ended, by Redis where it may be believed, else by the database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from time import monotonic
from uuid import UUID

from sqlalchemy import select

from ..errors import InvalidToken, Reason, TemporarilyUnavailable
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import Session
from .fence import READ_LIMIT, FenceReader
from .lifetimes import REMEMBERED_FOR, VOUCHES_FOR
from .redis_server import MARKER, RedisServer, Server, key_name

_MOST_SEEN = 100_000
_FORGET_AT_ONCE = 1000

# The marker, and how many of the keys are there, in one step: mostly none is, and then that is one number to read.
_ANY = "return {redis.call('GET', KEYS[1]), redis.call('EXISTS', unpack(KEYS, 2))}"


class Checks:
    """Answers whether sessions have ended."""

    def __init__(self, db: Database, fence: FenceReader, redis: RedisServer, without_database: timedelta) -> None:
        """Asks nothing yet.

        Args:
            db: the database, which has the truth.
            fence: the readings of the fence.
            redis: the Redis of this process.
            without_database: how long Redis alone may answer when the database is away.
        """
        self._db = db
        self._fence = fence
        self._redis = redis
        self._without_database = without_database
        self._ended: dict[UUID, tuple[Reason, float]] = {}
        self._lookups = Batch(self._look_up, in_flight=2)
        self._questions = Batch(self._ask_redis, most=512, queue_limit=READ_LIMIT)
        self._these = select(Session.id, Session.end_reason).where(db.among(Session.id))

    async def check(self, session_id: UUID, issued_at: int) -> None:
        """Returns if the session of a rightly signed, unexpired access token has not ended.

        Args:
            session_id: the token's session.
            issued_at: the token's ``iat``, in seconds since 1970.

        Raises:
            InvalidToken: the session ended (with its reason) or there is none.
            TemporarilyUnavailable: neither Redis nor the database can say.
        """
        remembered = self._ended.get(session_id)
        if remembered is not None:
            raise InvalidToken("session ended", reason=remembered[0])
        silent = False
        if self._redis.is_configured:
            with suppress(TemporarilyUnavailable):
                server, marker, key = await self._questions(session_id)
                silent = not key
                if (
                    silent
                    and self._fence.believes(server, marker, monotonic(), VOUCHES_FOR)
                    and (issued_at >= self._fence.last.vouches_from or self._was_seen(session_id))  # type: ignore[union-attr]  # it believes by a fence
                ):
                    return
                if silent and self._fence.database_is_away() and self._believes_without_database(server, marker):
                    return
        try:
            reason = await self._lookups(session_id)
        except TemporarilyUnavailable:
            # Guarantee 8: refuse rather than let through, except where Redis was complete when the database was
            # last seen (README, "Guarantees when things fail", names the one case that this lets through).
            if silent and self._believes_without_database(server, marker):
                return
            raise
        if reason is not None:
            raise InvalidToken("session ended", reason=reason)

    def _was_seen(self, session_id: UUID) -> bool:
        """Whether the database knew the session as live, so lately that an end since then has its key in Redis."""
        fence = self._fence.last
        return fence is not None and fence.seen.get(session_id, 0.0) > monotonic()

    def _believes_without_database(self, server: Server, marker: bytes | None) -> bool:
        return bool(self._without_database) and self._fence.believes(
            server, marker, monotonic(), VOUCHES_FOR + self._without_database
        )

    async def _look_up(self, ids: Sequence[UUID]) -> Sequence[Reason | Exception | None]:
        """What the database says of sessions: the reason of an ended one, None for a live one."""
        fence, until = self._fence.last, monotonic() + REMEMBERED_FOR.total_seconds()
        async with self._db.look() as connection:
            rows = await connection.execute(self._these, {"ids": list(set(ids))})
            found = {row.id: row.end_reason for row in rows}
        for session_id, reason in found.items():
            if reason is not None:
                self.remember(session_id, reason)
            elif fence is not None and fence.server is not None:
                # Live after the claim of this epoch: a transaction that ends it from now on publishes it under the
                # epoch.
                fence.seen.pop(session_id, None)
                fence.seen[session_id] = until
                if len(fence.seen) > _MOST_SEEN:
                    del fence.seen[next(iter(fence.seen))]
        return [found[i] if i in found else InvalidToken("no such session") for i in ids]

    def remember(self, session_id: UUID, reason: Reason) -> None:
        """Remembers an ended session while its tokens could live. An ended session never comes back to life."""
        self._ended[session_id] = (reason, monotonic() + REMEMBERED_FOR.total_seconds())

    def forget_what_is_over(self) -> None:
        """Drops the oldest memories that no longer count, a bounded number a call. The oldest stand first."""
        now = monotonic()
        for session_id, (_, until) in list(islice(self._ended.items(), _FORGET_AT_ONCE)):
            if until < now:
                del self._ended[session_id]
        if self._fence.last is not None:
            seen = self._fence.last.seen
            for session_id, until in list(islice(seen.items(), _FORGET_AT_ONCE)):
                if until < now:
                    del seen[session_id]

    async def _ask_redis(self, ids: Sequence[UUID]) -> Sequence[tuple[Server, bytes | None, bool]]:
        names = [key_name(i) for i in ids]
        count = str(len(names) + 1)
        server, ((marker, there),) = await self._redis.send([("EVAL", _ANY, count, MARKER, *names)])
        if not there:
            return [(server, marker, False)] * len(ids)
        server, ((marker, *keys),) = await self._redis.send([("MGET", MARKER, *names)])
        return [(server, marker, key is not None) for key in keys]
