"""Administrators read the events by filters and page by page; no page sorts the table or walks all of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Connection, event, insert, text, update

from app.actors import SERVICE, Actor
from app.events.audit import Event as Recorded
from app.events.audit import record
from app.keyturn import Keyturn
from app.storage.tables import Event, User, uuid7
from tests.conftest import CHEAP, SECRET, Opener, a_user
from tests.service import Service

ISSUER = "https://auth.example.com"
ROOT = UUID(int=7)
BY_ROOT = Actor("administrator", str(ROOT), "192.0.2.7", "request-7")
SORTS = re.compile(r"Sort|TEMP B-TREE|Seq Scan|SCAN events(?! USING)")


async def test_each_filter_leaves_exactly_the_events_that_it_names(keyturn: Keyturn) -> None:
    ada, bob = [await a_user(keyturn, f"{name}@example.com") for name in ("ada", "bob")]
    root = await a_user(keyturn, "root@example.com", "admin")
    async with keyturn.db.begin() as tx:
        await tx.execute(update(User).where(User.id == root.user_id).values(id=ROOT))
    session = await keyturn.starting.start(ada, by=Actor("user", str(ada.user_id)))
    await keyturn.starting.start(ada, by=Actor("user", str(ada.user_id)))
    await keyturn.users.set_role(bob.user_id, "editor", by=BY_ROOT)
    await keyturn.users.set_role(ada.user_id, "editor", by=Actor("command", "root"))
    await keyturn.ending.end({session.session_id}, "revoked_by_admin", by=BY_ROOT)
    every = await keyturn.events.list(limit=100)
    assert [e["id"] for e in every] == sorted((e["id"] for e in every), reverse=True)
    filters: list[tuple[dict[str, Any], Any]] = [
        ({"user_id": ada.user_id}, lambda e: e["user_id"] == ada.user_id),
        ({"session_id": session.session_id}, lambda e: e["session_id"] == session.session_id),
        ({"event": "role_changed"}, lambda e: e["event"] == "role_changed"),
        ({"event": "session_ended"}, lambda e: e["event"] == "session_ended"),
        ({"event": "policy_changed"}, lambda e: False),
        ({"actor": "user"}, lambda e: e["actor"] == "user"),
        ({"actor": "command"}, lambda e: e["actor"] == "command"),
        ({"actor": "service"}, lambda e: e["actor"] == "service"),
        ({"actor": ROOT}, lambda e: e["actor_id"] == str(ROOT)),
        ({"actor": ada.user_id}, lambda e: False),  # acted on herself alone, and not as an administrator
        (
            {"actor": "administrator", "event": "role_changed", "user_id": bob.user_id},
            lambda e: (e["actor"], e["event"], e["user_id"]) == ("administrator", "role_changed", bob.user_id),
        ),
        ({"session_id": session.session_id, "user_id": bob.user_id}, lambda e: False),
        ({"session_id": uuid7()}, lambda e: False),
    ]
    for given, holds in filters:
        found = await keyturn.events.list(limit=100, **given)
        assert [e["id"] for e in found] == [e["id"] for e in every if holds(e)], given
    with_something = [given for given, holds in filters if any(map(holds, every))]
    assert len(with_something) == len(filters) - 4


async def test_the_events_of_a_session_are_found_when_the_session_is_deleted(keyturn: Keyturn) -> None:
    session = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.ending.end({session.session_id}, "revoked_by_admin", by=BY_ROOT)
    async with keyturn.db.begin() as tx:
        await tx.execute(text("DELETE FROM sessions"))
    found = await keyturn.events.list(limit=9, session_id=session.session_id)
    assert [e["event"] for e in found] == ["session_ended", "session_started"]


async def test_moments_bound_the_events_though_the_clock_of_a_process_differs_from_the_database_s(
    keyturn: Keyturn,
) -> None:
    now = datetime.now(UTC)
    ids = {}
    async with keyturn.db.begin() as tx:  # ids of now, and moments up to 20 hours before and after
        for hours in (-20, -1, 0, 1, 20):
            at = now + timedelta(hours=hours)
            await tx.execute(
                insert(Event), [row := {"id": uuid7(), "at": at, "event": "role_changed", "actor": "user"}]
            )
            ids[hours] = row["id"]
    for since, until, expected in (
        (-1, None, [20, 1, 0, -1]),
        (None, 1, [0, -1, -20]),  # `until` itself is left out
        (-1, 1, [0, -1]),
        (10, None, [20]),  # its id lies 20 hours before its moment
        (None, -10, [-20]),
        (21, None, []),
    ):
        found = await keyturn.events.list(
            limit=9,
            since=None if since is None else now + timedelta(hours=since),
            until=None if until is None else now + timedelta(hours=until),
        )
        assert [e["id"] for e in found if e["id"] in ids.values()] == [ids[hours] for hours in expected]
    for far in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        await keyturn.events.list(limit=9, since=far)
        await keyturn.events.list(limit=9, until=far)


BEGUN = 0x0190_0000_0000 / 1000
"""The moment of the first of the many events: seconds since 1970."""


async def many_events(keyturn: Keyturn) -> None:
    """Starts and ends of sessions of a thousand users within 12 days, and each thousandth event by an administrator."""
    for first in range(1, 30_000, 3000):  # in parts, because a statement has a time limit
        async with keyturn.db.begin() as tx:
            fill = text(_FILL_POSTGRES if keyturn.db.is_postgres else _FILL_SQLITE)
            await tx.execute(fill, {"first": first, "last": first + 2999})
    async with keyturn.db.begin() as tx:
        await tx.execute(text("ANALYZE events"))


_FILL_POSTGRES = """
INSERT INTO events (id, at, event, actor, actor_id, user_id, session_id)
SELECT ('0190' || lpad(to_hex(n * 30000), 8, '0') || '70008000000000000000')::uuid,
  to_timestamp(1717986918.4 + n * 30),
  CASE WHEN n % 1000 = 0 THEN 'policy_changed' WHEN n % 2 = 0 THEN 'session_started' ELSE 'session_ended' END,
  CASE WHEN n % 1000 = 0 THEN 'administrator' ELSE 'user' END, CAST(n % 1000 AS text),
  ('0190000000007000800000000000' || lpad(to_hex(n % 1000), 4, '0'))::uuid,
  ('0190000000007000800000000001' || lpad(to_hex(n % 1000), 4, '0'))::uuid
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) n
"""
_FILL_SQLITE = """
WITH RECURSIVE s(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM s WHERE n < :last)
INSERT INTO events (id, at, event, actor, actor_id, user_id, session_id)
SELECT '0190' || printf('%08x', n * 30000) || '70008000000000000000',
  CAST((1717986918.4 + n * 30) * 1000000 AS INTEGER),
  CASE WHEN n % 1000 = 0 THEN 'policy_changed' WHEN n % 2 = 0 THEN 'session_started' ELSE 'session_ended' END,
  CASE WHEN n % 1000 = 0 THEN 'administrator' ELSE 'user' END, n % 1000,
  '0190000000007000800000000000' || printf('%04x', n % 1000),
  '0190000000007000800000000001' || printf('%04x', n % 1000)
