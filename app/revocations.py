"""Revocation: how the end of a session reaches every verifier, and when Redis may be believed.

The database is the truth. Redis holds a key for each session that ended lately. A key there means only "ask the
database"; what matters is when its *absence* may be believed, because a flush, a restart from an old snapshot, a
promotion with lost writes, an eviction or a writer's partition each lose keys and leave Redis looking whole.

The fence, one row of the database, names the one Redis server that may be believed and an epoch. A server's identity
is its run id, new with each start of the process, and its replication id, new with each change of role: a master that
was demoted takes over another's data, and keeps its run id, its connections, and a marker that came with the data.

A verifier believes silence only if

- its reading of the fence began at most `VOUCHES_FOR` ago,
- the server on this very connection is the one that the fence names, by what it says of itself after that,
- the marker on that server, read in the same step as the session's key, is the fence's epoch,
- and that server can't evict keys.

Whoever ends a session sets the key first, then commits, and in the same transaction compares the fence with the
epoch and the server that it wrote to. If they differ, or Redis did not acknowledge, the transaction gives the fence a
new epoch and no server: nobody believes Redis until it was rebuilt. The answer waits until the epoch has been known
for so long that no reading from before it vouches any more. (Known: read by this process. When the statement that
wrote it ran says nothing of when it was committed.)

A rebuild puts a nonce on the server, then claims the fence (new epoch, this server), then reads what ended lately,
sets the keys, and has a script set the marker only if the nonce is still there. Transactions that end sessions hold
an advisory lock in share mode and the claim takes it alone. So each of them either committed before the claim, and
is in what the rebuild reads, or it sees the claim: then either it had read the new epoch before it set its key, on
this server and after the nonce, or it fences.

tests/test_revocation_model.py explores the interleavings; without any one of these safeguards it finds a revoked
token accepted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal
from uuid import UUID

from redis import asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from .batches import Batch
from .db import TIME_LIMIT, Database, keep, monotonic
from .errors import InvalidToken, Reason, TemporarilyUnavailable
from .models import CacheFence, Session
from .settings import LEEWAY, LONGEST_ACCESS_TOKEN, Settings

CacheState = Literal["complete", "not complete", "away", "none"]

REMEMBERED_FOR = LONGEST_ACCESS_TOKEN + LEEWAY + timedelta(seconds=60)
"""How long after its end a session's key stays in Redis, and how far back a rebuild looks: while any of its access
tokens could still be accepted, plus a minute between setting the key and the end of the transaction."""

MARKER_LIVES = timedelta(seconds=60)
"""The marker's time to live, which every process renews twice a second. A key gets this much more than it is needed
for: so a step of Redis's clock that takes a key away that is still needed takes the marker away first."""

VOUCHES_FOR = timedelta(seconds=1)
"""How long after it began a reading of the fence counts."""

SETTLES_IN = VOUCHES_FOR + timedelta(milliseconds=100)
"""How long after an epoch was first read no process goes by an earlier one any more."""

NEVER_CLAIMED = "none"
"""The epoch that the first migration writes: no server was ever believed, so there is nothing to wait for."""

READ_EVERY = timedelta(milliseconds=500)
READ_LIMIT = timedelta(milliseconds=400)
ACKNOWLEDGE_LIMIT = timedelta(milliseconds=250)
CLAIM_AFTER = timedelta(seconds=10)
"""A server that the fence does not name is made the one only after this time, so that processes that see two
servers (a split brain) don't take the fence from each other without pause."""

_GRACE = 0.05
_LOCK = 0x6B657902
_SHARE_LOCK = select(func.pg_advisory_xact_lock_shared(_LOCK))
_FENCE = select(CacheFence.epoch, CacheFence.server)
Command = tuple[str | bytes, ...]

_MARKER = "{keyturn}:complete"
_NONCE = "{keyturn}:rebuild"
_NONCE_LIVES = "15"
"""Seconds after which another process may try, when the one that rebuilds has died."""
_CHUNK = 1000

