"""Two numbered databases of one Redis server, of which one does not hold what the other does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import update

from app.revocation.rebuild import _FILL
from app.revocation.redis_server import Server
from app.storage.tables import CacheFence
from tests.instances import (
    MARKER,
    Pair,
    a_session,
    between,
    cache,
    engine,
    fence_of,
    instance,
    keep_complete,
    logout,
    no_haste,
    own_redis,
    pair,
    read,
    refused,
    report_to,
)
from tests.servers import Redis

__all__ = ["cache", "engine", "no_haste", "own_redis", "pair"]  # fixtures


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
