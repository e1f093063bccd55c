"""Revocation: how the end of a session reaches every verifier, and when Redis may be believed.

The database is the truth. Redis holds a key for each session that ended lately. A key there means only "ask the
database"; what matters is when its *absence* may be believed, because a flush, a restart from an old snapshot, a
promotion with lost writes, an eviction or a writer's partition each lose keys and leave Redis looking whole.

The fence, one row of the database, names the one Redis server that may be believed and an epoch. A server's identity
is its run id, new with each start of the process, and its replication id, new with each change of role: a master that
was demoted takes over another's data, and keeps its run id, its connections, and a marker that came with the data.

A server holds several keyspaces: its numbered databases, which SWAPDB exchanges, and whatever a proxy or an ACL makes
of names. A number proves nothing. The epoch proves a keyspace: it is random, and stands in one keyspace alone, first
as the nonce of the rebuild and then as the marker. SWAPDB moves the marker with the keys.

A verifier believes silence only if

- its reading of the fence began at most `VOUCHES_FOR` ago,
- the server on this very connection is the one that the fence names, by what it says of itself after that,
- the marker of that keyspace, read in the same step as the session's key, is the fence's epoch,
- that server can't evict keys,
- and the session is known to the database: the token was issued after the claim, or the database told this process
  so under this epoch, at most `REMEMBERED_FOR` ago.

Whoever ends a session sets the key first, and reads marker and nonce in the same step; then commits, and in the same
transaction compares the fence with the server and the epochs that it saw. If they differ, or Redis did not
acknowledge, the transaction gives the fence a new epoch and no server: nobody believes Redis until it was rebuilt. The
answer waits until the epoch has been known for so long that no reading from before it vouches any more. (Known: read
by this process. When the statement that wrote it ran says nothing of when it was committed.)

A rebuild makes a new epoch. It puts it into the keyspace as the nonce, then claims the fence (this epoch, this
server), then reads what ended lately and sets the keys, and has a script turn the nonce into the marker. Each of these
steps on Redis does nothing unless the nonce is still there. Transactions that end sessions hold an advisory lock in
share mode and the claim takes it alone. So each of them either committed before the claim, and is in what the rebuild
reads, or it sees the claim: then either it saw the new epoch where it set its key, or it fences.

The fence also says in which incarnation of the database it was written (see `Database.incarnation`). A database that
was restored, or a standby that took over, is another incarnation: its fence names no server until it is claimed anew.
So a session that this database never saw has only tokens from before the claim, and those are asked of the database.

Clocks may step. The rebuild looks back a day further than it needs, and gives each key its full life. A process that
sees the database's clock go back, or Redis's clock run ahead, no longer believes the epoch of that moment, so that
Redis is rebuilt: a token that had expired may live again, and its key may be gone.

tests/test_revocation_model.py explores the interleavings; without any one of these safeguards it finds a revoked
token accepted.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from time import monotonic
from typing import Any, Literal
from uuid import UUID

from redis import asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import InvalidToken, Reason, TemporarilyUnavailable
from ..settings import LEEWAY, LONGEST_ACCESS_TOKEN, Settings
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.locks import ENDINGS
from ..storage.tables import CacheFence, Session
from ..storage.tasks import TIME_LIMIT, keep
from .redis_errors import cause

CacheState = Literal["complete", "not complete", "away", "none"]

REMEMBERED_FOR = LONGEST_ACCESS_TOKEN + LEEWAY + timedelta(seconds=60)
"""How long after its end a session's key is needed in Redis: while any of its access tokens could still be accepted,
plus a minute between setting the key and the end of the transaction."""

MARKER_LIVES = timedelta(seconds=60)
"""The marker's time to live, which every process renews twice a second."""

VOUCHES_FOR = timedelta(seconds=1)
"""How long after it began a reading of the fence counts."""

SETTLES_IN = VOUCHES_FOR + timedelta(milliseconds=100)
"""How long after an epoch was first read no process goes by an earlier one any more."""

NEVER_CLAIMED = "none"
"""The epoch that the first migration writes: no server was ever believed, so there is nothing to wait for."""

STEP = timedelta(seconds=30)
"""A clock that is off by more than this has stepped. Half of what keys and marker have in reserve."""

