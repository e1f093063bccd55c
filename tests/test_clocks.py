"""Clocks that step while sessions end: that of Postgres, of Redis, of an instance, or of the whole machine.

The servers run under libfaketime, which can step their clock at any moment and does not change the monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from redis import asyncio as redis_asyncio

from app.actors import SERVICE
from app.errors import InvalidToken, Reason
from app.keyturn import Keyturn
from app.revocation import redis_server
from app.revocation.lifetimes import REMEMBERED_FOR, STEP
from app.sessions.answers import Tokens
from app.storage.migrating import migrate
from tests.conftest import CHEAP, PASSWORD, SECRET, a_user, settings_of
from tests.instances import instance, keep_complete, long_since_claimed
from tests.servers import Postgres, Redis, clock_from, libfaketime
from tests.service import Service

pytestmark = pytest.mark.skipif(libfaketime() is None, reason="no libfaketime (Debian: apt-get install faketime)")

HOUR, DAY = 3700, 86_000
STEPS = (HOUR, -HOUR, DAY, -DAY)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres.start(steps=True) as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with Redis.start(steps=True) as server:
        yield server


@pytest.fixture
async def url(postgres: Postgres, redis: Redis) -> AsyncIterator[str]:
    """The URL of a new database, with an empty Redis and right clocks. Sets the clocks right again afterwards."""
    name = f"clocks_{uuid4().hex[:12]}"
    await postgres.create_database(name)
    await asyncio.to_thread(migrate, settings_of(postgres.url(name), None))
    async with redis_asyncio.Redis.from_url(redis.url()) as client:
        await client.flushall()
    yield postgres.url(name)
    postgres.step(0)
    redis.step(0)
    await postgres.drop_database(name)


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "ACKNOWLEDGE_LIMIT", timedelta(seconds=5))


@pytest.fixture
async def keyturn(url: str, redis: Redis) -> AsyncIterator[Keyturn]:
    async with instance(url, redis.url(), access_token_lifetime=3600) as keyturn:
        await complete(keyturn)
        await long_since_claimed(keyturn)
        await keyturn.revocations.fence.read()
        yield keyturn


async def complete(keyturn: Keyturn) -> None:
    """Reads and rebuilds, as the watch does, until this instance believes Redis."""
    async with asyncio.timeout(20):
        while await keyturn.revocations.ping() != "complete":
            await keep_complete(keyturn)


async def a_session(keyturn: Keyturn) -> Tokens:
    return await keyturn.starting.start(await a_user(keyturn, f"{uuid4()}@example.com"), by=SERVICE)


async def flush(redis: Redis) -> None:
    async with redis_asyncio.Redis.from_url(redis.url()) as client:
        await client.flushall()


async def never_accepted(keyturn: Keyturn, tokens: Tokens, reason: Reason = "logout") -> None:
    """Asserts that the token is refused, even if the process remembers no ended session.

    A clock that is ahead may let the token expire, which is a refusal too.
    """
    keyturn.revocations.checks._ended.clear()
    with pytest.raises(InvalidToken) as caught:
        await keyturn.reading.verify(tokens.access_token)
    assert caught.value.reason in {reason, "token_expired", None}


@pytest.mark.parametrize("step", STEPS)
async def test_a_rebuild_while_the_databases_clock_is_wrong_loses_no_revocation(
    keyturn: Keyturn, url: str, postgres: Postgres, redis: Redis, step: int
) -> None:
    """The revocation holds in the process that saw the step and in a process that starts afterwards."""
    ended, live = await a_session(keyturn), await a_session(keyturn)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
    postgres.step(step)
    await flush(redis)
    await complete(keyturn)
    async with redis_asyncio.Redis.from_url(redis.url()) as client:
        assert await client.ttl(f"{{keyturn}}:revoked:{ended.session_id}") >= REMEMBERED_FOR.total_seconds()
    await never_accepted(keyturn, ended)
    postgres.step(0)
    await keyturn.revocations.fence.read()
    await never_accepted(keyturn, ended)
    await keyturn.reading.verify(live.access_token)
    await complete(keyturn)
    await never_accepted(keyturn, ended)
    await keyturn.reading.verify(live.access_token)
    async with instance(url, redis.url(), access_token_lifetime=3600) as newcomer:
        await complete(newcomer)
        await never_accepted(newcomer, ended)
        await newcomer.reading.verify(live.access_token)


@pytest.mark.parametrize("step", STEPS)
async def test_a_logout_while_the_databases_clock_is_wrong_holds_when_it_is_right_again(
    keyturn: Keyturn, postgres: Postgres, redis: Redis, step: int
) -> None:
    before = await a_session(keyturn)
    postgres.step(step)
    await keyturn.revocations.fence.read()
    within = await a_session(keyturn)
    for tokens in (before, within):
        await keyturn.ending.logout((), [tokens.refresh_token], "this", by=SERVICE)
    postgres.step(0)
    await keyturn.revocations.fence.read()
    for rebuilt in (False, True):
        if rebuilt:
            await flush(redis)
        await complete(keyturn)
        for tokens in (before, within):
            await never_accepted(keyturn, tokens)


async def expire_revocations(redis: Redis) -> None:
    async with redis_asyncio.Redis.from_url(redis.url()) as client:
        for name in await client.keys("{keyturn}:revoked:*"):
            await client.delete(name)


async def test_a_token_that_lives_again_when_the_databases_clock_goes_back_is_still_refused(
    keyturn: Keyturn, url: str, postgres: Postgres, redis: Redis
) -> None:
    """The revocation in Redis has expired by then, and another rule must refuse the token.

    The same holds for a token that was issued while the clock was ahead, when the clock reaches that moment again.
    """
    old = await a_session(keyturn)
    await keyturn.ending.logout((), [old.refresh_token], "this", by=SERVICE)
    postgres.step(HOUR + 60)
    await keyturn.revocations.fence.read()
    from_ahead = await a_session(keyturn)
    await expire_revocations(redis)
    assert await keyturn.revocations.ping() == "complete"
    postgres.step(0)
    await keyturn.revocations.fence.read()
    await never_accepted(keyturn, old)
    await keyturn.ending.logout((), [from_ahead.refresh_token], "this", by=SERVICE)
    await complete(keyturn)
    await never_accepted(keyturn, old)
    await expire_revocations(redis)
    postgres.step(HOUR + 60)
    await keyturn.revocations.fence.read()
    await never_accepted(keyturn, from_ahead)
    async with instance(url, redis.url(), access_token_lifetime=3600) as newcomer:  # an instance that saw no step
        assert await newcomer.revocations.ping() == "complete"
        await never_accepted(newcomer, from_ahead)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_step_of_redis_clock_loses_no_revocation(keyturn: Keyturn, redis: Redis, step: int) -> None:
    ended = await a_session(keyturn)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
    for seconds in (step, 0):
        redis.step(seconds)
        await keyturn.revocations.fence.read()
        await never_accepted(keyturn, ended)
        await complete(keyturn)
        await never_accepted(keyturn, ended)


async def test_a_step_of_redis_clock_that_nobody_notices_takes_no_key(keyturn: Keyturn, url: str, redis: Redis) -> None:
    """During the step, Redis drops each expired key that it looks at.

    No process reads the marker meanwhile, so the marker comes back with the clock. Redis must not have dropped a
    revocation either.
    """
    ended = await a_session(keyturn)
    async with instance(url, redis.url()) as other, redis_asyncio.Redis.from_url(redis.url()) as client:
        await complete(other)
        await other.reading.verify(ended.access_token)  # from now on, it asks Redis alone about the session
        await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
        redis.step(HOUR + 400)
        assert await client.exists(f"{{keyturn}}:revoked:{ended.session_id}")
        redis.step(0)
        await never_accepted(other, ended)


async def test_many_small_steps_of_redis_clock_lose_no_revocation_either(keyturn: Keyturn, redis: Redis) -> None:
    """Each step is too small to let the marker expire, and the watch renews the marker between the steps."""
    ended = await a_session(keyturn)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
    for n in range(1, 90):
        redis.step(n * 45)
        await keep_complete(keyturn)
    await complete(keyturn)
    await never_accepted(keyturn, ended)


async def test_a_step_of_the_whole_machines_clock_loses_no_revocation(
    keyturn: Keyturn, postgres: Postgres, redis: Redis
) -> None:
    ended = await a_session(keyturn)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
    for seconds in (HOUR, 0, -HOUR, 0, DAY, 0, -DAY, 0):
        postgres.step(seconds)
        redis.step(seconds)
        await keyturn.revocations.fence.read()
        await never_accepted(keyturn, ended)
        await complete(keyturn)
        await never_accepted(keyturn, ended)


async def test_a_clock_that_went_back_keeps_no_second_redis_from_being_claimed(
    keyturn: Keyturn, url: str, postgres: Postgres
) -> None:
    postgres.step(-HOUR)
    with Redis.start() as second:
        async with instance(url, second.url()) as apart:
            await complete(apart)


async def test_a_few_seconds_are_no_step(keyturn: Keyturn, postgres: Postgres, redis: Redis) -> None:
    await keyturn.revocations.fence.read()
    fence = keyturn.revocations.fence.last
    seconds = int(STEP.total_seconds()) - 5
    for server in (postgres, redis):
        server.step(-seconds)
        await keep_complete(keyturn)
        server.step(0)
        await keep_complete(keyturn)
    after = keyturn.revocations.fence.last
    assert fence is not None
    assert after is not None
    assert after.epoch == fence.epoch


@pytest.mark.parametrize("step", [DAY, -DAY])
async def test_an_instance_whose_own_clock_steps_judges_like_the_others(
    url: str, redis: Redis, logs: Path, tmp_path: Path, step: int
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0s")
    environment = {
        "KEYTURN_DATABASE_URL": url,
        "KEYTURN_REDIS_URL": redis.url(),
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_ISSUER": "https://auth.example.com",
        **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()},
        **clock_from(clock),
    }

    async def ask(client: httpx2.AsyncClient, path: str, **request: Any) -> httpx2.Response:
        return await client.request("POST" if "json" in request else "GET", path, **request)

    with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
        async with (
            httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=20) as client,
            instance(url, redis.url()) as keyturn,
        ):
            email = f"{uuid4()}@example.com"
            await keyturn.users.create(email, PASSWORD, "user", by=SERVICE)
            answers = [await ask(client, "/auth/login", json={"email": email, "password": PASSWORD}) for _ in range(2)]
            live, ended = (answer.json() for answer in answers)
            await ask(client, "/auth/logout", json={"refresh_token": ended["refresh_token"]})
            clock.write_text(f"{step:+d}s")
            for _ in range(40):
                for tokens, status in ((live, 200), (ended, 401)):
                    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
                    assert (await ask(client, "/auth/verify", headers=bearer)).status_code == status
                await asyncio.sleep(0.03)
            refreshed = await ask(client, "/auth/refresh", json={"refresh_token": live["refresh_token"]})
            assert refreshed.status_code == 200
