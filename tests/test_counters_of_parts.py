"""Each word of each counter, held against what happened: limits, password hashes, Redis, the fence, batches."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import text

from app import metrics
from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidToken, SlowDown, TemporarilyUnavailable
from app.limits.limits import Limits
from app.users import hashing as hashing_module
from app.users.container import Container, Limit
from app.users.hashing import HashFailed, Hashing
from app.users.hashing_room import HashingRoom
from tests.api import ADA, Api, serving
from tests.conftest import NEW_PASSWORD, PASSWORD, settings_of
from tests.instances import (
    KEYS,
    Pair,
    a_session,
    between,
    cache,
    instance,
    keep_complete,
    logout,
    no_haste,
    own_redis,
    pair,
    read,
    refused,
)
from tests.servers import Redis, free_port
from tests.tally import Tally
from tests.test_hashing import GREEDY, HONEST, hashing, occupied, waiting
from tests.test_limits import from_network, right, tried, wrong

__all__ = ["cache", "no_haste", "own_redis", "pair"]  # fixtures

WRONG = "a wrong password, long enough"
JUNK = "ktr_" + "A" * 84


@pytest.fixture
def engine() -> str:
    return "postgres"


# -- password hashes


async def test_each_outcome_of_a_password_hash_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, seen, tally = hashing(slots=1, queue=2), list[str](), Tally()
    async with occupied(queue):
        greedy = [waiting(queue, seen, f"greedy {n}", GREEDY) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TemporarilyUnavailable):
            await queue.run(8, int, GREEDY)
        with pytest.raises(TemporarilyUnavailable):
            queue.admit(GREEDY)
        tally.exactly(metrics.HASHES, full=2)
        honest = waiting(queue, seen, "honest", HONEST)  # takes the place of the newest of the greedy network
        with pytest.raises(SlowDown):
            await greedy.pop()
        with pytest.raises(SlowDown):
            queue.admit(GREEDY)
        greedy[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await greedy[0]
    await honest
    tally.exactly(metrics.HASHES, full=2, share=2, left=1, done=2)
    small = Container(cores=Limit(8, "the test"), memory=Limit(2**29, "the test"), address_space=None, threads=None)
    settings = settings_of("sqlite+aiosqlite:///none", None)
    with pytest.raises(HashFailed):
        await Hashing(HashingRoom.of(settings, small), settings).run(2**40, int)
    with pytest.raises(ZeroDivisionError):
        await queue.run(8, lambda: 1 // 0)
    monkeypatch.setattr(hashing_module, "WAITS_FOR", timedelta(milliseconds=1))
    async with occupied(queue):
        with pytest.raises(TemporarilyUnavailable):
            await queue.run(8, int)
    monkeypatch.setattr(threading.Thread, "start", _no_thread)
    with pytest.raises(HashFailed):
        await queue.run(8, int)
    tally.exactly(metrics.HASHES, full=2, share=2, left=1, done=3, failed=3, late=1)
    # Each hash that began has its duration, and each that got its turn its wait.
    tally.exactly(metrics.HASH_DURATION, 4)
    tally.exactly(metrics.HASH_WAIT, 5)
    assert (metrics.HASHES_RUNNING.cells[0], metrics.HASHES_WAITING.cells[0]) == (0, 0)


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_hash_that_lost_its_place_while_its_client_left_is_counted_once() -> None:
    queue, tally = hashing(slots=1, queue=1), Tally()
    async with occupied(queue):
        stranger = waiting(queue, [], "stranger", GREEDY)
        await asyncio.sleep(0)
        known = waiting(queue, [], "known", HONEST._replace(known=True))
        asyncio.get_running_loop().call_soon(stranger.cancel)  # before the stranger learns that its place is lost
        await asyncio.gather(stranger, return_exceptions=True)
    await known
    assert sum(tally.of(metrics.HASHES).values()) == 3, tally.of(metrics.HASHES)


async def test_the_slots_in_use_and_the_queue_are_shown_while_they_are_full() -> None:
    queue = hashing(slots=2, queue=4)
    assert metrics.HASH_SLOTS.cells[0] == 2
    async with occupied(queue, 2):
        more = [waiting(queue, [], "waits", HONEST) for _ in range(3)]
        await asyncio.sleep(0)
        assert (metrics.HASHES_RUNNING.cells[0], metrics.HASHES_WAITING.cells[0]) == (2, 3)
    await asyncio.gather(*more)


# -- limits


_FAILED = {"refused": 3, "limited": 4}


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    ("setting", "counted", "outcomes"),
    [
        ("limit_account", ("account", "login"), _FAILED),
        ("limit_account_network", ("account_network", "login"), _FAILED),
        ("limit_network", ("network", "login"), _FAILED),
        ("limit_service", ("service", "login"), _FAILED),
        ("limit_register", ("account", "register"), {}),
        ("limit_register_network", ("network", "register"), {}),
        ("limit_exchange", ("network", "exchange"), {}),
        ("limit_exchange", ("network", "identities"), {}),
        ("limit_session", ("session", "refresh"), {"rotated": 3, "limited": 4}),
        ("limit_junk", ("junk", "refresh"), {"junk": 7}),
        ("limit_junk", ("junk", "verify"), {"junk": 7}),
        ("limit_device", ("device", "password"), {}),
        ("limit_device", ("device", "reauthenticate"), {}),
    ],
)
async def test_each_request_that_meets_a_limit_is_counted_once_by_the_limit_and_what_was_asked_for(
    database_url: str, setting: str, counted: tuple[Any, Any], outcomes: dict[str, int]
) -> None:
    off = dict.fromkeys(_LIMITS, "off")
    async with serving(database_url, registration="true", **off | {setting: "3/30"}) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = (await api.post("/auth/login", {"email": ADA, "password": PASSWORD, "device_id": "phone"})).json()
        tally = Tally()
        if counted[1] in {"exchange", "identities"}:  # this instance has no issuer, so the tokens are those of nobody
            for _ in range(3):
                await api.keyturn.limits.external_token_refused(counted[1], "192.0.2.1")
            for _ in range(4):
                with pytest.raises(SlowDown):
                    await api.keyturn.limits.external_token_refused(counted[1], "192.0.2.1")
        else:
            statuses = [await _attempt(api, counted, tokens, n) for n in range(7)]
            assert 429 not in statuses[:3]
            assert statuses[3:] == [429] * 4, statuses
        tally.exactly(metrics.LIMITS_HIT, {counted: 4})
        tally.exactly(metrics.LIMITS_LOCAL, 0)
        tally.exactly(metrics.LOGINS, outcomes if counted[1] == "login" else {})
        tally.exactly(metrics.REFRESHES, outcomes if counted[1] == "refresh" else {})
        tally.exactly(metrics.VERIFICATIONS, outcomes if counted[1] == "verify" else {})


_LIMITS = tuple(
    f"limit_{name}"
    for name in (
        *("account", "account_network", "device", "network", "service", "register", "register_network"),
        *("exchange", "session", "junk"),
    )
)


async def _attempt(api: Api, counted: tuple[str, str], tokens: dict[str, Any], number: int) -> int:
    """One attempt, which counts in the budget of this limit."""
    limit, surface = counted
    somebody = f"{number}@example.com" if limit in {"network", "service"} else ADA
    match surface:
        case "login":
            body = {"email": somebody, "password": WRONG}
        case "register":
            body = {"email": somebody, "password": PASSWORD}
        case "password":
            body = {"current_password": WRONG, "new_password": NEW_PASSWORD}
        case "reauthenticate":
            body = {"password": WRONG, "refresh_token": tokens["refresh_token"]}
        case _ if limit == "junk":
            body = {"refresh_token": JUNK}
        case _:
            body = {"refresh_token": tokens["refresh_token"]}
    if surface == "verify":
        return (await api.get("/auth/verify", "a.b.c")).status_code
    answer = await api.post(f"/auth/{surface}", body, tokens["access_token"] if surface == "password" else None)
    if surface == "refresh" and answer.status_code == 200:
        tokens["refresh_token"] = answer.json()["refresh_token"]
    return answer.status_code


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_known_device_that_goes_on_as_a_stranger_counts_for_no_limit(database_url: str) -> None:
    async with serving(database_url, **dict.fromkeys(_LIMITS, "off") | {"limit_device": "3/30"}) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = (await api.post("/auth/login", {"email": ADA, "password": PASSWORD, "device_id": "phone"})).json()
        tally = Tally()
        body = {"email": ADA, "password": WRONG, "device_token": tokens["device_token"]}
        assert [(await api.post("/auth/login", body)).status_code for _ in range(7)] == [401] * 7
        tally.exactly(metrics.LOGINS, refused=7)
        tally.exactly(metrics.LIMITS_HIT)


async def test_each_question_that_a_process_answers_alone_is_counted_once() -> None:
    for url, alone in ((None, 0), (f"redis://127.0.0.1:{free_port()}", 7)):
        limits, tally = Limits(settings_of("sqlite+aiosqlite:///x", url), bytes(32)), Tally()
        for n in range(5):
            outcome = await tried(limits, limits.sign_in(ADA, from_network(n)), wrong)
            assert outcome is InvalidGrant
        for _ in range(2):
            assert await tried(limits, limits.sign_in("bob@example.com", "192.0.2.1"), right) == "signed in"
        tally.exactly(metrics.LIMITS_LOCAL, alone)
        tally.exactly(metrics.LIMITS_HIT)
        await limits.close()


# -- Redis, the fence


async def test_each_check_for_revocation_is_counted_once_by_what_answered(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    live, ended, unknown = [await a_session(pair.here) for _ in range(3)]
    await read(pair.there)
    tally, verify = Tally(), pair.there.reading.verify
    for _ in range(5):
        await verify(live.access_token)
    tally.exactly(metrics.ANSWERERS, redis=5)
    await logout(pair.here, ended)
    await refused(pair.there, ended)  # its key is in Redis, so the database is asked
    for _ in range(3):
        await refused(pair.there, ended)
    tally.exactly(metrics.ANSWERERS, redis=5, database=1, memory=3)
    async with pair.here.db.begin() as tx:
        await tx.execute(text("DELETE FROM events"))
        await tx.execute(text("DELETE FROM sessions WHERE id = :id"), {"id": unknown.session_id})
    await cache.set(f"{KEYS}{unknown.session_id}", "1")
    await refused(pair.there, unknown, None)
    tally.exactly(metrics.ANSWERERS, redis=5, database=2, memory=3)
    # The access tokens of the sessions above are genuine. Junk asks nobody, so nothing is counted.
    with pytest.raises(InvalidToken):
        await verify(live.access_token[:-6] + "AAAAAA")
    tally.exactly(metrics.ANSWERERS, redis=5, database=2, memory=3)


async def test_each_rebuild_of_redis_is_counted_once_by_its_outcome(
    pair: Pair, cache: redis_asyncio.Redis, database_url: str
) -> None:
    rebuild, tally = pair.there.revocations.rebuild, Tally()
    await rebuild.keep_complete()  # complete already: none begins
    tally.exactly(metrics.REBUILDS)
    await cache.flushdb()
    await rebuild.keep_complete()
    tally.exactly(metrics.REBUILDS, done=1)
    await logout(pair.here, await a_session(pair.here))
    await cache.flushdb()
    between(pair.there, "_ended_lately", cache.flushdb)
    await rebuild.keep_complete()
    tally.exactly(metrics.REBUILDS, done=1, lost=1)
    await cache.flushdb()
    between(pair.there, "_claim", _away)
    await rebuild.keep_complete()
    tally.exactly(metrics.REBUILDS, done=1, lost=1, failed=1)
    await keep_complete(pair.there)
    tally.exactly(metrics.REBUILDS, done=2, lost=1, failed=1)
    with Redis.start() as second:
        async with instance(database_url, second.url()) as apart:
            await apart.revocations.rebuild.keep_complete()
    tally.exactly(metrics.REBUILDS, done=2, lost=1, failed=1, another_server=1)


async def _away() -> None:
    raise TemporarilyUnavailable("the database is away")


async def test_each_epoch_that_a_process_reads_and_each_ending_that_fences_is_counted_once(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    tokens = [await a_session(pair.here) for _ in range(3)]
    await read(pair.here, pair.there)
    tally = Tally()
    await read(pair.here, pair.there)
    tally.exactly(metrics.EPOCHS, 0)
    await logout(pair.here, tokens[0])
    tally.exactly(metrics.FENCED, 0)
    await cache.flushdb()
    await logout(pair.here, tokens[1])
    tally.exactly(metrics.FENCED, 1)
    tally.exactly(metrics.REVOCATION_LAG, 2)
    await read(pair.here, pair.there)
    tally.exactly(metrics.EPOCHS, 2)
    await logout(pair.here, tokens[1])  # once more: over already
    tally.exactly(metrics.SESSIONS_ENDED, logout=2)


# -- batches


async def test_each_item_of_a_batch_is_counted_once(pair: Pair) -> None:
    tokens, tally = [await a_session(pair.here) for _ in range(7)], Tally()
    before = _sum("rotation")
    await asyncio.gather(*(pair.here.rotation.refresh(each.refresh_token, by=SERVICE) for each in tokens))
    assert _sum("rotation") - before == 7
    sent = tally.of(metrics.BATCH_SIZE)["rotation"]
    assert 1 <= sent <= 7
    assert tally.of(metrics.BATCH_WAIT)["rotation"] == sent


def _sum(batch: Any) -> float:
    position = metrics.BATCH_SIZE.labels["batch"].index(batch)
    return metrics.BATCH_SIZE.read(metrics.BATCH_SIZE.cells, position)[1]
