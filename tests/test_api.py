"""The HTTP interface: the answers, statuses and header fields of each endpoint, on both databases."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import httpx2
import jwt
import pytest
from sqlalchemy import select, text

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.main import create_app
from app.storage.tables import Session
from app.tokens.access_tokens import MEDIA_TYPE
from tests.conftest import NEW_PASSWORD as NEW
from tests.conftest import PASSWORD, settings_of, time_passes

ADA, BOB = "ada@example.com", "bob@example.com"
POSTS = ("/auth/register", "/auth/login", "/auth/refresh", "/auth/logout", "/auth/password")
GETS = ("/auth/me", "/auth/verify", "/healthz", "/readyz", "/.well-known/jwks.json")
EVERY_METHOD = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER_METHODS = ("TRACE", "PROPFIND", "REPORT", "MKCALENDAR", "QUERY", "FOO", "PURGE-ALL", "X" * 64)
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Api:
    """The application with its edge, run in this process, and the parts behind it."""

    client: httpx2.AsyncClient
    keyturn: Keyturn

    async def post(self, path: str, body: Any = None, bearer: str | None = None) -> httpx2.Response:
        return await self.client.post(path, json=body, headers=authorization(bearer))

    async def get(self, path: str, bearer: str | None = None) -> httpx2.Response:
        return await self.client.get(path, headers=authorization(bearer))

    async def login(self, email: str = ADA, password: str = PASSWORD) -> Json:
        answer = await self.post("/auth/login", {"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body

    async def is_live(self, tokens: Json) -> bool:
        """Whether the session's access token is accepted. Asserts that verify and me agree."""
        statuses = {(await self.get(path, tokens["access_token"])).status_code for path in ("/auth/verify", "/auth/me")}
        assert statuses in ({200}, {401})
        return statuses == {200}

    def minted(self, tokens: Json, **claims: Any) -> str:
        """An access token as a resource server could make it, because it holds the same HS256 key."""
        key = self.keyturn.keys.signing_access
        genuine = jwt.decode(tokens["access_token"], options={"verify_signature": False})
        headers = {"typ": MEDIA_TYPE, "kid": key.kid}
        return jwt.encode(genuine | claims, key.signing, algorithm=key.algorithm, headers=headers)


@asynccontextmanager
async def serving(database_url: str, **settings: Any) -> AsyncIterator[Api]:
    app = create_app(settings_of(database_url, None, **settings))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="https://auth.example.com") as client,
    ):
        yield Api(client, app.state.keyturn)


Serve = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
def serve(database_url: str) -> Serve:
    return lambda **settings: serving(database_url, **settings)


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """One instance with one user, Ada."""
    async with serving(database_url) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


def authorization(bearer: str | None) -> dict[str, str]:
    return {} if bearer is None else {"Authorization": f"Bearer {bearer}"}


def refused(
    answer: httpx2.Response, status: int, error: str, *, reason: str | None = None, challenge: str | None = None
) -> None:
    """Asserts that the answer is a refusal of this error, with the shape and header fields that all refusals have."""
    body = answer.json()
    assert (answer.status_code, body["error"], body.get("reason")) == (status, error, reason), answer.text
    assert body.keys() - {"reason"} == {"error", "error_description"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get("www-authenticate") == challenge
    assert "x-request-id" in answer.headers


BARE, INVALID = "Bearer", 'Bearer error="invalid_token"'


async def dump(keyturn: Keyturn) -> str:
    """The text of all rows of the tables that a request may change."""
    async with keyturn.db.look() as connection:
        return repr(
            [
                (await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))).all()
                for table in ("users", "sessions", "keys", "cache_fence")
            ]
        )


# -- register


async def test_registration_is_off_unless_it_is_switched_on(api: Api) -> None:
    before = await dump(api.keyturn)
    refused(await api.post("/auth/register", {"email": BOB, "password": PASSWORD}), 403, "access_denied")
    assert await dump(api.keyturn) == before


