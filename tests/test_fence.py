"""Readings of the fence: what one vouches for, how long, and which of two counts."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, text, update

from app.revocation.fence import NEVER_CLAIMED, READ_LIMIT, Fence, Reading
from app.revocation.lifetimes import VOUCHES_FOR
from app.revocation.redis_server import Server
from app.revocation.revocations import Revocations
from app.storage.tables import CacheFence, Pulse
from tests.instances import (
    Clock,
    Pair,
    a_session,
    asks,
    cache,
    clock,
    engine,
    instance,
    no_haste,
    own_redis,
    pair,
    read,
    statements,
    unconnected,
)

__all__ = ["cache", "clock", "engine", "no_haste", "own_redis", "pair", "unconnected"]  # fixtures


async def test_a_reading_of_the_fence_vouches_for_one_second(pair: Pair) -> None:
    tokens = await a_session(pair.here)
    fence = pair.there.revocations.fence.last
    assert fence is not None
    pair.there.revocations.fence.last = replace(fence, began=time.monotonic() - VOUCHES_FOR.total_seconds() + 0.5)
    assert await asks(pair.there, tokens) == 0
    pair.there.revocations.fence.last = replace(fence, began=time.monotonic() - VOUCHES_FOR.total_seconds())
    assert await asks(pair.there, tokens) == 1


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_reading_that_comes_late_never_replaces_one_that_began_after_it(
    database_url: str, clock: Clock
) -> None:
    async with instance(database_url, None) as keyturn:
        mine = keyturn.revocations
        first = mine.fence.last
        assert first is not None
        since = first.vouches_from
        assert first == Fence(NEVER_CLAIMED, None, clock.now, clock.now, since)
        clock.now += 5
        await mine.fence._take(clock.now - 5.1)
        assert mine.fence.last == first
        await mine.fence._take(clock.now - 3)  # the epoch is the same, so `known_since` stays
        assert mine.fence.last == replace(first, began=clock.now - 3)
        async with keyturn.db.begin() as tx:
            await tx.execute(update(CacheFence).values(epoch="1" * 32, server="another"))
        # `known_since` counts from the arrival of the reading, not from its request.
        await mine.fence._take(clock.now - 1)
        assert mine.fence.last == Fence("1" * 32, "another", clock.now - 1, clock.now, since)


async def test_the_databases_clock_is_learned_from_a_reading_that_was_not_late(
    pair: Pair, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = timedelta(hours=1)
    db, limit = pair.here.db, READ_LIMIT.total_seconds()

    def ahead() -> timedelta:
        return db.clock() - datetime.now(UTC)

    assert db._zero is not None
    db._zero += hour
    await pair.here.revocations.fence._take(clock.now - limit - 0.001)
    assert ahead() > hour / 2
    await pair.here.revocations.fence._take(clock.now - limit)
    assert ahead() < hour / 2
    # The process assumes that the answer was under way for half of the round trip.
    monkeypatch.setattr("app.revocation.fence.READ_LIMIT", hour)
    await pair.here.revocations.fence._take(clock.now - 600)
    assert timedelta(minutes=4) < ahead() < timedelta(minutes=6)


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_one_statement_reads_fence_and_pulse_and_each_newer_reading_is_handed_on(
    database_url: str,
) -> None:
    async with instance(database_url, None) as keyturn:
        readings: list[Reading] = []
        reader = keyturn.revocations.fence
        reader.on_reading = readings.append
        began = time.monotonic()
        with statements(keyturn) as sent:
            await reader.read()
        assert len(sent) == 1
        (first,) = readings
        assert began <= first.began <= time.monotonic()
        assert abs(first.now - datetime.now(UTC)) < timedelta(minutes=1)
        async with keyturn.db.begin() as tx:
            await tx.execute(update(Pulse).values(keys=Pulse.keys + 1))
        await reader.read()
        assert readings[1].keys_version == first.keys_version + 1
        assert readings[1].began > first.began
        await reader._take(first.began)  # a late reading, older than the known one, is dropped
        assert len(readings) == 2

        def away(*_: object) -> None:
            raise ConnectionRefusedError

        event.listen(keyturn.db._watch_engine.sync_engine, "before_cursor_execute", away)
        await reader.read()
        assert not reader.database_answers()
        assert len(readings) == 2


async def test_a_postgres_that_is_read_only_is_none_that_was_read(pair: Pair) -> None:
    async with pair.here.db.watch_connection() as connection:
        database = (await connection.execute(text("SELECT current_database()"))).scalar_one()
    there = pair.there.revocations

    async def becomes(read_only: str) -> None:
        async with pair.here.db.watch_connection() as connection:
            for statement in (
                "SET default_transaction_read_only = off",
                f'ALTER DATABASE "{database}" SET default_transaction_read_only = {read_only}',
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()",
            ):
                await connection.execute(text(statement))

    await read(pair.there)
    fence = there.fence.last
    assert fence is not None
    assert there.fence.database_answers()
    await becomes("on")
    for _ in range(3):
        await read(pair.there)
    assert there.fence.last == fence
    assert not there.fence.database_answers()
    await becomes("off")
    for _ in range(3):  # each try discards a connection that found the server read-only
        await read(pair.there)
    assert there.fence.database_answers()


SERVER = Server("5" * 40, "6" * 40, evicts=False)
assert SERVER.identity


def test_silence_is_believed_only_of_the_server_and_epoch_of_a_reading_that_vouches(
    unconnected: Revocations, clock: Clock
) -> None:
    now, second = clock.now, VOUCHES_FOR
    marker = b"e" * 32
    assert not unconnected.fence.believes(SERVER, marker, now, second)  # no reading yet
    fence = Fence(marker.decode(), SERVER.identity, now - second.total_seconds(), 0)
    unconnected.fence.last = fence
    assert unconnected.fence.believes(SERVER, marker, now, second)
    assert not unconnected.fence.believes(SERVER, marker, now + 0.001, second)
    assert not unconnected.fence.believes(SERVER, b"f" * 32, now, second)
    assert not unconnected.fence.believes(SERVER, None, now, second)
    for other in (
        replace(SERVER, run_id="7" * 40),
        replace(SERVER, replication_id="7" * 40),
        replace(SERVER, evicts=True),
        replace(SERVER, run_id="0" * 40),
        replace(SERVER, run_id=""),
        replace(SERVER, replication_id=""),
    ):
        assert not unconnected.fence.believes(other, marker, now, second)
    unconnected.fence.last = replace(fence, server=None)
    assert not unconnected.fence.believes(SERVER, marker, now, second)
    # A fence without a server must not match a server without an identity.
    assert not unconnected.fence.believes(replace(SERVER, run_id=""), marker, now, second)


def test_a_minute_without_the_database_is_counted_from_the_last_moment_that_vouched(
    unconnected: Revocations, clock: Clock
) -> None:
    fence = Fence("e" * 32, SERVER.identity, clock.now - 61, 0)
    unconnected.fence.last = fence
    assert unconnected.checks._believes_without_database(SERVER, b"e" * 32)
    unconnected.fence.last = replace(fence, began=clock.now - 61.001)
    assert not unconnected.checks._believes_without_database(SERVER, b"e" * 32)
    unconnected.fence.last = replace(fence, began=clock.now)
    unconnected.checks._without_database = timedelta(0)
    assert not unconnected.checks._believes_without_database(SERVER, b"e" * 32)


@pytest.mark.parametrize(
    ("read", "failed", "away"),
    [
        (3.0, 1.0, True),
        (3.0, 1.001, False),  # an old failure proves nothing, because this process may have been suspended since
        (60.0, 40.0, False),
        (0.5, 0.6, False),  # the database has answered since the failure
        (None, 0.5, False),
    ],
)
def test_a_failed_reading_is_evidence_of_an_outage_for_a_second_unless_a_later_one_succeeded(
    unconnected: Revocations, clock: Clock, read: float | None, failed: float, away: bool
) -> None:
    unconnected.fence.last = None if read is None else Fence("", None, clock.now - read, 0)
    unconnected.fence._failed_began = clock.now - failed
    assert unconnected.fence.database_is_away() is away


@pytest.mark.parametrize(
    ("read", "failed", "answers"),
    [
        (2.0, 3.0, True),
        (2.001, 3.0, False),
        (0.0, float("inf"), True),
        (1.0, 1.0, False),
        (1.0, 0.5, False),
        (None, float("inf"), False),
    ],
)
def test_the_database_answers_if_it_was_read_in_the_last_two_seconds_and_no_later_reading_failed(
    unconnected: Revocations, clock: Clock, read: float | None, failed: float, answers: bool
) -> None:
    unconnected.fence.last = None if read is None else Fence("", None, clock.now - read, 0)
    unconnected.fence._failed_began = clock.now - failed
    assert unconnected.fence.database_answers() is answers
