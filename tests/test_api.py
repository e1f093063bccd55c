"""Rules of every endpoint, and endpoints for anyone: health, readiness, published keys. On both databases."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from time import monotonic

import jwt
import pytest

from app.actors import SERVICE
from tests.api import (
    ADA,
    BARE,
    EVERY_METHOD,
    GETS,
    OTHER_METHODS,
    POSTS,
    Api,
    Serve,
    api,
    authorization,
    dump,
    refused,
    serve,
)
from tests.conftest import NEW_PASSWORD as NEW
from tests.conftest import PASSWORD

__all__ = ["api", "serve"]  # fixtures


async def test_health_is_alive_and_readiness_names_each_part(api: Api) -> None:
    health, ready = await api.get("/healthz"), await api.get("/readyz")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "database": "ok", "cache": "none"})
    for answer in (health, ready):
        assert answer.headers["cache-control"] == "no-store"


async def test_without_its_database_it_is_alive_and_not_ready(api: Api) -> None:
    revocations = api.keyturn.revocations
    async with AsyncExitStack() as held:
        for _ in range(2 if api.keyturn.db.is_postgres else 1):  # all connections of the pool that reads the fence
            await held.enter_async_context(api.keyturn.db.watch_connection())
        assert revocations.fence.last is not None
        revocations.fence.last = replace(revocations.fence.last, began=monotonic() - 3)
        ready, health = await asyncio.gather(api.get("/readyz"), api.get("/healthz"))
    assert (ready.status_code, ready.headers["retry-after"], ready.headers["cache-control"]) == (503, "1", "no-store")
    assert ready.json() == {"status": "not ready", "database": "away", "cache": "none"}
    assert health.status_code == 200
    await revocations.fence.read()
    assert (await api.get("/readyz")).status_code == 200


async def test_who_asks_for_readiness_without_pause_starves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.revocation.fence.READ_LIMIT", timedelta(seconds=5))  # for a slow machine
    # Twenty requests take one turn of the loop. The reading of the fence needs several, and must still end in time.
    for _ in range(50):
        answers = await asyncio.gather(*(api.get("/readyz") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert not api.keyturn.revocations.fence.database_is_away()


async def test_symmetric_keys_are_never_published(api: Api) -> None:
    answer = await api.get("/.well-known/jwks.json")
    assert (answer.status_code, answer.json()) == (200, {"keys": []})
    assert answer.headers["cache-control"] == "public, max-age=30"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
async def test_published_keys_verify_tokens_and_are_public_halves(serve: Serve, algorithm: str) -> None:
    async with serve(signing_algorithm=algorithm) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        token = (await api.login())["access_token"]
        keys = (await api.get("/.well-known/jwks.json")).json()["keys"]
        assert not [key for key in keys if key.keys() & {"d", "k", "p", "q"}]
        key = next(key for key in keys if key["kid"] == jwt.get_unverified_header(token)["kid"])
        jwt.decode(token, jwt.PyJWK(key), algorithms=[algorithm], audience="https://auth.example.com")


async def test_every_endpoint_names_its_methods_when_it_is_asked_with_another(api: Api) -> None:
    allowed = dict.fromkeys(POSTS, "POST") | dict.fromkeys(GETS, "GET, HEAD")
    del allowed["/auth/verify"]  # answers any method
    for path, methods in allowed.items():
        for method in (*EVERY_METHOD, *OTHER_METHODS):
            if method in methods.split(", "):
                continue
            answer = await api.client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, methods), (method, path)
            assert answer.headers["cache-control"] == "no-store"


async def test_head_is_get_without_a_body(api: Api) -> None:
    headers = authorization((await api.login())["access_token"])
    for path in GETS:
        get, head = [await api.client.request(method, path, headers=headers) for method in ("GET", "HEAD")]
        assert (get.status_code, head.status_code, head.content) == (200, 200, b""), path
        assert head.headers.keys() == get.headers.keys()


async def test_an_unknown_path_is_not_found(api: Api) -> None:
    for path in (
        "/nope",
        "/auth",
        "/auth/",
        "/auth/me/",
        "/auth/login/",
        "/AUTH/me",
        "//auth/me",
        "/docs/",
        "/redoc",
        "/auth/verifyx",
    ):
        refused(await api.get(path), 404, "not_found")


async def test_every_answer_carries_a_request_id_and_a_client_s_own_is_kept(api: Api) -> None:
    for path in (*GETS, *POSTS, "/nope"):
        made = [(await api.get(path)).headers["x-request-id"] for _ in range(2)]
        assert made[0] != made[1]
        assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in made)
        given = await api.client.get(path, headers={"X-Request-Id": "my.own-ID_7"})
        assert given.headers.get_list("x-request-id") == ["my.own-ID_7"]
    token = (await api.login())["refresh_token"]
    for bad in ("", "x" * 65, "a b", "a\tb", "a;b", "\xe9", token, "eyJhbGciOi"):
        answer = await api.client.get("/healthz", headers={b"X-Request-Id": bad.encode()})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"]), bad


async def test_endpoints_for_the_signed_in_refuse_everyone_else(api: Api) -> None:
    change = {"current_password": PASSWORD, "new_password": NEW}
    before = await dump(api.keyturn)
    for answer in (await api.get("/auth/me"), await api.get("/auth/verify"), await api.post("/auth/password", change)):
        refused(answer, 401, "invalid_token", challenge=BARE)
    for path in ("/healthz", "/readyz", "/.well-known/jwks.json", "/openapi.json"):
        assert (await api.get(path)).status_code == 200
    assert await dump(api.keyturn) == before


async def test_below_a_prefix_everything_answers_whether_or_not_the_proxy_strips_it(serve: Serve) -> None:
    async with serve(root_path="/keyturn") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        headers = authorization((await api.login())["access_token"])
        for prefix in ("", "/keyturn"):
            assert (await api.client.get(f"{prefix}/auth/me", headers=headers)).status_code == 200
            assert (await api.client.post(f"{prefix}/auth/verify/x", content=b"<", headers=headers)).status_code == 200
            refused(await api.client.post(f"{prefix}/auth/login", content=b"<"), 415, "invalid_request")
        document = (await api.get("/openapi.json")).json()
        assert document["servers"][0] == {"url": "/keyturn"}


@pytest.mark.parametrize(
    "prefix",
    ["/auth", "/a", "/auth/", "/auth/auth", "/auth/me", "/auth/verifying", "/healthz", "/.well-known", "/x/auth"],
)
async def test_a_prefix_that_looks_like_a_path_of_ours_is_not_taken_for_it(serve: Serve, prefix: str) -> None:
    async with serve(root_path=prefix) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        headers = authorization((await api.login())["access_token"])
        for before in ("", prefix.removesuffix("/")):
            for path in (
                *GETS,
                "/openapi.json",
                "/auth/verify/x",
                f"/auth/verify{prefix}",
                "/auth/verify/auth/me?role=x",
            ):
                answer = await api.client.get(before + path, headers=headers)
                assert answer.status_code == 200, before + path
                assert ("x-auth-role" in answer.headers) == path.startswith("/auth/verify"), before + path
            for path in POSTS:
                refused(await api.client.post(before + path, content=b"<", headers=headers), 415, "invalid_request")
                assert (await api.client.get(before + path)).status_code == 405
            assert (await api.client.get(f"{before}/auth/verify;role=admin/x", headers=headers)).status_code == 403
            for path in ("/nope", "/verify", "/auth/verifyx", "/authauth/me", f"{prefix}x/auth/me", "/uth/me", "/me"):
                if before + path not in GETS:  # with the prefix /auth, /auth/me means /auth/auth/me
                    refused(await api.client.get(before + path, headers=headers), 404, "not_found")
