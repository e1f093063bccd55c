"""Ended sessions between two instances of Keyturn, on one PostgreSQL and a real Redis, in one process.

The instances do nothing by themselves: they read the fence and make Redis complete only where a test says so. The tests
of servers and processes that fail under traffic are in tests/test_redis_faults.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis import asyncio as redis_asyncio
from redis.exceptions import OutOfMemoryError
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.util import await_only

from app.actors import SERVICE
from app.errors import InvalidToken, Reason, TemporarilyUnavailable
from app.keyturn import Keyturn, opened
from app.revocation import redis_server
from app.revocation.fence import NEVER_CLAIMED, READ_LIMIT, Fence, Reading
from app.revocation.lifetimes import (
    KEY_LIVES,
    KNOWN_TO_ALL_IN,
    LOOK_BACK,
    MARKER_LIVES,
    REMEMBERED_FOR,
    VOUCHES_FOR,
)
from app.revocation.publishing import Published
from app.revocation.rebuild import _FILL, CLAIM_AFTER
from app.revocation.redis_server import Server
from app.revocation.revocations import Revocations
from app.sessions.answers import Tokens
from app.settings import LEEWAY
from app.storage.database import Database
from app.storage.tables import CacheFence, Pulse, Session, uuid7
from tests.conftest import Opener, a_user, settings_of, time_passes
from tests.servers import Redis, free_port

MARKER = "{keyturn}:complete"
KEYS = "{keyturn}:revoked:"
SECOND = timedelta(seconds=1)


@pytest.fixture
def engine() -> str:
    return "postgres"


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    with Redis.start() as server:
        yield server


@pytest.fixture
async def cache(own_redis: Redis) -> AsyncIterator[redis_asyncio.Redis]:
    """A client that inspects Redis without Keyturn. The database is empty at first."""
    async with redis_asyncio.Redis.from_url(own_redis.url(9), decode_responses=True) as client:
        await client.flushdb()
        yield client


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives Redis five seconds to answer, because the machine may be slow. `monkeypatch.undo()` restores the limit."""
    monkeypatch.setattr(redis_server, "ACKNOWLEDGE_LIMIT", timedelta(seconds=5))


@asynccontextmanager
async def instance(database_url: str, redis_url: str | None, **settings: Any) -> AsyncIterator[Keyturn]:
    """Opens a Keyturn that does nothing by itself."""
    async with opened(settings_of(database_url, redis_url, **settings)) as keyturn:
        await keyturn.keys.make_first(by=SERVICE)
        await keyturn.keys.load()
        await keyturn.revocations.fence.read()
        yield keyturn


class Pair:
    """Two instances. Sessions end at `here`, and tests ask `there` about them."""

    def __init__(self, here: Keyturn, there: Keyturn) -> None:
        self.here, self.there = here, there

    async def until_complete(self) -> None:
        """Waits until both instances know that Redis is complete, and until no older reading vouches."""

        async def complete() -> bool:
            await keep_complete(self.here)
            await read(self.here, self.there)
            return await self.here.revocations.ping() == await self.there.revocations.ping() == "complete"

        await wait_for(complete)
        await long_since_claimed(self.here)
        await read(self.here, self.there)
        fence = self.here.revocations.fence.last
        assert fence is not None
        self.here.revocations.fence.last = replace(
            fence, known_since=fence.known_since - KNOWN_TO_ALL_IN.total_seconds()
        )


@pytest.fixture
async def pair(database_url: str, own_redis: Redis, cache: object) -> AsyncIterator[Pair]:
    async with (
        instance(database_url, own_redis.url(9)) as here,
        instance(database_url, own_redis.url(9)) as there,
    ):
        pair = Pair(here, there)
        await pair.until_complete()
        yield pair


async def read(*keyturns: Keyturn) -> None:
    for keyturn in keyturns:
        await keyturn.revocations.fence.read()


async def keep_complete(keyturn: Keyturn) -> None:
    """Does the work that a running instance does twice a second."""
    await keyturn.revocations.fence.read()
    await keyturn.revocations.rebuild.keep_complete()
    await keyturn.revocations.rebuild.keep_complete()  # the first call may only drop old connections


def report_to(keyturn: Keyturn, report: Callable[..., object]) -> None:
    """Lets `report` receive the events that an instance reports to its operator."""
    revocations = keyturn.revocations
    revocations._report = revocations.fence._report = revocations.rebuild._report = report


async def long_since_claimed(keyturn: Keyturn) -> None:
    """Dates the fence's claim back, so that it is older than every token that a test asks about."""
    async with keyturn.db.begin() as tx:
        now = (await tx.execute(select(keyturn.db.now()))).scalar_one()
        values = {"vouches_from": now - REMEMBERED_FOR, "incarnation": keyturn.db.incarnation(writing=True)}
        await tx.execute(update(CacheFence).values(values))


async def a_session(keyturn: Keyturn) -> Tokens:
    return await keyturn.starting.start(await a_user(keyturn, f"{uuid4()}@example.com"), by=SERVICE)


async def logout(keyturn: Keyturn, tokens: Tokens) -> None:
    await keyturn.ending.logout((), [tokens.refresh_token], "this", by=SERVICE)


async def refused(keyturn: Keyturn, tokens: Tokens, reason: Reason | None = "logout") -> None:
    with pytest.raises(InvalidToken) as caught:
        await keyturn.reading.verify(tokens.access_token)
    assert caught.value.reason == reason


async def fence_of(keyturn: Keyturn) -> tuple[str, str | None]:
    async with keyturn.db.look() as connection:
        row = (await connection.execute(select(CacheFence.epoch, CacheFence.server))).one()
    return row.epoch, row.server