FROM s
"""


async def plans(keyturn: Keyturn, **filters: Any) -> str:
    """The plans of the statements that a page takes, as the database says them."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        sent.append((statement, parameters))

    engine = keyturn.db._other_reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await keyturn.events.list(limit=21, **filters)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN " if keyturn.db.is_postgres else "EXPLAIN QUERY PLAN "
    lines: list[str] = []
    async with keyturn.db.look(hot_path=False) as connection:
        for statement, parameters in sent:
            rows = await connection.exec_driver_sql(explain + statement, parameters)
            lines += [str(row[-1]) for row in rows]
    return "\n".join(lines)


async def test_no_page_sorts_the_table_and_each_filter_has_an_index_in_the_order_of_the_page(keyturn: Keyturn) -> None:
    await many_events(keyturn)
    begun = datetime.fromtimestamp(BEGUN, UTC)
    key = "pk_events" if keyturn.db.is_postgres else "sqlite_autoindex_events_1"
    for filters, index in (
        ({}, key),
        ({"before": UUID("01900000-8000-7000-8000-000000000000")}, key),
        ({"user_id": UUID("01900000-0000-7000-8000-000000000005")}, "ix_events_user_id"),
        ({"event": "policy_changed"}, "ix_events_rare"),
        ({"event": "key_generated"}, "ix_events_rare"),
        ({"event": "session_ended"}, key),
        ({"actor": "administrator"}, "ix_events_actor"),
        ({"actor": "command"}, "ix_events_actor"),
        ({"actor": ROOT}, "ix_events_actor"),
        ({"until": begun + timedelta(days=6)}, key),
        ({"since": begun + timedelta(days=9)}, key),
        ({"since": begun + timedelta(days=5), "until": begun + timedelta(days=6), "event": "session_ended"}, key),
    ):
        plan = await plans(keyturn, **filters)
        print(filters, plan, sep="\n")
        assert not SORTS.search(plan), plan
        assert index in plan, (filters, plan)