_BEGIN = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return false end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[3])
"""
_FINISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('DEL', KEYS[1])
return 1
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

    @property
    def identity(self) -> str | None:
        """By what the fence names it."""
        return f"{self.run_id}:{self.replication_id}" if self.run_id.strip("0") and self.replication_id else None


@dataclass(frozen=True, slots=True)
class Fence:
    """A reading of the fence. On the monotonic clock: when it began, and when its epoch was first received."""

    epoch: str
    server: str | None
    began: float
    known_since: float


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
        self._noted = ""
        self.cache: CacheState = "none" if self._redis is None else "not complete"
        self._lookups = Batch(self._look_up, in_flight=2)
        self._questions = Batch(self._ask_redis, most=512, queue_limit=READ_LIMIT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._these = select(Session.id, Session.end_reason).where(db.among(Session.id))

    # -- verify

    async def check(self, session_id: UUID) -> None:
        """Returns if the session of a rightly signed, unexpired access token has not ended.

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
                if silent and self._believes(server, marker, monotonic(), VOUCHES_FOR):
                    return
                if silent and self._database_is_away() and self._believes_without_database(server, marker):
                    return
        try:
            reason = await self._lookups(session_id)
        except TemporarilyUnavailable:
            # Guarantee 8: refuse rather than let through, except where Redis was complete when the database was
            # last seen (design section 4 names the one case that this lets through).
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
        async with self._db.look() as connection:
            rows = await connection.execute(self._these, {"ids": list(set(ids))})
            found = {row.id: row.end_reason for row in rows}
        for session_id, reason in found.items():
            if reason is not None:
                self._remember(session_id, reason)
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
        epoch, server = await self._publish(ending_ids)
        async with self._db.begin() as tx:
            if self._db.is_postgres:
                await tx.execute(_SHARE_LOCK)
            ending = Ending(tx, ending_ids)
            yield ending
            fence = (await tx.execute(_FENCE)).one()
            told = server is not None and (epoch, server) == (fence.epoch, fence.server)
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

    async def _publish(self, ids: set[UUID]) -> tuple[str | None, str | None]:
        """Sets the keys. The epoch known before, and the server that acknowledged all of them, if one did."""
        fence = self._fence
        if self._redis is None or fence is None:
            return None, None
        seconds = _seconds(REMEMBERED_FOR + MARKER_LIVES)
        commands = [("SET", _name(i), "1", "EX", seconds) for i in ids]
        try:
            server, _ = await self._command(commands, limit=ACKNOWLEDGE_LIMIT)
        except TemporarilyUnavailable:
            return None, None
        return fence.epoch, server.identity

    # -- Redis

    async def _command(self, commands: Sequence[Command], *, limit: timedelta) -> tuple[Server, list[Any]]:
        """Sends commands over one connection; their replies, and the server as it described itself after them.

        An identity never comes back: a server that had it before, or by a fence, and has it now, had it in between.

        Raises:
            TemporarilyUnavailable: Redis is away, slow, refuses a command, or is no Redis.
        """
        assert self._redis is not None
        connection: Any = None  # redis-py does not type its pool
        try:
            async with asyncio.timeout(limit.total_seconds()):
                connection = await self._redis.get_connection()  # type: ignore[no-untyped-call]  # as above
                sent = [*commands, ("INFO", "replication"), ("INFO", "memory")]
                await connection.send_packed_command(connection.pack_commands(sent))
                *replies, replication, memory = [await connection.read_response() for _ in sent]
                run_id: str = connection.keyturn_run_id  # set by _greet
        except (RedisError, OSError, TimeoutError, ValueError, MemoryError, RuntimeError) as e:
            # RuntimeError: the system gives no thread to look up a name with.
            if connection is not None:
                # Replies may still be on their way: nobody else may read them.
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            raise TemporarilyUnavailable(f"redis: {type(e).__name__}") from None
        finally:
            if connection is not None:
                await self._redis.release(connection)
        return Server(run_id, _field(replication, "master_replid"), _evicts(memory)), replies

    # -- the fence and the rebuild

    async def watch(self) -> None:
        """Reads the fence twice a second, and rebuilds Redis where it is not to be believed. Never returns.

        A reading does not wait for the one before: where the database accepts and never answers, each attempt is
        evidence of its own.
        """
        rebuild: asyncio.Task[None] | None = None
        while True:
            for session_id, (_, until) in list(islice(self._ended.items(), _CHUNK)):  # the oldest stand first
                if until < monotonic():
                    del self._ended[session_id]
            self._start(self.read_fence())
            if self._redis is not None and (rebuild is None or rebuild.done()):
                rebuild = self._start(self._keep_complete())
            await asyncio.sleep(READ_EVERY.total_seconds())

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

    async def _take_reading(self, began: float) -> None:
        """Reads the fence; a late answer counts too, from when the reading began."""
        async with self._db.beat() as connection:
            row = (
                await connection.execute(
                    select(
                        CacheFence.epoch,
                        CacheFence.server,
                        self._db.now().label("now"),
                        self._db.read_only().label("read_only"),
                    )
                )
            ).one()
            if row.read_only == "on":
                await connection.invalidate()  # the next reading looks for the primary again
                raise TemporarilyUnavailable("this Postgres is read-only: not the primary")
        if monotonic() - began <= READ_LIMIT.total_seconds():
            self._db.observe(row.now, timedelta(seconds=monotonic() - began))
        before = self._fence
        if before is None or began >= before.began:
            known = before.known_since if before is not None and before.epoch == row.epoch else monotonic()
            self._fence = Fence(row.epoch, row.server, began, known)
            if before is not None and before.began < self._failed_began:
                self.database_returned.set()

    async def _keep_complete(self) -> None:
        """Looks at the marker, and rebuilds where it is not the fence's."""
        try:
            renew = ("GETEX", _MARKER, "EX", _seconds(MARKER_LIVES))
            server, (marker,) = await self._command([renew], limit=ACKNOWLEDGE_LIMIT)
            if server.evicts:
                # Keys may go at any moment, and may have gone: the marker must not outlive this.
                await self._command([("DEL", _MARKER)], limit=ACKNOWLEDGE_LIMIT)
                self._note("not complete", "redis_may_evict", "Redis may evict keys: set maxmemory-policy noeviction")
                return
            if server.identity is None:
                self._note("not complete", "redis_not_trusted", "Redis tells no identity: the database answers")
                return
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
        except TemporarilyUnavailable as e:
            self._note("away", "redis_away", f"Redis is not used, the database answers ({e.cause})")

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
        nonce = secrets.token_hex(16)
        if not await self._on(server, ("EVAL", _BEGIN, "2", _NONCE, _MARKER, nonce, marker, _NONCE_LIVES)):
            return
        try:
            await self._fill(server, server.identity, nonce)
        except TemporarilyUnavailable:
            with suppress(TemporarilyUnavailable):  # so that nobody has to wait until it expires
                await self._on(server, ("EVAL", _LEAVE, "1", _NONCE, nonce))
            raise

    async def _fill(self, server: Server, identity: str, nonce: str) -> None:
        claimed = await self._claim(identity)
        if claimed is None:
            await self._on(server, ("EVAL", _LEAVE, "1", _NONCE, nonce))
            return
        ended = await self._ended_lately()
        for start in range(0, len(ended), _CHUNK):
            # With the time that each has left, so that a rebuild does not prolong them.
            commands = [("SET", _name(i), "1", "EX", _seconds(left)) for i, left in ended[start : start + _CHUNK]]
            await self._all_on(server, [*commands, ("EXPIRE", _NONCE, _NONCE_LIVES)], limit=timedelta(seconds=2))
        finish = ("EVAL", _FINISH, "2", _NONCE, _MARKER, nonce, claimed, _seconds(MARKER_LIVES))
        if await self._on(server, finish):
            await self.read_fence()
            self._note("complete", "redis_complete", "Redis holds every revocation and is believed")

    async def _claim(self, identity: str) -> str | None:
        async with self._db.begin() as tx:
            if self._db.is_postgres:
                await tx.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            fence = (
                await tx.execute(select(CacheFence.server, CacheFence.changed_at, self._db.now().label("now")))
            ).one()
            if fence.server not in {None, identity} and fence.now - fence.changed_at < CLAIM_AFTER:
                return None
            epoch = secrets.token_hex(16)
            await tx.execute(update(CacheFence).values(epoch=epoch, server=identity, changed_at=self._db.now()))
            return epoch

    async def _ended_lately(self) -> list[tuple[UUID, timedelta]]:
        async with self._db.look() as connection:
            now: datetime = (await connection.execute(select(self._db.now()))).scalar_one()
            rows = await connection.execute(
                select(Session.id, Session.ended_at).where(Session.ended_at > now - REMEMBERED_FOR)
            )
            return [(row.id, row.ended_at + REMEMBERED_FOR + MARKER_LIVES - now) for row in rows]

    async def _on(self, server: Server, command: Command) -> Any:
        return (await self._all_on(server, [command], limit=ACKNOWLEDGE_LIMIT))[0]

    async def _all_on(self, server: Server, commands: Sequence[Command], *, limit: timedelta) -> list[Any]:
        answered_by, replies = await self._command(commands, limit=limit)
        if answered_by != server:
            raise TemporarilyUnavailable("another server answers now")
        return replies

    def _note(self, cache: CacheState, event: str, text: str) -> None:
        self.cache = cache
        if event != self._noted:
            self._noted = event
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

    async def may_evict(self) -> bool:
        """Whether there is a Redis that may evict keys, so that it is never believed."""
        with suppress(TemporarilyUnavailable):
            return self._redis is not None and (await self._command([], limit=ACKNOWLEDGE_LIMIT))[0].evicts
        return False

    async def close(self) -> None:
        """Lets a reading or rebuild under way end (it would open again what is closed), then closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIME_LIMIT.total_seconds())
        if self._redis is not None:
            with suppress(RedisError, OSError):
                await self._redis.aclose()


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
