"""/auth/sessions: people see where they are signed in, name their devices, and end what they do not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, insert, text, update

from app.actors import SERVICE, Actor
from app.keyturn import Keyturn
from app.sessions.filters import Filter
from app.storage.tables import Session, uuid7
from tests.api import ADA, BARE, BOB, INVALID, Api, Json, authorization, refused, serving
from tests.conftest import PASSWORD, a_user, time_passes
from tests.cookies import HTTPS, SAME_SITE, Browser, ask, client_of, login, set_cookies

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """One instance with two users, Ada and Bob."""
    async with serving(database_url) as api:
        for email in (ADA, BOB):
            await api.keyturn.users.create(email, PASSWORD, by=SERVICE)
        yield api


async def listed(api: Api, tokens: Json, query: str = "") -> list[Json]:
    answer = await api.get(f"/auth/sessions{query}", tokens["access_token"])
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def pages(api: Api, tokens: Json, query: str, path: str = "/auth/sessions") -> list[list[Json]]:
    found, cursor = [], ""
    while True:
        answer = (await api.get(f"{path}?{query}{cursor}", tokens["access_token"])).json()
        found.append(answer["items"])
        if "next_cursor" not in answer:
            return found
        cursor = f"&cursor={answer['next_cursor']}"


async def send(api: Api, method: str, path: str, tokens: Json, body: Any = None) -> Any:
    return await api.client.request(method, path, json=body, headers=authorization(tokens["access_token"]))


def ids(items: list[Json]) -> list[str]:
    return [item["id"] for item in items]


async def test_a_session_is_shown_with_all_that_its_user_may_recognise_it_by(api: Api) -> None:
    body = {"email": ADA, "password": PASSWORD}
    answer = await api.client.post("/auth/login", json=body, headers={"User-Agent": FIREFOX})
    tokens = answer.json()
    (shown,) = await listed(api, tokens)
    session = await api.keyturn.reading.find(UUID(tokens["session_id"]))
    assert shown == {
        "id": tokens["session_id"],
        "status": "live",
        "current": True,
        "client_id": "first-party",
        "created_at": text_of(session.created_at),
        "last_used_at": text_of(session.rotated_at),
        "idle_expires_at": text_of(session.idle_expires_at),
        "absolute_expires_at": text_of(session.absolute_expires_at),
        "device": {"browser": "Firefox 128", "system": "Linux", "kind": "desktop"},
        "address": "127.0.0.1",
        "amr": ["pwd"],
        "authenticated_at": text_of(session.created_at),
    }
    one = await api.get(f"/auth/sessions/{tokens['session_id']}", tokens["access_token"])
    assert (one.status_code, one.json()) == (200, shown)


def text_of(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def test_the_list_has_ones_own_sessions_alone_the_newest_first(api: Api) -> None:
    mine = [await api.login() for _ in range(3)]
    theirs = await api.login(BOB)
    shown = await listed(api, mine[1])
    assert ids(shown) == [tokens["session_id"] for tokens in reversed(mine)]
    assert [item["current"] for item in shown] == [False, True, False]
    assert ids(await listed(api, theirs)) == [theirs["session_id"]]


async def test_the_status_says_which_sessions_live_and_why_the_others_are_over(api: Api) -> None:
    slept, left, here = [await api.login() for _ in range(3)]
    async with api.keyturn.db.begin() as tx:
        long_ago = (await api.keyturn.reading.find(UUID(slept["session_id"]))).created_at - timedelta(days=8)
        await tx.execute(update(Session).where(Session.id == UUID(slept["session_id"])).values(rotated_at=long_ago))
    await api.post("/auth/logout", {"refresh_token": left["refresh_token"]})
    assert ids(await listed(api, here)) == ids(await listed(api, here, "?status=live")) == [here["session_id"]]
    ended = await listed(api, here, "?status=ended")
    assert [(item["id"], item["status"], item["end_reason"]) for item in ended] == [
        (left["session_id"], "logout", "logout"),
        (slept["session_id"], "idle_timeout", "idle_timeout"),
    ]
    assert ended[0]["ended_at"]
    assert ended[1]["ended_at"] == ended[1]["idle_expires_at"]
    everything = await listed(api, here, "?status=all")
    assert [item["status"] for item in everything] == ["live", "logout", "idle_timeout"]
    for wrong in ("?status=dead", "?status=", "?status=live&status=all", "?limit=0", "?limit=101", "?limit=x"):
        answer = await api.get(f"/auth/sessions{wrong}", here["access_token"])
        refused(answer, 400, "invalid_request")


async def test_pages_have_each_session_once_and_end_without_a_cursor(api: Api) -> None:
    tokens = [await api.login() for _ in range(5)]
    wanted = [each["session_id"] for each in reversed(tokens)]
    for limit, sizes in ((2, [2, 2, 1]), (5, [5]), (100, [5]), (1, [1] * 5)):
        found = await pages(api, tokens[0], f"limit={limit}")
        assert [len(page) for page in found] == sizes
        assert [each for page in found for each in ids(page)] == wanted


async def test_a_cursor_counts_for_the_list_that_it_was_made_for_and_no_other(api: Api) -> None:
    mine = [await api.login() for _ in range(3)]
    theirs = [await api.login(BOB) for _ in range(3)]
    here = mine[0]["access_token"]
    cursor = (await api.get("/auth/sessions?limit=1", here)).json()["next_cursor"]
    assert (await api.get(f"/auth/sessions?limit=2&cursor={cursor}", here)).status_code == 200
    forged = cursor[:-1] + ("A" if cursor[-1] != "A" else "Q")
    junk = ("", "x", "%00", "A" * 32, "A" * 5000, str(uuid4()), forged, cursor + "A", cursor.lower())
    for each in junk:
        answer = await api.get(f"/auth/sessions?cursor={each}", here)
        refused(answer, 400, "invalid_request")
    foreign = (await api.get("/auth/sessions?limit=1", theirs[0]["access_token"])).json()["next_cursor"]
    events = (await api.get(f"/auth/sessions/{mine[0]['session_id']}/events?limit=1", here)).json()
    assert len(events["items"]) == 1
    for query in (f"cursor={foreign}", f"status=all&cursor={cursor}", f"status=ended&cursor={cursor}"):
        refused(await api.get(f"/auth/sessions?{query}", here), 400, "invalid_request")
    path = f"/auth/sessions/{mine[0]['session_id']}/events"
    refused(await api.get(f"{path}?cursor={cursor}", here), 400, "invalid_request")


async def test_the_session_of_another_user_is_as_one_that_does_not_exist(api: Api) -> None:
    mine, theirs = await api.login(), await api.login(BOB)
    there = await api.keyturn.reading.find(UUID(theirs["session_id"]))
    answers: dict[str, set[tuple[int, str]]] = {}
    for session_id in (theirs["session_id"], str(uuid4()), str(uuid7()), "x", "0" * 32, theirs["session_id"].upper()):
        for method, sub, body in (
            ("GET", "", None),
            ("PATCH", "", {"device_name": "mine now"}),
            ("DELETE", "", None),
            ("GET", "/events", None),
        ):
            answer = await send(api, method, f"/auth/sessions/{session_id}{sub}", mine, body)
            answers.setdefault(method + sub, set()).add((answer.status_code, answer.text))
    assert all(len(each) == 1 for each in answers.values()), answers
    assert {each for found in answers.values() for each in found} == {
        (404, '{"error":"not_found","error_description":"There is nothing here."}')
    }
    after = await api.keyturn.reading.find(UUID(theirs["session_id"]))
    assert (after.device_name, after.ended_at) == (there.device_name, None)
    assert await api.is_live(theirs)


async def test_ending_a_session_ends_it_at_once_and_no_other_and_may_be_repeated(api: Api) -> None:
    here, there = await api.login(), await api.login()
    path = f"/auth/sessions/{there['session_id']}"
    for _ in range(2):
        answer = await send(api, "DELETE", path, here)
        assert (answer.status_code, answer.content, answer.headers.get("set-cookie")) == (204, b"", None)
    assert not await api.is_live(there)
    assert await api.is_live(here)
    refused(await api.get("/auth/me", there["access_token"]), 401, "invalid_token", reason="logout", challenge=INVALID)
    # The user may also end the session of the request.
    assert (await send(api, "DELETE", f"/auth/sessions/{here['session_id']}", here)).status_code == 204
    assert not await api.is_live(here)


async def test_a_name_that_a_user_gives_is_kept_and_can_be_taken_away(api: Api) -> None:
    here, there = await api.login(), await api.login()
    path = f"/auth/sessions/{there['session_id']}"
    named = await send(api, "PATCH", path, here, {"device_name": "Ada's old phone"})
    assert (named.status_code, named.json()["device"]["name"]) == (200, "Ada's old phone")
    assert named.json()["current"] is False
    assert (await send(api, "PATCH", path, here, {"device_name": "Ada's old phone"})).status_code == 200
    assert await events_of(api.keyturn, there) == ["session_renamed", "session_started"]  # one of two
    assert "name" not in (await send(api, "PATCH", path, here, {"device_name": None})).json()["device"]
    assert await events_of(api.keyturn, there) == ["session_renamed"] * 2 + ["session_started"]
    for wrong in ("", "x" * 101, "a\nb", "\x00", "\u202e", 1, ["x"]):
        refused(await send(api, "PATCH", path, here, {"device_name": wrong}), 400, "invalid_request")
    bodies: list[Any] = [
        {},
        {"device_name": "x", "role": "admin"},
        {"device_name": "x", "user_id": str(uuid4())},
        [],
        None,
    ]
    for body in bodies:
        refused(await send(api, "PATCH", path, here, body), 400, "invalid_request")
    assert (await send(api, "PATCH", path, here, {"device_name": "x" * 100})).status_code == 200


async def events_of(keyturn: Keyturn, tokens: Json) -> list[str]:
    return [event["event"] for event in await keyturn.events.list(limit=100, session_id=UUID(tokens["session_id"]))]


async def test_a_sessions_events_say_why_it_ended_and_by_whom(api: Api) -> None:
    here, stolen, ended = [await api.login() for _ in range(3)]
    newest = stolen
    for _ in range(2):
        newest = (await api.post("/auth/refresh", {"refresh_token": newest["refresh_token"]})).json()
    thief = await api.post("/auth/refresh", {"refresh_token": stolen["refresh_token"]})
    refused(thief, 401, "invalid_grant", reason="reuse_detected", challenge=BARE)
    by = Actor("administrator", str(uuid4()), "10.9.8.7", "request")
    await api.keyturn.ending.end({UUID(ended["session_id"])}, "revoked_by_admin", by=by)
    told = (await api.get(f"/auth/sessions/{ended['session_id']}/events", here["access_token"])).json()
    assert [sorted(event) for event in told["items"]] == [
        ["actor", "at", "event", "id", "reason"],
        ["actor", "address", "at", "event", "id"],
    ]
    assert [(e["event"], e["actor"], e.get("reason")) for e in told["items"]] == [
        ("session_ended", "administrator", "revoked_by_admin"),
        ("session_started", "user", None),
    ]
    assert told["items"][1]["address"] == "127.0.0.1"
    path = f"/auth/sessions/{stolen['session_id']}/events"
    (ended_event, *_), (_, *_) = await pages(api, here, "limit=1", path)
    assert (ended_event["event"], ended_event["reason"]) == ("session_ended", "reuse_detected")
    assert ended_event["address"] == "127.0.0.1"  # from where the stolen token came


async def test_a_session_that_ended_with_all_others_says_so_and_when_and_by_whom(api: Api) -> None:
    old = await api.login()
    by = Actor("administrator", str(uuid4()), "10.9.8.7", "request")
    await api.keyturn.key_changes.sign_everyone_out(by=by)
    here = await api.login()
    path = f"/auth/sessions/{old['session_id']}"
    (event, began), *none = await pages(api, here, "", f"{path}/events")
    assert none == []
    assert (event["event"], event["actor"], "address" in event) == ("signed_out_everywhere", "administrator", False)
    assert began["event"] == "session_started"
    assert [[e["id"] for e in page] for page in await pages(api, here, "limit=1", f"{path}/events")] == [
        [event["id"]],
        [began["id"]],
    ]
    shown = (await api.get(path, here["access_token"])).json()
    assert (shown["status"], shown["ended_at"]) == ("signed_out_everywhere", event["at"])
    (session_event,) = (await api.get(f"/auth/sessions/{here['session_id']}/events", here["access_token"])).json()[
        "items"
    ]
    assert session_event["event"] == "session_started"


async def test_each_endpoint_needs_a_live_session(api: Api) -> None:
    over, theirs = await api.login(), await api.login(BOB)
    await api.post("/auth/logout", {"refresh_token": over["refresh_token"]})
    own = f"/auth/sessions/{over['session_id']}"
    for method, path in (
        ("GET", "/auth/sessions"),
        ("GET", own),
        ("PATCH", own),
        ("DELETE", own),
        ("GET", f"{own}/events"),
    ):
        body = {"device_name": "x"} if method == "PATCH" else None
        answer = await send(api, method, path, over, body)
        refused(answer, 401, "invalid_token", reason="logout", challenge=INVALID)
        answer = await api.client.request(method, path, json=body)
        refused(answer, 401, "invalid_token", challenge=BARE)
    assert await api.is_live(theirs)


# -- cookies


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_browser_that_ends_its_own_session_loses_its_cookies_and_only_from_its_own_site(
    api: Api, mode: str
) -> None:
    async with client_of(api.client._transport.app) as client:  # type: ignore[attr-defined]  # httpx2's
        browser = Browser()
        answer = await login(client, ADA, mode)
        browser.take(set_cookies(answer))
        elsewhere = await api.login()
        bearer = [("Authorization", f"Bearer {answer.json()['access_token']}")] if mode == "split" else []
        at = f"/auth/sessions/{answer.json()['session_id']}"
        other = f"/auth/sessions/{elsewhere['session_id']}"

        async def with_cookies(method: str, path: str, *more: tuple[str, str], body: Any = None) -> Any:
            return await ask(client, method, path, browser.sent_to("/auth/x"), body=body, headers=[*bearer, *more])

        assert (await with_cookies("GET", "/auth/sessions")).json()["items"][1]["current"] is True
        if mode == "cookie":
            for method, body in (("DELETE", None), ("PATCH", {"device_name": "x"})):
                for path in (at, other):
                    refused(await with_cookies(method, path, body=body), 403, "cross_site")
                    evil = ("Origin", "https://evil.example.com")
                    refused(await with_cookies(method, path, evil, body=body), 403, "cross_site")
        kept = browser.names()
        # The end of another session leaves the cookies alone.
        ended = await with_cookies("DELETE", other, *SAME_SITE)
        assert (ended.status_code, set_cookies(ended)) == (204, [])
        assert not await api.is_live(elsewhere)
        ended = await with_cookies("DELETE", at, *SAME_SITE)
        assert ended.status_code == 204
        assert {each.name for each in set_cookies(ended) if each.clears} == kept
        browser.take(set_cookies(ended))
        assert browser.names() == set()


async def test_the_cookies_of_another_session_beside_a_bearer_token_stay(api: Api) -> None:
    async with client_of(api.client._transport.app) as client:  # type: ignore[attr-defined]  # httpx2's
        browser = Browser()
        browser.take(set_cookies(await login(client, BOB)))
        mine = await api.login()
        ended = await ask(
            client,
            "DELETE",
            f"/auth/sessions/{mine['session_id']}",
            browser.sent_to("/auth/x"),
            headers=[("Authorization", f"Bearer {mine['access_token']}")],
        )
        assert (ended.status_code, set_cookies(ended)) == (204, [])
        assert browser.names() == {HTTPS.access, HTTPS.refresh}


# -- many sessions


async def many(keyturn: Keyturn, number: int, user_ids: list[UUID], **values: Any) -> None:
    """Adds live sessions, one after the other of each user, as `Starting` would write them."""
    now = datetime.now(UTC)
    row = {
        "role": "user",
        "client_id": "web",
        "token_digest": b"x" * 32,
        "key_number": 1,
        "generation": 0,
        "created_at": now,
        "rotated_at": now,
        "idle_expires_at": now + timedelta(days=7),
        "absolute_expires_at": now + timedelta(days=30),
        "idle_lifetime": timedelta(days=7),
        "absolute_lifetime": timedelta(days=30),
    } | values
    for start in range(0, number, 1000):
        some = [
            row | {"id": uuid7(), "user_id": user_ids[n % len(user_ids)]}
            for n in range(start, min(number, start + 1000))
        ]
        async with keyturn.db.begin() as tx:
            await tx.execute(insert(Session), some)


async def others(keyturn: Keyturn, user_id: UUID, times: int) -> None:
    """Adds copies of a user's sessions for other users, `times` as many, and has the database count all."""
    copied = ", ".join(c.name for c in Session.__table__.columns if c.name not in {"id", "user_id"})
    random = "gen_random_uuid()" if keyturn.db.is_postgres else "lower(hex(randomblob(16)))"
    whose = user_id if keyturn.db.is_postgres else user_id.hex
    for _ in range(times):
        async with keyturn.db.begin() as tx:
            copies = f"SELECT {random}, {random}, {copied} FROM sessions WHERE user_id = :user"
            await tx.execute(text(f"INSERT INTO sessions (id, user_id, {copied}) {copies}"), {"user": whose})
    async with keyturn.db.begin() as tx:
        await tx.execute(text("ANALYZE sessions"))