class Clock:
    """A stopped clock in place of this process's monotonic clock."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for part in ("checks", "fence", "rebuild", "revocations"):
        monkeypatch.setattr(f"app.revocation.{part}.monotonic", clock)
    return clock


@pytest.fixture
async def unconnected() -> AsyncIterator[Revocations]:
    """Revocations that may answer for a minute without the database, and that have reached neither server yet."""
    settings = settings_of("postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1", verify_without_database=60)
    db = Database(settings)
    yield Revocations(db, settings, lambda *_, **__: None)
    await db.close()


@contextmanager
def statements(*keyturns: Keyturn) -> Iterator[list[str]]:
    """Collects the statements that the instances send to the database."""
    sent: list[str] = []

    def listen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    engines = {
        engine.sync_engine
        for k in keyturns
        for engine in (k.db._engine, k.db._writer, k.db._reader, k.db._watch_engine)
    }
    for engine in engines:
        event.listen(engine, "before_cursor_execute", listen)
    try:
        yield sent
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", listen)


# -- when Redis is believed, and when the database is asked


async def test_where_redis_is_believed_a_verification_makes_no_database_statement(pair: Pair) -> None:
    tokens = [await a_session(pair.here) for _ in range(3)]
    await read(pair.there)
    fence = pair.there.revocations.fence.last
    assert fence is not None
    # So that the reading vouches on a slow machine too.
    pair.there.revocations.fence.last = replace(fence, began=fence.began + 60)
    with statements(pair.there) as sent:
        for _ in range(50):
            for token in tokens:
                assert (await pair.there.reading.verify(token.access_token)).session_id == token.session_id
        assert sent == []
        pair.there.revocations.fence.last = None  # a missing reading makes the process ask the database
        await pair.there.reading.verify(tokens[0].access_token)
        assert len(sent) == 1
        assert "FROM sessions" in sent[0]


async def asks(keyturn: Keyturn, tokens: Tokens) -> int:
    """The number of statements that one verification of a live session sends."""
    with statements(keyturn) as sent:
        await keyturn.reading.verify(tokens.access_token)
    return len(sent)


@pytest.mark.parametrize("marker", [None, "", "0" * 32])
async def test_a_marker_that_is_not_the_fences_epoch_sends_the_question_to_the_database(
    pair: Pair, cache: redis_asyncio.Redis, marker: str | None
) -> None:
    tokens = await a_session(pair.here)
    await read(pair.there)
    assert await asks(pair.there, tokens) == 0
    await (cache.delete(MARKER) if marker is None else cache.set(MARKER, marker))
    assert await asks(pair.there, tokens) == 1


@pytest.mark.parametrize("column", ["epoch", "server"])
async def test_a_fence_that_names_another_epoch_or_server_sends_the_question_to_the_database(
    pair: Pair, column: str
) -> None:
    tokens = await a_session(pair.here)
    await read(pair.there)
    async with pair.here.db.begin() as tx:
        await tx.execute(update(CacheFence).values({column: "another"}))
    assert await asks(pair.there, tokens) == 0  # the process has not yet read the new fence
    await read(pair.there)
    assert await asks(pair.there, tokens) == 1


async def test_a_reading_of_the_fence_vouches_for_one_second(pair: Pair) -> None:
    tokens = await a_session(pair.here)
    fence = pair.there.revocations.fence.last
    assert fence is not None
    pair.there.revocations.fence.last = replace(fence, began=time.monotonic() - VOUCHES_FOR.total_seconds() + 0.5)
    assert await asks(pair.there, tokens) == 0
    pair.there.revocations.fence.last = replace(fence, began=time.monotonic() - VOUCHES_FOR.total_seconds())
    assert await asks(pair.there, tokens) == 1


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_reading_that_comes_late_never_replaces_one_that_began_after_it(
    database_url: str, clock: Clock
) -> None:
    async with instance(database_url, None) as keyturn:
        mine = keyturn.revocations
        first = mine.fence.last
        assert first is not None
        since = first.vouches_from
        assert first == Fence(NEVER_CLAIMED, None, clock.now, clock.now, since)
        clock.now += 5
        await mine.fence._take(clock.now - 5.1)
        assert mine.fence.last == first
        await mine.fence._take(clock.now - 3)  # the epoch is the same, so `known_since` stays
        assert mine.fence.last == replace(first, began=clock.now - 3)
        async with keyturn.db.begin() as tx:
            await tx.execute(update(CacheFence).values(epoch="1" * 32, server="another"))
        # `known_since` counts from the arrival of the reading, not from its request.
        await mine.fence._take(clock.now - 1)
        assert mine.fence.last == Fence("1" * 32, "another", clock.now - 1, clock.now, since)


async def test_the_databases_clock_is_learned_from_a_reading_that_was_not_late(
    pair: Pair, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = timedelta(hours=1)
    db, limit = pair.here.db, READ_LIMIT.total_seconds()

    def ahead() -> timedelta:
        return db.clock() - datetime.now(UTC)

    assert db._zero is not None
    db._zero += hour
    await pair.here.revocations.fence._take(clock.now - limit - 0.001)
    assert ahead() > hour / 2
    await pair.here.revocations.fence._take(clock.now - limit)
    assert ahead() < hour / 2
    # The process assumes that the answer was under way for half of the round trip.
    monkeypatch.setattr("app.revocation.fence.READ_LIMIT", hour)
    await pair.here.revocations.fence._take(clock.now - 600)
    assert timedelta(minutes=4) < ahead() < timedelta(minutes=6)


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_one_statement_reads_fence_and_pulse_and_each_newer_reading_is_handed_on(
    database_url: str,
) -> None:
    async with instance(database_url, None) as keyturn:
        readings: list[Reading] = []
        reader = keyturn.revocations.fence
        reader.on_reading = readings.append
        began = time.monotonic()
        with statements(keyturn) as sent:
            await reader.read()
        assert len(sent) == 1
        (first,) = readings
        assert began <= first.began <= time.monotonic()
        assert abs(first.now - datetime.now(UTC)) < timedelta(minutes=1)
        async with keyturn.db.begin() as tx:
            await tx.execute(update(Pulse).values(keys=Pulse.keys + 1))
        await reader.read()
        assert readings[1].keys_version == first.keys_version + 1
        assert readings[1].began > first.began
        await reader._take(first.began)  # a late reading, older than the known one, is dropped
        assert len(readings) == 2

        def away(*_: object) -> None:
            raise ConnectionRefusedError

        event.listen(keyturn.db._watch_engine.sync_engine, "before_cursor_execute", away)
        await reader.read()
        assert not reader.database_answers()
        assert len(readings) == 2


async def test_a_postgres_that_is_read_only_is_none_that_was_read(pair: Pair) -> None:
    async with pair.here.db.watch_connection() as connection:
        database = (await connection.execute(text("SELECT current_database()"))).scalar_one()
    there = pair.there.revocations

    async def becomes(read_only: str) -> None:
        async with pair.here.db.watch_connection() as connection:
            for statement in (
                "SET default_transaction_read_only = off",
                f'ALTER DATABASE "{database}" SET default_transaction_read_only = {read_only}',
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()",
            ):
                await connection.execute(text(statement))

    await read(pair.there)
    fence = there.fence.last
    assert fence is not None
    assert there.fence.database_answers()
    await becomes("on")
    for _ in range(3):
        await read(pair.there)
    assert there.fence.last == fence
    assert not there.fence.database_answers()
    await becomes("off")
    for _ in range(3):  # each try discards a connection that found the server read-only
        await read(pair.there)
    assert there.fence.database_answers()


async def test_a_key_in_redis_only_asks_the_database(pair: Pair, cache: redis_asyncio.Redis) -> None:
    tokens = await a_session(pair.here)
    await read(pair.there)
    assert await asks(pair.there, tokens) == 0
    await cache.set(f"{KEYS}{tokens.session_id}", "1")
    assert await asks(pair.there, tokens) == 1


async def test_what_has_ended_is_remembered_and_asks_nobody_again(pair: Pair, own_redis: Redis) -> None:
    tokens = await a_session(pair.here)
    await logout(pair.here, tokens)
    with statements(pair.there) as sent:
        await refused(pair.there, tokens)
        assert len(sent) == 1
        await pair.there.revocations.redis._pool.disconnect()  # type: ignore[union-attr]  # Redis is configured
        for _ in range(20):
            await refused(pair.there, tokens)
        assert len(sent) == 1
    assert not pair.there.revocations.redis._pool._available_connections[0].is_connected  # type: ignore[union-attr]  # as above


async def test_a_session_that_the_database_does_not_know_is_refused(pair: Pair, cache: redis_asyncio.Redis) -> None:
    tokens = await a_session(pair.here)
    async with pair.here.db.begin() as tx:
        await tx.execute(text("DELETE FROM sessions"))
    await cache.delete(MARKER)
    await refused(pair.there, tokens, None)


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_without_redis_the_database_answers_always(database_url: str) -> None:
    async with instance(database_url, None) as here, instance(database_url, None) as there:
        ended, live = await a_session(here), await a_session(here)
        for n in range(1, 4):
            with statements(there) as sent:
                await there.reading.verify(live.access_token)
                assert len(sent) == 1, n
        began = time.monotonic()
        await logout(here, ended)
        assert time.monotonic() - began < KNOWN_TO_ALL_IN.total_seconds()
        await refused(there, ended)
        await there.reading.verify(live.access_token)
        assert await there.revocations.ping() == there.revocations.rebuild.cache == "none"


SERVER = Server("5" * 40, "6" * 40, evicts=False)
assert SERVER.identity


def test_silence_is_believed_only_of_the_server_and_epoch_of_a_reading_that_vouches(
    unconnected: Revocations, clock: Clock
) -> None:
    now, second = clock.now, VOUCHES_FOR
    marker = b"e" * 32
    assert not unconnected.fence.believes(SERVER, marker, now, second)  # no reading yet
    fence = Fence(marker.decode(), SERVER.identity, now - second.total_seconds(), 0)
    unconnected.fence.last = fence
    assert unconnected.fence.believes(SERVER, marker, now, second)
    assert not unconnected.fence.believes(SERVER, marker, now + 0.001, second)
    assert not unconnected.fence.believes(SERVER, b"f" * 32, now, second)
    assert not unconnected.fence.believes(SERVER, None, now, second)
    for other in (
        replace(SERVER, run_id="7" * 40),
        replace(SERVER, replication_id="7" * 40),
        replace(SERVER, evicts=True),
        replace(SERVER, run_id="0" * 40),
        replace(SERVER, run_id=""),
        replace(SERVER, replication_id=""),
    ):
        assert not unconnected.fence.believes(other, marker, now, second)
    unconnected.fence.last = replace(fence, server=None)
    assert not unconnected.fence.believes(SERVER, marker, now, second)
    # A fence without a server must not match a server without an identity.
    assert not unconnected.fence.believes(replace(SERVER, run_id=""), marker, now, second)


def test_a_minute_without_the_database_is_counted_from_the_last_moment_that_vouched(
    unconnected: Revocations, clock: Clock
) -> None:
    fence = Fence("e" * 32, SERVER.identity, clock.now - 61, 0)
    unconnected.fence.last = fence
    assert unconnected.checks._believes_without_database(SERVER, b"e" * 32)
    unconnected.fence.last = replace(fence, began=clock.now - 61.001)
    assert not unconnected.checks._believes_without_database(SERVER, b"e" * 32)
    unconnected.fence.last = replace(fence, began=clock.now)
    unconnected.checks._without_database = timedelta(0)
    assert not unconnected.checks._believes_without_database(SERVER, b"e" * 32)


@pytest.mark.parametrize(
    ("read", "failed", "away"),
    [
        (3.0, 1.0, True),
        (3.0, 1.001, False),  # an old failure proves nothing, because this process may have been suspended since
        (60.0, 40.0, False),
        (0.5, 0.6, False),  # the database has answered since the failure
        (None, 0.5, False),
    ],
)
def test_a_failed_reading_is_evidence_of_an_outage_for_a_second_unless_a_later_one_succeeded(
    unconnected: Revocations, clock: Clock, read: float | None, failed: float, away: bool
) -> None:
    unconnected.fence.last = None if read is None else Fence("", None, clock.now - read, 0)
    unconnected.fence._failed_began = clock.now - failed
    assert unconnected.fence.database_is_away() is away


@pytest.mark.parametrize(
    ("read", "failed", "answers"),
    [
        (2.0, 3.0, True),
        (2.001, 3.0, False),
        (0.0, float("inf"), True),
        (1.0, 1.0, False),
        (1.0, 0.5, False),
        (None, float("inf"), False),
    ],
)
def test_the_database_answers_if_it_was_read_in_the_last_two_seconds_and_no_later_reading_failed(
    unconnected: Revocations, clock: Clock, read: float | None, failed: float, answers: bool
) -> None:
    unconnected.fence.last = None if read is None else Fence("", None, clock.now - read, 0)
    unconnected.fence._failed_began = clock.now - failed
    assert unconnected.fence.database_answers() is answers


@pytest.mark.parametrize(
    ("memory", "evicts"),
    [
        ("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n", False),
        ("maxmemory:1048576\r\nmaxmemory_policy:noeviction\r\n", False),
        ("maxmemory:1048576\r\nmaxmemory_policy:volatile-ttl\r\n", True),
        ("used_memory:1\r\n", True),  # if a server does not say that it keeps all keys, it may evict
        ("", True),
    ],
)
def test_a_redis_is_believed_only_if_it_says_that_it_keeps_everything(memory: str, evicts: bool) -> None:
    info = f"# Memory\r\n{memory}"
    assert redis_server.evicts(info) is redis_server.evicts(info.encode()) is evicts


def test_a_field_of_info_is_a_whole_line() -> None:
    info = "# Replication\r\nold_role:x\r\nrole:master\r\nmaster_replid2:b\r\nmaster_replid:a:b\r\n"
    assert redis_server.field(info, "role") == "master"
    assert redis_server.field(info, "master_replid") == "a:b"
    assert redis_server.field(info, "replid") == ""
    assert redis_server.field(b"\nrole:\xff", "role") == "\N{REPLACEMENT CHARACTER}"


# -- the end of a session


async def test_a_logout_sets_a_key_that_lives_as_long_as_its_tokens_could_be_accepted(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    tokens = await a_session(pair.here)
    before = await fence_of(pair.here)
    await logout(pair.here, tokens)
    left = await cache.ttl(f"{KEYS}{tokens.session_id}")
    full = KEY_LIVES.total_seconds()
    assert full - 10 < left <= full
    assert pair.here.settings.access_token_lifetime + LEEWAY < REMEMBERED_FOR
    assert await fence_of(pair.here) == before
    await refused(pair.there, tokens)
    await refused(pair.here, tokens)


async def test_a_logout_waits_only_while_an_older_reading_may_vouch(pair: Pair) -> None:
    """An upper bound of a second on the best of five shows that one did not wait. Its speed is not the question."""
    elapsed = []
    for _ in range(5):
        tokens = await a_session(pair.here)
        await read(pair.here)
        began = time.monotonic()
        await logout(pair.here, tokens)
        elapsed.append(time.monotonic() - began)
    assert min(elapsed) < 1.0
    # If the epoch is young, a logout waits, even if another process wrote the epoch.
    async with pair.there.db.begin() as tx:
        await tx.execute(update(CacheFence).values(epoch="0" * 32, server=None))
    tokens = await a_session(pair.here)
    began = time.monotonic()
    await read(pair.here)
    await logout(pair.here, tokens)
    assert time.monotonic() - began >= KNOWN_TO_ALL_IN.total_seconds()


async def test_a_logout_that_redis_does_not_acknowledge_fences_and_waits(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with Redis.start() as server:
        async with instance(database_url, server.url()) as here, instance(database_url, server.url()) as there:
            await Pair(here, there).until_complete()
            tokens = await a_session(here)
            epoch, named = await fence_of(here)
            assert named
            server.pause()
            try:
                began = time.monotonic()
                await logout(here, tokens)
                assert time.monotonic() - began >= KNOWN_TO_ALL_IN.total_seconds()
            finally:
                server.resume()
            after, named = await fence_of(here)
            assert after != epoch
            assert named is None
            await refused(there, tokens)
            # Another process need not fence again. A second logout changes nothing.
            await logout(there, tokens)
            assert await fence_of(here) == (after, None)
            await Pair(here, there).until_complete()
            await refused(there, tokens)


@pytest.mark.parametrize("column", ["epoch", "server"])
async def test_a_logout_fences_if_the_fence_is_not_the_one_that_it_knew(pair: Pair, column: str) -> None:
    tokens = await a_session(pair.here)
    async with pair.here.db.begin() as tx:
        await tx.execute(update(CacheFence).values({column: "another"}))
    before = await fence_of(pair.here)
    await logout(pair.here, tokens)
    epoch, named = await fence_of(pair.here)
    assert epoch != before[0]
    assert named is None


async def test_a_session_that_was_not_published_but_ended_fences(pair: Pair) -> None:
    one, another = await a_session(pair.here), await a_session(pair.here)
    both = Session.id.in_([one.session_id, another.session_id])
    await pair.here.ending.end_where([one.session_id], "logout", both, by=SERVICE)
    assert (await fence_of(pair.here))[1] is None
    await refused(pair.there, one)
    await read(pair.there)
    await refused(pair.there, another)


@contextmanager
def before_commit(keyturn: Keyturn, do: Callable[[], Coroutine[Any, Any, object]]) -> Iterator[None]:
    """Runs `do` once, when a transaction has done all but commit: of SQLAlchemy, or of the driver itself."""
    engine = keyturn.db._engine.sync_engine
    execute = asyncpg.Connection.execute
    commits = 0

    def commit(_: object) -> None:
        nonlocal commits
        commits += 1
        await_only(do())

    async def by_the_driver(self: Any, query: str, *rest: Any, **more: Any) -> Any:
        nonlocal commits
        if query == "COMMIT":
            commits += 1
            await do()
        return await execute(self, query, *rest, **more)

    event.listen(engine, "commit", commit)
    asyncpg.Connection.execute = by_the_driver
    try:
        yield
    finally:
        event.remove(engine, "commit", commit)
        asyncpg.Connection.execute = execute
    assert commits == 1


async def test_a_rebuild_waits_for_the_logouts_that_may_not_see_its_claim(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    """Redis loses its keys before a logout that saw the unchanged fence commits. The rebuild must see that logout."""
    tokens = await a_session(pair.here)
    rebuilding: list[asyncio.Task[None]] = []

    async def rebuild() -> None:
        await cache.flushdb()
        rebuilding.append(asyncio.create_task(keep_complete(pair.there)))
        await asyncio.wait(rebuilding, timeout=0.3)

    with before_commit(pair.here, rebuild):
        await logout(pair.here, tokens)
    await rebuilding[0]
    await pair.until_complete()
    await refused(pair.there, tokens)
    assert await cache.exists(f"{KEYS}{tokens.session_id}")


async def test_a_logout_waits_from_its_commit_where_it_finds_an_epoch_that_its_process_has_not_read(pair: Pair) -> None:
    tokens = await a_session(pair.here)
    async with pair.there.db.begin() as tx:
        await tx.execute(update(CacheFence).values(epoch="0" * 32, server=None))
    committing = 0.0

    async def slowly() -> None:
        nonlocal committing
        await asyncio.sleep(0.2)
        committing = time.monotonic()

    with before_commit(pair.here, slowly):
        await logout(pair.here, tokens)
    assert time.monotonic() - committing >= KNOWN_TO_ALL_IN.total_seconds()
    assert await fence_of(pair.here) == ("0" * 32, None)


async def test_the_key_is_set_before_the_commit(pair: Pair, cache: redis_asyncio.Redis) -> None:
    tokens = await a_session(pair.here)
    there: list[int] = []

    async def look(_: object) -> None:
        there.append(await cache.exists(f"{KEYS}{tokens.session_id}"))

    this = Session.id == tokens.session_id
    await pair.here.ending.end_where([tokens.session_id], "logout", this, by=SERVICE, also=look)
    assert there == [1]


async def test_all_thousand_sessions_of_a_user_end_at_once(pair: Pair, cache: redis_asyncio.Redis) -> None:
    first = await a_session(pair.here)
    tokens = [first.access_token]
    async with pair.here.db.begin() as tx:
        row = dict((await tx.execute(select(Session.__table__))).mappings().one())
        rows = [row | {"id": uuid7()} for _ in range(999)]
        await tx.execute(insert(Session), rows)
    for each in rows:
        token, _ = pair.here.reading._access_tokens.sign(
            subject=each["user_id"],
            session_id=each["id"],
            generation=0,
            role=each["role"],
            client_id=each["client_id"],
            issued_at=each["rotated_at"],
            session_expires_at=each["absolute_expires_at"],
        )
        tokens.append(token)

    async def accepted() -> int:
        answers = await asyncio.gather(*map(pair.there.reading.verify, tokens), return_exceptions=True)
        assert all(not isinstance(a, Exception) or isinstance(a, InvalidToken) for a in answers)
        return sum(not isinstance(a, Exception) for a in answers)

    await read(pair.there)
    assert await accepted() == 1000
    await read(pair.here)
    await pair.here.ending.logout((), [first.refresh_token], "all", by=SERVICE)
    assert await accepted() == 0
    await cache.flushdb()
    await keep_complete(pair.there)
    assert len(await cache.keys(f"{KEYS}*")) == 1000
    pair.there.revocations.checks._ended.clear()
    assert await accepted() == 0
    print("1000 sessions ended, 2000 verifications after the return, 0 accepted")


# -- the rebuild


async def test_a_rebuild_sets_what_ended_within_a_day_more_than_is_needed_and_each_key_for_its_full_life(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    long_ago, a_day_ago, now, live = [await a_session(pair.here) for _ in range(4)]
    for tokens, age in (
        (long_ago, timedelta(minutes=30)),
        (a_day_ago, LOOK_BACK - timedelta(minutes=10)),
        (now, timedelta(0)),
    ):
        await logout(pair.here, tokens)
        await time_passes(pair.here, age)
    epoch, _ = await fence_of(pair.here)
    await cache.flushdb()
    await keep_complete(pair.there)
    left = {str(key).removeprefix(KEYS): await cache.ttl(key) for key in await cache.keys(f"{KEYS}*")}
    assert left.keys() == {str(a_day_ago.session_id), str(now.session_id)}
    full = KEY_LIVES.total_seconds()
    assert all(full - 20 < seconds <= full for seconds in left.values())
    claimed, _ = await fence_of(pair.here)
    assert claimed != epoch
    assert await cache.get(MARKER) == claimed
    assert MARKER_LIVES.total_seconds() - 20 < await cache.ttl(MARKER) <= MARKER_LIVES.total_seconds()
    await read(pair.here)
    # The token is older than the claim, so the database is asked once.
    assert [await asks(pair.here, live) for _ in range(3)] == [1, 0, 0]
    await refused(pair.there, now)


async def test_a_rebuild_in_several_steps_sets_each_key_once(
    pair: Pair, cache: redis_asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [await a_session(pair.here) for _ in range(5)]
    for each in tokens:
        await logout(pair.here, each)
    async with pair.here.db.begin() as tx:  # one statement ends many sessions at the same moment
        await tx.execute(update(Session).values(ended_at=pair.here.db.now()))
    await cache.flushdb()
    monkeypatch.setattr("app.revocation.rebuild.CHUNK", 2)
    names: list[str] = []
    send = pair.there.revocations.redis.send_to

    async def sending(server: Server, commands: Any, *, limit: timedelta | None = None) -> list[Any]:
        names.extend(word for command in commands for word in command if str(word).startswith(KEYS))
        return await send(server, commands, limit=limit)

    monkeypatch.setattr(pair.there.revocations.redis, "send_to", sending)
    await pair.there.revocations.rebuild.keep_complete()
    expected = {f"{KEYS}{each.session_id}" for each in tokens}
    assert set(names) == set(await cache.keys(f"{KEYS}*")) == expected
    assert len(names) == 5
    assert await cache.get(MARKER)


async def test_who_has_not_read_the_fence_lately_and_can_not_now_rebuilds_nothing(
    pair: Pair, cache: redis_asyncio.Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.flushdb()
    monkeypatch.setattr(pair.there.revocations.fence, "read", partial(_noop, None))
    before, fence = await fence_of(pair.here), pair.there.revocations.fence.last
    assert fence is not None
    for reading in (None, replace(fence, began=clock.now - VOUCHES_FOR.total_seconds() - 0.001)):
        pair.there.revocations.fence.last = reading
        await pair.there.revocations.rebuild.keep_complete()
        assert await fence_of(pair.here) == before
        assert await cache.get(MARKER) is None
    pair.there.revocations.fence.last = replace(fence, began=clock.now - VOUCHES_FOR.total_seconds())
    await pair.there.revocations.rebuild.keep_complete()
    assert await cache.get(MARKER) == (await fence_of(pair.here))[0] != before[0]


async def test_an_operator_is_told_once_of_each_change(pair: Pair, cache: redis_asyncio.Redis) -> None:
    reported: list[str] = []
    here = pair.here.revocations
    report_to(pair.here, lambda event, **_: reported.append(event))

    async def seen(state: str, *events: str) -> None:
        for _ in range(2):
            await keep_complete(pair.here)
            assert here.rebuild.cache == state
            assert reported == list(events)
        reported.clear()

    await seen("complete")
    await cache.flushdb()
    states: list[str] = []

    async def rebuilding() -> None:
        states.append(here.rebuild.cache)

    between(pair.here, "_claim", rebuilding)
    await here.rebuild.keep_complete()
    assert [*states, here.rebuild.cache] == ["not filled", "complete"]
    await seen("complete")
    await cache.config_set("maxmemory", "100mb")
    await cache.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await seen("may evict", "redis_may_evict")
        assert await cache.get(MARKER) is None
    finally:
        await cache.config_set("maxmemory-policy", "noeviction")
        await cache.config_set("maxmemory", "0")
    await seen("complete", "redis_complete")
    before, command = await fence_of(pair.here), here.redis.send

    async def nameless(commands: Any, *, limit: timedelta | None = None) -> tuple[Server, list[Any]]:
        server, replies = await command(commands, limit=limit)
        return replace(server, run_id="0" * 40), replies

    here.redis.send = nameless  # type: ignore[method-assign]  # a proxy before several servers hides their run ids
    await seen("not identified", "redis_not_trusted")
    here.redis.send = command  # type: ignore[method-assign]  # as above
    pool, here.redis._pool = here.redis._pool, redis_server.RedisServer(f"redis://127.0.0.1:{free_port()}")._pool
    await seen("away", "redis_away")
    assert await here.ping() == "away"
    here.redis._pool = pool
    await seen("complete", "redis_complete")
    assert await fence_of(pair.here) == before


async def test_a_rebuild_that_the_database_breaks_off_is_not_called_an_outage_of_redis(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    reported: list[str] = []
    here = pair.here.revocations
    report_to(pair.here, lambda event, **_: reported.append(event))
    await cache.flushdb()

    async def away() -> None:
        raise TemporarilyUnavailable("database: ConnectionRefusedError")

    between(pair.here, "_claim", away)
    await here.rebuild.keep_complete()
    assert reported == ["redis_not_filled"]
    assert here.rebuild.cache == "not filled"


async def test_of_two_instances_one_rebuilds(pair: Pair, cache: redis_asyncio.Redis) -> None:
    for _ in range(5):
        await cache.flushdb()
        with statements(pair.here, pair.there) as sent:
            await asyncio.gather(*(k.revocations.rebuild.keep_complete() for k in (pair.here, pair.there) * 3))
        claims = [s for s in sent if s.startswith("UPDATE cache_fence")]
        assert len(claims) == 1
        assert await cache.get(MARKER) == (await fence_of(pair.here))[0]
        await read(pair.here, pair.there)


def between(keyturn: Keyturn, step: str, do: Callable[[], Any]) -> None:
    """Runs `do` once, just before a step of the rebuild."""
    part = keyturn.revocations.redis if step == "send_to" else keyturn.revocations.rebuild
    original = getattr(part, step)

    async def wrapped(*arguments: Any, **keywords: Any) -> Any:
        setattr(part, step, original)
        await do()
        return await original(*arguments, **keywords)

    setattr(part, step, wrapped)


@pytest.mark.parametrize("step", ["_claim", "_ended_lately", "send_to"])
async def test_a_flush_during_a_rebuild_leaves_no_marker(pair: Pair, cache: redis_asyncio.Redis, step: str) -> None:
    tokens = await a_session(pair.here)
    await logout(pair.here, tokens)
    await cache.flushdb()
    if step == "send_to":  # the keys go through `send_to` as nonce and marker do, so wait for the snapshot first
        between(pair.there, "_ended_lately", lambda: _noop(between(pair.there, "send_to", cache.flushdb)))  # type: ignore[func-returns-value]  # `_noop` takes what it does not use
    else:
        between(pair.there, step, cache.flushdb)
    await pair.there.revocations.rebuild.keep_complete()
    assert await cache.get(MARKER) is None
    await read(pair.here, pair.there)
    await refused(pair.there, tokens)
    await keep_complete(pair.there)
    assert await cache.get(MARKER) is not None
    pair.there.revocations.checks._ended.clear()
    await refused(pair.there, tokens)


async def _noop(_: None) -> None:
    pass


@pytest.mark.parametrize("step", ["_claim", "_ended_lately", "send_to"])
async def test_a_logout_during_a_rebuild_is_never_forgotten(pair: Pair, cache: redis_asyncio.Redis, step: str) -> None:
    tokens = await a_session(pair.here)
    await cache.flushdb()
    between(pair.there, step, lambda: logout(pair.here, tokens))
    await pair.there.revocations.rebuild.keep_complete()
    await read(pair.there)
    await refused(pair.there, tokens)
    await keep_complete(pair.there)
    pair.there.revocations.checks._ended.clear()
    await refused(pair.there, tokens)
    assert await cache.exists(f"{KEYS}{tokens.session_id}")


async def test_a_second_server_takes_the_fence_only_when_the_first_was_named_for_a_while(
    pair: Pair, database_url: str
) -> None:
    with Redis.start() as second:
        async with instance(database_url, second.url()) as apart:
            before = await fence_of(apart)
            await keep_complete(apart)
            assert await fence_of(apart) == before
            tokens = await a_session(apart)
            assert await asks(apart, tokens) == 1
            async with apart.db.begin() as tx:
                await tx.execute(text(f"UPDATE cache_fence SET changed_at = changed_at - interval '{CLAIM_AFTER}'"))
            await keep_complete(apart)
            assert (await fence_of(apart))[1] != before[1]
            assert [await asks(apart, tokens) for _ in range(2)] == [1, 0]
            # The first server is not believed any more. A session that ends there is refused here.
            await read(pair.there)
            assert await asks(pair.there, tokens) == 1
            await logout(pair.here, tokens)
            await read(apart)
            await refused(apart, tokens)


# -- the keyspace


@pytest.mark.parametrize("number", [1, 9])
async def test_a_logout_by_way_of_another_database_of_the_same_server_fences(
    pair: Pair, database_url: str, own_redis: Redis, cache: redis_asyncio.Redis, number: int
) -> None:
    """A logout fences also if its database has the number that the fence names, but SWAPDB exchanged the contents."""
    tokens = await a_session(pair.here)
    async with instance(database_url, own_redis.url(number)) as apart:
        if number == 9:
            await cache.execute_command("SWAPDB", "9", "1")
        before = await fence_of(pair.here)
        await logout(apart, tokens)
        await cache.execute_command("SWAPDB", "9", "1")
        after = await fence_of(pair.here)
        assert after[0] != before[0]
        assert after[1] is None
        await refused(pair.there, tokens)


async def test_a_nonce_that_was_left_behind_proves_nothing(
    pair: Pair, database_url: str, own_redis: Redis, cache: redis_asyncio.Redis
) -> None:
    tokens = await a_session(pair.here)
    async with (
        instance(database_url, own_redis.url(9)) as apart,
        redis_asyncio.Redis.from_url(own_redis.url(1)) as other,
    ):
        await other.set("{keyturn}:rebuild", "0" * 32, ex=15)
        await cache.execute_command("SWAPDB", "9", "1")
        await logout(apart, tokens)
        await cache.execute_command("SWAPDB", "9", "1")
        await other.flushdb()
    assert (await fence_of(pair.here))[1] is None
    await refused(pair.there, tokens)


async def test_a_logout_during_a_rebuild_of_its_own_keyspace_does_not_fence(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    tokens = await a_session(pair.here)
    await cache.flushdb()
    between(pair.there, "_ended_lately", lambda: logout(pair.here, tokens))
    await pair.there.revocations.rebuild.keep_complete()
    epoch, server = await fence_of(pair.here)
    assert server is not None
    assert await cache.get(MARKER) == epoch
    await read(pair.there)
    await refused(pair.there, tokens)


@pytest.mark.parametrize("how", ["flushed", "marker gone"])
async def test_a_logout_into_a_keyspace_that_does_not_hold_the_epoch_fences(
    pair: Pair, cache: redis_asyncio.Redis, how: str
) -> None:
    tokens = await a_session(pair.here)
    await (cache.flushdb() if how == "flushed" else cache.delete(MARKER))
    await logout(pair.here, tokens)
    assert (await fence_of(pair.here))[1] is None
    await refused(pair.there, tokens)


async def test_a_rebuild_whose_keys_went_to_another_keyspace_leaves_no_marker(
    pair: Pair, own_redis: Redis, cache: redis_asyncio.Redis
) -> None:
    tokens = await a_session(pair.here)
    await logout(pair.here, tokens)
    await cache.flushdb()

    async def swap() -> None:
        await cache.execute_command("SWAPDB", "9", "1")

    ended_lately, on = pair.there.revocations.rebuild._ended_lately, pair.there.revocations.redis.send_to

    async def filling(server: Server, commands: Any, *, limit: timedelta | None = None) -> list[Any]:
        away = commands[0][1] == _FILL
        if away:
            await swap()
        try:
            return await on(server, commands, limit=limit)
        finally:
            if away:
                await swap()

    pair.there.revocations.redis.send_to = filling  # type: ignore[method-assign]  # only the keys go to another database
    await pair.there.revocations.rebuild.keep_complete()
    assert await cache.get(MARKER) is None
    assert ended_lately == pair.there.revocations.rebuild._ended_lately
    async with redis_asyncio.Redis.from_url(own_redis.url(1)) as other:
        await other.flushdb()
    await read(pair.there)
    pair.there.revocations.checks._ended.clear()
    await refused(pair.there, tokens)


async def test_two_processes_with_different_numbers_do_not_take_the_fence_from_each_other_without_pause(
    pair: Pair, database_url: str, own_redis: Redis
) -> None:
    async with instance(database_url, own_redis.url(1)) as apart:
        noted: list[str] = []
        report_to(apart, lambda event, **_: noted.append(event))
        async with apart.db.begin() as tx:
            incarnation = apart.db.incarnation(writing=True)
            await tx.execute(update(CacheFence).values(changed_at=apart.db.now(), incarnation=incarnation))
        before = await fence_of(apart)
        for _ in range(3):
            await keep_complete(apart)
        assert await fence_of(apart) == before
        assert noted == ["redis_not_the_one"]
        assert apart.revocations.fence.names_another((await apart.revocations.redis.send([]))[0])
        assert not pair.here.revocations.fence.names_another((await pair.here.revocations.redis.send([]))[0])
    async with redis_asyncio.Redis.from_url(own_redis.url(1)) as other:
        await other.flushdb()


# -- a database that was restored


async def lost(keyturn: Keyturn, tokens: Tokens) -> None:
    """Checks that the token is refused as one of a session that the database does not know."""
    with pytest.raises(InvalidToken) as caught:
        await keyturn.reading.verify(tokens.access_token)
    assert caught.value.reason is None


@pytest.mark.parametrize(
    "restore",
    [
        # A restored dump writes the row of the fence anew.
        "CREATE TABLE kept AS TABLE cache_fence; DELETE FROM cache_fence; INSERT INTO cache_fence SELECT * FROM kept",
        # Only the sessions are restored.
        "TRUNCATE sessions",
    ],
)
async def test_after_a_restore_redis_is_not_believed_and_a_session_that_is_not_in_it_is_refused(
    pair: Pair, restore: str
) -> None:
    unknown, known = await a_session(pair.here), await a_session(pair.here)
    await read(pair.there)
    assert await asks(pair.there, unknown) == 0
    before = await fence_of(pair.here)
    async with pair.here.db.begin() as tx:
        await tx.execute(text("CREATE TABLE dumped AS TABLE sessions"))
        await tx.execute(text("DELETE FROM dumped WHERE id = :id").bindparams(id=unknown.session_id))
        for statement in restore.split("; "):
            await tx.execute(text(statement))
        await tx.execute(text("DELETE FROM sessions"))
        await tx.execute(text("INSERT INTO sessions SELECT * FROM dumped"))
    assert await fence_of(pair.here) == before
    await read(pair.there)
    for _ in range(2):
        await lost(pair.there, unknown)
    await keep_complete(pair.there)
    await read(pair.here)
    assert await pair.there.revocations.ping() == await pair.here.revocations.ping() == "complete"
    for keyturn in (pair.here, pair.there):
        for _ in range(2):
            await lost(keyturn, unknown)
        assert [await asks(keyturn, known) for _ in range(3)] == [1, 0, 0]
    await logout(pair.here, known)
    await refused(pair.there, known)


async def test_what_a_look_up_found_counts_for_its_own_epoch_and_for_a_limited_time(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    tokens = await a_session(pair.here)
    await cache.flushdb()
    await keep_complete(pair.there)
    assert [await asks(pair.there, tokens) for _ in range(3)] == [1, 0, 0]
    fence = pair.there.revocations.fence
    assert fence.last is not None
    seen = fence.last.seen
    assert 0 < seen[str(tokens.session_id)] - time.monotonic() <= REMEMBERED_FOR.total_seconds()
    seen[str(tokens.session_id)] = time.monotonic()
    assert [await asks(pair.there, tokens) for _ in range(3)] == [1, 0, 0]
    await cache.flushdb()
    await keep_complete(pair.there)
    assert fence.last.seen == {}
    assert [await asks(pair.there, tokens) for _ in range(3)] == [1, 0, 0]


# -- a process that dies

STEPS = ["before SET", "after SET", "statement 1", "statement 2", "before COMMIT", "after COMMIT"]
STEPS_OF_A_FENCE = [*STEPS, "in the wait"]


def die_on_request() -> None:
    """The program of a process that reads a logout from each line of its input.

    For each logout, the program starts a child that is killed at the given step, and prints the child's exit code.
    """
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(_die(*json.loads(line)))
            os._exit(0)  # reached only if the child was not killed
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


async def _die(step: str, database_url: str, redis_url: str, refresh_token: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async with instance(database_url, redis_url) as keyturn:
        publishing = keyturn.ending._publishing
        publish = publishing.publish
        count = 0

        async def published(ids: Iterable[UUID]) -> Published:
            if step == "before SET":
                die()
            acknowledged = await publish(ids)
            if step == "after SET":
                die()
            return acknowledged

        publishing.publish = published  # type: ignore[method-assign]  # to die before or after the SET
        for name in ("execute", "fetch"):
            sends = getattr(asyncpg.Connection, name)

            async def sent(self: Any, query: str, *rest: Any, sends: Any = sends, **more: Any) -> Any:
                nonlocal count
                count += query.startswith("BEGIN") or "INSERT INTO events" in query
                if step in ({"before COMMIT"} if query == "COMMIT" else {f"statement {count}"}):
                    die()
                answer = await sends(self, query, *rest, **more)
                if query == "COMMIT" and step == "after COMMIT":
                    die()
                if query == "COMMIT" and step == "in the wait":
                    asyncio.get_running_loop().call_later(0.2, die)
                return answer

            setattr(asyncpg.Connection, name, sent)
        await keyturn.ending.logout((), [refresh_token], "this", by=SERVICE)


async def test_a_process_killed_between_two_steps_of_a_logout_leaves_nothing_that_a_second_logout_does_not_end(
    pair: Pair, database_url: str, own_redis: Redis
) -> None:
    program = "from tests.test_revocations import die_on_request; die_on_request()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    unreachable = f"redis://127.0.0.1:{free_port()}/9"
    for redis_url, steps in ((own_redis.url(9), STEPS), (unreachable, STEPS_OF_A_FENCE)):
        for step in steps:
            await pair.until_complete()
            tokens = await a_session(pair.here)
            await read(pair.there)
            process.stdin.write(json.dumps([step, database_url, redis_url, tokens.refresh_token]).encode() + b"\n")
            assert int(await process.stdout.readline()) == -signal.SIGKILL, step
            committed = step in {"after COMMIT", "in the wait"}
            if not committed:
                await pair.there.reading.verify(tokens.access_token)
            elif redis_url != unreachable:
                await refused(pair.there, tokens)
            await logout(pair.here, tokens)
            pair.there.revocations.checks._ended.clear()
            await refused(pair.there, tokens)
            await pair.until_complete()
            pair.there.revocations.checks._ended.clear()
            await refused(pair.there, tokens)
    process.stdin.close()
    assert await process.wait() == 0


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_logout_whose_fence_another_transaction_overtakes_waits_until_no_older_reading_counts(
    pair: Pair, database_url: str
) -> None:
    tokens = await a_session(pair.here)
    await read(pair.there)
    async with instance(database_url, f"redis://127.0.0.1:{free_port()}/9") as cut_off:
        async with cut_off.db.begin() as tx:
            await tx.execute(text("UPDATE cache_fence SET epoch = md5(epoch), server = NULL"))
            ending = asyncio.create_task(logout(cut_off, tokens))
            # The logout's statement has read the old fence, and waits for this transaction.
            async with asyncio.timeout(5):
                waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                while not await tx.scalar(waits):
                    await asyncio.sleep(0.02)
        committed = monotonic()
        await ending
        assert monotonic() - committed >= KNOWN_TO_ALL_IN.total_seconds()
    await refused(pair.there, tokens)


# -- a Redis whose data or role has changed


async def test_a_redis_that_may_evict_is_never_believed(database_url: str) -> None:
    evicting = ["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]
    with Redis.start(settings=evicting) as server:
        async with instance(database_url, server.url()) as here, instance(database_url, server.url()) as there:
            await keep_complete(here)
            await read(there)
            tokens = await a_session(here)
            assert await asks(there, tokens) == 1
            assert await there.revocations.ping() == "may evict"
            async with redis_asyncio.Redis.from_url(server.url()) as client:
                assert await client.get(MARKER) is None
                await client.config_set("maxmemory-policy", "noeviction")
            await keep_complete(here)
            await keep_complete(there)
            assert [await asks(there, tokens) for _ in range(2)] == [1, 0]


async def test_a_redis_that_begins_to_evict_is_not_believed_from_then_on(database_url: str) -> None:
    with Redis.start() as server:
        async with (
            instance(database_url, server.url()) as here,
            instance(database_url, server.url()) as there,
            redis_asyncio.Redis.from_url(server.url()) as client,
        ):
            await Pair(here, there).until_complete()
            tokens = await a_session(here)
            await there.reading.verify(tokens.access_token)
            await logout(here, tokens)
            await client.persist(MARKER)  # without an expiry, so that Redis can't evict the marker
            await client.set("filler", "x" * 2_000_000)
            await client.config_set("maxmemory-policy", "volatile-ttl")
            await client.config_set("maxmemory", "1mb")
            with pytest.raises(OutOfMemoryError):  # Redis has evicted every key that it may
                await client.set("filler", "x")
            assert await client.get(f"{KEYS}{tokens.session_id}") is None
            assert await client.get(MARKER)
            await refused(there, tokens)


async def wait_for(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_master_that_was_demoted_and_took_over_anothers_data_is_not_believed(database_url: str) -> None:
    """The demoted master keeps its run id, its connections and a marker of the right epoch, but not the key."""
    async with AsyncExitStack() as stack:
        first = stack.enter_context(Redis.start())
        second = stack.enter_context(Redis.start(settings=["--replicaof", "127.0.0.1", str(first.port)]))
        here = await stack.enter_async_context(instance(database_url, first.url()))
        there = await stack.enter_async_context(instance(database_url, first.url()))
        old = await stack.enter_async_context(redis_asyncio.Redis.from_url(first.url()))
        new = await stack.enter_async_context(redis_asyncio.Redis.from_url(second.url()))
        await Pair(here, there).until_complete()
        ended, live = await a_session(here), await a_session(here)
        for tokens in (ended, live):
            await there.reading.verify(tokens.access_token)  # opens the connection of `there`

        async def has_the_marker() -> bool:
            return bool(await new.get(MARKER))

        await wait_for(has_the_marker)
        await new.execute_command("REPLICAOF", "NO", "ONE")
        await logout(here, ended)
        assert await old.get(f"{KEYS}{ended.session_id}")
        await old.execute_command("REPLICAOF", "127.0.0.1", str(second.port))

        async def has_lost_the_key() -> bool:
            return await old.get(f"{KEYS}{ended.session_id}") is None

        await wait_for(has_lost_the_key)
        assert await old.get(MARKER)
        await read(there)
        await refused(there, ended)
        assert await asks(there, live) == 1
        # Promoted again, the old master has a third identity, and becomes complete.
        await old.execute_command("REPLICAOF", "NO", "ONE")
        async with here.db.begin() as tx:
            await tx.execute(text(f"UPDATE cache_fence SET changed_at = changed_at - interval '{CLAIM_AFTER}'"))
        await keep_complete(here)
        await keep_complete(there)
        assert [await asks(there, live) for _ in range(2)] == [1, 0]
        # `here` opened its connections before that. The server that the fence now names acknowledges a logout over one
        # of them, so the logout does not fence.
        before = await fence_of(here)
        await logout(here, live)
        assert await fence_of(here) == before
        await refused(there, live)


async def test_an_answer_that_comes_late_is_never_taken_for_another_questions(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis stops at every kind of moment. Its later answers must not be taken for answers to newer questions."""
    monkeypatch.undo()
    with Redis.start() as server:
        async with instance(database_url, server.url()) as here, instance(database_url, server.url()) as there:
            await Pair(here, there).until_complete()
            ended = [await a_session(here) for _ in range(4)]
            live = [await a_session(here) for _ in range(4)]
            await asyncio.gather(*(logout(here, tokens) for tokens in ended))
            for round_ in range(6):
                await read(there)
                there.revocations.checks._ended.clear()
                if round_ % 2:  # makes the process open connections while Redis is stopped
                    await there.revocations.redis._pool.disconnect()  # type: ignore[union-attr]  # Redis is configured
                server.pause()
                standing = asyncio.create_task(
                    # Each verification falls back to the database.
                    asyncio.wait_for(_all(there, live + ended), timeout=5)
                )
                await asyncio.sleep(0.02 + 0.08 * round_)
                server.resume()
                assert await standing == [True] * 4 + [False] * 4
                there.revocations.checks._ended.clear()
                await read(there)
                assert await _all(there, ended + live) == [False] * 4 + [True] * 4


