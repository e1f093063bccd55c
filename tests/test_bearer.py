"""The bearer token of a request, and `GET /auth/me`, which answers from the database."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import jwt
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from tests.api import ADA, BARE, BOB, INVALID, Api, api, dump, refused
from tests.conftest import PASSWORD

__all__ = ["api"]  # fixtures


async def test_me_answers_from_the_database(api: Api) -> None:
    tokens = await api.login()
    answer = await api.get("/auth/me", tokens["access_token"])
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    body = answer.json()
    assert body.keys() == {"user", "session"}
    assert body["user"].keys() == {"id", "email", "role", "created_at"}
    assert body["session"].keys() == {
        "id", "client_id", "created_at", "rotated_at", "idle_expires_at", "absolute_expires_at"
    }  # fmt: skip
    assert (body["user"]["email"], body["session"]["id"]) == (ADA, tokens["session_id"])
    for moment in (body["user"]["created_at"], *(v for n, v in body["session"].items() if n.endswith("_at"))):
        assert datetime.fromisoformat(moment).utcoffset() == timedelta(0)
    assert "digest" not in answer.text
    assert "argon2" not in answer.text


async def test_a_token_minted_with_the_shared_key_gains_nothing_at_keyturn_s_own_endpoints(api: Api) -> None:
    bob = await api.keyturn.users.create(BOB, PASSWORD, "admin", by=SERVICE)
    mine = await api.login()
    bobs = await api.login(BOB)
    genuine = (await api.get("/auth/me", mine["access_token"])).json()
    widened = api.minted(mine, role="admin", scope="everything", amr=["mfa"], email=BOB, client_id="other")
    assert (await api.get("/auth/me", widened)).json() == genuine
    before = await dump(api.keyturn)
    change = {"current_password": PASSWORD, "new_password": "a quite new password"}
    for claims in (
        {"sub": str(bob.id)},
        {"sub": "../me"},
        {"sid": str(uuid4())},
        {"sid": bobs["session_id"]},
        {"sid": "0" * 36},
        {"sid": mine["session_id"].upper() + " "},
    ):
        stranger = api.minted(mine, **claims)
        refused(await api.get("/auth/me", stranger), 401, "invalid_token", challenge=INVALID)
        refused(await api.post("/auth/password", change, stranger), 401, "invalid_token", challenge=INVALID)
    assert await dump(api.keyturn) == before


async def test_the_role_of_the_database_holds_at_once_and_is_in_the_next_token(api: Api) -> None:
    tokens = await api.login()
    user = (await api.get("/auth/me", tokens["access_token"])).json()["user"]
    await api.keyturn.users.set_role(UUID(user["id"]), "editor", by=SERVICE)
    assert (await api.get("/auth/me", tokens["access_token"])).json()["user"]["role"] == "editor"
    after = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    assert (await api.get("/auth/verify?role=editor", after["access_token"])).status_code == 200


async def test_the_token_of_a_disabled_or_deleted_user_is_refused(api: Api) -> None:
    bob = await api.keyturn.users.create(BOB, PASSWORD, by=SERVICE)
    disabled, deleted = await api.login(BOB), await api.login()
    await api.keyturn.users.disable(bob.id, by=SERVICE)
    for path in ("/auth/me", "/auth/verify"):
        refused(
            await api.get(path, disabled["access_token"]),
            401,
            "invalid_token",
            reason="user_disabled",
            challenge=INVALID,
        )
    async with api.keyturn.db.begin() as tx:
        for statement in ("DELETE FROM sessions", "DELETE FROM users"):
            await tx.execute(text(statement))
    for path in ("/auth/me", "/auth/verify"):
        refused(await api.get(path, deleted["access_token"]), 401, "invalid_token", challenge=INVALID)


# -- the bearer token


async def test_a_missing_token_gets_a_bare_challenge_and_a_refused_one_its_error(api: Api) -> None:
    for path in ("/auth/me", "/auth/verify"):
        refused(await api.get(path), 401, "invalid_token", challenge=BARE)
        refused(await api.get(path, "junk"), 401, "invalid_token", challenge=INVALID)
    change = {"current_password": PASSWORD, "new_password": "a quite new password"}
    refused(await api.post("/auth/password", change), 401, "invalid_token", challenge=BARE)
    refused(await api.post("/auth/password", change, "junk"), 401, "invalid_token", challenge=INVALID)


async def test_the_scheme_is_bearer_in_any_case_and_no_other(api: Api) -> None:
    token = (await api.login())["access_token"]
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = await api.client.get("/auth/me", headers={"Authorization": f"{scheme} {token}"})
        assert answer.status_code == 200
    for scheme in ("Token", "JWT", "Digest", "Basic", "DPoP", "Bearer,", "Bea rer", "\xa0Bearer", ""):
        answer = await api.client.get("/auth/me", headers={b"Authorization": f"{scheme} {token}".encode()})
        refused(answer, 401, "invalid_token", challenge=BARE)


async def test_a_scheme_of_someone_else_does_not_keep_a_refresh_token_from_logging_out(api: Api) -> None:
    tokens = await api.login()
    proxys_own = {"Authorization": "Basic cHJveHk6aHVudGVyMg=="}
    answer = await api.client.post("/auth/logout", headers=proxys_own)
    refused(answer, 401, "invalid_token", challenge=BARE)
    body = {"refresh_token": tokens["refresh_token"]}
    assert (await api.client.post("/auth/logout", json=body, headers=proxys_own)).status_code == 204
    answer = await api.client.get("/auth/verify", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    refused(answer, 401, "invalid_token", reason="logout", challenge=INVALID)


async def test_two_authorization_fields_are_refused_whichever_is_good(api: Api) -> None:
    good = f"Bearer {(await api.login())['access_token']}"
    for pair in ((good, good), (good, "Bearer junk"), ("Bearer junk", good), (good, "Basic YTpi")):
        for path in ("/auth/me", "/auth/verify"):
            answer = await api.client.get(path, headers=[("Authorization", value) for value in pair])
            refused(answer, 400, "invalid_request")
    answer = await api.client.get("/auth/me", headers={"Authorization": f"{good}, {good}"})
    refused(answer, 401, "invalid_token", challenge=INVALID)


async def test_an_access_token_is_read_from_the_header_alone_and_is_in_no_log(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    token = (await api.login())["access_token"]
    answers = [
        await api.client.get(f"/auth/me?access_token={token}"),
        await api.client.get(f"/auth/verify/{token}?token={token}"),
        await api.client.post("/auth/verify", data={"access_token": token}),
        await api.client.get("/auth/me", headers={"Cookie": f"access_token={token}; __Host-keyturn-access={token}"}),
        await api.client.get("/auth/me", headers={"X-Access-Token": token, "Proxy-Authorization": f"Bearer {token}"}),
    ]
    for answer in answers:
        refused(answer, 401, "invalid_token", challenge=BARE)
    await api.client.get(f"/{token}", headers={"Authorization": f"Bearer {token}"})
    await asyncio.sleep(0)  # the log is written at the end of a turn of the loop
    log = capsys.readouterr().err
    assert log.count('"event": "request"') == 7  # six requests here and the login
    assert token not in log
    assert token.split(".")[2] not in log


async def test_a_refresh_token_is_no_access_token(api: Api) -> None:
    tokens = await api.login()
    for path in ("/auth/me", "/auth/verify"):
        refused(await api.get(path, tokens["refresh_token"]), 401, "invalid_token", challenge=INVALID)


async def test_junk_access_tokens_all_get_one_answer(api: Api) -> None:
    tokens = await api.login()
    header, claims, signature = tokens["access_token"].split(".")
    none = jwt.encode({"sub": "x"}, "", algorithm="none")
    junk = [
        "x",
        ".",
        "..",
        "a.b.c",
        f"{header}.{claims}.",
        f"{header}.{claims}",
        f"{claims}.{header}.{signature}",
        none,
    ]
    junk += [
        f"{header}.{claims}.{signature[:-4]}AAAA",
        "x" * 8193,
        tokens["access_token"] + "=",
        tokens["refresh_token"],
    ]
    answers = [await api.get(path, token) for token in junk for path in ("/auth/me", "/auth/verify")]
    assert len({(a.status_code, a.content, tuple(name for name, _ in a.headers.multi_items())) for a in answers}) == 1
    refused(answers[0], 401, "invalid_token", challenge=INVALID)
