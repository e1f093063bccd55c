"""The rebuild of Redis: what it sets, who does it, and what comes between its steps."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import text, update

from app.errors import TemporarilyUnavailable
from app.revocation import redis_server
from app.revocation.lifetimes import KEY_LIVES, LOOK_BACK, MARKER_LIVES, VOUCHES_FOR
from app.revocation.rebuild import CLAIM_AFTER
from app.revocation.redis_server import Server
from app.storage.tables import Session
from tests.conftest import time_passes
from tests.instances import (
    KEYS,
    MARKER,
    Clock,
    Pair,
    a_session,
    asks,
    between,
    cache,
    clock,
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
    statements,
)
from tests.servers import Redis, free_port

__all__ = ["cache", "clock", "engine", "no_haste", "own_redis", "pair"]  # fixtures


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