LONGEST_STEP = timedelta(days=1)
"""No revocation is lost by a step of a clock, back or ahead, of up to this."""

LOOK_BACK = REMEMBERED_FOR + LONGEST_STEP
"""How far back a rebuild looks, by the database's clock of that moment."""

KEY_LIVES = REMEMBERED_FOR + LONGEST_STEP + MARKER_LIVES
"""A key's time to live, by Redis's clock. No step of that clock takes a key that is still needed, however short it is:
Redis drops what it looks at meanwhile, and may not look at the marker, which then comes back with the clock."""

READ_EVERY = timedelta(milliseconds=500)
READ_LIMIT = timedelta(milliseconds=400)
ACKNOWLEDGE_LIMIT = timedelta(milliseconds=250)
CLAIM_AFTER = timedelta(seconds=10)
"""A server that the fence does not name is made the one only after this time, so that processes that see two
servers (a split brain) don't take the fence from each other without pause."""

_GRACE = 0.05
_SHARE_LOCK = select(func.pg_advisory_xact_lock_shared(ENDINGS))
_FENCE = select(CacheFence.epoch, CacheFence.server)
Command = tuple[str | bytes, ...]

_MARKER = "{keyturn}:complete"
_NONCE = "{keyturn}:rebuild"
_NONCE_LIVES = "15"
"""Seconds after which another process may try, when the one that rebuilds has died."""
_CHUNK = 1000
_MOST_SEEN = 100_000
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

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
_PUBLISH = """
for i = 3, #KEYS do redis.call('SET', KEYS[i], '1', 'EX', ARGV[1]) end
return redis.call('MGET', KEYS[1], KEYS[2])
"""
# The marker, and how many of the keys are there, in one step: mostly none is, and then that is one number to read.
_ANY = "return {redis.call('GET', KEYS[1]), redis.call('EXISTS', unpack(KEYS, 2))}"
_LEAVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def _seconds(duration: timedelta) -> str:
    return str(max(1, -(-duration // timedelta(seconds=1))))


def _name(session_id: UUID) -> str:
    return f"{{keyturn}}:revoked:{session_id}"


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis server as it described itself. `identity` is None where it has none to tell."""

    run_id: str
    replication_id: str
    evicts: bool
    database: int = 0

    @property
    def identity(self) -> str | None:
        """By what the fence names it.

        The number of the database is no proof (SWAPDB). It keeps processes with two numbers from taking the fence
        from each other without pause.
        """
        if not self.run_id.strip("0") or not self.replication_id:
            return None
        return f"{self.run_id}:{self.replication_id}/{self.database}"


@dataclass(frozen=True, slots=True)
class Fence:
    """A reading of the fence. On the monotonic clock: when it began, and when its epoch was first received."""

    epoch: str
    server: str | None
    """None as well where this process does not believe the epoch."""
    began: float
    known_since: float
    vouches_from: int = 0
    """Seconds since 1970: a token issued earlier may be of a session that the database never saw."""


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


class RedisAwayError(TemporarilyUnavailable):
    """Redis is away, slow, refuses a command, is another than it was, or is no Redis. Not: the database is away."""


class RedisRefusedError(RedisAwayError):
    """Redis answered, and its answer was no."""


async def settled(at: float) -> None:
    """Returns at that moment of the monotonic clock, or at once if it is past."""
    if (wait := at - monotonic()) > 0:
        await asyncio.sleep(wait)


class Revocations:
    """What this process knows of ended sessions, and how it tells the others."""

    def __init__(self, db: Database, settings: Settings, report: Callable[..., object]) -> None:
        """Opens nothing yet.

        `report(event, level=…, detail=…)` gets what an operator should know, once for each change.
        """
        self._db = db
        self._report = report
        self._without_database = settings.verify_without_database
        self._redis = _pool(settings.redis) if settings.redis else None
        self._fence: Fence | None = None
        self._failed_began = float("-inf")
        self.database_returned = asyncio.Event()
        """Set when a reading of the fence succeeds after one that failed. Whoever waits for it clears it."""
        self._ended: dict[UUID, tuple[Reason, float]] = {}
        self._seen: dict[UUID, float] = {}  # live in the database, under this epoch; until when that counts
        self._opened = datetime.now(UTC)
        self._latest = self._stepped_from = _LONG_AGO  # the database's clock
        self._redis_ahead: tuple[str, float] | None = None  # of the monotonic clock, in seconds, and on which server
        self._disbelieved = ""  # an epoch
        self._noted = "", ""
        self._database_answered = True  # a start without a database ends in an error of its own
        self.cache: CacheState = "none" if self._redis is None else "not complete"
        self._lookups = Batch(self._look_up, in_flight=2)
        self._questions = Batch(self._ask_redis, most=512, queue_limit=READ_LIMIT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._these = select(Session.id, Session.end_reason).where(db.among(Session.id))

    # -- verify

    async def check(self, session_id: UUID, issued_at: int) -> None:
        """Returns if the session of a rightly signed, unexpired access token has not ended.

        Args:
            session_id: the token's session.
            issued_at: the token's ``iat``, in seconds since 1970.

        Raises:
            InvalidToken: it ended (with its reason) or there is none.
            TemporarilyUnavailable: neither Redis nor the database can say.
        """
        remembered = self._ended.get(session_id)
        if remembered is not None:
            raise InvalidToken("session ended", reason=remembered[0])
        silent = False
        if self._redis is not None:
            with suppress(TemporarilyUnavailable):
                server, marker, key = await self._questions(session_id)
                silent = not key
                if (
                    silent
                    and self._believes(server, marker, monotonic(), VOUCHES_FOR)
                    and (issued_at >= self._fence.vouches_from or self._was_seen(session_id))  # type: ignore[union-attr]  # it believes by a fence
                ):
                    return
                if silent and self._database_is_away() and self._believes_without_database(server, marker):
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

    def _believes(self, server: Server, marker: bytes | None, now: float, age: timedelta) -> bool:
        fence = self._fence
        return (
            fence is not None
            and now - fence.began <= age.total_seconds()
            and self._is_complete(server, marker)
            and not server.evicts
        )

    def _was_seen(self, session_id: UUID) -> bool:
        """Whether the database knew the session as live, so lately that an end since then has its key in Redis."""
        return self._seen.get(session_id, 0.0) > monotonic()

    def _database_is_away(self) -> bool:
        """Whether an attempt to read the fence that began within the last second has failed.

        A reading that is merely old is no proof: this process may have been suspended. Evidence as fresh as a
        reading that vouches has the same bound.
        """
        fence = self._fence
        return (
            monotonic() - self._failed_began <= VOUCHES_FOR.total_seconds()
            and fence is not None
            and fence.began < self._failed_began
        )

    def _believes_without_database(self, server: Server, marker: bytes | None) -> bool:
        return bool(self._without_database) and self._believes(
            server, marker, monotonic(), VOUCHES_FOR + self._without_database
        )

    async def _look_up(self, ids: Sequence[UUID]) -> Sequence[Reason | Exception | None]:
        """What the database says of sessions: the reason of an ended one, None for a live one."""
        fence, seen, until = self._fence, self._seen, monotonic() + REMEMBERED_FOR.total_seconds()
        async with self._db.look() as connection:
            rows = await connection.execute(self._these, {"ids": list(set(ids))})
            found = {row.id: row.end_reason for row in rows}
        for session_id, reason in found.items():
            if reason is not None:
                self._remember(session_id, reason)
            elif fence is not None and fence.server is not None:
                # Live after the claim of this epoch: whoever ends it from now on publishes it under the epoch.
                seen.pop(session_id, None)
                seen[session_id] = until
                if len(seen) > _MOST_SEEN:
                    del seen[next(iter(seen))]
        return [found[i] if i in found else InvalidToken("no such session") for i in ids]

    def _remember(self, session_id: UUID, reason: Reason) -> None:
        """What ended never comes back, so it need not be asked again while its tokens could live."""
        self._ended[session_id] = (reason, monotonic() + REMEMBERED_FOR.total_seconds())

    async def _ask_redis(self, ids: Sequence[UUID]) -> Sequence[tuple[Server, bytes | None, bool]]:
        names = [_name(i) for i in ids]
        count = str(len(names) + 1)
        server, ((marker, there),) = await self._command(
            [("EVAL", _ANY, count, _MARKER, *names)], limit=ACKNOWLEDGE_LIMIT
        )
        if not there:
            return [(server, marker, False)] * len(ids)
        server, ((marker, *keys),) = await self._command([("MGET", _MARKER, *names)], limit=ACKNOWLEDGE_LIMIT)
        return [(server, marker, key is not None) for key in keys]

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
            known = self._fence
            if fence.epoch == NEVER_CLAIMED:
                ending.settles_at = float("-inf")
            elif known is not None and known.epoch == fence.epoch:
                ending.settles_at = known.known_since + SETTLES_IN.total_seconds()

    async def _publish(self, ids: set[UUID]) -> tuple[str | None, set[bytes]]:
        """Sets the keys. The server that acknowledged them, if one did, and the epochs beside all of them."""
        if self._redis is None:
            return None, set()
        names, seconds = [_name(i) for i in ids], _seconds(KEY_LIVES)
        commands: list[Command] = []
        for start in range(0, len(names), _CHUNK):
            keys = (_MARKER, _NONCE, *names[start : start + _CHUNK])
            commands.append(("EVAL", _PUBLISH, str(len(keys)), *keys, seconds))
        try:
            server, replies = await self._command(commands, limit=ACKNOWLEDGE_LIMIT)
        except TemporarilyUnavailable:
            return None, set()
        seen = [set(filter(None, reply)) for reply in replies]
        return server.identity, set.intersection(*seen) if seen else set()

    # -- Redis

    async def _command(self, commands: Sequence[Command], *, limit: timedelta) -> tuple[Server, list[Any]]:
        """Sends commands over one connection; their replies, and the server as it described itself after them.

        An identity never comes back: a server that had it before, or by a fence, and has it now, had it in between.

        Raises:
            TemporarilyUnavailable: Redis is away, slow, refuses a command, or is no Redis.
        """
        assert self._redis is not None
        connection: Any = None  # redis-py does not type its pool
        tls = issubclass(self._redis.connection_class, SSLConnection)
        try:
            async with asyncio.timeout(limit.total_seconds()):
                connection = await self._redis.get_connection()  # type: ignore[no-untyped-call]  # as above
                sent = [*commands, ("INFO", "replication"), ("INFO", "memory")]
                await connection.send_packed_command(connection.pack_commands(sent))
                *replies, replication, memory = [await connection.read_response() for _ in sent]
                run_id: str = connection.keyturn_run_id  # set by _greet
                database = int(connection.db or 0)
        except (RedisError, OSError, TimeoutError, ValueError, MemoryError, RuntimeError) as e:
            # RuntimeError: the system gives no thread to look up a name with.
            if connection is not None:
                # Replies may still be on their way: nobody else may read them.
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            kind = RedisRefusedError if isinstance(e, ResponseError) else RedisAwayError
            raise kind(f"Redis {cause(e, connected=connection is not None, tls=tls)}") from None
        finally:
            if connection is not None:
                await self._redis.release(connection)
        return Server(run_id, _field(replication, "master_replid"), _evicts(memory), database), replies

    # -- the fence and the rebuild

    async def watch(self) -> None:
        """Reads the fence twice a second, and rebuilds Redis where it is not to be believed. Never returns.

        A reading does not wait for the one before: where the database accepts and never answers, each attempt is
        evidence of its own.
        """
        rebuild: asyncio.Task[None] | None = None
        if self._redis is not None:
            self._start(self._tell_of_refusals())
        while True:
            # The oldest stand first.
            for session_id, (_, until) in list(islice(self._ended.items(), _CHUNK)):
                if until < monotonic():
                    del self._ended[session_id]
            for session_id, until in list(islice(self._seen.items(), _CHUNK)):
                if until < monotonic():
                    del self._seen[session_id]
            self._start(self.read_fence())
            if self._redis is not None and (rebuild is None or rebuild.done()):
                rebuild = self._start(self._keep_complete())
            await asyncio.sleep(READ_EVERY.total_seconds())

    async def _tell_of_refusals(self) -> None:
        # What the watch does not meet itself, a logout would meet, and fence each time.
        with suppress(TemporarilyUnavailable):
            for refusal in await self.refusals():
                self._report("redis_refuses", level="warning", detail=refusal)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def read_fence(self) -> None:
        """Reads the fence once; a failure is evidence that the database is away, and raises nothing."""
        began = monotonic()
        reading = asyncio.create_task(self._take_reading(began))
        keep(reading)
        # If it was this process that stood still, the answer is here after the grace, and is no evidence of an outage.
        for patience in (READ_LIMIT.total_seconds(), _GRACE):
            await asyncio.wait({reading}, timeout=patience)
        if not reading.done() or reading.exception() is not None:
            self._failed_began = max(self._failed_began, began)
        self._note_database(reading)

    def _note_database(self, reading: asyncio.Task[None]) -> None:
        """One line when the database goes away and one when it is back, at the moments at which /readyz changes."""
        answers = self.database_answers()
        if answers == self._database_answered:
            return
        self._database_answered = answers
        if answers:
            self._report("database_back", level="info", detail="the database answers again")
            return
        error = reading.exception() if reading.done() else None
        cause = error.cause if isinstance(error, TemporarilyUnavailable) else type(error).__name__
        cause = "no answer in time" if error is None else cause
        self._report("database_away", level="warning", detail=f"the database does not answer ({cause})")

    async def _take_reading(self, began: float) -> None:
        """Reads the fence; a late answer counts too, from when the reading began."""
        async with self._db.watch_connection() as connection:
            row = (
                await connection.execute(
                    select(
                        CacheFence.epoch,
                        CacheFence.server,
                        CacheFence.vouches_from,
                        (CacheFence.incarnation == self._db.incarnation()).label("same"),
                        self._db.now().label("now"),
                        self._db.read_only().label("read_only"),
                    )
                )
            ).one()
            if row.read_only == "on":
                await self._db.discard(connection)  # the next reading looks for the primary again
                raise TemporarilyUnavailable("this Postgres is read-only: not the primary")
        if monotonic() - began <= READ_LIMIT.total_seconds():
            self._db.observe(row.now, timedelta(seconds=monotonic() - began))
        self._look_at_the_clock(row.now, row.epoch)
        before = self._fence
        if before is None or began >= before.began:
            same = before is not None and before.epoch == row.epoch
            if not same:
                self._seen = {}  # what a look-up that is under way finds goes to the old one
            known = before.known_since if before is not None and same else monotonic()
            believed = row.same and row.epoch != self._disbelieved
            self._fence = Fence(row.epoch, row.server if believed else None, began, known, self._vouches_from(row))
            if before is not None and before.began < self._failed_began:
                self.database_returned.set()

    def _look_at_the_clock(self, now: datetime, epoch: str) -> None:
        """Disbelieves the epoch under which the database's clock goes back."""
        if now < self._latest - STEP:
            self._stepped_from = min(max(self._stepped_from, self._latest), now + LONGEST_STEP)
            self._latest = now
            self._disbelieved = epoch
        self._latest = max(self._latest, now)

    def _vouches_from(self, row: Any) -> int:
        # The process that opens a SQLite file can't tell whether that was restored before.
        moments = [row.vouches_from, self._stepped_from, *([] if self._db.is_postgres else [self._opened])]
        latest: datetime = min(max(moments), row.now + LONGEST_STEP) + LEEWAY
        return math.ceil(latest.timestamp())

    async def _keep_complete(self) -> None:
        """Looks at the marker, and rebuilds where it is not the fence's."""
        try:
            renew = ("GETEX", _MARKER, "EX", _seconds(MARKER_LIVES))
            server, (marker, time) = await self._command([renew, ("TIME",)], limit=ACKNOWLEDGE_LIMIT)
            if server.evicts:
                # Keys may go at any moment, and may have gone: the marker must not outlive this.
                await self._command([("DEL", _MARKER)], limit=ACKNOWLEDGE_LIMIT)
                self._note("not complete", "redis_may_evict", "Redis may evict keys: set maxmemory-policy noeviction")
                return
            if server.identity is None:
                self._note("not complete", "redis_not_trusted", "Redis tells no identity: the database answers")
                return
            if self._ran_ahead(server.identity, int(time[0])) and self._fence is not None:
                self._disbelieved = self._fence.epoch
                await self.read_fence()
            if not self._is_complete(server, marker):
                # By a fence from before the marker was read, the rebuild that another process just ended would look
                # like a fault, and so would this one to it.
                await self.read_fence()
            fence = self._fence
            if fence is None or monotonic() - fence.began > VOUCHES_FOR.total_seconds():
                return
            if self._is_complete(server, marker):
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

    def _is_complete(self, server: Server, marker: bytes | None) -> bool:
        """Whether server and marker are those of the fence, however old the reading of that is."""
        fence, identity = self._fence, server.identity
        return fence is not None and identity == fence.server is not None and marker == fence.epoch.encode()

    async def _rebuild(self, server: Server, marker: bytes) -> None:
        """Makes Redis complete. Of several processes one does it, unless the marker is another by now than was seen.

        Raises:
            TemporarilyUnavailable: Redis or the database went away half-way; the marker was not set.
        """
        assert server.identity is not None
        epoch = secrets.token_hex(16)
        if not await self._on(server, ("EVAL", _BEGIN, "2", _NONCE, _MARKER, epoch, marker, _NONCE_LIVES)):
            return
        try:
            if not await self._claim(server.identity, epoch):
                text = "the fence names another Redis, or another database of it: look at REDIS_URL of each instance"
                self._note("not complete", "redis_not_the_one", text)
            elif await self._fill(server, epoch):
                await self.read_fence()
                self._note("complete", "redis_complete", "Redis holds every revocation and is believed")
                return
        except TemporarilyUnavailable:
            with suppress(TemporarilyUnavailable):  # so that nobody has to wait until it expires
                await self._on(server, ("EVAL", _LEAVE, "1", _NONCE, epoch))
            raise
        await self._on(server, ("EVAL", _LEAVE, "1", _NONCE, epoch))

    async def _fill(self, server: Server, epoch: str) -> bool:
        after = None
        while ended := await self._ended_lately(after):
            names, lives = [_name(row.id) for row in ended], [self._life(row) for row in ended]
            keys = str(len(names) + 1)
            fill = ("EVAL", _FILL, keys, _NONCE, *names, epoch, _NONCE_LIVES, *lives)
            if not (await self._all_on(server, [fill], limit=timedelta(seconds=2)))[0]:
                return False
            after = ended[-1].ended_at, ended[-1].id
        finish = ("EVAL", _FINISH, "2", _NONCE, _MARKER, epoch, epoch, _seconds(MARKER_LIVES))
        return bool(await self._on(server, finish))

    @staticmethod
    def _life(row: Any) -> str:
        # In full: how long ago it ended, only a clock says. Longer, where it ended later than now.
        return _seconds(max(timedelta(0), row.ended_at - row.now) + KEY_LIVES)

    async def _claim(self, identity: str, epoch: str) -> bool:
        async with self._db.begin() as tx:
            if self._db.is_postgres:
                await tx.execute(select(func.pg_advisory_xact_lock(ENDINGS)))
            columns = CacheFence.server, CacheFence.changed_at, CacheFence.vouches_from
            fence = (await tx.execute(select(*columns, self._db.now().label("now")))).one()
            # A change in the future is one from before the clock went back.
            if fence.server not in {None, identity} and timedelta(0) <= fence.now - fence.changed_at < CLAIM_AFTER:
                return False
            latest = min(max(fence.vouches_from, self._stepped_from), fence.now + LONGEST_STEP)
            claim = update(CacheFence).values(
                epoch=epoch,
                server=identity,
                changed_at=self._db.now(),
                vouches_from=max(latest, fence.now),
                incarnation=self._db.incarnation(writing=True),
            )
            await tx.execute(claim)
            return True

    async def _ended_lately(self, after: tuple[datetime, UUID] | None) -> Sequence[Any]:
        """The next sessions that ended within the look-back, in the order of their ends.

        After the claim, so that those that it has to find are there: no need of one snapshot for all.
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
                .limit(_CHUNK)
            )
            return rows.all()

    async def _on(self, server: Server, command: Command) -> Any:
        return (await self._all_on(server, [command], limit=ACKNOWLEDGE_LIMIT))[0]

    async def _all_on(self, server: Server, commands: Sequence[Command], *, limit: timedelta) -> list[Any]:
        answered_by, replies = await self._command(commands, limit=limit)
        if answered_by != server:
            raise RedisAwayError("another Redis answers now")
        return replies

    def _note(self, cache: CacheState, event: str, text: str) -> None:
        self.cache = cache
        if (event, text) != self._noted:
            self._noted = event, text
            self._report(event, level="info" if cache == "complete" else "warning", detail=text)

    # -- for /readyz, the doctor and the end

    def database_answers(self) -> bool:
        """Whether the fence was read lately. Without I/O, so that nobody who asks can starve the reading itself."""
        fence = self._fence
        return (
            fence is not None
            and fence.began > self._failed_began
            and monotonic() - fence.began <= 2 * VOUCHES_FOR.total_seconds()
        )

    async def ping(self) -> CacheState:
        """What to say of Redis now."""
        if self._redis is None:
            return "none"
        try:
            server, (marker,) = await self._command([("GET", _MARKER)], limit=ACKNOWLEDGE_LIMIT)
        except TemporarilyUnavailable:
            return "away"
        known = self._believes(server, marker, monotonic(), VOUCHES_FOR)
        return "complete" if known else "not complete"

    async def server(self) -> Server:
        """The Redis that this process reaches.

        Raises:
            TemporarilyUnavailable: none is reached.
        """
        return (await self._command([], limit=ACKNOWLEDGE_LIMIT))[0]

    def is_elsewhere(self, server: Server) -> bool:
        """Whether the fence names another server, or another database of it."""
        return self._fence is not None and self._fence.server not in {None, server.identity}

    async def refusals(self) -> list[str]:
        """What Redis refuses of all that it is asked for, each with the reason. Nothing of it stays for over a second.

        Raises:
            TemporarilyUnavailable: it is not reached, or answers too late.
        """
        refused: dict[str, list[str]] = {}
        await self.server()
        for command in _TRIALS:
            try:
                await self._command([command], limit=ACKNOWLEDGE_LIMIT)
            except RedisRefusedError as e:
                refused.setdefault(str(e.cause), []).append(str(command[0]))
        return [f"{why} (tried: {', '.join(dict.fromkeys(names))})" for why, names in refused.items()]

    async def close(self) -> None:
        """Lets a reading or rebuild under way end (it would open again what is closed), then closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIME_LIMIT.total_seconds())
        if self._redis is not None:
            with suppress(RedisError, OSError):
                await self._redis.aclose()


_TRIALS: tuple[Command, ...] = (
    ("TIME",),
    *(("SET", name, "", "NX", "PX", "1") for name in (_MARKER, _NONCE)),
    ("SET", _name(UUID(int=0)), "1", "EX", "1"),
    ("GET", _MARKER),
    ("MGET", _MARKER, _NONCE, _name(UUID(int=0))),
    ("EXISTS", _name(UUID(int=0))),
    ("GETEX", _name(UUID(int=0)), "EX", "1"),
    ("EXPIRE", _name(UUID(int=0)), "1"),
    ("DEL", _name(UUID(int=0))),
    ("EVAL", "return 1", "0"),
)
"""Every command that is sent to Redis, also by the scripts; INFO and SELECT go with each connection."""


def _pool(url: str) -> redis_asyncio.ConnectionPool:
    # Short limits and no silent retries: each outage has the database as its answer, at once.
    return redis_asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=8,
        timeout=ACKNOWLEDGE_LIMIT.total_seconds(),
        socket_timeout=None,  # each call has one limit for all that it sends and reads: see `_command`
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        redis_connect_func=_greet,
    )


async def _greet(connection: AbstractConnection) -> None:
    """Runs when a connection is made: whatever it answers later is answered by the process found here."""
    await connection.on_connect()
    await connection.send_command("INFO", "server")
    connection.keyturn_run_id = _field(await connection.read_response(), "run_id")  # type: ignore[attr-defined]  # read in _command


def _field(info: bytes | str, name: str) -> str:
    """One value of INFO's text; empty where there is none."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else info
    return text.partition(f"\n{name}:")[2].partition("\n")[0].strip()


def _evicts(memory: bytes | str) -> bool:
    return _field(memory, "maxmemory") != "0" and _field(memory, "maxmemory_policy") != "noeviction"
