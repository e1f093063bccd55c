"""attacks.md 160: what answers at Redis's address is not the Redis that was meant. The database answers in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis as redis_sync

from app.errors import InvalidToken
from tests.conftest import Opener, a_user
from tests.servers import Postgres, Redis


@pytest.fixture
def engine() -> str:
    return "postgres"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Redis]:
    """A Redis that wants a password."""
    with Redis.start() as server:
        with redis_sync.Redis.from_url(server.url()) as client:
            client.config_set("requirepass", "the-password")
        yield server


@pytest.mark.parametrize("wrong", ["password", "tls", "another service", "nobody"])
async def test_a_redis_that_is_none_costs_a_moment_and_decides_nothing(
    open_keyturn: Opener, guarded: Redis, redis: Redis, postgres: Postgres, wrong: str
) -> None:
    url = {
        "password": guarded.url().replace("redis://", "redis://:not-the-password@"),
        "tls": redis.url().replace("redis://", "rediss://"),
        "another service": f"redis://127.0.0.1:{postgres.port}",
        "nobody": "redis://127.0.0.1:1",
    }[wrong]
    async with open_keyturn(redis_url=url) as keyturn:
        noted: list[str] = []
        keyturn.revocations._report = lambda event, level, **_: noted.append(f"{level} {event}")
        tokens = await keyturn.sessions.start(await a_user(keyturn))
        await keyturn.sessions.verify(tokens.access_token)
        newer = await keyturn.sessions.refresh(tokens.refresh_token)
        await keyturn.sessions.logout(None, newer.refresh_token, "this")
        for token in (tokens.access_token, newer.access_token):
            with pytest.raises(InvalidToken) as caught:
                await keyturn.sessions.verify(token)
            assert caught.value.reason == "logout"
        await asyncio.sleep(1.2)  # two more looks of the watch
        assert await keyturn.revocations.ping() == keyturn.revocations.cache == "away"
        assert noted in ([], ["warning redis_away"])  # noticed once, whatever the number of tries
