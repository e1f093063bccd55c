"""/admin/keys and /admin/sign-everyone-out: twins of the commands, for administrators with a fresh sign-in alone."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import update

from app.actors import SERVICE
from app.events.reading import Events
from app.sessions.filters import Filter
from app.storage.tables import Session
from tests.api import ADA, Api, serving
from tests.conftest import SECRET, a_user
from tests.test_keys import published, rows, status, until

BOSS = "boss@example.com"
ROUTES = (
    ("GET", "/admin/keys", None),
    ("POST", "/admin/keys", {"use": "access"}),
    ("POST", "/admin/keys/rotate", {"use": "refresh"}),
    ("POST", "/admin/keys/refresh-1/retire", None),
    ("POST", "/admin/sign-everyone-out", None),
)


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with serving(database_url) as api:
        await a_user(api.keyturn, BOSS, "admin")
        await a_user(api.keyturn, ADA)
        yield api


async def ask(api: Api, method: str, path: str, body: Any, bearer: str | None, **fields: str) -> httpx2.Response:
    headers = {**fields, **({"Authorization": f"Bearer {bearer}"} if bearer else {})}
    return await api.client.request(method, path, json=body, headers=headers)


async def bad_secrets(answer: httpx2.Response, api: Api) -> list[str]:
    """The secrets that an answer gives away."""
    opened = [api.keyturn.keys._seal.open(row) for row in await rows(api.keyturn)]
    spelt = [SECRET, *(each.hex() for each in opened), *(base64.b64encode(each).decode()[:40] for each in opened)]
    return [each for each in (*spelt, 'sealed"', 'secret"') if each in answer.text]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_nobody_but_an_administrator_with_a_fresh_sign_in_sees_or_changes_keys(
    api: Api, method: str, path: str, body: Any
) -> None:
    before = await status(api.keyturn)
    user, boss = await api.login(), await api.login(BOSS)
    ended = await api.login(BOSS)
    await api.keyturn.ending.logout([ended["access_token"]], (), "this", by=SERVICE)
    outcomes = [
        (await ask(api, method, path, body, bearer)).status_code
        for bearer in (None, "junk", user["access_token"], ended["access_token"])
    ]
    assert outcomes == [401, 401, 403, 401]
    an_hour_ago = await api.keyturn.reading.find(UUID(boss["session_id"]))
    assert an_hour_ago.auth_time is not None
    async with api.keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(auth_time=an_hour_ago.auth_time - timedelta(hours=1)))
    stale = await ask(api, method, path, body, boss["access_token"])
    assert (stale.status_code, stale.json()["error"]) == (401, "insufficient_user_authentication")
    assert await status(api.keyturn) == before


@pytest.mark.parametrize(("method", "path", "body"), [route for route in ROUTES if route[0] == "POST"])
async def test_a_cookie_changes_keys_only_from_a_page_of_a_trusted_origin(
    api: Api, method: str, path: str, body: Any
) -> None:
    before = await status(api.keyturn)
    same = {"Sec-Fetch-Site": "same-origin"}
    login = {"email": BOSS, "password": "seven lamps under a quiet roof", "mode": "cookie"}
    assert (await api.client.post("/auth/login", json=login, headers=same)).status_code == 200
    for fields in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = await ask(api, method, path, body, None, **fields)
        assert (answer.status_code, answer.json()["error"]) == (403, "cross_site")
    assert await status(api.keyturn) == before
    answer = await ask(api, method, path, body, None, **same)
    assert answer.status_code in {200, 201, 409}, answer.text


async def test_keys_are_listed_made_rotated_and_retired_as_by_the_commands(api: Api) -> None:
    token = (await api.login(BOSS))["access_token"]
    listed = await api.get("/admin/keys", token)
    assert listed.status_code == 200
    keys = {key["use"]: key for key in listed.json()["items"]}
    assert {use: (key["status"], key["sealed_under"]) for use, key in keys.items()} == dict.fromkeys(
        ("access", "refresh", "cookie"), ("signs", "current")
    )
    assert not {"retires_at", "retired_at", "number"} & keys["access"].keys()
    made = await api.post("/admin/keys", {"use": "access", "algorithm": "ES256"}, token)
    assert (made.status_code, made.json()["algorithm"], made.json()["status"]) == (201, "ES256", "published")
    rotated = await api.post("/admin/keys/rotate", {"use": "access"}, token)
    assert [key["kid"] for key in rotated.json()["items"]] == [keys["access"]["kid"], made.json()["kid"]]
    assert rotated.json()["items"][0]["retires_at"] > made.json()["signs_from"]
    again = await api.post("/admin/keys/rotate", {"use": "access"}, token)
    assert again.json() == rotated.json()
    assert (await api.post("/admin/keys/rotate", {"use": "master"}, token)).status_code == 200
    refused = await api.post(f"/admin/keys/{keys['access']['kid']}/retire", None, token)
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    await published(api.keyturn, made.json()["kid"])
    retired = await api.post(f"/admin/keys/{keys['access']['kid']}/retire", None, token)
    assert {key["kid"]: key["status"] for key in retired.json()["items"]} == {
        keys["access"]["kid"]: "retired",
        made.json()["kid"]: "signs",
    }
    for answer in (listed, made, rotated, retired):
        assert await bad_secrets(answer, api) == []
    actors = {(e["event"], e["actor"]) for e in await Events(api.keyturn.db).list(limit=9) if "key" in e["event"]}
    assert {("key_generated", "administrator"), ("key_retired", "administrator")} <= actors


async def test_the_sessions_of_a_refresh_key_that_is_retired_end_after_the_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    user, boss = await api.login(), await api.login(BOSS)
    new = (await api.post("/admin/keys/rotate", {"use": "refresh"}, boss["access_token"])).json()["items"][1]
    await published(api.keyturn, new["kid"])
    answer = await api.post("/admin/keys/refresh-1/retire", None, boss["access_token"])
    assert {key["kid"]: key["status"] for key in answer.json()["items"]} == {
        "refresh-1": "retired",
        new["kid"]: "signs",
    }
    async with asyncio.timeout(30):
        while [
            row
            for row in (await api.keyturn.reading.list(Filter(status="all"), limit=9)).sessions
            if row.ended_at is None
        ]:
            await asyncio.sleep(0.05)
    refused = await api.post("/auth/refresh", {"refresh_token": user["refresh_token"]})
    assert (refused.status_code, refused.json()["reason"]) == (401, "revoked_by_admin")


@pytest.mark.parametrize("kid", ["no-such-key", "x" * 65, "%00", "a%2Fb", "%ff", "a b"])
async def test_a_key_that_is_not_there_is_missing_whatever_its_name(api: Api, kid: str) -> None:
    token = (await api.login(BOSS))["access_token"]
    assert (await api.post(f"/admin/keys/{kid}/retire", None, token)).status_code in {400, 404}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"use": "master"},
        {"use": "access", "algorithm": "none"},
        {"use": "access", "bits": 1024},
        {"use": "access", "algorithm": "ES256", "bits": 2048},
        {"use": "refresh", "algorithm": "ES256"},
        {"use": "access", "secret": "x"},
        {"use": "access", "kid": "mine"},
        {"use": "access", "signs_from": "2020-01-01T00:00:00Z"},
        [],
    ],
)
async def test_what_is_no_key_is_refused_and_nothing_is_made(api: Api, body: Any) -> None:
    token = (await api.login(BOSS))["access_token"]
    answers = [await api.post("/admin/keys", body, token)]
    if body != {"use": "master"}:
        answers.append(await api.post("/admin/keys/rotate", body, token))
    answers.append(await api.post("/admin/keys/rotate", {"use": "master", "bits": 2048}, token))
    assert {answer.status_code for answer in answers} == {400}
    assert len(await status(api.keyturn)) == 3


async def test_everyone_is_signed_out_the_caller_too_and_may_sign_in_again(api: Api) -> None:
    user, boss = await api.login(), await api.login(BOSS)
    answer = await api.post("/admin/sign-everyone-out", None, boss["access_token"])
    assert answer.status_code == 200
    assert answer.json()["refresh_kid"] == "refresh-2"
    assert await bad_secrets(answer, api) == []
    await until(lambda: api.keyturn.keys.retired(1) is not None)
    for tokens in (user, boss):
        assert (await api.get("/auth/verify", tokens["access_token"])).status_code == 401
        refused = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
        assert (refused.status_code, refused.json()["reason"]) == (401, "signed_out_everywhere")
    again = await api.login(BOSS)
    listed = (await api.get("/admin/keys", again["access_token"])).json()["items"]
    assert [key["status"] for key in listed if key["kid"] == answer.json()["access_kid"]] == ["signs"]
