"""Sessions at an issuer, and owed revocations: the commands, and their twins under /admin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import insert, select

from app.actors import SERVICE
from app.commands.federation_sessions import _given_up
from app.keyturn import Keyturn
from app.storage.tables import UpstreamSession, uuid7
from tests.command_line import Command, command
from tests.conftest import PASSWORD
from tests.service import Service
from tests.test_revoking import environment
from tests.upstream.upstream import Upstream
from tests.without_exchange import NAME, file_of_issuers, rows, without_tasks

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@pytest.fixture
def keyturn(
    database_url: str,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(database_url, capsys, federation_file=str(file_of_issuers(tmp_path, upstream)))


async def given_up(keyturn: Keyturn, count: int) -> list[UUID]:
    ids = [uuid7() for _ in range(count)]
    async with keyturn.db.begin() as tx:
        now = (await tx.execute(select(keyturn.db.now()))).scalar_one()
        moments = dict.fromkeys(("created_at", "ordered_at", "settled_at"), now)
        what = {"issuer_name": NAME, "upstream_id": "ses_1", "attempts": 50, "outcome": "given_up", "failure": "why"}
        await tx.execute(insert(UpstreamSession), [{"session_id": each, **moments, **what} for each in ids])
    return ids


def test_a_session_is_shown_as_the_issuer_describes_it(keyturn: Command, upstream: Upstream) -> None:
    login = upstream.sign_in()
    shown = keyturn.ok("federation", "sessions", "get", NAME, login.session_id, "--json").json
    assert (shown["id"], shown["user"], shown["status"]) == (login.session_id, login.user_id, "active")
    assert shown["absolute_expires_at"].endswith("Z")
    assert login.session_id in keyturn.ok("federation", "sessions", "get", NAME, login.session_id).out
    assert "it has no such session or user" in keyturn.refused(1, "federation", "sessions", "get", NAME, "ses_404")
    assert "no such issuer" in keyturn.refused(1, "federation", "sessions", "get", "another", login.session_id)
    upstream.refuse()
    assert "no connection" in keyturn.refused(3, "federation", "sessions", "get", NAME, login.session_id)


def test_no_text_of_an_issuer_reaches_the_terminal_as_a_command_for_it_or_for_a_shell(
    keyturn: Command, upstream: Upstream
) -> None:
    session = {"session_id": "ses_1\x1b[2J", "status": "active\x07", "device": {"os": "\u202eX"}}
    page = {"sessions": [session], "next_page_token": "\x1b]0;x\x07; touch /tmp/x"}
    upstream.fault("/api/v1/users/", "answer", status=200, body=json.dumps(page))
    listed = keyturn.ok("federation", "sessions", "list", NAME, "usr_1")
    assert all(line.isprintable() for line in (listed.out + listed.err).splitlines())
    assert "--page '\\x1b]0;x\\x07; touch /tmp/x'" in listed.err


def test_the_sessions_of_a_user_are_listed_page_by_page_and_by_filters(keyturn: Command, upstream: Upstream) -> None:
    logins = [upstream.sign_in() for _ in range(3)]
    user = logins[0].user_id
    upstream.end(logins[0].session_id)
    first = keyturn.ok("federation", "sessions", "list", NAME, user, "--limit", "2", "--json")
    page = first.err.partition("--page ")[2].strip()
    rest = keyturn.ok("federation", "sessions", "list", NAME, user, "--limit", "2", "--page", page, "--json")
    assert [len(first.json), len(rest.json), rest.err] == [2, 1, ""]
    live = keyturn.ok("federation", "sessions", "list", NAME, user, "--status", "active", "--json").json
    assert {row["id"] for row in live} == {login.session_id for login in logins[1:]}
    both = ("--status", "active", "--status", "logout")
    assert len(keyturn.ok("federation", "sessions", "list", NAME, user, *both, "--json").json) == 3
    none = ("--created-after", "2100-01-01T00:00:00Z")
    assert keyturn.ok("federation", "sessions", "list", NAME, user, *none, "--json").json == []


def test_one_session_and_all_sessions_of_a_user_are_revoked_with_an_event(keyturn: Command, upstream: Upstream) -> None:
    logins = [upstream.sign_in() for _ in range(3)]
    one = logins[0]
    assert keyturn.ok("federation", "sessions", "revoke", NAME, one.session_id).out == "revoked\n"
    assert upstream.status(one.session_id) == "revoked"
    assert "over before" in keyturn.ok("federation", "sessions", "revoke", NAME, one.session_id).out
    assert keyturn.ok("federation", "sessions", "revoke-all", NAME, one.user_id).out == "2 sessions revoked\n"
    assert [upstream.status(login.session_id) for login in logins] == ["revoked"] * 3
    events = keyturn.ok("events", "list", "--event", "upstream_revoked", "--json").json
    assert [event["detail"] for event in events] == [NAME, *[f"{NAME} {one.session_id}"] * 2]
    assert {event["actor"] for event in events} == {"command"}


def test_all_that_was_given_up_is_found_page_by_page(keyturn: Command) -> None:
    async def act(parts: Keyturn) -> None:
        ids = await given_up(parts, 5)
        for page in (1, 2, 5, 6):
            assert await _given_up(parts, page) == ids[::-1]

    keyturn.inside(act)


def test_what_was_given_up_is_listed_and_replayed(keyturn: Command) -> None:
    async def act(parts: Keyturn) -> list[UUID]:
        return await given_up(parts, 3)

    ids = [str(each) for each in keyturn.inside(act)]
    listed = keyturn.ok("federation", "revocations", "--given-up", "--json").json
    assert [row["session_id"] for row in listed] == ids[::-1]
    assert {(row["state"], row["failure"], row["attempts"]) for row in listed} == {("given_up", "why", 50)}
    assert "1 revocation due now" in keyturn.ok("federation", "replay", ids[0]).out
    assert ids[0] in keyturn.refused(1, "federation", "replay", ids[0])
    assert "2 revocations due now" in keyturn.ok("federation", "replay", "--all").out
    assert keyturn.ok("federation", "revocations", "--given-up", "--json").json == []
    assert {row["state"] for row in keyturn.ok("federation", "revocations", "--json").json} == {"waiting"}
    keyturn.refused(2, "federation", "replay")
    keyturn.refused(2, "federation", "replay", ids[0], "--all")


@pytest.fixture
async def admin(database_url: str, tmp_path: Path, upstream: Upstream, logs: Path) -> AsyncIterator[httpx2.AsyncClient]:
    issuers = file_of_issuers(tmp_path, upstream)
    with await asyncio.to_thread(Service.start, environment(database_url, issuers), logs=logs) as service:
        async with httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=30) as client:
            async with without_tasks(database_url) as parts:
                await parts.users.create("root@example.com", PASSWORD, "admin", by=SERVICE)
            login = await client.post("/auth/login", json={"email": "root@example.com", "password": PASSWORD})
            client.headers["authorization"] = f"Bearer {login.json()['access_token']}"
            yield client


async def test_an_administrator_reads_and_revokes_sessions_at_the_issuer(
    admin: httpx2.AsyncClient, upstream: Upstream
) -> None:
    logins = [await asyncio.to_thread(upstream.sign_in) for _ in range(3)]
    path = f"/admin/federation/{NAME}/sessions"
    shown = (await admin.get(f"{path}/{logins[0].session_id}")).json()
    assert (shown["id"], shown["status"]) == (logins[0].session_id, "active")
    page = (await admin.get(path, params={"user": logins[0].user_id, "limit": "2"})).json()
    rest = (await admin.get(path, params={"user": logins[0].user_id, "limit": "2", "page": page["next_page"]})).json()
    assert (len(page["items"]), len(rest["items"]), page["total"], "next_page" in rest) == (2, 1, 3, False)
    assert (await admin.post(f"{path}/{logins[0].session_id}/revoke")).json() == {"outcome": "revoked"}
    assert (await admin.post(f"{path}/{logins[0].session_id}/revoke")).json() == {"outcome": "gone"}
    only = {"user": logins[0].user_id, "status": ["revoked", "logout"]}
    assert [row["id"] for row in (await admin.get(path, params=only)).json()["items"]] == [logins[0].session_id]
    assert (await admin.post(f"{path}/revoke", json={"user": logins[0].user_id})).json() == {"revoked": 2}


async def test_what_an_administrator_asks_wrongly_is_refused_with_the_name_of_the_field(
    admin: httpx2.AsyncClient, upstream: Upstream
) -> None:
    path = f"/admin/federation/{NAME}/sessions"
    for params, field in (
        ({}, "user"),
        ({"user": "usr_1", "status": "gone"}, "status"),
        ({"user": "usr_1", "limit": "101"}, "limit"),
        ({"user": "usr_1", "created_after": "yesterday"}, "created_after"),
    ):
        answer = await admin.get(path, params=params)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
        assert field in answer.json()["error_description"]
    assert (await admin.get(f"{path}/ses_404")).status_code == 404
    assert (await admin.get(f"{path}/a%20b")).status_code == 400, "the issuer alone knows the form of its ids"
    assert (await admin.get(f"{path}/%2E%2E")).status_code == 404
    assert (await admin.get("/admin/federation/another/sessions/ses_1")).status_code == 404
    assert (await admin.post(f"{path}/revoke", json={"user": "usr_404"})).status_code == 404
    await asyncio.to_thread(upstream.refuse)
    away = await admin.get(f"{path}/ses_1")
    assert (away.status_code, "retry-after" in away.headers) == (503, True)


async def test_an_administrator_lists_and_replays_what_was_given_up(
    admin: httpx2.AsyncClient, upstream: Upstream, database_url: str
) -> None:
    await asyncio.to_thread(upstream.refuse)
    async with without_tasks(database_url) as parts:
        ids = await given_up(parts, 3)
        path = "/admin/upstream-revocations"
        page = (await admin.get(path, params={"state": "given_up", "limit": "2"})).json()
        rest = (await admin.get(path, params={"state": "given_up", "limit": "2", "cursor": page["next_cursor"]})).json()
        assert [row["session_id"] for row in page["items"] + rest["items"]] == [str(each) for each in ids[::-1]]
        assert "next_cursor" not in rest
        assert (await admin.post(f"{path}/{ids[0]}/replay")).status_code == 204
        assert (await admin.post(f"{path}/{ids[0]}/replay")).status_code == 404
        assert (await admin.get(path, params={"state": "gone"})).status_code == 400
        assert (await rows(parts))[ids[0]].outcome is None
        (event,) = await parts.events.list(limit=9, event="upstream_ordered_anew")
        assert event["actor"] == "administrator"