async def test_a_page_of_ten_thousand_sessions_comes_from_the_index_in_its_order(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    await many(keyturn, 10_000, [proof.user_id])
    await others(keyturn, proof.user_id, 9)
    for status in ("live", "ended", "all"):
        filtered = Filter(user_id=proof.user_id, status=status)
        plan = await plan_of(keyturn, filtered)
        assert "ix_sessions_user_id" in plan or "ix_sessions_live" in plan, plan
        assert "sort" not in plan.lower(), plan
        assert "temp b-tree" not in plan.lower(), plan
    seen: list[UUID] = []
    before: UUID | None = None
    while True:
        page = await keyturn.reading.list(Filter(user_id=proof.user_id), limit=100, before=before)
        seen += [session.id for session in page.sessions]
        assert len(page.sessions) <= 100
        before = page.last
        if before is None:
            break
    assert len(seen) == len(set(seen)) == 10_000
    assert seen == sorted(seen, reverse=True)


async def plan_of(keyturn: Keyturn, filtered: Filter) -> str:
    """The plan of the statement that `Reading.list` sends: the last one that it sends."""
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    engine = keyturn.db._other_reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await keyturn.reading.list(filtered, limit=100, before=uuid7())
    finally:
        event.remove(engine, "before_cursor_execute", note)
    statement, parameters = sent[-1]
    assert "ORDER BY" in statement
    explain = "EXPLAIN " if keyturn.db.is_postgres else "EXPLAIN QUERY PLAN "
    async with keyturn.db.look(hot_path=False) as connection:
        rows = (await connection.exec_driver_sql(explain + statement, parameters)).all()
    return "\n".join(str(row[-1]) for row in rows)


async def test_a_session_that_ends_while_the_pages_are_read_is_shown_once(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    started = [(await keyturn.starting.start(proof, by=SERVICE)).session_id for _ in range(30)]

    async def read() -> list[UUID]:
        seen: list[UUID] = []
        before: UUID | None = None
        while True:
            page = await keyturn.reading.list(Filter(user_id=proof.user_id, status="all"), limit=4, before=before)
            seen += [session.id for session in page.sessions]
            for session in page.sessions:
                assert (session.ended_at is None) == (session.over() is None)
            if page.last is None:
                return seen
            before = page.last
            await asyncio.sleep(0)

    async def end() -> None:
        for session_id in started[::2]:
            await keyturn.ending.end({session_id}, "logout", by=SERVICE)

    seen, _ = await asyncio.gather(read(), end())
    assert seen == started[::-1]


async def test_the_live_list_and_the_rows_verdict_agree_at_each_deadline(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    for _ in range(3):
        await keyturn.starting.start(proof, by=SERVICE)
        await time_passes(keyturn, timedelta(days=3))
    everything = (await keyturn.reading.list(Filter(status="all"), limit=100)).sessions
    live = (await keyturn.reading.list(Filter(status="live"), limit=100)).sessions
    ended = (await keyturn.reading.list(Filter(status="ended"), limit=100)).sessions
    assert [each.id for each in live] == [each.id for each in everything if each.over() is None]
    assert [each.id for each in ended] == [each.id for each in everything if each.over() is not None]
    assert (len(live), len(ended)) == (2, 1)
