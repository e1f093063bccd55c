"""Every change leaves one event, in its own transaction; a refresh leaves none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import insert, select

from app.actors import SERVICE, Actor
from app.errors import Conflict, InvalidGrant, InvalidToken, NotFound, Refusal, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.storage.tables import Event, Session, uuid7
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, a_user, time_passes
from tests.service import Service

ROOT = Actor("command", "root", "192.0.2.7", "request-7")


async def events_of(keyturn: Keyturn) -> list[dict[str, Any]]:
    """All events except those of keys, the oldest first."""
    found = [dict(row) for row in await keyturn.events.list(limit=1000)]
    return [row for row in reversed(found) if not row["event"].startswith("key_")]


async def since(keyturn: Keyturn, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {row["id"] for row in before}
    return [row for row in await events_of(keyturn) if row["id"] not in known]


async def test_every_change_of_a_user_leaves_one_event_that_says_who_did_it_and_from_where(keyturn: Keyturn) -> None:
    root = Actor("administrator", str((await a_user(keyturn, "root@example.com", "admin")).user_id), "192.0.2.7", "r")
    before = await events_of(keyturn)
    user = await keyturn.users.create("ada@example.com", PASSWORD, by=root)
    await keyturn.users.set_role(user.id, "editor", by=root)
    await keyturn.users.set_password(user.id, "a quite new password", by=root)
    proof = await keyturn.sign_in.authenticate("ada@example.com", "a quite new password")
    herself = Actor("user", str(user.id), "192.0.2.8", "request-8")
    tokens = await keyturn.starting.start(proof, by=herself)
    await keyturn.users.change_password(tokens.session_id, user.id, "a quite new password", PASSWORD, by=herself)
    await keyturn.users.disable(user.id, by=root)
    await keyturn.users.enable(user.id, by=root)
    events = await since(keyturn, before)
    assert [(e["event"], e["actor"], e["session_id"], e["reason"], e["detail"]) for e in events] == [
        ("user_created", "administrator", None, None, None),
        ("role_changed", "administrator", None, None, "editor"),
        ("password_changed", "administrator", None, None, None),
        ("session_started", "user", tokens.session_id, None, None),
        ("password_changed", "user", tokens.session_id, None, None),
        ("user_disabled", "administrator", None, None, None),
        ("session_ended", "administrator", tokens.session_id, "user_disabled", None),
        ("user_enabled", "administrator", None, None, None),
    ]
    assert {e["user_id"] for e in events} == {user.id}
    for e in events:
        by = herself if e["actor"] == "user" else root
        assert (e["actor_id"], e["address"], e["request_id"]) == (by.id, by.address, by.request_id)
        assert (e["client_id"] is not None) == e["event"].startswith("session_")


async def test_what_changes_nothing_or_is_refused_leaves_no_event(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn, "root@example.com", "admin")
    ended = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.ending.end({ended.session_id}, "revoked_by_admin", by=ROOT)
    before = await events_of(keyturn)
    await keyturn.users.set_role(proof.user_id, "admin", by=ROOT)
    await keyturn.users.enable(proof.user_id, by=ROOT)
    await keyturn.ending.end({ended.session_id}, "revoked_by_admin", by=ROOT)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=ROOT)
    for refused, error in (
        (keyturn.users.disable(proof.user_id, by=ROOT), Conflict),
        (keyturn.users.set_role(proof.user_id, "user", by=ROOT), Conflict),
        (keyturn.users.disable(uuid7(), by=ROOT), NotFound),
        (keyturn.users.set_password(uuid7(), PASSWORD, by=ROOT), NotFound),
        (keyturn.users.create("root@example.com", PASSWORD, by=ROOT), Conflict),
        (
            keyturn.users.change_password(
                ended.session_id, proof.user_id, PASSWORD, "one more of these passwords", by=ROOT
            ),
            InvalidGrant,
        ),
    ):
        with pytest.raises(error):
            await cast("Awaitable[Any]", refused)
    assert await since(keyturn, before) == []


async def test_a_refresh_and_a_retry_leave_no_event(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    before = await events_of(keyturn)
    for _ in range(2):
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert await since(keyturn, before) == []


async def test_a_session_that_ends_on_whatever_path_leaves_one_event_with_its_reason(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    by = Actor("user", None, "192.0.2.9", "request-9")

    async def reuse(tokens: Tokens) -> None:
        newer = await keyturn.rotation.refresh(tokens.refresh_token, by=by)
        await keyturn.rotation.refresh(newer.refresh_token, by=by)
        for _ in range(2):
            with pytest.raises(InvalidGrant):
                await keyturn.rotation.refresh(tokens.refresh_token, by=by)

    async def idle(tokens: Tokens) -> None:
        await time_passes(keyturn, keyturn.settings.refresh_token_lifetime)
        await keyturn.ending.logout((), [tokens.refresh_token], "this", by=by)

    async def log_out_others(_: Tokens) -> None:
        other = await keyturn.starting.start(user, by=SERVICE)
        await keyturn.ending.logout((), [other.refresh_token], "others", by=by)
        await keyturn.ending.logout((), [other.refresh_token], "this", by=by)

    paths: dict[str, Callable[[Tokens], Awaitable[object]]] = {
        "logout": lambda t: keyturn.ending.logout([t.access_token], (), "this", by=by),
        "logout_all": lambda t: keyturn.ending.logout((), [t.refresh_token], "all", by=by),
        "logout_all of the others": log_out_others,
        "reuse_detected": reuse,
        "revoked_by_admin": lambda t: keyturn.ending.end({t.session_id}, "revoked_by_admin", by=by),
        "revoked_by_admin with the user": lambda _: keyturn.ending.end_of_user(user.user_id, "revoked_by_admin", by=by),
        "revoked_by_admin under the key": lambda _: keyturn.sweeping.end_under(1, by=by),
        "revoked_by_admin under others": lambda _: keyturn.sweeping.end_all_but_under(2, by=by),
        "idle_timeout": idle,
    }
    for path, end in paths.items():
        tokens = await keyturn.starting.start(user, by=SERVICE)
        before = await events_of(keyturn)
        await end(tokens)
        events = await since(keyturn, before)
        [event] = [e for e in events if e["session_id"] == tokens.session_id]
        assert (event["event"], event["reason"]) == ("session_ended", path.partition(" ")[0]), path
        assert (event["actor"], event["actor_id"]) == ("user", str(user.user_id)), path
        assert (event["user_id"], event["client_id"]) == (user.user_id, keyturn.settings.client_id), path
        assert (event["address"], event["request_id"]) == (by.address, by.request_id), path


async def test_a_key_that_was_retired_ends_a_session_with_an_event_though_no_walk_came_by(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.keys.replace(by=ROOT)
    await keyturn.keys.load()
    with pytest.raises(InvalidGrant):
        await keyturn.rotation.refresh(tokens.refresh_token, by=ROOT)
    event = (await events_of(keyturn))[-1]
    assert (event["event"], event["reason"], event["actor"]) == ("session_ended", "revoked_by_admin", "service")
    assert event["session_id"] == tokens.session_id


async def test_logouts_that_come_together_keep_each_its_own_actor(keyturn: Keyturn) -> None:
    users = [await a_user(keyturn, f"user{i}@example.com") for i in range(3)]
    tokens = [await keyturn.starting.start(user, by=SERVICE) for user in users for _ in range(3)]
    sizes: list[int] = []
    run = keyturn.ending._logouts._run

    async def recorded(batch: Any) -> Any:
        sizes.append(len(batch))
        return await run(batch)

    keyturn.ending._logouts._run = recorded
    by = [Actor("user", None, f"192.0.2.{i}", f"request-{i}") for i in range(len(tokens))]
    by[4] = Actor("client", "shop")
    by[5] = Actor("user", "someone else", "192.0.2.5", "request-5")
    outs = [keyturn.ending.logout([t.access_token], (), "this", by=a) for t, a in zip(tokens, by, strict=True)]
    await asyncio.gather(*outs, keyturn.ending.logout([tokens[0].access_token], (), "this", by=ROOT))
    assert sizes == [10]
    ended = {e["session_id"]: e for e in await events_of(keyturn) if e["event"] == "session_ended"}
    assert len(ended) == 9
    for i, (t, a) in enumerate(zip(tokens[1:], by[1:], strict=True), 1):
        event = ended[t.session_id]
        assert (event["actor"], event["address"], event["request_id"]) == (a.kind, a.address, a.request_id)
        assert event["actor_id"] == (a.id or str(users[i // 3].user_id))
        assert (event["user_id"], event["reason"]) == (users[i // 3].user_id, "logout")
        assert event["at"] == (await keyturn.reading.find(t.session_id)).ended_at


async def test_an_event_that_can_not_be_written_takes_its_change_with_it(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await a_user(keyturn)
    tokens = await keyturn.starting.start(user, by=SERVICE)
    before = await events_of(keyturn)
    taken = before[-1]["id"]
    for where in ("app.events.audit.uuid7", "app.sessions.marking.uuid7"):
        monkeypatch.setattr(where, lambda: taken)
    for change in (
        keyturn.users.set_role(user.user_id, "editor", by=ROOT),
        keyturn.users.disable(user.user_id, by=ROOT),
        keyturn.ending.logout([tokens.access_token], (), "this", by=ROOT),
        keyturn.ending.end({tokens.session_id}, "revoked_by_admin", by=ROOT),
    ):
        with pytest.raises(Exception, match=r"(?i)unique"):
            await cast("Awaitable[Any]", change)
    assert await since(keyturn, before) == []
    found = await keyturn.users.find(user.user_id)
    assert (found.role, found.disabled_at) == ("user", None)
    await keyturn.reading.verify((await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)).access_token)


async def test_gc_leaves_one_event_with_the_count_for_each_transaction_that_deleted(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    for _ in range(5):
        await keyturn.starting.start(user, by=SERVICE)
    await time_passes(keyturn, timedelta(days=60))
    await keyturn.starting.start(user, by=SERVICE)  # a live session, which stays behind in a range of ids of its own
    before = await events_of(keyturn)
    assert await keyturn.upkeep.gc(by=ROOT, most=3) == 5
    assert await keyturn.upkeep.gc(by=ROOT, most=3) == 0
    events = await since(keyturn, before)
    assert [(e["event"], e["detail"], e["actor_id"]) for e in events] == [
        ("sessions_deleted", "3", "root"),
        ("sessions_deleted", "2", "root"),
    ]


async def test_operators_read_the_events_by_user_and_session_the_newest_first_and_page_by_page(
    keyturn: Keyturn,
) -> None:
    ada, bob = [await a_user(keyturn, f"{name}@example.com") for name in ("ada", "bob")]
    sessions = [await keyturn.starting.start(user, by=SERVICE) for user in (ada, bob, ada)]
    of_ada = await keyturn.events.list(limit=10, user_id=ada.user_id)
    assert [e["session_id"] for e in of_ada] == [sessions[2].session_id, sessions[0].session_id, None]
    [of_bob] = await keyturn.events.list(limit=10, session_id=sessions[1].session_id)
    assert of_bob["user_id"] == bob.user_id
    rest = await keyturn.events.list(limit=1, before=of_ada[0]["id"], user_id=ada.user_id)
    assert [e["id"] for e in rest] == [of_ada[1]["id"]]


async def test_every_refusal_names_the_session_that_it_is_about(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await a_user(keyturn)

    async def about(refused: Awaitable[object], session_id: UUID, error: type[Refusal]) -> None:
        with pytest.raises(error) as caught:
            await refused
        assert caught.value.session_id == session_id, caught.value.cause

    reused, over, branch, idle = [await keyturn.starting.start(user, by=SERVICE) for _ in range(4)]
    newer = await keyturn.rotation.refresh(reused.refresh_token, by=SERVICE)
    await keyturn.rotation.refresh(newer.refresh_token, by=SERVICE)
    await about(keyturn.rotation.refresh(reused.refresh_token, by=SERVICE), reused.session_id, InvalidGrant)
    await about(keyturn.ending.logout((), [reused.refresh_token], "all", by=SERVICE), reused.session_id, InvalidGrant)
    await keyturn.ending.logout((), [over.refresh_token], "this", by=SERVICE)
    for reach in ("others", "all"):
        await about(keyturn.ending.logout((), [over.refresh_token], reach, by=SERVICE), over.session_id, InvalidGrant)
    await about(keyturn.rotation.refresh(over.refresh_token, by=SERVICE), over.session_id, InvalidGrant)
    for ask in (keyturn.reading.verify, keyturn.reading.authorise):
        await about(ask(over.access_token), over.session_id, InvalidToken)
    second = await keyturn.rotation.refresh(branch.refresh_token, by=SERVICE)
    forged = keyturn.keys.verify_refresh_token(second.refresh_token)
    forged = forged.successor(forged.key)  # a generation that the row never reached
    await about(keyturn.rotation.refresh(forged.text, by=SERVICE), branch.session_id, InvalidGrant)

    async def away(*_: object, **__: object) -> Any:
        raise TemporarilyUnavailable("away")

    monkeypatch.setattr(keyturn.ending, "end_where", away)
    monkeypatch.setattr(keyturn.ending._logouts, "_run", away)
    monkeypatch.setattr(keyturn.rotation._rotations, "_run", away)
    for refused in (
        keyturn.rotation.refresh(idle.refresh_token, by=SERVICE),
        keyturn.ending.logout((), [idle.refresh_token], "this", by=SERVICE),
        keyturn.ending.logout((), [idle.refresh_token], "others", by=SERVICE),
        keyturn.ending.logout((), [idle.refresh_token], "all", by=SERVICE),
    ):
        await about(cast("Awaitable[object]", refused), idle.session_id, TemporarilyUnavailable)


async def test_events_outlive_the_sessions_and_users_that_they_are_about(keyturn: Keyturn) -> None:
    async with keyturn.db.begin() as tx:
        lost = {"id": uuid7(), "at": keyturn.db.clock(), "event": "session_ended", "actor": "service"}
        await tx.execute(insert(Event), [lost | {"user_id": uuid7(), "session_id": uuid7()}])
    assert len(await events_of(keyturn)) == 1


async def test_the_events_of_one_transaction_keep_their_order(keyturn: Keyturn) -> None:
    for _ in range(10):
        await keyturn.keys.replace(by=SERVICE)
        listed = [event["event"] for event in await keyturn.events.list(limit=6)]
        assert listed == ["key_generated"] * 3 + ["key_retired"] * 3


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)  # SQLite takes a text of any length
async def test_an_address_from_a_proxy_is_stored_in_one_spelling_and_never_stops_a_change(
    open_keyturn: Opener, database_url: str, logs: Path
) -> None:
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, "registration": "true"}
    values |= {"issuer": "https://auth.example.com", "trusted_proxies": "127.0.0.1", **CHEAP}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    account, token = {"email": "ada@example.com", "password": PASSWORD}, f"ktr_{'A' * 84}"

    def drive() -> None:
        with Service.start(environment, logs=logs) as service, httpx2.Client(base_url=service.url) as client:

            def post(
                path: str, body: dict[str, str], expected: int, address: str = "203.0.113.7:4711"
            ) -> dict[str, Any]:
                answer = client.post(f"/auth/{path}", json=body, headers={"X-Forwarded-For": address})
                assert answer.status_code == expected, answer.text
                return cast("dict[str, Any]", answer.json() if answer.content else {})

            post("register", account, 201)
            first = post("login", account, 200)["refresh_token"]
            second = post("refresh", {"refresh_token": first}, 200)["refresh_token"]
            post("refresh", {"refresh_token": second}, 200)
            assert post("refresh", {"refresh_token": first}, 401)["reason"] == "reuse_detected"
            # No address: the proxy does not know its client, so its own address counts.
            other = post("login", account, 200, address=token)["refresh_token"]
            post("logout", {"refresh_token": other}, 204)

    await asyncio.to_thread(drive)
    async with open_keyturn() as keyturn:
        events = await events_of(keyturn)
        async with keyturn.db.look() as connection:
            addresses = (await connection.scalars(select(Session.address).order_by(Session.id))).all()
    assert [(e["event"], e["reason"], e["address"]) for e in events] == [
        ("user_created", None, "203.0.113.7"),
        ("session_started", None, "203.0.113.7"),
        ("session_ended", "reuse_detected", "203.0.113.7"),
        ("session_started", None, "127.0.0.1"),
        ("session_ended", "logout", "203.0.113.7"),
    ]
    assert addresses == ["203.0.113.7", "127.0.0.1"]