async def test_registration_makes_a_user_and_gives_no_tokens(serve: Serve) -> None:
    async with serve(registration="true") as api:
        answer = await api.post("/auth/register", {"email": "Ada@Example.COM", "password": PASSWORD})
        assert answer.status_code == 201
        body = answer.json()
        assert body.keys() == {"id", "email", "role", "created_at"}
        assert (body["email"], body["role"]) == (ADA, "user")
        assert UUID(body["id"]).version == 7
        moment = datetime.fromisoformat(body["created_at"])
        assert moment.utcoffset() == timedelta(0)
        assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)
        # The letter case of an e-mail address makes no difference.
        refused(await api.post("/auth/register", {"email": "ADA@example.com", "password": PASSWORD}), 409, "conflict")
        await api.login("aDa@EXAMPLE.com")


async def test_nobody_registers_as_administrator(serve: Serve) -> None:
    async with serve(registration="true") as api:
        for field in (
            {"role": "admin"},
            {"enabled": True},
            {"created_at": "2020-01-01T00:00:00Z"},
            {"disabled_at": None},
        ):
            answer = await api.post("/auth/register", {"email": ADA, "password": PASSWORD} | field)
            refused(answer, 400, "invalid_request")
            said = answer.json()["error_description"]
            assert said == f"{next(iter(field))}: is a field that this endpoint does not have. It has: email, password."
        assert await api.keyturn.users.list(limit=10) == []


# -- login


