"""Limits that several instances share through a real Redis, and what holds when it is paused, flushed or away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from secrets import token_hex
from time import monotonic
from typing import Any

import pytest
import redis as redis_sync

from app import metrics
from app.errors import InvalidGrant, SlowDown
from app.limits.limits import Limits
from app.limits.redis_cells import PREFIX, WAITS_FOR, RedisCells
from tests.conftest import settings_of
from tests.servers import Redis, free_port
from tests.test_limits import from_network, right, tried, wrong
from tests.test_races import until

PATIENT = timedelta(seconds=5)
"""How long these instances wait, so that a busy machine is no outage. The product waits for `WAITS_FOR`."""


@pytest.fixture(scope="module")
def ours() -> Iterator[Redis]:
    """A Redis of these tests alone, which they pause, flush and stop."""
    with Redis.start() as server:
        yield server


@asynccontextmanager
async def instance(url: str, waits_for: timedelta = PATIENT) -> AsyncIterator[Limits]:
    limits = Limits(settings_of("sqlite+aiosqlite:///x", url), bytes(32))
    limits._redis = RedisCells(url, waits_for)
    try:
        yield limits
    finally:
        await limits.close()


@pytest.fixture
async def two(ours: Redis) -> AsyncIterator[list[Limits]]:
    """Two instances on one Redis. In a test, they know nobody from before."""
    with redis_sync.Redis.from_url(ours.url()) as client:
        client.flushall()
    async with instance(ours.url()) as one, instance(ours.url()) as other:
        yield [one, other]


def someone() -> str:
    return f"{token_hex(8)}@example.com"


async def storm(instances: list[Limits], address: str, count: int) -> list[Any]:
    """Wrong passwords on one account from as many networks, in turn at each instance."""
    return [
        await tried(limits, limits.sign_in(address, from_network(n)), wrong)
        for n in range(count)
        for limits in [instances[n % len(instances)]]
    ]


async def test_two_instances_allow_no_more_than_one(two: list[Limits]) -> None:
    address = someone()
    assert await storm(two, address, 100) == [InvalidGrant] * 20 + [SlowDown] * 80
    outcomes = [await tried(two[n % 2], two[n % 2].sign_in(f"{n}{address}", "192.0.2.1"), wrong) for n in range(150)]
    assert outcomes == [InvalidGrant] * 100 + [SlowDown] * 50
    assert [await tried(one, one.sign_in(address, "192.0.2.1"), wrong) for one in two] == [SlowDown, SlowDown]


async def test_a_burst_of_attempts_is_no_outage_of_redis(two: list[Limits]) -> None:
    for _ in range(5):
        people = [(two[n % 2], f"{n}{someone()}") for n in range(400)]
        outcomes = await asyncio.gather(*(tried(one, one.sign_in(who, "192.0.2.1"), right) for one, who in people))
        assert outcomes == ["signed in"] * 400
    assert not two[0]._redis.is_away
    assert not two[1]._redis.is_away


async def test_guesses_at_once_at_two_instances_can_t_pass_before_the_first_failure_counts(two: list[Limits]) -> None:
    address, checked = someone(), 0

    async def slow() -> None:
        nonlocal checked
        checked += 1
        await asyncio.sleep(0.02)
        raise InvalidGrant("wrong password")

    outcomes = await asyncio.gather(
        *(tried(two[n % 2], two[n % 2].sign_in(address, from_network(n)), slow) for n in range(100))
    )
    assert (checked, outcomes.count(InvalidGrant)) == (20, 20)


async def test_what_redis_refuses_takes_nothing_of_the_process_s_own_count(two: list[Limits]) -> None:
    address = someone()
    await storm([two[0]], address, 30)
    assert await storm([two[1]], address, 200) == [SlowDown] * 200
    assert len(two[1]._here) == 0


async def test_the_right_password_takes_nothing_of_any_budget(two: list[Limits], ours: Redis) -> None:
    address = someone()
    outcomes = await asyncio.gather(
        *(tried(two[n % 2], two[n % 2].sign_in(address, "192.0.2.1"), right) for n in range(80))
    )
    assert outcomes == ["signed in"] * 80
    with redis_sync.Redis.from_url(ours.url()) as client:
        assert list(client.scan_iter(f"{PREFIX}*")) == []


async def test_no_key_of_redis_tells_whose_account_or_network_it_is(two: list[Limits], ours: Redis) -> None:
    address = someone()
    await storm(two, address, 30)
    with redis_sync.Redis.from_url(ours.url()) as client:
        keys = list(client.scan_iter("*"))
        assert len(keys) > 10
        for key in keys:
            assert len(key) == len(PREFIX) + 32
            assert 0 < client.pttl(key) <= 600_000
            assert int(client.get(key)) > 0


async def test_a_redis_that_is_flushed_during_a_storm_leaves_each_instance_its_own_count(
    two: list[Limits], ours: Redis
) -> None:
    address = someone()
    outcomes = await storm(two, address, 30)
    with redis_sync.Redis.from_url(ours.url()) as client:
        for _ in range(5):
            client.flushall()
            outcomes += await storm(two, address, 100)
    assert 20 <= outcomes.count(InvalidGrant) <= 2 * 20


async def test_without_redis_each_instance_allows_no_more_than_the_quota(capsys: pytest.CaptureFixture[str]) -> None:
    url, address = f"redis://127.0.0.1:{free_port()}", someone()
    async with instance(url) as one, instance(url) as other:
        outcomes = await storm([one, other], address, 200)
        assert outcomes.count(InvalidGrant) == 2 * 20
        assert one._redis.is_away
        assert await tried(one, one.sign_in(someone(), "192.0.2.1"), right) == "signed in"
    away = [line for line in capsys.readouterr().err.splitlines() if '"limits_redis_away"' in line]
    assert [json.loads(line)["cause"] for line in away] == ["Redis can't be reached (Connection refused)"] * 2


async def test_a_redis_that_goes_away_during_a_storm_gives_no_second_budget(two: list[Limits], ours: Redis) -> None:
    address = someone()
    outcomes = await storm(two, address, 16)
    ours.stop()
    try:
        outcomes += await storm(two, address, 200)
    finally:
        ours.restart(keep_data=False)
    assert outcomes.count(InvalidGrant) == 2 * 20  # 8 of each instance before, and 12 after
    await until(lambda: _answers(two))
    assert (await storm(two, address, 20)).count(InvalidGrant) == 0


async def test_a_redis_that_is_paused_keeps_a_request_waiting_once_and_no_further_request(
    ours: Redis,
) -> None:
    async with instance(ours.url(), WAITS_FOR) as one:
        await _paused(one, ours)


async def _paused(one: Limits, ours: Redis) -> None:
    address = someone()
    assert await tried(one, one.sign_in(address, "192.0.2.1"), right) == "signed in"
    ours.pause()
    try:
        began = monotonic()
        assert await tried(one, one.sign_in(address, "192.0.2.1"), right) == "signed in"
        assert monotonic() - began < 5  # a tenth of a second, on a machine that is not busy
        asked = 0
        send = one._redis._send

        async def counted(commands: Any, *, limit: timedelta) -> Any:
            nonlocal asked
            asked += limit == WAITS_FOR
            return await send(commands, limit=limit)

        one._redis._send = counted  # type: ignore[method-assign]
        outcomes = await storm([one], address, 100)
        assert outcomes.count(InvalidGrant) == 20
        assert asked == 0
    finally:
        ours.resume()
    await until(lambda: _answers([one]))
    assert await tried(one, one.sign_in(someone(), "192.0.2.1"), right) == "signed in"
    assert asked > 0


async def test_a_redis_that_can_t_write_counts_as_away(ours: Redis) -> None:
    with redis_sync.Redis.from_url(ours.url()) as client:
        client.flushall()
        client.config_set("maxmemory", "1")
        try:
            async with instance(ours.url()) as one:
                assert (await storm([one], someone(), 40)).count(InvalidGrant) == 20
                await asyncio.sleep(0.1)
                assert one._redis.is_away
                client.config_set("maxmemory", "0")
                await until(lambda: _answers([one]))
        finally:
            client.config_set("maxmemory", "0")


@pytest.mark.parametrize("reply", [b"$-1", b":0", b"*0", b"*2\r\n+no\r\n+script", b"HTTP/1.1 400 Bad Request"])
async def test_a_server_that_answers_as_no_redis_does_counts_as_away_until_it_answers_right(reply: bytes) -> None:
    replies, connections = [reply], 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                words = []
                for _ in range(int((await reader.readuntil(b"\r\n"))[1:])):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                answers = {b"EVAL": replies[0], b"HELLO": b"%1\r\n+proto\r\n:3"}
                writer.write(answers.get(words[0], b"+OK") + b"\r\n")
        connections -= 1
        writer.close()

    async def has_two_connections() -> bool:
        return connections == 2

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, instance(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as one:
        address = someone()
        attempts = [tried(one, one.sign_in(address, from_network(n)), wrong) for n in range(30)]
        assert (await asyncio.gather(*attempts)).count(InvalidGrant) == 20
        assert one._redis.is_away
        replies[0] = b"*2\r\n:0\r\n+0"
        await until(lambda: _answers([one]))
        await until(has_two_connections)  # as many as attempts may need at once, so that none waits for another one
        assert await tried(one, one.sign_in(someone(), "192.0.2.1"), right) == "signed in"
        assert not one._redis.is_away


async def test_a_caller_that_leaves_while_redis_works_disturbs_no_other(ours: Redis) -> None:
    async with instance(ours.url()) as one:
        for _ in range(50):
            task = asyncio.create_task(tried(one, one.sign_in(someone(), "192.0.2.1"), right))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        address = someone()
        assert await tried(one, one.sign_in(address, "192.0.2.1"), right) == "signed in"
        assert (await storm([one], address, 30)).count(InvalidGrant) == 20
        assert not one._redis.is_away


async def test_without_a_redis_nothing_asks_for_one() -> None:
    """And no operator is told that one is away."""
    cells, limits = RedisCells(None), Limits(settings_of("sqlite+aiosqlite:///x", None), bytes(32))
    assert await cells.take(limits.sign_in(someone(), "192.0.2.1").budgets) is None
    assert not cells.is_away
    await cells.close()
    alone = metrics.LIMITS_LOCAL.cells[0]
    assert (await storm([limits], someone(), 30)).count(InvalidGrant) == 20
    assert metrics.LIMITS_LOCAL.cells[0] == alone


async def _answers(instances: list[Limits]) -> bool:
    return not any(one._redis.is_away for one in instances)
