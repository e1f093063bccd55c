"""Filters: the sessions that an administrator lists, counts and ends, by the API and by the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select, update

from app.actors import SERVICE
from app.errors import InvalidGrant
from app.keyturn import Keyturn
from app.sessions.filters import Filter
from app.sessions.walk import BEGINNING
from app.storage.tables import Session, UpstreamSession
from tests.api import ADA, BOB, INVALID, Api, Json, authorization, refused, serving
from tests.conftest import PASSWORD, a_user
from tests.test_own_sessions import ids, many, others, pages

ROOT = "root@example.com"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """One instance with two users and an administrator."""
    async with serving(database_url) as api:
        for email in (ADA, BOB):
            await api.keyturn.users.create(email, PASSWORD, by=SERVICE)
        await api.keyturn.users.create(ROOT, PASSWORD, "admin", by=SERVICE)
        yield api


async def end(api: Api, tokens: Json, **body: Any) -> Json:
    answer = await api.post("/admin/sessions/end", body, tokens["access_token"])
    assert answer.status_code == 200, answer.text
    told: Json = answer.json()
    return told


async def changed(keyturn: Keyturn, session_id: str, **values: Any) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Session).where(Session.id == UUID(session_id)).values(**values))


LONG_AGO = datetime(2026, 1, 31, 12, tzinfo=UTC)


async def test_each_filter_means_the_same_in_the_list_the_preview_and_the_end(api: Api) -> None:
    root = await api.login(ROOT)
    cases: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({"user": ""}, {"device_name": "any"}),
        ({"client": "shop"}, {"client_id": "shop"}),
        ({"created_before": "2026-01-31T12:00:01Z"}, {"created_at": LONG_AGO}),
        ({"created_after": "2099-01-01T00:00:00Z"}, {"created_at": datetime(2099, 2, 1, tzinfo=UTC)}),
        ({"idle_since": "2026-01-31T13:00:01+01:00"}, {"rotated_at": LONG_AGO}),
        ({"address": "192.0.2.7"}, {"address": "192.0.2.7"}),
        ({"device": "phone-1"}, {"device_id": "phone-1"}),
    ]
    for n, (asked, values) in enumerate(cases):
        user = await api.keyturn.users.create(f"user{n}@example.com", PASSWORD, by=SERVICE)
        hit, miss = await api.login(f"user{n}@example.com"), await api.login(BOB)
        query = {"user": str(user.id)} if "user" in asked else asked
        await changed(api.keyturn, hit["session_id"], **values)
        over = LONG_AGO in values.values()  # a deadline has passed, by the policy in force
        words = "&".join(f"{name}={value.replace('+', '%2B')}" for name, value in query.items())
        listed = await pages(api, root, f"status=all&limit=1&{words}", "/admin/sessions")
        (shown,) = [each for page in listed for each in page]
        assert (shown["id"], shown["email"], shown["user_id"]) == (hit["session_id"], user.email, str(user.id)), query
        live = [each for page in await pages(api, root, words, "/admin/sessions") for each in ids(page)]
        assert live == ([] if over else [hit["session_id"]]), query
        assert await end(api, root, preview=True, **query) == {"count": len(live)}
        assert (await api.keyturn.reading.find(UUID(hit["session_id"]))).ended_at is None
        assert await end(api, root, **query) == {"ended": len(live)}
        assert (await api.keyturn.reading.find(UUID(hit["session_id"]))).ended_at is not None
        assert await end(api, root, **query) == {"ended": 0}
        for tokens in (miss, root):
            assert (await api.keyturn.reading.find(UUID(tokens["session_id"]))).ended_at is None


async def test_the_sessions_that_an_issuer_began_are_found_and_ended_by_its_name(api: Api) -> None:
    root = await api.login(ROOT)
    by_acme, by_corp, by_password = await api.login(), await api.login(), await api.login()
    async with api.keyturn.db.begin() as tx:
        for tokens, name in ((by_acme, "acme"), (by_corp, "corp")):
            row = {"session_id": UUID(tokens["session_id"]), "issuer_name": name, "created_at": LONG_AGO}
            await tx.execute(insert(UpstreamSession).values(row))
    (page,) = await pages(api, root, "issuer=acme", "/admin/sessions")
    assert ids(page) == [by_acme["session_id"]]
    assert await end(api, root, issuer="acme", preview=True) == {"count": 1}
    assert await end(api, root, issuer="acme") == {"ended": 1}
    live = [await api.is_live(tokens) for tokens in (by_acme, by_corp, by_password, root)]
    assert live == [False, True, True, True]


async def test_several_filters_must_all_be_met(api: Api) -> None:
    root = await api.login(ROOT)
    ada = (await api.keyturn.users.find(ADA)).id
    both, one, other = await api.login(), await api.login(), await api.login(BOB)
    for tokens in (both, other):
        await changed(api.keyturn, tokens["session_id"], address="192.0.2.7")
    assert await end(api, root, user=str(ada), address="192.0.2.7") == {"ended": 1}
    assert [await api.is_live(tokens) for tokens in (both, one, other, root)] == [False, True, True, True]


async def test_an_end_without_a_filter_or_with_a_wrong_one_is_refused_and_ends_nothing(api: Api) -> None:
    root, ada = await api.login(ROOT), await api.login()
    bodies: list[Any] = [
        {},
        {"status": "live"},
        {"preview": True},
        {"user": None},
        {"user": "ada@example.com"},
        {"user": 1},
        {"client": ""},
        {"client": "a\u0000"},
        {"client": "x" * 65},
        {"address": ["127.0.0.1"]},
        {"created_before": "yesterday"},
        {"created_before": "2026-01-31"},
        {"created_before": "2026-01-31T12:00:00"},
        {"created_before": "2026-13-31T12:00:00Z"},
        {"created_before": "0001-01-01T00:00:00+14:00"},
        {"idle_since": 0},
        {"client": "first-party", "status": "ended"},
        {"client": "first-party", "usr": "x"},
        {"client": "first-party", "reason": "logout"},
        {"client": "first-party", "preview": "yes"},
        {"client": "first-party", "cursor": "x"},
        {"client": "first-party", "cursor": "A" * 32},
    ]
    for body in bodies:
        refused(await api.post("/admin/sessions/end", body, root["access_token"]), 400, "invalid_request")
    for query in ("user=x", "created_after=now", "status=x", "limit=1000", "cursor=x", "device=a%00"):
        refused(await api.get(f"/admin/sessions?{query}", root["access_token"]), 400, "invalid_request")
    assert await api.is_live(ada)
    assert await api.is_live(root)


async def test_an_administrator_gets_and_ends_the_session_of_anyone(api: Api) -> None:
    root, ada = await api.login(ROOT), await api.login()
    path = f"/admin/sessions/{ada['session_id']}"
    shown = (await api.get(path, root["access_token"])).json()
    assert (shown["email"], shown["status"], shown["current"]) == (ADA, "live", False)
    for _ in range(2):
        ended = await api.client.delete(path, headers=authorization(root["access_token"]))
        assert (ended.status_code, ended.content) == (204, b"")
    assert not await api.is_live(ada)
    answer = await api.get("/auth/me", ada["access_token"])
    refused(answer, 401, "invalid_token", reason="revoked_by_admin", challenge=INVALID)
    (event, _) = await api.keyturn.events.list(limit=9, session_id=UUID(ada["session_id"]))
    admin = await api.keyturn.users.find(ROOT)
    assert (event["event"], event["actor"], event["actor_id"]) == ("session_ended", "administrator", str(admin.id))
    for unknown in (str(uuid4()), "x", "end"):
        for method in ("GET", "DELETE"):
            answer = await api.client.request(
                method, f"/admin/sessions/{unknown}", headers=authorization(root["access_token"])
            )
            assert answer.status_code in ({404, 405} if unknown == "end" else {404}), (method, unknown)


async def test_only_an_administrator_who_signed_in_a_short_while_ago_may(api: Api) -> None:
    root, ada = await api.login(ROOT), await api.login()
    calls = [
        ("GET", "/admin/sessions", None),
        ("GET", f"/admin/sessions/{ada['session_id']}", None),
        ("DELETE", f"/admin/sessions/{ada['session_id']}", None),
        ("POST", "/admin/sessions/end", {"client": "first-party"}),
        ("POST", "/admin/sessions/end", {"client": "first-party", "preview": True}),
    ]
    for method, path, body in calls:
        as_user = await api.client.request(method, path, json=body, headers=authorization(ada["access_token"]))
        refused(as_user, 403, "access_denied")
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    await changed(api.keyturn, root["session_id"], auth_time=long_ago)
    for method, path, body in calls:
        stale = await api.client.request(method, path, json=body, headers=authorization(root["access_token"]))
        assert (stale.status_code, stale.json()["error"]) == (401, "insufficient_user_authentication")
    assert await api.is_live(ada)


async def test_the_cursor_of_an_end_counts_for_its_filter_alone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sessions.walk._LOOK", 2)
    monkeypatch.setattr("app.routes.admin_sessions._RANGES_TO_END", 1)
    monkeypatch.setattr("app.routes.admin_sessions._RANGES_TO_COUNT", 1)
    root = await api.login(ROOT)
    for _ in range(3):
        await api.login()
    told = await end(api, root, client="first-party", created_after="2020-01-01T00:00:00Z", preview=True)
    assert told["count"] == 2
    for body in (
        {"client": "first-party"},
        {"client": "first-party", "created_after": "2020-01-01T00:00:00Z"},  # the cursor is a preview's
        {"client": "other", "created_after": "2020-01-01T00:00:00Z", "preview": True},
    ):
        answer = await api.post("/admin/sessions/end", body | {"cursor": told["next_cursor"]}, root["access_token"])
        refused(answer, 400, "invalid_request")


async def test_an_end_is_taken_up_by_its_cursor_and_also_without_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sessions.walk._LOOK", 3)
    monkeypatch.setattr("app.routes.admin_sessions._RANGES_TO_END", 2)
    root = await api.login(ROOT)
    tokens = [await api.login() if n % 3 else await api.login(BOB) for n in range(20)]
    ada = str((await api.keyturn.users.find(ADA)).id)
    since = "2020-01-01T00:00:00Z"
    told, counted = await end(api, root, user=ada, created_after=since), 0
    assert told["ended"] == 6
    counted += told["ended"]
    # A client that lost the answer begins anew: the walk passes those that ended, and goes on behind them.
    told = await end(api, root, user=ada, created_after=since)
    assert (told["ended"], "next_cursor" in told) == (0, True)
    while "next_cursor" in told:
        told = await end(api, root, user=ada, created_after=since, cursor=told["next_cursor"])
        counted += told["ended"]
    assert counted == 13
    assert [await api.is_live(each) for each in tokens] == [n % 3 == 0 for n in range(20)]
    assert await api.is_live(root)


async def test_a_page_of_all_sessions_is_bounded_also_where_hardly_one_fits(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.reading._LOOK", 100)
    proof = await a_user(keyturn)
    first = (await keyturn.starting.start(proof, by=SERVICE)).session_id
    await many(keyturn, 350, [uuid4()])
    await changed(keyturn, str(first), device_id="rare")
    found: list[UUID] = []
    before: UUID | None = None
    looks = 0
    while True:
        page = await keyturn.reading.list(Filter(device_id="rare"), limit=20, before=before)
        looks += 1
        found += [session.id for session in page.sessions]
        before = page.last
        if before is None:
            break
    assert (found, looks) == ([first], 4)


async def test_a_session_that_is_refreshed_between_the_look_and_the_end_is_no_longer_idle_and_stays(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = await a_user(keyturn)
    used, unused = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    idle_since = (await keyturn.reading.find(unused.session_id)).rotated_at + timedelta(microseconds=1)
    publish = keyturn.ending._publishing.publish

    async def late(sessions: Any) -> Any:
        assert set(sessions) == {used.session_id, unused.session_id}, "both were idle at the look"
        await keyturn.rotation.refresh(used.refresh_token, by=SERVICE)
        return await publish(sessions)

    monkeypatch.setattr(keyturn.ending._publishing, "publish", late)
    ended = await keyturn.sweeping.end_matching(Filter(idle_since=idle_since), by=SERVICE, ranges=9)
    assert ended == (1, None)
    assert (await keyturn.reading.find(used.session_id)).over() is None
    assert (await keyturn.reading.find(unused.session_id)).over() == "revoked_by_admin"


async def test_exactly_the_sessions_that_fit_end_while_all_refresh(keyturn: Keyturn) -> None:
    proofs = [await a_user(keyturn, f"user{n}@example.com") for n in range(6)]
    chains = [await keyturn.starting.start(proofs[n % 6], by=SERVICE) for n in range(60)]
    doomed = {t.session_id for n, t in enumerate(chains) if n % 6 in {1, 4}}
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Session).where(Session.id.in_(doomed)).values(client_id="shop"))
    done = asyncio.Event()
    refused_ones: dict[UUID, str | None] = {}
    refreshed = dict.fromkeys((t.session_id for t in chains), 0)

    async def storm(tokens: Any) -> None:
        while not done.is_set():
            try:
                tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
            except InvalidGrant as refusal:
                refused_ones[tokens.session_id] = refusal.reason
                return
            refreshed[tokens.session_id] += 1

    clients = [asyncio.create_task(storm(tokens)) for tokens in chains]
    while min(refreshed.values()) < 2:
        await asyncio.sleep(0.01)
    total, last = 0, BEGINNING
    while True:
        count, end = await keyturn.sweeping.end_matching(
            Filter(client_id="shop"), by=SERVICE, after=last, ranges=1, most=3
        )
        total += count
        if end is None:
            break
        last = end
    before = dict(refreshed)
    while any(refreshed[t.session_id] < before[t.session_id] + 2 for t in chains if t.session_id not in doomed):
        await asyncio.sleep(0.01)
    done.set()
    await asyncio.gather(*clients)
    assert total == len(doomed) == 20
    async with keyturn.db.look() as connection:
        ended = set((await connection.scalars(select(Session.id).where(Session.ended_at.is_not(None)))).all())
    assert ended == doomed
    assert refused_ones == dict.fromkeys(doomed, "revoked_by_admin")


async def test_the_walk_over_one_users_sessions_takes_the_index_of_users(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    await many(keyturn, 1_000, [proof.user_id])
    await others(keyturn, proof.user_id, 5)
    count, last = await keyturn.reading.count(Filter(user_id=proof.user_id), ranges=1)
    assert (count, last) == (1_000, None)  # in one range, although there are 6,000 sessions
