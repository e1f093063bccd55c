"""Sign-in with a password: the answer's fields, one answer for all that is wrong, and the queue of hashes."""

from __future__ import annotations

import re
import unicodedata
from datetime import timedelta

import jwt
from sqlalchemy import select, text

from app.actors import SERVICE
from app.storage.tables import Session
from tests.api import ADA, BARE, BOB, Api, Serve, api, refused, serve
from tests.conftest import PASSWORD, time_passes

__all__ = ["api", "serve"]  # fixtures


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
