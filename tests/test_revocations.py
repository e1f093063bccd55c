"""Revocations as a process runs them: the loop that watches, the words sent to Redis, and their number."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from redis import asyncio as redis_asyncio

from app.revocation import redis_server
from app.revocation.revocations import Revocations
from tests.conftest import Opener
from tests.instances import (
    KEYS,
    MARKER,
    Pair,
    a_session,
    cache,
    engine,
    logout,
    no_haste,
    own_redis,
    pair,
    refused,
    unconnected,
    wait_for,
)
from tests.servers import Redis

__all__ = ["cache", "engine", "no_haste", "own_redis", "pair", "unconnected"]  # fixtures


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
