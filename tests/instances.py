"""Instances of Keyturn in one process, on one PostgreSQL and a real Redis, that do nothing by themselves.

They read the fence and make Redis complete only where a test says so. The tests of servers and processes that fail
under traffic are in tests/test_redis_faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import event, select, update

from app.actors import SERVICE
from app.errors import InvalidToken, Reason
from app.keyturn import Keyturn, opened
from app.revocation import redis_server
from app.revocation.lifetimes import KNOWN_TO_ALL_IN, REMEMBERED_FOR
from app.revocation.revocations import Revocations
from app.sessions.answers import Tokens
from app.storage.database import Database
from app.storage.tables import CacheFence
from tests.conftest import a_user, settings_of
from tests.servers import Redis

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


async def asks(keyturn: Keyturn, tokens: Tokens) -> int:
    """The number of statements that one verification of a live session sends."""
    with statements(keyturn) as sent:
        await keyturn.reading.verify(tokens.access_token)
    return len(sent)


def between(keyturn: Keyturn, step: str, do: Callable[[], Any]) -> None:
    """Runs `do` once, just before a step of the rebuild."""
    part = keyturn.revocations.redis if step == "send_to" else keyturn.revocations.rebuild
    original = getattr(part, step)

    async def wrapped(*arguments: Any, **keywords: Any) -> Any:
        setattr(part, step, original)
        await do()
        return await original(*arguments, **keywords)

    setattr(part, step, wrapped)


async def lost(keyturn: Keyturn, tokens: Tokens) -> None:
    """Checks that the token is refused as one of a session that the database does not know."""
    with pytest.raises(InvalidToken) as caught:
        await keyturn.reading.verify(tokens.access_token)
    assert caught.value.reason is None


async def wait_for(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)
