"""`keyturn events`: what is listed, of whom, page by page, and as a table."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from app.actors import SERVICE, Actor
from app.events.audit import Event, record
from app.keyturn import Keyturn
from app.storage.tables import uuid7
from tests.command_line import Command, keyturn, on_sqlite, user

__all__ = ["keyturn"]  # fixtures


async def record_some(keyturn: Keyturn) -> None:
    """Records five events about two users and a key, one in each hour."""
    ada, bob = [await keyturn.users.find(name) for name in ("ada@example.com", "bob@example.com")]
    begun = datetime(2026, 11, 27, 8, 0, 0, 250_000, UTC)
    itself = Actor("user", str(ada.id), "192.0.2.7", "request-1")
    acts = (
        (Actor("command", "root"), Event("role_changed", ada.id, detail="auditor")),
        (itself, Event("session_started", ada.id, SESSION, "web")),
        (Actor("administrator", str(bob.id), "2001:db8::1", "request-2"),
         Event("session_ended", ada.id, SESSION, "web", "revoked_by_admin")),
        (Actor("anonymous", None, "\x1b[2J"), Event("session_ended", bob.id, uuid7(), None, "reuse_detected")),
        (SERVICE, Event("key_generated", detail="refresh-9")),
    )  # fmt: skip
    for hours, (who, event) in enumerate(acts):
        async with keyturn.db.begin() as tx:
            await record(tx, begun + timedelta(hours=hours), who, [event])
        await asyncio.sleep(0.002)  # ids are in order only from one millisecond to the next


SESSION = uuid7()


def test_events_are_listed_the_newest_first_with_everything_that_they_say(keyturn: Command) -> None:
    ada, bob = user(keyturn), user(keyturn, "bob@example.com")
    keyturn.inside(record_some)
    listed = keyturn.ok("events", "list", "--json").json[:5]
    assert [e["id"] for e in listed] == sorted((e["id"] for e in listed), reverse=True)
    assert listed[2] == {
        "id": listed[2]["id"],
        "at": "2026-11-27T10:00:00.250000Z",
        "event": "session_ended",
        "actor": "administrator",
        "actor_id": bob,
        "user_id": ada,
        "session_id": str(SESSION),
        "client_id": "web",
        "address": "2001:db8::1",
        "request_id": "request-2",
        "reason": "revoked_by_admin",
        "detail": None,
    }
    assert [e["event"] for e in listed] == [
        "key_generated", "session_ended", "session_ended", "session_started", "role_changed"
    ]  # fmt: skip
    assert (listed[4]["actor"], listed[4]["actor_id"], listed[4]["detail"]) == ("command", "root", "auditor")


def test_events_are_listed_of_one_user_of_one_session_and_page_by_page(keyturn: Command) -> None:
    ada = user(keyturn)
    user(keyturn, "bob@example.com")
    keyturn.inside(record_some)
    listed = keyturn.ok("events", "list", "--json").json
    for name in (ada, "ada@example.com"):
        of_user = keyturn.ok("events", "list", "--json", "--user", name).json
        assert of_user == [event for event in listed if event["user_id"] == ada]
        assert len(of_user) >= 3
    of_session = keyturn.ok("events", "list", "--json", "--session", str(SESSION)).json
    assert of_session == [event for event in listed if event["session_id"] == str(SESSION)]
    assert len(of_session) == 2
    pages: list[Any] = []
    last: list[str] = []
    while len(pages) < len(listed):
        pages += keyturn.ok("events", "list", "--json", "--limit", "2", *last).json
        last = ["--before", pages[-1]["id"]]
    assert pages == listed
    assert keyturn.ok("events", "list", "--json", *last).json == []
    done = keyturn.ok("events", "list", "--limit", "2")
    assert done.err == f"there may be more: --before {listed[1]['id']}, or a higher --limit\n"
    assert keyturn.ok("events", "list", "--limit", "2", "--json").err == ""
    assert "no such user" in keyturn.refused(1, "events", "list", "--user", "nobody@example.com")
    none = keyturn.ok("events", "list", "--session", str(uuid7()))
    assert (none.out, none.err) == ("", "there are none\n")


@on_sqlite
def test_events_are_listed_by_kind_by_actor_and_between_two_moments(keyturn: Command) -> None:
    ada = user(keyturn)
    keyturn.ok("users", "set-role", ada, "editor")
    keyturn.login("ada@example.com")
    listed = keyturn.ok("events", "list", "--json").json
    moments = [event["at"] for event in listed]
    assert len(set(moments)) > 3

    def found(*options: str) -> list[Any]:
        events: list[Any] = keyturn.ok("events", "list", "--json", *options).json
        return events

    assert found("--event", "role_changed") == [e for e in listed if e["event"] == "role_changed"] != []
    assert found("--actor", "command") == [e for e in listed if e["actor"] == "command"] != []
    assert found("--actor", ada) == []
    assert found("--since", moments[1]) == [e for e in listed if e["at"] >= moments[1]]
    assert found("--until", moments[1].removesuffix("Z")) == [e for e in listed if e["at"] < moments[1]]
    for wrong in (("--event", "nothing"), ("--actor", "nobody"), ("--since", "yesterday"), ("--until", "12:00")):
        keyturn.refused(2, "events", "list", *wrong)


def test_the_table_of_events_names_who_and_on_whom_and_no_terminal_obeys_it(keyturn: Command) -> None:
    user(keyturn)
    user(keyturn, "bob@example.com")
    keyturn.inside(record_some)
    done = keyturn.ok("events", "list")
    assert done.err == ""
    head, *lines = done.out.splitlines()
    assert head.split() == ["at", "event", "by", "on", "detail"]
    cells = [re.split(r"  +", line) for line in lines]
    started = ["2026-11-27T09:00:00Z", "session_started", "user", "ada@example.com"]
    assert started in cells
    ended = ["2026-11-27T10:00:00Z", "session_ended", "bob@example.com", "ada@example.com"]
    assert [*ended, "revoked_by_admin"] in cells
    assert ["2026-11-27T08:00:00Z", "role_changed", "command root", "ada@example.com", "auditor"] in cells
    assert ["2026-11-27T12:00:00Z", "key_generated", "service", "refresh-9"] in cells
    assert done.out.replace("\n", "").isprintable()
    wide = keyturn.ok("events", "list", "--wide").out
    assert {str(SESSION), "192.0.2.7", "2001:db8::1", r"\x1b[2J"} <= set(wide.split())
    assert wide.replace("\n", "").isprintable()
