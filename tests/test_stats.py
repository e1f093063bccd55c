"""Administrators see users, live sessions and refreshes in numbers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import httpx2
import pytest
from sqlalchemy import Connection, event, text

from app.actors import SERVICE, Actor
from app.errors import InvalidGrant, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.sessions.filters import Filter
from app.sessions.outcomes import Outcomes
from tests.conftest import CHEAP, SECRET, Opener, a_user, time_passes
from tests.service import Service

ISSUER = "https://auth.example.com"
ROOT = Actor("command", "root")


async def test_users_are_counted_by_whether_they_may_sign_in(keyturn: Keyturn) -> None:
    assert (await keyturn.statistics.count())[:3] == (0, 0, {})
    users = [await a_user(keyturn, f"user{n}@example.com") for n in range(3)]
    await keyturn.users.disable(users[0].user_id, by=ROOT)
    numbers = await keyturn.statistics.count()
    assert (numbers.enabled, numbers.disabled, numbers.live, numbers.complete) == (2, 1, {}, True)


async def test_exactly_the_live_sessions_are_counted_by_client_under_the_policy_in_force(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as keyturn:
        user = await a_user(keyturn)
        ended, *live = [await keyturn.starting.start(user, by=SERVICE) for _ in range(4)]
        await keyturn.ending.end({ended.session_id}, "revoked_by_admin", by=ROOT)
        async with keyturn.db.begin() as tx:
            for tokens in live[:1]:
                await tx.execute(
                    text("UPDATE sessions SET client_id = 'other' WHERE id = :id"),
                    {"id": tokens.session_id if keyturn.db.is_postgres else tokens.session_id.hex},
                )
        assert list((await keyturn.statistics.count()).live.items()) == [("first-party", 2), ("other", 1)]
        listed = (await keyturn.reading.list(Filter(), limit=9)).sessions
        assert {session.id for session in listed} == {tokens.session_id for tokens in live}
        await time_passes(keyturn, timedelta(hours=2))
        assert sum((await keyturn.statistics.count()).live.values()) == 3
    # A stricter policy holds at once for sessions that began under a longer one.
    async with open_keyturn(refresh_token_lifetime=3600) as stricter:
        assert (await stricter.statistics.count()).live == {}


async def test_a_session_under_a_retired_key_is_not_live(keyturn: Keyturn) -> None:
    await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.keys.replace(by=ROOT)
    assert (await keyturn.statistics.count()).live == {}


async def test_the_counting_stops_at_its_bound_and_says_so(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await a_user(keyturn)
    for _ in range(3):
        await keyturn.starting.start(user, by=SERVICE)
    for most, live, complete in ((4, 3, True), (3, 3, False), (2, 2, False)):
        monkeypatch.setattr("app.sessions.statistics.MOST", most)
        numbers = await keyturn.statistics.count()
        assert (numbers.live, numbers.complete) == ({"first-party": live}, complete)


async def test_all_numbers_come_from_one_statement_after_that_of_the_clock(keyturn: Keyturn) -> None:
    sent: list[str] = []

    def note(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(keyturn.db._other_reader.sync_engine, "before_cursor_execute", note)
    await keyturn.statistics.count()
    assert len(sent) == 2


async def test_each_refresh_is_counted_once_by_its_outcome(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = keyturn.rotation.outcomes

    def counted() -> tuple[int, ...]:
        return (
            outcomes.rotated, outcomes.retried, outcomes.reuse_detected, outcomes.refused, outcomes.unavailable
        )  # fmt: skip

    user = await a_user(keyturn)
    first = await keyturn.starting.start(user, by=SERVICE)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    assert counted() == (1, 0, 0, 0, 0)
    await asyncio.gather(*(keyturn.rotation.refresh(first.refresh_token, by=SERVICE) for _ in range(3)))
    assert counted() == (1, 3, 0, 0, 0)
    await keyturn.rotation.refresh(second.refresh_token, by=SERVICE)
    assert counted() == (2, 3, 0, 0, 0)
    for n, refused in ((1, 0), (1, 1), (1, 2)):  # the first is the reuse, the others hear of it
        with pytest.raises(InvalidGrant):
            await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
        assert counted() == (2, 3, n, refused, 0)
    with pytest.raises(InvalidGrant):
        await keyturn.rotation.refresh("junk", by=SERVICE)
    assert counted() == (2, 3, 1, 3, 0)

    async def away(*_: object) -> Any:
        raise TemporarilyUnavailable("away")

    other = await keyturn.starting.start(user, by=SERVICE)
    with monkeypatch.context() as broken:
        broken.setattr(keyturn.rotation._rotations, "_run", away)
        with pytest.raises(TemporarilyUnavailable):
            await keyturn.rotation.refresh(other.refresh_token, by=SERVICE)
    assert counted() == (2, 3, 1, 3, 1)
    # A hundred tokens that come together go together in few statements, and still each counts.
    many = [await keyturn.starting.start(user, by=SERVICE) for _ in range(20)]
    await asyncio.gather(*(keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE) for tokens in many))
    assert counted() == (22, 3, 1, 3, 1)


def test_a_counter_is_a_plain_number() -> None:
    outcomes, rounds = Outcomes(), 100_000
    before = perf_counter_ns()
    for _ in range(rounds):
        outcomes.rotated += 1
    print(f"{(perf_counter_ns() - before) / rounds:.0f} ns")
    assert outcomes.rotated == rounds
    assert type(outcomes.rotated) is int


async def test_an_administrator_reads_the_numbers_of_the_process_that_answers(
    open_keyturn: Opener, database_url: str, logs: Path
) -> None:
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, "issuer": ISSUER, **CHEAP}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    async with open_keyturn() as keyturn:
        tokens = await keyturn.starting.start(await a_user(keyturn, "root@example.com", "admin"), by=SERVICE)
        before = datetime.now(UTC)
        with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
            async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
                for token in (tokens.refresh_token, tokens.refresh_token, "junk"):
                    await client.post("/auth/refresh", json={"refresh_token": token})
                headers = {"Authorization": f"Bearer {tokens.access_token}"}
                answer = (await client.get("/admin/stats", headers=headers)).json()
    since = datetime.fromisoformat(answer["refreshes"].pop("since"))
    assert before < since < datetime.now(UTC)
    assert answer == {
        "users": {"enabled": 1, "disabled": 0},
        "sessions": [{"client_id": "first-party", "live": 1}],
        "complete": True,
        "refreshes": {"rotated": 1, "retried": 1, "reuse_detected": 0, "refused": 1, "unavailable": 0},
    }