async def test_login_answers_with_the_documented_fields(api: Api) -> None:
    answer = await api.post("/auth/login", {"email": ADA, "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
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
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 900)
    assert (body["refresh_expires_in"], body["session_expires_in"]) == (604800, 2592000)
    assert re.fullmatch(r"ktr_[A-Za-z0-9_-]{84}", body["refresh_token"])
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert claims["sid"] == body["session_id"]


async def test_the_refresh_lifetime_in_an_answer_never_passes_the_session_s(serve: Serve) -> None:
    async with serve(refresh_token_lifetime="3600", session_lifetime="3600") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        await time_passes(api.keyturn, timedelta(seconds=3000))
        body = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
        assert body["session_expires_in"] in {599, 600}
        assert body["refresh_expires_in"] == body["session_expires_in"] == body["expires_in"]


async def test_unknown_user_wrong_password_and_disabled_user_get_the_same_answer(api: Api) -> None:
    disabled = await api.keyturn.users.create(BOB, PASSWORD, by=SERVICE)
    await api.keyturn.users.create("eve@example.com", PASSWORD, "admin", by=SERVICE)
    await api.keyturn.users.disable(disabled.id, by=SERVICE)
    answers = [
        await api.post("/auth/login", {"email": email, "password": password})
        for email, password in (
            (ADA, "wrong password"),
            ("nobody@example.com", PASSWORD),
            (BOB, PASSWORD),
            (BOB, "wrong password"),
        )
    ]
    seen = {
        (a.status_code, a.content, tuple((n, v) for n, v in a.headers.multi_items() if n != "x-request-id"))
        for a in answers
    }
    assert len(seen) == 1
    assert len({tuple(name for name, _ in a.headers.multi_items()) for a in answers}) == 1
    refused(answers[0], 401, "invalid_grant", challenge=BARE)


async def test_a_broken_password_hash_is_a_wrong_password(api: Api) -> None:
    for broken in (
        "",
        "x",
        "$argon2id$v=19$m=8,t=1,p=1$cut",
        "$argon2id$v=19$m=4194304,t=3,p=4$c29tZXNhbHQ$AAAA",
        "$2b$12$abc",
    ):
        async with api.keyturn.db.begin() as tx:
            await tx.execute(text("UPDATE users SET password_hash = :broken"), {"broken": broken})
        refused(
            await api.post("/auth/login", {"email": ADA, "password": PASSWORD}), 401, "invalid_grant", challenge=BARE
        )


async def test_a_password_is_taken_as_it_was_sent(serve: Serve) -> None:
    marks = ("\u202e\u200f\u202e" + PASSWORD, "e\u0301" + PASSWORD, "\U0001f511\U0001f510" * 2 + PASSWORD)
    longest = PASSWORD + "é" * ((1024 - len(PASSWORD)) // 2)
    async with serve(registration="true") as api:
        for n, password in enumerate((f"  {PASSWORD}", longest, f" {PASSWORD}\t\n\r", *marks)):
            email = f"user{n}@example.com"
            assert (await api.post("/auth/register", {"email": email, "password": password})).status_code == 201
            await api.login(email, password)
            for other in {password.strip(), password + " ", unicodedata.normalize("NFC", password)} - {password}:
                answer = await api.post("/auth/login", {"email": email, "password": other})
                assert answer.status_code == (400 if len(other.encode()) > 1024 else 401)


async def test_a_full_hashing_queue_is_answered_at_once_and_drains(serve: Serve) -> None:
    async with serve(hashing_slots="1", hashing_queue="0") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        await api.login()  # the first login has also hashed the decoy password
        api.keyturn.passwords.hashing._running += 1
        answer = await api.post("/auth/login", {"email": ADA, "password": PASSWORD})
        refused(answer, 503, "temporarily_unavailable")
        assert answer.headers["retry-after"] == "2"
        api.keyturn.passwords.hashing._running -= 1
        await api.login()


# -- refresh


async def test_refresh_answers_as_login_does_and_a_retry_gets_the_same_pair(api: Api) -> None:
    first = await api.login()
    answer = await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["expires_in"] == 900
    assert second["session_id"] == first["session_id"]
    assert second["refresh_token"] != first["refresh_token"]
    again = (await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    assert (again["access_token"], again["refresh_token"]) == (second["access_token"], second["refresh_token"])


async def test_reuse_is_refused_with_its_reason_and_ends_the_session(api: Api) -> None:
    first = await api.login()
    second = (await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    await api.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    for _ in range(2):
        answer = await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})
        refused(answer, 401, "invalid_grant", reason="reuse_detected", challenge=BARE)
    refused(
        await api.get("/auth/me", second["access_token"]),
        401,
        "invalid_token",
        reason="reuse_detected",
        challenge=INVALID,
    )


async def test_junk_refresh_tokens_all_get_one_answer(api: Api) -> None:
    tokens = await api.login()
    genuine = tokens["refresh_token"]
    junk = [
        "",
        "x",
        "ktr_" + "x" * 84,
        genuine[:-1],
        genuine + "A",
        genuine + " ",
        " " + genuine,
        genuine + "\n",
        genuine[:20] + ("A" if genuine[20] != "A" else "B") + genuine[21:],
        genuine.upper(),
        "KTR_" + genuine[4:],
        "\uff4b" + genuine[1:],
        tokens["access_token"],
    ]
    answers = [await api.post("/auth/refresh", {"refresh_token": token}) for token in junk]
    assert len({(a.status_code, a.content, tuple(name for name, _ in a.headers.multi_items())) for a in answers}) == 1
    refused(answers[0], 401, "invalid_grant", challenge=BARE)
    assert (await api.post("/auth/refresh", {"refresh_token": genuine})).status_code == 200


async def test_a_refresh_token_is_read_from_the_body_alone(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    token = (await api.login())["refresh_token"]
    before = await dump(api.keyturn)
    answers = [
        await api.client.post(f"/auth/refresh?refresh_token={token}"),
        await api.client.post("/auth/refresh", headers={"Authorization": f"Bearer {token}"}),
        await api.client.post(
            "/auth/refresh", headers={"Cookie": f"refresh_token={token}; __Host-keyturn-refresh={token}"}
        ),
        await api.client.post("/auth/refresh", headers={"X-Refresh-Token": token}),
        await api.client.post("/auth/refresh", data={"refresh_token": token}),
        await api.client.get(f"/auth/refresh/{token}"),
    ]
    assert [a.status_code for a in answers] == [400, 400, 400, 400, 415, 404]
    assert await dump(api.keyturn) == before
    assert token not in capsys.readouterr().err


async def test_with_no_connection_free_a_change_is_answered_503_and_junk_is_junk_still(serve: Serve) -> None:
    async with serve(database_pool="2") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        db = api.keyturn.db
        async with db.begin(), db._writer.begin() if db.is_postgres else nullcontext():
            logout, login, junk = await asyncio.gather(
                api.post("/auth/logout", {"refresh_token": tokens["refresh_token"]}),
                api.post("/auth/login", {"email": ADA, "password": PASSWORD}),
                api.post("/auth/refresh", {"refresh_token": "ktr_" + "x" * 84}),
            )
        for answer in (logout, login):
            refused(answer, 503, "temporarily_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 10
        refused(junk, 401, "invalid_grant", challenge=BARE)
        assert await api.is_live(tokens)
        assert (await api.post("/auth/logout", {"refresh_token": tokens["refresh_token"]})).status_code == 204


async def test_a_refresh_that_found_no_connection_may_come_back_well_within_the_window(serve: Serve) -> None:
    async with serve(database_pool="2", retry_window="30") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        body = {"refresh_token": tokens["refresh_token"]}
        async with api.keyturn.db._writer.begin():
            answers = await asyncio.gather(*(api.post("/auth/refresh", body) for _ in range(8)))
        for answer in answers:
            refused(answer, 503, "temporarily_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert (await api.post("/auth/refresh", body)).status_code == 200


# -- logout


@pytest.mark.parametrize("how", ["refresh token", "access token", "both"])
async def test_logout_ends_the_session_of_the_token_and_is_safe_to_repeat(api: Api, how: str) -> None:
    tokens, other = await api.login(), await api.login()
    body = {"refresh_token": tokens["refresh_token"]} if how != "access token" else None
    bearer = tokens["access_token"] if how != "refresh token" else None
    for _ in range(3):
        answer = await api.post("/auth/logout", body, bearer)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["cache-control"] == "no-store"
        assert not await api.is_live(tokens)
    refused(
        await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}),
        401,
        "invalid_grant",
        reason="logout",
        challenge=BARE,
    )
    assert await api.is_live(other)


async def test_logout_with_the_tokens_of_two_sessions_ends_both(api: Api) -> None:
    one, two, three = await api.login(), await api.login(), await api.login()
    answer = await api.post("/auth/logout", {"refresh_token": two["refresh_token"]}, one["access_token"])
    assert answer.status_code == 204
    assert [await api.is_live(tokens) for tokens in (one, two, three)] == [False, False, True]


async def test_logout_with_a_good_token_beside_junk_goes_by_the_good_one(api: Api) -> None:
    one, two, three = await api.login(), await api.login(), await api.login()
    assert (await api.post("/auth/logout", {"refresh_token": "junk"}, one["access_token"])).status_code == 204
    assert (await api.post("/auth/logout", {"refresh_token": two["refresh_token"]}, "junk")).status_code == 204
    assert [await api.is_live(tokens) for tokens in (one, two, three)] == [False, False, True]


async def test_logout_with_junk_alone_is_refused_and_ends_nothing(api: Api) -> None:
    tokens = await api.login()
    expired_and_forged = api.minted(tokens, exp=1)[:-2] + "AA"
    before = await dump(api.keyturn)
    refused(await api.post("/auth/logout"), 401, "invalid_token", challenge=BARE)
    refused(await api.post("/auth/logout", {}), 401, "invalid_token", challenge=BARE)
    refused(await api.post("/auth/logout", {"refresh_token": "junk"}), 401, "invalid_grant", challenge=BARE)
    refused(
        await api.post("/auth/logout", {"refresh_token": tokens["access_token"]}), 401, "invalid_grant", challenge=BARE
    )
    for bearer in ("junk", tokens["refresh_token"], expired_and_forged):
        refused(await api.post("/auth/logout", {}, bearer), 401, "invalid_token", challenge=INVALID)
    assert await dump(api.keyturn) == before
    assert await api.is_live(tokens)


async def test_an_expired_access_token_still_logs_its_session_out(api: Api) -> None:
    tokens, other = await api.login(), await api.login()
    genuine = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    expired = api.minted(tokens, iat=genuine["iat"] - 4000, exp=genuine["iat"] - 3100)
    refused(await api.get("/auth/verify", expired), 401, "invalid_token", reason="token_expired", challenge=INVALID)
    assert (await api.post("/auth/logout", bearer=expired)).status_code == 204
    assert [await api.is_live(t) for t in (tokens, other)] == [False, True]


@pytest.mark.parametrize(
    ("scope", "live"), [("this", [False, True]), ("others", [True, False]), ("all", [False, False])]
)
@pytest.mark.parametrize("by", ["refresh token", "access token"])
async def test_logout_ends_exactly_the_sessions_of_its_scope(api: Api, scope: str, live: list[bool], by: str) -> None:
    await api.keyturn.users.create(BOB, PASSWORD, by=SERVICE)
    mine, other, bobs = await api.login(), await api.login(), await api.login(BOB)
    body = {"scope": scope} | ({"refresh_token": mine["refresh_token"]} if by == "refresh token" else {})
    answer = await api.post("/auth/logout", body, mine["access_token"] if by == "access token" else None)
    assert answer.status_code == 204
    assert [await api.is_live(tokens) for tokens in (mine, other)] == live
    assert await api.is_live(bobs)


async def test_logout_of_all_with_the_tokens_of_two_sessions_is_done(api: Api) -> None:
    one, two = await api.login(), await api.login()
    answer = await api.post(
        "/auth/logout", {"refresh_token": two["refresh_token"], "scope": "all"}, one["access_token"]
    )
    assert answer.status_code == 204
    assert [await api.is_live(tokens) for tokens in (one, two)] == [False, False]


async def test_only_a_token_that_still_works_ends_other_sessions(api: Api) -> None:
    first, other = await api.login(), await api.login()
    second = (await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    await api.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    answer = await api.post("/auth/logout", {"refresh_token": first["refresh_token"], "scope": "all"})
    refused(answer, 401, "invalid_grant", challenge=BARE)
    assert await api.is_live(other)
    await api.post("/auth/logout", bearer=first["access_token"])
    for scope in ("others", "all"):
        answer = await api.post("/auth/logout", {"scope": scope}, first["access_token"])
        refused(answer, 401, "invalid_grant", reason="logout", challenge=BARE)
    assert await api.is_live(other)


async def test_no_verification_that_begins_after_the_logout_was_answered_succeeds(api: Api) -> None:
    tokens = await api.login()
    answered = asyncio.Event()
    late: list[int] = []

    async def read() -> None:
        while True:
            after = answered.is_set()
            await asyncio.sleep(0)  # lets the logout go on: without a socket, a refusal from memory never suspends
            status = (await api.get("/auth/verify", tokens["access_token"])).status_code
            if after:
                late.append(status)
                return

    readers = [asyncio.create_task(read()) for _ in range(50)]
    assert (await api.post("/auth/logout", bearer=tokens["access_token"])).status_code == 204
    answered.set()
    await asyncio.gather(*readers)
    assert late == [401] * 50


# -- me


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


# -- verify


async def test_verify_answers_any_method_and_any_path_below_in_the_same_way(api: Api) -> None:
    tokens = await api.login()
    headers = authorization(tokens["access_token"])
    expected = await api.get("/auth/verify", tokens["access_token"])
    assert expected.json() == jwt.decode(tokens["access_token"], options={"verify_signature": False})
    for method in (*EVERY_METHOD, *OTHER_METHODS):
        for path in (
            "/auth/verify",
            "/auth/verify/",
            "/auth/verify/a/b.html",
            "/auth/verify//x?y=1",
            "/auth/verify/%2e%2e/me",
            "/auth/verify/%0a%ff%00",
            "/auth/verify/x?role=admin&scope=everything&role=%",
            "/auth/verify/?role=admin",
            "/auth/verify;role=user/?role=admin",
        ):
            answer = await api.client.request(method, path, headers=headers)
            assert answer.status_code == 200, (method, path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-auth-subject"] == expected.headers["x-auth-subject"]
            if method != "HEAD":
                assert answer.json() == expected.json()
            refused_answer = await api.client.request(method, path)
            assert refused_answer.status_code == 401
            assert not [name for name in refused_answer.headers if name.startswith("x-auth-")]


async def test_verify_does_not_look_at_the_body_that_a_proxy_hands_on(api: Api) -> None:
    headers = authorization((await api.login())["access_token"])
    bodies = [
        ({"Content-Type": "text/html"}, b"<html>"),
        ({"Content-Type": "application/json"}, b'{"a": 1, "a": '),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"\x1f\x8b\x08"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n\xff\xfe\r\n--x--"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"role=admin&%ff"),
        ({}, b"\0" * 60_000),
    ]
    for more, body in bodies:
        for path in ("/auth/verify", "/auth/verify/below"):
            for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
                answer = await api.client.request(method, path, content=body, headers=headers | more)
                assert answer.status_code == 200, (more, method, answer.text)
    large = await api.client.post("/auth/verify", content=b"x" * 65_537, headers=headers)
    assert large.status_code == 200


async def test_verify_asks_for_a_role_and_for_scopes(api: Api) -> None:
    tokens = await api.login()
    narrow, scoped = tokens["access_token"], api.minted(tokens, scope="read write")
    for query, token, status in (
        ("role=user", narrow, 200),
        ("role=admin", narrow, 403),
        ("role=", narrow, 403),
        ("role=User", narrow, 403),
        ("role=use", narrow, 403),
        ("role=user%20", narrow, 403),
        ("scope=read", narrow, 403),
        ("scope=", narrow, 200),
        ("scope=read", scoped, 200),
        ("scope=write+read", scoped, 200),
        ("scope=read&scope=write", scoped, 200),
        ("scope=READ", scoped, 403),
        ("scope=rea", scoped, 403),
        ("scope=read%20admin", scoped, 403),
        ("role=user&scope=read", scoped, 200),
        ("role=admin&scope=read", scoped, 403),
    ):
        before = query.replace("&", ";")  # the demand comes before the path that a proxy appends
        for target in (f"?{query}", f";{before}", f";{before}/", f";{before}/orders;role=x?role=x&scope=x"):
            answer = await api.get(f"/auth/verify{target}", token)
            assert answer.status_code == status, target
            if status == 403:
                refused(answer, 403, "insufficient_scope", challenge='Bearer error="insufficient_scope"')
                assert not [name for name in answer.headers if name.startswith("x-auth-")]


async def test_a_demand_that_is_mistyped_before_what_a_proxy_appends_lets_no_one_through(api: Api) -> None:
    token = (await api.login())["access_token"]
    for below in ("", "/", "/orders"):
        for demand in (";rolle=admin", ";Role=user", ";role", ";", ";role=user;", ";role=user;x=y", ";role%3Duser"):
            refused(await api.get(f"/auth/verify{demand}{below}", token), 404, "not_found")


async def test_a_demand_that_is_mistyped_in_the_query_lets_no_one_through(api: Api) -> None:
    token = (await api.login())["access_token"]
    for query in (
        "rolle=user",
        "Role=user",
        "roles=user",
        "claim=acme",
        "clam.org=acme",
        "role=user&x=y",
        "role%20=user",
    ):
        for before in ("", ";role=user"):
            refused(await api.get(f"/auth/verify{before}?{query}", token), 400, "invalid_request")
    assert (await api.get("/auth/verify/?rolle=admin", token)).status_code == 200  # a client's, below


async def test_a_second_role_or_scope_in_the_query_can_only_narrow(api: Api) -> None:
    token = (await api.login())["access_token"]
    for query in ("role=admin&role=user", "role=user&role=admin", "scope=read&scope="):
        assert (await api.get(f"/auth/verify?{query}", token)).status_code == 403
    for target in (";role=admin?role=user", ";role=user?role=admin", ";role=admin;role=user/"):
        assert (await api.get(f"/auth/verify{target}", token)).status_code == 403


async def test_identity_headers_come_from_the_token_alone(api: Api) -> None:
    tokens = await api.login()
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    forged = {f"X-Auth-{name}": "forged" for name in ("Subject", "Role", "Scope", "Session")}
    answer = await api.client.get("/auth/verify", headers=authorization(tokens["access_token"]) | forged)
    assert {n: v for n, v in answer.headers.multi_items() if n.startswith("x-auth-")} == {
        "x-auth-subject": claims["sub"],
        "x-auth-role": "user",
        "x-auth-scope": "",  # empty but present, or a proxy would pass on the client's own field
        "x-auth-session": tokens["session_id"],
    }
    scoped = await api.get("/auth/verify", api.minted(tokens, scope="read write"))
    assert scoped.headers["x-auth-scope"] == "read write"


async def test_no_claim_can_make_a_header_of_its_own(api: Api) -> None:
    tokens = await api.login()
    hostile = (
        "x\r\nX-Auth-Role: admin",
        "x\nSet-Cookie: a=b",
        "x\rx",
        "x\0",
        "\xe9",
        "\u2028",
        "\x7f",
        "x\ty",
        "\u212a",
    )
    headers = {"sub": "x-auth-subject", "role": "x-auth-role", "scope": "x-auth-scope"}
    for claim, header in headers.items():
        for value in hostile:
            answer = await api.get("/auth/verify", api.minted(tokens, **{claim: value}))
            assert (answer.status_code, answer.json()[claim]) == (200, value)
            assert "set-cookie" not in answer.headers
            assert all(v.isascii() and v.isprintable() for _, v in answer.headers.multi_items()), (claim, value)
            assert answer.headers["x-auth-role"] == ("" if claim == "role" else "user")
            # Only white space gives scopes, which it separates. For every other value the header field is empty.
            assert answer.headers[header] == "" or claim == "scope"


async def test_claims_that_json_can_t_carry_are_refused(api: Api) -> None:
    tokens = await api.login()
    for claims in ({"role": "\ud800"}, {"x": "\udfff"}, {"x\ud800": 1}):
        refused(await api.get("/auth/verify", api.minted(tokens, **claims)), 401, "invalid_token", challenge=INVALID)


async def test_a_moment_beyond_every_float_is_refused(api: Api) -> None:
    tokens = await api.login()
    for moment in (10**400, -(10**400)):
        answer = await api.get("/auth/verify", api.minted(tokens, iat=moment, exp=moment))
        refused(answer, 401, "invalid_token", challenge=INVALID)


async def test_claims_of_any_form_never_make_an_error_of_ours(api: Api) -> None:
    tokens = await api.login()
    deep: Any = []
    for _ in range(700):
        deep = [deep]
    for claims in (
        {"x": deep},
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": 10**4000},
        {"scope": ["read"]},
        {"scope": {"read": True}},
        {"scope": 7},
        {"aud": ["https://auth.example.com", "https://other.example.com"]},
        {"nbf": None},
        {"exp": True},
    ):
        for path in ("/auth/verify?scope=read", "/auth/verify", "/auth/me"):
            answer = await api.get(path, api.minted(tokens, **claims))
            assert answer.status_code in {200, 401, 403}, claims.keys()
            assert answer.headers.get("x-auth-scope", "") == ""


# -- password


async def test_a_password_change_ends_every_other_session_and_keeps_this_one(api: Api) -> None:
    mine, other = await api.login(), await api.login()
    body = {"current_password": PASSWORD, "new_password": NEW}
    answer = await api.post("/auth/password", body, mine["access_token"])
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")
    assert await api.is_live(mine)
    for path in ("/auth/me", "/auth/verify"):
        refused(
            await api.get(path, other["access_token"]),
            401,
            "invalid_token",
            reason="password_changed",
            challenge=INVALID,
        )
    refused(
        await api.post("/auth/refresh", {"refresh_token": other["refresh_token"]}),
        401,
        "invalid_grant",
        reason="password_changed",
        challenge=BARE,
    )
    refused(await api.post("/auth/login", {"email": ADA, "password": PASSWORD}), 401, "invalid_grant", challenge=BARE)
    await api.login(ADA, NEW)


async def test_a_password_change_that_is_refused_changes_nothing(api: Api) -> None:
    mine, other = await api.login(), await api.login()
    before = await dump(api.keyturn)
    for current, new, status, error in (
        ("wrong password", NEW, 401, "invalid_grant"),
        (PASSWORD + "\0", NEW, 401, "invalid_grant"),
        ("", NEW, 401, "invalid_grant"),
        (PASSWORD, "short", 400, "invalid_request"),
        (PASSWORD, "", 400, "invalid_request"),
        (PASSWORD, "é" * 513, 400, "invalid_request"),
        (PASSWORD, "p" * 1025, 400, "invalid_request"),
        (PASSWORD, "with a\0NUL inside", 400, "invalid_request"),
    ):
        body = {"current_password": current, "new_password": new}
        refused(
            await api.post("/auth/password", body, mine["access_token"]), status, error,
            challenge=BARE if status == 401 else None,
        )  # fmt: skip
    assert await dump(api.keyturn) == before
    assert [await api.is_live(tokens) for tokens in (mine, other)] == [True, True]


async def test_an_ended_session_changes_no_password(api: Api) -> None:
    tokens = await api.login()
    await api.post("/auth/logout", bearer=tokens["access_token"])
    body = {"current_password": PASSWORD, "new_password": NEW}
    answer = await api.post("/auth/password", body, tokens["access_token"])
    refused(answer, 401, "invalid_token", reason="logout", challenge=INVALID)
    await api.login()


async def test_the_same_password_change_twice_at_once_leaves_one_password_that_works(api: Api) -> None:
    mine = await api.login()
    news = [f"new password number {n}" for n in range(5)]
    answers = await asyncio.gather(
        *(
            api.post("/auth/password", {"current_password": PASSWORD, "new_password": new}, mine["access_token"])
            for new in news
        )
    )
    assert sorted(a.status_code for a in answers) == [204, 401, 401, 401, 401]
    logins = [await api.post("/auth/login", {"email": ADA, "password": new}) for new in news]
    assert [a.status_code for a in logins] == [{204: 200, 401: 401}[a.status_code] for a in answers]


# -- health, keys


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


# -- every endpoint


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


async def test_parallel_logins_and_a_logout_of_all_leave_no_session_half_ended(api: Api) -> None:
    mine = await api.login()
    logins = [api.login() for _ in range(10)]
    logout = api.post("/auth/logout", {"scope": "all"}, mine["access_token"])
    *sessions, answer = await asyncio.gather(*logins[:5], *logins[5:], logout)
    assert isinstance(answer, httpx2.Response)
    assert answer.status_code == 204
    for tokens in sessions:
        assert isinstance(tokens, dict)
        live = await api.is_live(tokens)
        refreshed = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
        assert refreshed.status_code == (200 if live else 401)
        if not live:
            refused(refreshed, 401, "invalid_grant", reason="logout_all", challenge=BARE)
    assert not await api.is_live(mine)


async def test_a_session_keeps_the_user_agent_of_its_sign_in_without_tokens_and_cut(api: Api) -> None:
    del api.client.headers["user-agent"]
    sent: list[bytes | None] = [None, "Browser/1 (é)".encode("latin-1"), b"x" * 300, f"Shop/1 ktr_{'A' * 84}".encode()]
    for value in sent:
        fields = {} if value is None else {b"User-Agent": value}
        answer = await api.client.post("/auth/login", json={"email": ADA, "password": PASSWORD}, headers=fields)
        assert answer.status_code == 200, answer.text
    async with api.keyturn.db.look() as connection:
        stored = (await connection.scalars(select(Session.user_agent).order_by(Session.id))).all()
    assert stored == [None, "Browser/1 (é)", "x" * 256, "Shop/1 [redacted]"]
