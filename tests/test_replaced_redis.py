"""A Redis whose data or role has changed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from redis import asyncio as redis_asyncio
from redis.exceptions import OutOfMemoryError
from sqlalchemy import text

from app.errors import InvalidToken
from app.keyturn import Keyturn
from app.revocation.rebuild import CLAIM_AFTER
from app.sessions.answers import Tokens
from tests.instances import (
    KEYS,
    MARKER,
    Pair,
    a_session,
    asks,
    engine,
    fence_of,
    instance,
    keep_complete,
    logout,
    no_haste,
    read,
    refused,
    wait_for,
)
from tests.servers import Redis

__all__ = ["engine", "no_haste"]  # fixtures


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
