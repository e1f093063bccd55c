"""Attacks on federation that go through a real service: each is refused, and none is answered as a defect."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, event

from app.actors import SERVICE
from tests.authorisation import ISSUER, World, a_world, new_database
from tests.upstream.minting import Subject, new_id

OWN_SITE = {"Origin": ISSUER}
UNSTORABLE = ("ses_\0", "\ud800", "ses_\n", "ses_\u202e")


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(request.param, request, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
async def world(database: str, logs: Path) -> AsyncIterator[World]:
    async with a_world(database, logs) as made:
        yield made


def someone() -> Subject:
    return Subject(user_id=new_id("usr"), session_id=new_id("ses"), email=f"{secrets.token_hex(6)}@example.com")


async def exchange(world: World, token: str, **members: Any) -> httpx2.Response:
    return await world.client.post("/auth/exchange", json={"subject_token": token, **members}, headers=OWN_SITE)


# -- the ID token that a browser keeps for the logout


async def test_an_id_token_that_was_kept_for_the_logout_opens_nothing(world: World) -> None:
    """At the logout it stands in a URL, and so in the history of the browser."""
    one = someone()
    access, kept = world.upstream.mint(subject=one), world.upstream.mint("id_token", subject=one)
    assert (await exchange(world, access, mode="cookie", id_token=kept)).status_code == 200
    stolen = await exchange(world, kept)
    assert (stolen.status_code, stolen.json()["error"]) == (401, "invalid_grant")
    again = await exchange(world, access, mode="cookie", id_token=kept)
    assert again.status_code == 200, "the first answer may have been lost"


async def test_an_id_token_may_be_kept_that_was_exchanged_or_kept_before(world: World) -> None:
    one = someone()
    kept = world.upstream.mint("id_token", subject=one)
    first = await exchange(world, kept)
    for token in (world.upstream.mint(subject=one), world.upstream.mint(subject=one)):
        assert (await exchange(world, token, mode="cookie", id_token=kept)).status_code == 200
    again = await exchange(world, kept)
    assert again.json()["refresh_token"] == first.json()["refresh_token"], "its own retry is as safe as before"
    itself = world.upstream.mint("id_token", subject=someone())
    assert (await exchange(world, itself, mode="cookie", id_token=itself)).status_code == 200


async def test_a_token_of_a_session_that_is_over_at_the_issuer_links_nothing(world: World) -> None:
    """A thief could link the stranger's identity to an account of the thief's, and wait for the stranger there."""
    caller = await world.caller("user")
    stolen, good = world.upstream.sign_in("stranger@example.com"), world.upstream.sign_in("own@example.com")
    world.upstream.end(stolen.session_id)
    for token, status in ((stolen.access_token, 401), (good.access_token, 201)):
        answer = await world.client.post("/auth/identities", json={"subject_token": token}, headers=caller.headers)
        assert answer.status_code == status, answer.text


# -- the sessions of one sign-in at the issuer


async def test_however_many_sessions_came_from_one_upstream_none_of_them_stands_in_a_statement(world: World) -> None:
    """A statement has 32,767 parameters at most. Whoever began more sessions could never be signed out."""
    statements: list[set[str]] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE sessions"):
            statements[-1].add(statement)

    for count in (2, 5):
        one = someone()
        for _ in range(count):
            assert (await exchange(world, world.upstream.mint(subject=one))).status_code == 200
        statements.append(set())
        event.listen(Engine, "before_cursor_execute", note)
        try:
            token = world.upstream.mint("logout_token", subject=one)
            assert await world.keyturn.upstream_logout.by_logout_token("acme", token, by=SERVICE) == count
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert statements[0] == statements[1] != set()


# -- texts that no database and no answer can hold


@pytest.mark.parametrize("text", UNSTORABLE)
@pytest.mark.parametrize("claim", ["sid", "sub", "jti"])
async def test_a_logout_token_with_a_name_that_no_database_can_hold_is_refused(
    world: World, claim: str, text: str
) -> None:
    changes: dict[str, Any] = {"sid": ..., claim: text}
    token = world.upstream.mint("logout_token", subject=someone(), **changes)
    answer = await world.client.post("/federation/acme/logout", data={"logout_token": token})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("text", UNSTORABLE)
async def test_a_webhook_about_a_session_that_no_database_can_hold_is_refused(world: World, text: str) -> None:
    fields, body = world.upstream.webhook(data={"user_session": {"session_id": text}})
    answer = await world.client.post("/federation/acme/webhook", content=body, headers=fields)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("name", ["%00", "a%00", "%ff", "%ED%A0%80", "a%2Fb", "x" * 300, "%0a"])
async def test_an_issuer_by_a_name_that_none_can_have_is_not_there(world: World, name: str) -> None:
    admin = await world.caller("admin")
    for method in ("GET", "DELETE", "PUT"):
        body = {"preset": "oidc", "issuer": "https://127.0.0.1:9", "client_id": "x"} if method == "PUT" else None
        answer = await world.client.request(method, f"/admin/federation/{name}", json=body, headers=admin.headers)
        assert answer.status_code in {400, 404}, (method, answer.text)


@pytest.mark.parametrize("file", ["\0", "/x\0", "/x\n\x1b[31m", ""])
async def test_a_ca_file_that_is_no_path_is_refused(world: World, file: str) -> None:
    admin = await world.caller("admin")
    body = {"preset": "oidc", "issuer": f"{world.upstream.url}/x", "client_id": "x", "ca_file": file}
    answer = await world.client.put("/admin/federation/evil", json=body, headers=admin.headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), answer.text


@pytest.mark.parametrize(("text", "status"), [("\ud800", 503), ("\0", 200), ("\x1b]0;x\x07", 200)])
async def test_no_text_of_an_issuer_is_answered_as_a_defect(world: World, text: str, status: int) -> None:
    admin = await world.caller("admin")
    session = {"session_id": "ses_1", "status": "active", "device": {"os": text}}
    world.upstream.fault("/api/v1/sessions/", "answer", status=200, body=json.dumps(session))
    answer = await world.client.get("/admin/federation/acme/sessions/ses_1", headers=admin.headers)
    world.upstream.heal()
    assert answer.status_code == status, answer.text
