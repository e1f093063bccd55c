"""The rivals of the benchmark do the work that is measured, and report a run that is void."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import pytest
from argon2 import PasswordHasher

from bench.rivals import LeftOut, Rival, Rotating, start
from tests.servers import Postgres, Redis, free_port

ADA, PASSWORD = "ada@example.com", "seven lamps under a quiet roof"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
Json = dict[str, Any]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs the coroutine on an event loop of its own, because the tests of this file are not on one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


async def execute(rival: Rotating, statement: str, *values: Any) -> None:
    async with rival.connection() as connection:
        await connection.execute(statement, *values)


def started(name: str, postgres: Postgres, redis: Redis) -> AbstractContextManager[Rival]:
    return start(name, port=free_port(), postgres_url=postgres.url(), redis_url=redis.url(), background=100)


@pytest.fixture(scope="module")
def textbook(postgres: Postgres, redis: Redis) -> Iterator[Rotating]:
    with started("textbook", postgres, redis) as rival:
        assert isinstance(rival, Rotating)
        insert = "INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3)"
        run(execute(rival, insert, uuid4(), ADA, CHEAP.hash(PASSWORD)))
        yield rival


@pytest.fixture(scope="module")
def oidc(postgres: Postgres, redis: Redis) -> Iterator[Rotating]:
    try:
        with started("oidc", postgres, redis) as rival:
            assert isinstance(rival, Rotating)
            yield rival
    except LeftOut as why:
        pytest.skip(str(why))


@pytest.fixture
def client(textbook: Rotating) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=textbook.url) as client:
        yield client


def login(client: httpx2.Client) -> Json:
    answer = client.post("/auth/login", json={"email": ADA, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    tokens: Json = answer.json()
    return tokens


def refresh(client: httpx2.Client, token: str) -> httpx2.Response:
    return client.post("/auth/refresh", json={"refresh_token": token})


def bearer(tokens: Json) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def is_live(client: httpx2.Client, tokens: Json) -> bool:
    statuses = {client.get(path, headers=bearer(tokens)).status_code for path in ("/auth/verify", "/auth/me")}
    assert statuses in ({200}, {401})
    return statuses == {200}


def present(rival: Rival, token: str) -> httpx2.Response:
    """Sends the request as a load driver does."""
    media_type, body = rival.body(token)
    return httpx2.request(rival.method, rival.url + rival.path, content=body, headers={"Content-Type": media_type})


def refused(answer: httpx2.Response) -> None:
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), answer.text


# -- the textbook service is a token service


def test_login_answers_with_the_documented_fields(client: httpx2.Client) -> None:
    answer = client.post("/auth/login", json={"email": ADA.upper(), "password": PASSWORD})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    body = answer.json()
    assert list(body) == [
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "refresh_expires_in",
        "session_id",
        "session_expires_in",
    ]
    assert (body["token_type"], body["expires_in"], body["refresh_expires_in"]) == ("Bearer", 900, 604800)
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert (claims["sid"], claims["exp"] - claims["iat"], claims["role"]) == (body["session_id"], 900, "user")
    assert is_live(client, body)


def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(client: httpx2.Client) -> None:
    answers = [
        client.post("/auth/login", json={"email": email, "password": password})
        for email, password in ((ADA, "wrong password"), ("nobody@example.com", PASSWORD))
    ]
    for answer in answers:
        refused(answer)
    assert answers[0].content == answers[1].content


def test_refresh_rotates_within_the_session_and_the_old_token_is_refused(client: httpx2.Client) -> None:
    first = login(client)
    answer = refresh(client, first["refresh_token"])
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["session_id"] == first["session_id"]
    assert second["refresh_token"] != first["refresh_token"]
    assert second["access_token"] != first["access_token"]
    assert is_live(client, second)
    third = refresh(client, second["refresh_token"]).json()
    refused(refresh(client, first["refresh_token"]))
    refused(refresh(client, third["refresh_token"]))


def test_of_parallel_refreshes_of_one_token_one_succeeds(client: httpx2.Client) -> None:
    token = login(client)["refresh_token"]
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: refresh(client, token).status_code, range(8)))
    assert sorted(statuses) == [200] + [401] * 7


def test_a_token_that_is_junk_or_expired_is_refused(client: httpx2.Client, textbook: Rotating) -> None:
    tokens = login(client)
    for junk in ("", "x", tokens["access_token"], tokens["refresh_token"] + "A"):
        refused(refresh(client, junk))
    run(execute(textbook, "UPDATE refresh_tokens SET expires_at = now() WHERE session_id = $1", tokens["session_id"]))
    refused(refresh(client, tokens["refresh_token"]))


def test_logout_ends_the_session_and_revokes_the_access_token(client: httpx2.Client) -> None:
    tokens, other = login(client), login(client)
    answer = client.post("/auth/logout", headers=bearer(tokens), json={"refresh_token": tokens["refresh_token"]})
    assert (answer.status_code, answer.content) == (204, b"")
    assert [is_live(client, session) for session in (tokens, other)] == [False, True]
    refused(refresh(client, tokens["refresh_token"]))
    assert refresh(client, other["refresh_token"]).status_code == 200


def test_a_missing_or_forged_access_token_is_refused(client: httpx2.Client) -> None:
    tokens = login(client)
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    forged = jwt.encode(claims, "another secret of sufficient length", algorithm="HS256")
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {forged}"}):
        refused(client.get("/auth/verify", headers=headers))
        refused(client.get("/auth/me", headers=headers))
        refused(client.post("/auth/logout", headers=headers))
    assert is_live(client, tokens)


# -- a run that lost rotations is void


@pytest.mark.parametrize("name", ["textbook", "oidc"])
def test_chains_are_followed_and_the_database_is_asked_whether_it_agrees(
    name: str, request: pytest.FixtureRequest
) -> None:
    rival: Rotating = request.getfixturevalue(name)
    heads = rival.chains(3)
    assert len(set(heads)) == 3
    chains = [[head] for head in heads]
    for chain in chains * 2:
        answer = present(rival, chain[-1])
        assert answer.status_code == 200, answer.text
        chain.append(answer.json()["refresh_token"])
    assert len({token for chain in chains for token in chain}) == 9
    assert rival.check(6, 0) is None
    assert rival.check(4, 2) is None
    rival.settle = 0
    assert "6 rotations" in (rival.check(7, 3) or "")
    assert "6 rotations" in (rival.check(3, 2) or "")
    # Both rivals take the second use of a token for reuse, which ends the whole chain.
    assert present(rival, chains[0][0]).status_code in {400, 401}
    assert present(rival, chains[0][-1]).status_code in {400, 401}
    assert "cut" in (rival.check(6, 3) or "")
    # New chains start a new run, with nothing left of the void one.
    rival.chains(2)
    assert rival.check(0, 0) is None


def test_oidc_provider_issues_a_signed_access_token(oidc: Rotating) -> None:
    body = present(oidc, oidc.chains(1)[0]).json()
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert (jwt.get_unverified_header(body["access_token"])["alg"], claims["scope"]) == ("HS256", "read")
    assert body["expires_in"] == claims["exp"] - claims["iat"] == 900


@pytest.mark.parametrize("name", ["fastapi", "asgi"])
def test_empty_applications_answer_every_refresh_alike(name: str, postgres: Postgres, redis: Redis) -> None:
    with started(name, postgres, redis) as rival:
        tokens = rival.chains(2)
        answers = [present(rival, token).json() for token in tokens] + [httpx2.get(rival.url).json()]
        assert answers == [{"refresh_token": "empty"}] * 3
        assert rival.check(3, 2) is None