async def test_the_user_of_a_session_is_looked_for_near_its_beginning_alone(keyturn: Keyturn) -> None:
    await many_events(keyturn)
    plan = await plans(keyturn, session_id=uuid7())
    assert not SORTS.search(plan), plan
    if keyturn.db.is_postgres:
        assert plan.count("id > ") == plan.count("id < ") == 1, plan
    else:
        assert "id>? AND id<?" in plan, plan


# -- over HTTP


@pytest.fixture
async def client(open_keyturn: Opener, database_url: str, logs: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with the token of an administrator, and a service on the test's database."""
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, "issuer": ISSUER, **CHEAP}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
        async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
            async with open_keyturn() as keyturn:
                tokens = await keyturn.starting.start(
                    await a_user(keyturn, "root@example.com", "admin"), by=Actor("user")
                )
                for _ in range(4):
                    await a_user(keyturn, f"{uuid7()}@example.com")
            client.headers["Authorization"] = f"Bearer {tokens.access_token}"
            yield client


async def test_an_administrator_reads_all_pages_one_after_the_other_and_each_event_once(
    client: httpx2.AsyncClient,
) -> None:
    every = (await client.get("/admin/events", params={"limit": 100})).json()
    assert "next_cursor" not in every
    assert len(every["items"]) >= 6
    read: list[Any] = []
    parameters: dict[str, Any] = {"limit": 2}
    while True:
        page = (await client.get("/admin/events", params=parameters)).json()
        read += page["items"]
        if "next_cursor" not in page:
            break
        assert len(page["items"]) == 2
        parameters["cursor"] = page["next_cursor"]
    assert read == every["items"]
    assert None not in [value for e in read for value in e.values()]
    [started] = [e for e in read if e["event"] == "session_started"]
    assert started.keys() == {"id", "at", "event", "actor", "actor_id", "user_id", "session_id", "client_id"}
    assert started["at"].endswith("Z")


async def test_a_cursor_belongs_to_the_filters_that_it_was_made_for(client: httpx2.AsyncClient) -> None:
    cursor = (await client.get("/admin/events?limit=1&event=user_created")).json()["next_cursor"]
    assert (await client.get("/admin/events", params={"event": "user_created", "cursor": cursor})).status_code == 200
    for other in ({}, {"event": "key_generated"}, {"event": "user_created", "actor": "service"}):
        answer = await client.get("/admin/events", params={**other, "cursor": cursor})
        assert (answer.status_code, answer.json()["error_description"]) == (400, "cursor: is none of this list's."), (
            other
        )


REFUSED = (
    ("limit=0", "limit"),
    ("limit=101", "limit"),
    ("limit=x", "limit"),
    ("user=ada@example.com", "user"),
    ("user=%7B00000000-0000-0000-0000-000000000000%7D", "user"),
    ("session=1", "session"),
    ("event=signed_in", "event"),
    ("actor=nobody", "actor"),
    ("since=yesterday", "since"),
    ("since=2026-01-31", "since"),
    ("since=2026-01-31T12:00:00", "since"),
    ("until=0001-01-01T00:00:00%2B23:59", "until"),
    ("cursor=x", "cursor"),
    ("event=user_created&event=user_created", "event"),
)


async def test_a_filter_that_is_not_understood_is_refused_and_never_left_out(client: httpx2.AsyncClient) -> None:
    for query, named in REFUSED:
        answer = await client.get(f"/admin/events?{query}")
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), query
        assert answer.json()["error_description"].startswith(f"{named}: "), query


async def test_moments_and_actors_are_read_in_the_words_of_the_contract(client: httpx2.AsyncClient) -> None:
    at = (await client.get("/admin/events?limit=1")).json()["items"][0]["at"]
    for spelled in (at, at.replace("Z", "+00:00"), at.replace("Z", "%2B00:00"), at.replace("T", "t").replace("Z", "z")):
        assert (await client.get(f"/admin/events?since={spelled}")).json()["items"], spelled
        assert at not in [e["at"] for e in (await client.get(f"/admin/events?until={spelled}")).json()["items"]]
    found = (await client.get("/admin/events?actor=service")).json()["items"]
    assert {e["actor"] for e in found} == {"service"}
    assert (await client.get(f"/admin/events?actor={uuid7()}")).json() == {"items": []}


async def test_the_twin_of_the_command_shows_an_address_that_came_with_an_act(
    client: httpx2.AsyncClient, open_keyturn: Opener
) -> None:
    async with open_keyturn() as keyturn, keyturn.db.begin() as tx:
        await record(tx, datetime.now(UTC), BY_ROOT, [Recorded("policy_changed", detail="global")])
    [found] = (await client.get(f"/admin/events?actor={ROOT}")).json()["items"]
    assert (found["address"], found["request_id"], found["detail"]) == ("192.0.2.7", "request-7", "global")