async def _all(keyturn: Keyturn, tokens: list[Tokens]) -> list[bool]:
    async def one(token: str) -> bool:
        try:
            await keyturn.reading.verify(token)
        except InvalidToken:
            return False
        return True

    return list(await asyncio.gather(*(one(t.access_token) for t in tokens)))


# -- without the database


async def test_without_the_database_redis_answers_for_the_time_that_is_set(
    pair: Pair, database_url: str, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with instance(database_url, own_redis.url(9), verify_without_database=3) as there:
        ended, remembered, live = [await a_session(pair.here) for _ in range(3)]
        await logout(pair.here, ended)
        await logout(pair.here, remembered)
        await refused(there, remembered)
        await read(there)

        def away(*_: object) -> None:
            raise ConnectionRefusedError

        fence = there.revocations.fence.last
        assert fence is not None
        for name in ("_engine", "_writer", "_reader", "_watch_engine"):
            event.listen(getattr(there.db, name).sync_engine, "before_cursor_execute", away)

        async def unknown(tokens: Tokens) -> None:
            with pytest.raises(TemporarilyUnavailable):
                await there.reading.verify(tokens.access_token)

        for age in (0.0, 1.5, 3.5):  # seconds: while the reading vouches, and for three seconds more
            there.revocations.fence.last = replace(fence, began=time.monotonic() - age)
            await read(there)
            await there.reading.verify(live.access_token)
            await unknown(ended)
            await refused(there, remembered)
        there.revocations.fence.last = replace(fence, began=time.monotonic() - 4.1)
        await unknown(live)
        await unknown(ended)
        await refused(there, remembered)


async def test_where_the_database_is_known_to_be_away_nobody_waits_for_it(
    pair: Pair, database_url: str, own_redis: Redis
) -> None:
    async with instance(database_url, own_redis.url(9), verify_without_database=3) as there:
        live = await a_session(pair.here)
        asked = 0

        def away(*_: object) -> None:
            nonlocal asked
            asked += 1
            raise ConnectionRefusedError

        revocations = there.revocations
        for name in ("_reader", "_watch_engine"):
            event.listen(getattr(there.db, name).sync_engine, "before_cursor_execute", away)
        assert revocations.fence.last is not None
        revocations.fence.last = replace(revocations.fence.last, began=time.monotonic() - 2)
        await read(there)
        asked = 0
        await there.reading.verify(live.access_token)
        assert asked == 0
        # The evidence of the outage is older than a second, so the process asks the database first. Redis decides only
        # because the database fails.
        revocations.fence._failed_began = time.monotonic() - 1.5
        await there.reading.verify(live.access_token)
        assert asked == 1


async def test_without_database_and_redis_nothing_is_decided(database_url: str) -> None:
    for redis_url in (None, f"redis://127.0.0.1:{free_port()}"):
        async with instance(database_url, redis_url, verify_without_database=60) as keyturn:
            tokens = await a_session(keyturn)
            await keyturn.reading.verify(tokens.access_token)

            def away(*_: object) -> None:
                raise ConnectionRefusedError

            event.listen(keyturn.db._reader.sync_engine, "before_cursor_execute", away)
            with pytest.raises(TemporarilyUnavailable):
                await keyturn.reading.verify(tokens.access_token)


# -- a process that runs


async def test_an_instance_rebuilds_once_at_a_time_and_holds_nothing_that_is_over(
    unconnected: Revocations, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings, rebuilds = 0, 0

    async def read_fence() -> None:
        nonlocal readings
        readings += 1

    async def rebuild() -> None:
        nonlocal rebuilds
        rebuilds += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(unconnected.fence, "read", read_fence)
    monkeypatch.setattr(unconnected.rebuild, "keep_complete", rebuild)
    monkeypatch.setattr("app.revocation.revocations.READ_EVERY", timedelta(milliseconds=1))
    ended, long_ago = str(uuid4()), str(uuid4())
    unconnected.checks.remember(long_ago, "logout")
    unconnected.checks._ended[long_ago] = ("logout", time.monotonic() - 1)
    unconnected.checks.remember(ended, "logout")

    async def watch(rounds: int) -> None:
        watching = asyncio.create_task(unconnected.watch())
        before = readings
        while readings < before + rounds:
            await asyncio.sleep(0.001)
        watching.cancel()
        await asyncio.sleep(0.01)

    await watch(10)
    assert rebuilds == 1
    assert unconnected.checks._ended.keys() == {ended}
    (rebuilding,) = unconnected._tasks
    rebuilding.cancel()
    await asyncio.wait([rebuilding])
    unconnected.redis._pool = None
    await watch(3)
    assert rebuilds == 1
    assert not unconnected._tasks


async def test_a_running_instance_finds_a_flushed_redis_and_makes_it_complete(
    open_keyturn: Opener, own_redis: Redis, cache: redis_asyncio.Redis
) -> None:
    async with open_keyturn(redis_url=own_redis.url(9)) as here, open_keyturn(redis_url=own_redis.url(9)) as there:

        async def complete() -> bool:
            return await here.revocations.ping() == await there.revocations.ping() == "complete"

        await wait_for(complete)
        tokens = await a_session(here)
        await logout(here, tokens)
        await cache.flushdb()
        await refused(there, tokens)
        await wait_for(complete)
        assert await cache.exists(f"{KEYS}{tokens.session_id}")


def test_a_command_is_packed_as_the_driver_would_pack_it() -> None:
    command = ("EVAL", "return 'ä'", "1", redis_server.MARKER, b"\x00\r\n", "")
    assert redis_server.packed(command) == b"".join(redis_asyncio.Connection().pack_command(*command))


def test_the_names_in_redis_share_a_hash_slot() -> None:
    session_id = UUID(int=1)
    assert redis_server.key_name(session_id) == f"{KEYS}{session_id}"
    assert redis_server.MARKER == MARKER


async def test_verifications_that_come_together_share_a_few_round_trips(pair: Pair, cache: redis_asyncio.Redis) -> None:
    tokens = [await a_session(pair.here) for _ in range(3)]

    async def scripts() -> int:
        return int((await cache.info("commandstats")).get("cmdstat_eval", {}).get("calls", 0))

    before = await scripts()
    verified = await asyncio.gather(*(pair.there.reading.verify(tokens[n % 3].access_token) for n in range(100)))
    assert len(verified) == 100
    assert 1 <= await scripts() - before <= 4
