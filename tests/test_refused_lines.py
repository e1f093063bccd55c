"""The log names the session and the user of each refusal that is about one. A reuse has an event of its own."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import httpx2
import pytest

from app.keyturn import opened
from app.settings import read
from app.storage.tables import uuid7
from app.tokens.access_tokens import AccessTokens
from app.tokens.refresh_tokens import issue
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.service import Service

ADA = {"email": "ada@example.com", "password": PASSWORD}
Json = dict[str, Any]


@dataclass
class Seen:
    """A service on SQLite, the client of one user, and the service's log."""

    service: Service
    environment: dict[str, str]
    client: httpx2.Client
    database: Path
    user_id: str = ""

    def login(self) -> Json:
        answer = self.client.post("/auth/login", json=ADA)
        assert answer.status_code == 200, answer.text
        tokens: Json = answer.json()
        return tokens

    def refresh(self, token: str) -> httpx2.Response:
        return self.client.post("/auth/refresh", json={"refresh_token": token})

    def rotated(self, tokens: Json) -> Json:
        answer = self.refresh(tokens["refresh_token"])
        assert answer.status_code == 200, answer.text
        newer: Json = answer.json()
        return newer

    def verify(self, tokens: Json, path: str = "/auth/verify") -> httpx2.Response:
        return self.client.get(path, headers={"Authorization": f"Bearer {tokens['access_token']}"})

    def lines(self, event: str, request_id: str = "") -> list[Json]:
        lines = [json.loads(line) for line in self.service.text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event and request_id in line.get("request_id", "")]

    def line(self, answer: httpx2.Response) -> Json:
        """The log line of the request. The service writes it just after its answer, so this waits for it."""
        give_up = monotonic() + 10
        while not (found := self.lines("request", answer.headers["x-request-id"])):
            assert monotonic() < give_up
            sleep(0.01)
        return found[0]

    def named(self, answer: httpx2.Response, status: int, reason: str | None, session_id: str | None) -> None:
        """Checks that the request was refused with this status and reason.

        The log line must name the session, the user and the session's client, and the answer must name none of them.
        """
        line = self.line(answer)
        assert (answer.status_code, line["status"], line.get("reason")) == (status, status, reason), line
        client_id = None if session_id is None else "first-party"
        assert (line.get("session_id"), line["user_id"]) == (session_id, self.user_id), line
        assert line.get("client_id") == client_id, line
        assert self.user_id not in answer.text
        assert (session_id or "-" * 36) not in answer.text

    def change(self, statement: str, *values: Any) -> None:
        connection = sqlite3.connect(self.database, timeout=10)
        with connection:
            assert connection.execute(statement, values).rowcount
        connection.close()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the block runs, another program holds the database's lock, so that nothing can be written."""
        connection = sqlite3.connect(self.database, timeout=10, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
            connection.close()


@pytest.fixture(scope="module", params=["info"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen") / "data"
    values = {"data_dir": folder, "secret": SECRET, "registration": "true", "log_level": request.param} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    with (
        Service.start(environment, logs=logs) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        seen = Seen(service, environment, client, folder / "keyturn.db")
        seen.user_id = client.post("/auth/register", json=ADA).json()["id"]
        yield seen


def hexed(session_id: str) -> str:
    """The id as SQLite stores it."""
    return UUID(session_id).hex


def test_each_refusal_of_a_token_whose_session_is_over_names_session_and_user(seen: Seen) -> None:
    bearer = {"Authorization": ""}
    for end, reason in (("logout", "logout"), ("idle", "idle_timeout"), ("absolute", "absolute_timeout")):
        tokens = seen.login()
        bearer["Authorization"] = f"Bearer {tokens['access_token']}"
        if end == "logout":
            assert seen.client.post("/auth/logout", json={"refresh_token": tokens["refresh_token"]}).status_code == 204
        else:
            both = ", absolute_expires_at = 1" if end == "absolute" else ""
            change = f"UPDATE sessions SET idle_expires_at = 1{both} WHERE id = ?"
            seen.change(change, hexed(tokens["session_id"]))
        sid = tokens["session_id"]
        seen.named(seen.refresh(tokens["refresh_token"]), 401, reason, sid)
        seen.named(seen.verify(tokens, "/auth/me"), 401, reason, sid)
        for proof in ({"refresh_token": tokens["refresh_token"]}, {}):
            answer = seen.client.post("/auth/logout", json={"scope": "others", **proof}, headers=bearer)
            seen.named(answer, 401, reason, sid)
        if end == "logout":
            seen.named(seen.verify(tokens), 401, reason, sid)
            seen.named(seen.verify(tokens, "/auth/verify/some/path"), 401, reason, sid)


def test_a_token_that_covers_too_little_or_has_expired_names_session_and_user(seen: Seen) -> None:
    tokens = seen.login()
    sid = tokens["session_id"]
    seen.named(seen.verify(tokens, "/auth/verify?role=admin"), 403, None, sid)
    seen.named(seen.verify(tokens, "/auth/verify?scope=all"), 403, None, sid)

    async def made(session_id: UUID, ago: timedelta) -> Json:
        settings = read(seen.environment | {"KEYTURN_PORT": str(seen.service.port)})
        async with opened(settings) as keyturn:
            await keyturn.keys.load()
            access_token, _ = AccessTokens(keyturn.keys, settings).sign(
                subject=UUID(seen.user_id),
                session_id=session_id,
                generation=0,
                role="user",
                client_id="first-party",
                issued_at=datetime.now(UTC) - ago,
                session_expires_at=datetime.now(UTC) + timedelta(days=1),
            )
            refresh_token = issue(keyturn.keys.signing_refresh, session_id).text
            return {"access_token": access_token, "refresh_token": refresh_token}

    expired = asyncio.run(made(UUID(sid), timedelta(hours=1)))
    for path in ("/auth/verify", "/auth/verify/x", "/auth/me"):
        seen.named(seen.verify(expired, path), 401, "token_expired", sid)
    # A token of another branch of the session's chain opens nothing and ends nothing.
    rotated = seen.rotated(tokens)
    seen.named(seen.refresh(expired["refresh_token"]), 401, None, sid)
    assert seen.verify(rotated).status_code == 200
    # gc has deleted this session. The token still names it.
    gone = uuid7()
    unknown = asyncio.run(made(gone, timedelta(0)))
    for path in ("/auth/verify", "/auth/me"):
        seen.named(seen.verify(unknown, path), 401, None, str(gone))
    assert seen.line(seen.refresh(unknown["refresh_token"]))["session_id"] == str(gone)


def test_a_refused_sign_in_names_the_user_where_there_is_one_and_never_the_address(seen: Seen) -> None:
    wrong = seen.client.post("/auth/login", json=ADA | {"password": "wrong password"})
    seen.named(wrong, 401, None, None)
    assert seen.line(wrong)["cause"] == "wrong password"
    nobody = seen.client.post("/auth/login", json=ADA | {"email": "my-real-passphrase@example.com"})
    line = seen.line(nobody)
    assert (line["cause"], "user_id" in line, "session_id" in line) == ("unknown user", False, False)
    seen.change("UPDATE users SET disabled_at = 1 WHERE id = ?", hexed(seen.user_id))
    disabled = seen.client.post("/auth/login", json=ADA)
    seen.change("UPDATE users SET disabled_at = NULL WHERE id = ?", hexed(seen.user_id))
    seen.named(disabled, 401, None, None)
    assert seen.line(disabled)["cause"] == "user is disabled"
    # To the client, the three refusals are identical.
    assert wrong.content == nobody.content == disabled.content
    assert "my-real-passphrase" not in seen.service.text()
    tokens = seen.login()
    change = {"current_password": "wrong password", "new_password": "an entirely new password"}
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    seen.named(seen.client.post("/auth/password", json=change, headers=bearer), 401, None, tokens["session_id"])


def test_a_request_that_is_refused_after_its_token_was_accepted_names_session_and_user(seen: Seen) -> None:
    tokens = seen.login()
    sid, bearer = tokens["session_id"], {"Authorization": f"Bearer {tokens['access_token']}"}
    malformed = seen.client.post("/auth/password", json={"current_password": 1}, headers=bearer)
    seen.named(malformed, 400, None, sid)
    seen.named(seen.client.get("/admin/users", headers=bearer), 403, None, sid)
    missing = seen.client.delete("/auth/sessions/00000000-0000-7000-8000-000000000000", headers=bearer)
    seen.named(missing, 404, None, sid)


def test_an_outage_names_session_and_user_as_far_as_the_request_tells(seen: Seen) -> None:
    tokens = seen.login()
    sid, bearer = tokens["session_id"], {"Authorization": f"Bearer {tokens['access_token']}"}
    with seen.busy():
        renamed = seen.client.patch(f"/auth/sessions/{sid}", json={"device_name": "x"}, headers=bearer)
        sign_in = seen.client.post("/auth/login", json=ADA)
        refreshed = seen.refresh(tokens["refresh_token"])
        left = seen.client.post("/auth/logout", json={"refresh_token": tokens["refresh_token"]})
    seen.named(renamed, 503, None, sid)
    seen.named(sign_in, 503, None, None)
    for answer in (refreshed, left):  # a refresh token does not say whose it is
        line = seen.line(answer)
        assert (line["status"], line["session_id"], "user_id" in line) == (503, sid, False), line
    assert seen.refresh(tokens["refresh_token"]).status_code == 200


def test_a_request_of_another_site_names_the_session_of_its_cookies(seen: Seen) -> None:
    own = {"Sec-Fetch-Site": "same-origin"}
    signed_in = seen.client.post("/auth/login", json=ADA | {"mode": "cookie"}, headers=own)
    sid = signed_in.json()["session_id"]
    pairs = [field.partition(";")[0] for field in signed_in.headers.get_list("set-cookie")]
    seen.client.cookies.clear()
    cookie = {"Cookie": "; ".join(pairs), "Sec-Fetch-Site": "cross-site"}
    for path, body in (("/auth/refresh", {}), ("/auth/logout", {}), ("/auth/password", {})):
        answer = seen.client.post(path, json=body, headers=cookie)
        line = seen.line(answer)
        assert (line["status"], line["error"], line.get("session_id")) == (403, "cross_site", sid), line
    junk = {"Cookie": f"{pairs[0].partition('=')[0]}=junk", "Sec-Fetch-Site": "cross-site"}
    line = seen.line(seen.client.post("/auth/logout", json={}, headers=junk))
    assert (line["status"], "session_id" in line) == (403, False), line


def test_reuse_is_one_warning_with_all_that_an_operator_asks_for(seen: Seen) -> None:
    first = seen.login()
    newest = seen.rotated(seen.rotated(first))
    sid = first["session_id"]
    before = len(seen.lines("reuse_detected"))
    answer = seen.refresh(first["refresh_token"])
    seen.named(answer, 401, "reuse_detected", sid)
    [warning] = seen.lines("reuse_detected")[before:]
    assert warning.pop("timestamp")
    assert warning.pop("rotated_seconds_ago") < 60
    assert warning == {
        "event": "reuse_detected",
        "level": "warning",
        "session_id": sid,
        "user_id": seen.user_id,
        "presented_generation": 0,
        "current_generation": 2,
        "client": "127.0.0.1",
        "request_id": answer.headers["x-request-id"],
    }
    # Later uses of the tokens are refused with the same reason and log no event of reuse.
    for token in (first, newest, first):
        seen.named(seen.refresh(token["refresh_token"]), 401, "reuse_detected", sid)
    assert len(seen.lines("reuse_detected")) == before + 1
    # A retry after the window is one generation behind. The event says when the token was replaced.
    lost = seen.login()
    seen.rotated(lost)
    seen.change("UPDATE sessions SET rotated_at = rotated_at - 3600000000 WHERE id = ?", hexed(lost["session_id"]))
    seen.named(seen.refresh(lost["refresh_token"]), 401, "reuse_detected", lost["session_id"])
    warning = seen.lines("reuse_detected")[-1]
    assert (warning["presented_generation"], warning["current_generation"]) == (0, 1)
    assert 3600 <= warning["rotated_seconds_ago"] < 3700


@pytest.mark.parametrize("seen", ["warning"], indirect=True)
def test_reuse_is_logged_where_only_warnings_are(seen: Seen) -> None:
    first = seen.login()
    seen.rotated(seen.rotated(first))
    assert seen.refresh(first["refresh_token"]).status_code == 401
    assert [line["session_id"] for line in seen.lines("reuse_detected")] == [first["session_id"]]
    assert not seen.lines("request")


def test_junk_and_requests_that_succeed_name_no_one_new(seen: Seen) -> None:
    tokens = seen.login()
    forged = tokens["refresh_token"][:-1] + ("A" if tokens["refresh_token"][-1] != "A" else "B")
    line = seen.line(seen.refresh(forged))  # the session id in a forged token proves nothing
    assert not {"session_id", "user_id"} & line.keys()
    tampered = {"access_token": tokens["access_token"][:-4] + "AAAA"}
    assert not {"session_id", "user_id"} & seen.line(seen.verify(tampered)).keys()
    good = seen.line(seen.verify(tokens))
    assert good["session_id"] == tokens["session_id"]
    assert "user_id" not in good
