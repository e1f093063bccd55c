"""When Redis is believed about an ended session, and when the database is asked."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import text, update

from app.revocation import redis_server
from app.revocation.lifetimes import KNOWN_TO_ALL_IN, REMEMBERED_FOR
from app.storage.tables import CacheFence
from tests.instances import (
    KEYS,
    MARKER,
    Pair,
    a_session,
    asks,
    cache,
    engine,
    fence_of,
    instance,
    keep_complete,
    logout,
    lost,
    no_haste,
    own_redis,
    pair,
    read,
    refused,
    statements,
)
from tests.servers import Redis

__all__ = ["cache", "engine", "no_haste", "own_redis", "pair"]  # fixtures


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
