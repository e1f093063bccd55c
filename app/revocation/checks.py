"""Checks: whether the session of an access token has ended. Redis answers if it may be believed, else the database.

A session is known here by the text of its id, as access tokens and the keys of Redis spell it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from time import monotonic
from uuid import UUID

from sqlalchemy import select

from ..errors import InvalidToken, Reason, TemporarilyUnavailable
from ..metrics import ANSWERERS
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import Session
from .fence import READ_LIMIT, FenceReader
from .lifetimes import REMEMBERED_FOR, VOUCHES_FOR
from .redis_server import MARKER, REVOKED, RedisServer, Server

_MOST_SEEN = 100_000
_FORGET_AT_ONCE = 1000

_Answer = tuple[bool, tuple[Server, bytes | None] | None]
"""Whether the token is accepted. If not, and Redis has no key: the server without the key, and its marker."""

_ACCEPTED: _Answer = (True, None)
_KEY_THERE: _Answer = (False, None)
_NONE_SEEN: Mapping[str, float] = {}

# The marker and the number of keys that exist, in one step. Mostly none exists, so the process reads one number.
_ANY = "return {redis.call('GET', KEYS[1]), redis.call('EXISTS', unpack(KEYS, 2))}"


class Checks:
    """Answers whether sessions have ended."""

    def __init__(self, db: Database, fence: FenceReader, redis: RedisServer, without_database: timedelta) -> None:
        """Asks nothing yet.

        Args:
            db: the database, which decides if Redis can't be believed.
            fence: the readings of the fence.
            redis: the Redis of this process.
            without_database: how long Redis alone may answer when the database is away.
        """
        self._db = db
        self._fence = fence
        self._redis = redis
        self._without_database = without_database
        self._ended: dict[str, tuple[Reason, float]] = {}
        self._ended_under = ""  # the epoch under which `_ended` was found
        self._lookups = Batch(self._look_up, name="revocation", in_flight=2)
        self._questions = Batch(self._ask_redis, name="redis", most=512, queue_limit=READ_LIMIT)
        self._these = select(Session.id, Session.end_reason).where(db.among(Session.id))

    async def check(self, session: str, issued_at: int) -> None:
        """Returns if the session of an access token, whose signature and ``exp`` are valid, has not ended.

        Args:
            session: the id of the token's session, as a UUID in canonical form.
            issued_at: the token's ``iat``, in seconds since 1970.

        Raises:
            InvalidToken: the session ended (with its reason) or there is none.
            TemporarilyUnavailable: neither Redis nor the database can say.
        """
        remembered = self._ended.get(session)
        if remembered is not None:
            ANSWERERS.count("memory")
            raise InvalidToken("session ended", reason=remembered[0])
        silence = None
        if self._redis.is_configured:
            try:
                accepted, silence = await self._questions((session, issued_at))
            except TemporarilyUnavailable:
                accepted = False  # the database answers
            if accepted or (
                silence is not None and self._fence.database_is_away() and self._believes_without_database(*silence)
            ):
                ANSWERERS.count("redis")
                return
        try:
            reason = await self._lookups(session)
        except TemporarilyUnavailable:
            # Guarantee 8: refuse, unless Redis was complete when this process last saw the database. One case is let
            # through wrongly (guarantees.md, "Guarantees when things fail").
            if silence is not None and self._believes_without_database(*silence):
                ANSWERERS.count("redis")
                return
            ANSWERERS.count("unavailable")
            raise
        except InvalidToken:
            ANSWERERS.count("database")
            raise
        ANSWERERS.count("database")
        if reason is not None:
            raise InvalidToken("session ended", reason=reason)

    def _believes_without_database(self, server: Server, marker: bytes | None) -> bool:
        return bool(self._without_database) and self._fence.believes(
            server, marker, monotonic(), VOUCHES_FOR + self._without_database
        )

    async def _look_up(self, sessions: Sequence[str]) -> Sequence[Reason | Exception | None]:
        """Asks the database about sessions: the reason of an ended one, None for a live one."""
        fence, until = self._fence.last, monotonic() + REMEMBERED_FOR.total_seconds()
        async with self._db.look() as connection:
            rows = await connection.execute(self._these, {"ids": [UUID(each) for each in set(sessions)]})
            found = {str(row.id): row.end_reason for row in rows}
        for session, reason in found.items():
            if reason is not None:
                self.remember(session, reason)
            elif fence is not None and fence.server is not None:
                # The session was live after the claim of this epoch. So a transaction that ends the session from now on
                # publishes its key under the epoch.
                fence.seen.pop(session, None)
                fence.seen[session] = until
                if len(fence.seen) > _MOST_SEEN:
                    del fence.seen[next(iter(fence.seen))]
        return [
            found[each] if each in found else InvalidToken("no such session", outcome="unknown") for each in sessions
        ]

    def remember(self, session: str, reason: Reason) -> None:
        """Remembers an ended session while its tokens could be valid, under this epoch.

        An ended session never becomes live again, unless the database is restored. Then the epoch changes.
        """
        self._ended[session] = (reason, monotonic() + REMEMBERED_FOR.total_seconds())

    def forget_what_is_over(self) -> None:
        """Forgets sessions whose time is over, a bounded number in each call. The oldest stand first."""
        now = monotonic()
        if self._fence.last is not None and self._fence.last.epoch != self._ended_under:
            # A restored database may have the sessions as live. Each process has to say so, or all refuse.
            self._ended_under = self._fence.last.epoch
            self._ended.clear()
        for session, (_, until) in list(islice(self._ended.items(), _FORGET_AT_ONCE)):
            if until < now:
                del self._ended[session]
        if self._fence.last is not None:
            seen = self._fence.last.seen
            for session, until in list(islice(seen.items(), _FORGET_AT_ONCE)):
                if until < now:
                    del seen[session]

    async def _ask_redis(self, questions: Sequence[tuple[str, int]]) -> Sequence[_Answer]:
        """The answers of Redis to pairs of a session and the moment when its token was issued.

        This judges once for all pairs, after Redis answered, whether Redis may be believed. Each verification began
        before that moment. So a logout that returned before the verification began also returned before that moment.
        """
        names = [f"{REVOKED}{session}" for session, _ in questions]
        keys: Sequence[object] = ()
        server, ((marker, there),) = await self._redis.send([("EVAL", _ANY, str(len(names) + 1), MARKER, *names)])
        if there:
            server, ((marker, *keys),) = await self._redis.send([("MGET", MARKER, *names)])
        fence, now = self._fence.last, monotonic()
        if fence is None or not self._fence.believes(server, marker, now, VOUCHES_FOR):
            vouches_from, seen = math.inf, _NONE_SEEN
        else:
            vouches_from, seen = fence.vouches_from, fence.seen
        doubted: _Answer = (False, (server, marker))
        # The database showed each session in `seen` as live, so lately that a later end has its key in Redis.
        answers = [
            _ACCEPTED if issued_at >= vouches_from or seen.get(session, 0.0) > now else doubted
            for session, issued_at in questions
        ]
        return (
            answers if not there else [a if key is None else _KEY_THERE for a, key in zip(answers, keys, strict=True)]
        )
