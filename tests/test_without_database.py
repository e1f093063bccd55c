"""While the database is away, Redis answers alone: for how long, and on what evidence.

The database is away for one instance because others hold all of its connections. Postgres itself works.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from time import monotonic

import pytest
from sqlalchemy import event

from app.errors import TemporarilyUnavailable
from app.keyturn import Keyturn
from app.revocation.lifetimes import REMEMBERED_FOR
from app.sessions.answers import Tokens
from tests.cookie_site import A, R, site_of
from tests.cookies import SAME_SITE, ask, set_cookies
from tests.instances import (
    MARKER,
    Pair,
    a_session,
    cache,
    engine,
    instance,
    logout,
    no_haste,
    own_redis,
    pair,
    read,
    refused,
    statements,
)
from tests.servers import Redis, free_port

__all__ = ["cache", "engine", "no_haste", "own_redis", "pair"]  # fixtures


@asynccontextmanager
async def two(database_url: str, redis: Redis, seconds: int = 60) -> AsyncIterator[Pair]:
    async with (
        instance(database_url, redis.url(9)) as here,
        instance(database_url, redis.url(9), database_pool=2, verify_without_database=seconds) as there,
    ):
        pair = Pair(here, there)
        await pair.until_complete()
        yield pair


@asynccontextmanager
async def away(keyturn: Keyturn, since: float = 2) -> AsyncIterator[None]:
    """Takes all connections of the instance, which notices at once that it gets none.

    The instance's last reading of the fence is `since` seconds old.
    """
    revocations = keyturn.revocations
    async with AsyncExitStack() as held:
        for connection in (keyturn.db.look, keyturn.db.watch_connection, keyturn.db.watch_connection):
            await held.enter_async_context(connection())
        assert revocations.fence.last is not None
        revocations.fence.last = replace(revocations.fence.last, began=monotonic() - since)
        await revocations.fence.read()
        assert revocations.fence.database_is_away()
        yield


async def unavailable(keyturn: Keyturn, tokens: Tokens) -> None:
    with pytest.raises(TemporarilyUnavailable):
        await keyturn.reading.verify(tokens.access_token)


async def test_a_complete_redis_answers_at_once_and_alone(database_url: str, own_redis: Redis, cache: object) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        async with away(pair.there, since=58):
            with statements(pair.there) as sent:
                await pair.there.reading.verify(tokens.access_token)
            assert sent == []


async def test_it_answers_also_where_the_evidence_is_no_longer_fresh(
    database_url: str, own_redis: Redis, cache: object
) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        async with away(pair.there):
            # The evidence is older than a second, so the process asks the database first and gets no answer.
            pair.there.revocations.fence._failed_began = monotonic() - 1.1
            assert not pair.there.revocations.fence.database_is_away()
            await pair.there.reading.verify(tokens.access_token)


async def test_an_old_reading_alone_is_no_evidence_and_the_database_is_asked(
    database_url: str, own_redis: Redis, cache: object
) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        revocations = pair.there.revocations
        assert revocations.fence.last is not None
        revocations.fence.last = replace(revocations.fence.last, began=monotonic() - 30)
        for failed in (float("-inf"), monotonic() - 40):
            revocations.fence._failed_began = failed
            with statements(pair.there) as sent:
                await pair.there.reading.verify(tokens.access_token)
            assert len(sent) == 1


async def test_it_answers_no_longer_than_it_may(database_url: str, own_redis: Redis, cache: object) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        async with away(pair.there, since=62):
            await unavailable(pair.there, tokens)
    async with two(database_url, own_redis, seconds=0) as pair:
        tokens = await a_session(pair.here)
        async with away(pair.there):
            await unavailable(pair.there, tokens)


async def test_a_session_whose_key_is_there_is_not_decided(database_url: str, own_redis: Redis, cache: object) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        await logout(pair.here, tokens)
        async with away(pair.there):
            await unavailable(pair.there, tokens)


async def test_a_redis_that_is_not_complete_decides_nothing(database_url: str, own_redis: Redis, cache: object) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        for marker in (None, "another epoch"):
            await cache.set(MARKER, marker) if marker else await cache.delete(MARKER)  # type: ignore[attr-defined]
            async with away(pair.there):
                await unavailable(pair.there, tokens)


async def test_what_ended_is_remembered_for_as_long_as_its_tokens_could_live(
    database_url: str, own_redis: Redis, cache: object
) -> None:
    async with two(database_url, own_redis) as pair:
        tokens = await a_session(pair.here)
        pair.there.revocations.checks.remember(str(tokens.session_id), "logout")
        _, until = pair.there.revocations.checks._ended[str(tokens.session_id)]
        assert 0 < until - monotonic() <= REMEMBERED_FOR.total_seconds()


async def test_a_browser_whose_access_cookie_is_valid_is_served_and_no_cookie_is_touched(
    database_url: str, own_redis: Redis, cache: object
) -> None:
    async with site_of(database_url, own_redis.url(9), database_pool=2) as site:
        await Pair(site.keyturn, site.keyturn).until_complete()
        one = await site.sign_in(await site.user())
        refresh = f"{R}={one.r}"
        async with away(site.keyturn):
            for sent, status in (
                (one.pair, 200),
                (f"{A}={one.aged(30)}; {refresh}", 200),  # it would be refreshed by now
                (f"{one.expired}; {refresh}", 503),
                (refresh, 503),
            ):
                answer = await ask(site.client, "GET", "/auth/verify?refresh=true", sent)
                assert (answer.status_code, set_cookies(answer)) == (status, []), answer.text
            answer = await ask(site.client, "POST", "/auth/refresh", one.pair, headers=SAME_SITE)
            assert (answer.status_code, set_cookies(answer)) == (503, [])
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", f"{one.expired}; {refresh}")
        assert (answer.status_code, len(set_cookies(answer))) == (200, 2)


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
