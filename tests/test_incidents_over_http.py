"""The answers to leaks against a service that runs: what an attacker has is tried over HTTP, before and after.

The commands are those that `keyturn incident LEAK` prints. They run in another process than the service.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import jwt
import pytest
import redis as client

from app.keyturn import Keyturn
from app.tokens.sealed_cookies import SealedCookies
from tests.command_line import Command
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.cookies import LOOPBACK
from tests.servers import Redis
from tests.service import ROOT, Service

NEW_SECRET = "Yx1Vj8mQ0s3Kd7Lw5Rt2Zb9Hc4Ng6Fp0Ae8Uo1Xq3Mi="
SOON = 10.0  # seconds: two for a process to learn of a key, the rest for a busy machine


class Held(NamedTuple):
    """A session, and what its client holds."""

    id: str
    access: str
    refresh: str


class Scene:
    """A service, an account on it, and the command on the same database."""

    def __init__(self, http: httpx2.Client, keyturn: Command) -> None:
        self.http = http
        self.keyturn = keyturn
        self.email = f"{uuid4()}@example.com"
        keyturn.ok("users", "create", self.email, "--role", "admin", stdin=PASSWORD.encode())

    def status(self, method: str, path: str, **more: Any) -> int:
        """The status of an answer. No answer leaves a cookie for the next request."""
        self.http.cookies.clear()
        return self.http.request(method, path, **more).status_code

    def sign_in(self, password: str = PASSWORD) -> Held:
        answer = self.http.post("/auth/login", json={"email": self.email, "password": password})
        assert answer.status_code == 200, answer.text
        return Held(*(answer.json()[name] for name in ("session_id", "access_token", "refresh_token")))

    def password(self, password: str) -> int:
        return self.status("POST", "/auth/login", json={"email": self.email, "password": password})

    def bearer(self, token: str) -> int:
        return self.status("GET", "/auth/verify", headers={"Authorization": f"Bearer {token}"})

    def refresh(self, token: str) -> int:
        return self.status("POST", "/auth/refresh", json={"refresh_token": token})

    def cookies(self, values: dict[str, str]) -> int:
        field = "; ".join(f"{name}={value}" for name, value in values.items())
        return self.status("GET", "/auth/verify?refresh=true", headers={"Cookie": field})

    def live(self) -> set[str]:
        """The live sessions of this account, as the command lists them."""
        listed = self.keyturn.ok("sessions", "list", "--status", "live", "--user", self.email, "--json").json
        return {session["id"] for session in listed}

    def kid(self, use: str) -> str:
        """The key that an attacker has: the one that signs now."""
        keys = self.keyturn.ok("keys", "list", "--json").json
        return next(key["kid"] for key in keys if key["use"] == use and key["status"] == "signs")

    def answer(self, leak: str, **named: str) -> dict[str, str]:
        """Types the printed commands in their order, with these words for the placeholders. Returns the outputs."""
        outputs = {}
        for line in printed(self.keyturn.ok("incident", leak).out):
            words = [named.get(word, word) for word in shlex.split(line)]
            assert not any(word.isupper() for word in words), words
            outputs[line] = self.keyturn.ok(*words).out
        return outputs


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(base_url=service.url, trust_env=False)


def printed(told: str) -> list[str]:
    """The commands of an answer, without the word `keyturn`."""
    return re.findall(r"^   .*?keyturn (.+)$", told, re.MULTILINE)


def soon(expected: object, ask: Callable[[], object]) -> None:
    """Waits until the service answers so: every process knows of a change of the keys within two seconds."""
    end = time.monotonic() + SOON
    while (seen := ask()) != expected:
        assert time.monotonic() < end, seen
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cache() -> Iterator[Redis]:
    with Redis.start() as server:
        yield server


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, cache: Redis) -> dict[str, str]:
    values = {
        "data_dir": tmp_path_factory.mktemp("incidents") / "data",
        "secret": SECRET,
        "redis_url": cache.url() if cache.ours else "none",
        "signing_algorithm": "HS256",
        **CHEAP,
        **dict.fromkeys(("limit_account", "limit_account_network", "limit_device", "limit_network"), "off"),
    }
    return {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def service(environment: dict[str, str], logs: Path) -> Iterator[Service]:
    with Service.start(environment, logs=logs) as service:
        yield service


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx2.Client]:
    with client_of(service) as http:
        yield http


@pytest.fixture
def scene(
    http: httpx2.Client,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scene:
    monkeypatch.chdir(tmp_path)
    # The waits of a minute and of some seconds, in which other instances learn of a key, have tests of their own.
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    monkeypatch.setattr("app.tokens.key_rotation.PUBLISHED_FOR", timedelta(0))
    return Scene(http, Command(dict(environment), capsys))


def test_a_token_forged_with_a_leaked_signing_key_is_refused_and_the_session_lives_on(scene: Scene) -> None:
    held = scene.sign_in()
    kid = scene.kid("access")
    key = scene.keyturn.ok("keys", "export", kid, "--yes-export-this-secret").out.strip()
    claims = jwt.decode(held.access, options={"verify_signature": False})
    signing = jwt.utils.base64url_decode(key)
    forged = jwt.encode(claims | {"jti": str(uuid4())}, signing, "HS256", headers={"kid": kid, "typ": "at+jwt"})
    assert scene.bearer(forged) == 200
    scene.answer("access-key", KID=kid)
    soon(401, lambda: scene.bearer(forged))
    assert scene.live() == {held.id}
    assert scene.refresh(held.refresh) == 200


def test_a_successor_derived_with_a_leaked_refresh_key_is_refused_and_no_session_under_the_key_is_listed(
    scene: Scene,
) -> None:
    used_up = scene.sign_in()
    newest = scene.http.post("/auth/refresh", json={"refresh_token": used_up.refresh}).json()["refresh_token"]

    async def derived(k: Keyturn) -> str:
        key = k.keys.signing_refresh
        return k.keys.verify_refresh_token(used_up.refresh).successor(key).text

    assert scene.keyturn.inside(derived) == newest  # so the key and an old token are all that an attacker needs
    assert scene.live() == {used_up.id}
    scene.answer("refresh-key", KID=scene.kid("refresh"))
    soon(401, lambda: scene.refresh(newest))
    assert scene.bearer(used_up.access) == 401
    assert scene.live() == set()
    after = scene.sign_in()
    assert scene.live() == {after.id}
    assert scene.refresh(after.refresh) == 200


def test_a_cookie_under_a_leaked_cookie_key_is_refused_and_the_token_in_it_until_its_session_is_ended(
    scene: Scene, service: Service
) -> None:
    answer = scene.http.post(
        "/auth/login",
        json={"email": scene.email, "password": PASSWORD, "mode": "cookie"},
        headers={"Origin": service.url},
    )
    session, copied = answer.json()["session_id"], dict(answer.cookies)

    async def opened(k: Keyturn) -> str:
        found = SealedCookies(k.keys).open(LOOPBACK.access, copied[LOOPBACK.access])
        assert found is not None
        return found[1][1:].decode()

    inside = scene.keyturn.inside(opened)  # an attacker with the key reads the token of a copied cookie
    assert (scene.cookies(copied), scene.bearer(inside)) == (200, 200)
    scene.answer("cookie-key", KID=scene.kid("cookie"))
    soon(401, lambda: scene.cookies(copied))
    assert scene.live() == {session}
    assert scene.bearer(inside) == 200  # a leaked token, as the answer says
    scene.answer("refresh-token", SESSION=session)
    assert scene.bearer(inside) == 401
    assert scene.live() == set()


@pytest.mark.parametrize("leak", ["password", "administrator", "database-dump"])
def test_a_leaked_or_guessed_password_is_refused_and_so_are_the_sessions_begun_with_it(scene: Scene, leak: str) -> None:
    stolen = scene.sign_in()
    user = scene.keyturn.ok("users", "show", scene.email, "--json").json
    outputs = scene.answer(leak, USER=scene.email, ID=user["id"])
    assert (scene.bearer(stolen.access), scene.refresh(stolen.refresh)) == (401, 401)
    assert scene.password(PASSWORD) == 401
    assert scene.live() == set()
    after = scene.sign_in(outputs["users reset-password USER"].split()[-1])
    assert scene.live() == {after.id}


def test_nothing_in_a_dump_of_the_database_signs_in(scene: Scene, environment: dict[str, str], tmp_path: Path) -> None:
    held = scene.sign_in()
    dump = tmp_path / "dump.db"
    with (
        closing(sqlite3.connect(Path(environment["KEYTURN_DATA_DIR"]) / "keyturn.db")) as database,
        closing(sqlite3.connect(dump)) as to,
    ):
        database.backup(to)
        rows = [
            *to.execute("SELECT * FROM sessions"),
            *to.execute("SELECT * FROM users"),
            *to.execute("SELECT * FROM keys"),
        ]
    kept = {value for row in rows for value in row if isinstance(value, str | bytes) and len(value) >= 16}
    assert len(kept) > 10
    tried = {value if isinstance(value, str) else value.hex() for value in kept}
    assert {(scene.bearer(value), scene.refresh(value), scene.password(value)) for value in tried} == {(401, 401, 401)}
    assert held.refresh.encode() not in dump.read_bytes()
    assert held.access.encode() not in dump.read_bytes()
    assert scene.refresh(held.refresh) == 200


def test_whoever_reads_and_erases_redis_signs_in_nowhere_and_brings_no_ended_session_back(
    scene: Scene, cache: Redis
) -> None:
    if not cache.ours:
        pytest.skip("TEST_REDIS_URL names a server, which this test would erase")
    ended, held = scene.sign_in(), scene.sign_in()
    assert scene.status("POST", "/auth/logout", json={"refresh_token": ended.refresh}) == 204
    with client.Redis.from_url(cache.url(), decode_responses=True, encoding_errors="replace") as memory:
        read = list(memory.scan_iter())
        assert read
        assert all(scene.bearer(re.sub(r"[^!-~]", "?", key)) == 401 for key in read)
        memory.flushall()
    assert (scene.bearer(ended.access), scene.refresh(ended.refresh)) == (401, 401)
    assert printed(scene.keyturn.ok("incident", "redis-dump").out) == ["doctor"]
    soon(True, lambda: "ok  cache (complete)" in scene.keyturn("doctor").out)  # it advises about the tests' settings
    assert scene.bearer(ended.access) == 401
    assert scene.live() == {held.id}
    assert scene.bearer(held.access) == 200


def test_the_logs_have_no_token_that_could_be_tried(scene: Scene, service: Service) -> None:
    held = scene.sign_in()
    assert scene.bearer(held.access) == 200
    log = service.text_with(held.id)
    assert scene.answer("logs") == {}
    assert [secret for secret in (*held[1:], PASSWORD, SECRET) if secret in log] == []


@pytest.mark.parametrize("leak", ["refresh-token", "device"])
def test_the_tokens_of_one_session_are_refused_after_its_end_and_no_others(scene: Scene, leak: str) -> None:
    leaked, other = scene.sign_in(), scene.sign_in()
    assert scene.bearer(leaked.access) == 200
    scene.answer(leak, USER=scene.email, SESSION=leaked.id)
    assert (scene.bearer(leaked.access), scene.refresh(leaked.refresh)) == (401, 401)
    assert scene.live() == {other.id}
    assert (scene.bearer(other.access), scene.refresh(other.refresh)) == (200, 200)


def test_the_printed_lines_can_be_pasted_into_a_shell(
    scene: Scene, environment: dict[str, str], tmp_path: Path
) -> None:
    leaked = scene.sign_in()
    script = tmp_path / "keyturn"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m app "$@"\n')
    script.chmod(0o755)
    basis = {name: os.environ[name] for name in ("HOME", "COVERAGE_PROCESS_CONFIG") if name in os.environ}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def shell(line: str) -> str:
        done = subprocess.run(
            ["sh", "-eu", "-c", line],
            cwd=tmp_path,
            env={**basis, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines = [f"keyturn {words}" for words in printed(shell("keyturn incident refresh-token"))]
    assert len(lines) == 2
    said = shell("\n".join(lines).replace("SESSION", leaked.id))
    assert (leaked.id in said, "1 session ended" in said) == (True, True)
    assert (scene.bearer(leaked.access), scene.refresh(leaked.refresh)) == (401, 401)
    assert scene.live() == set()


def test_after_the_master_secret_leaked_a_key_opened_with_it_signs_nothing_and_nobody_is_signed_in(
    environment: dict[str, str], tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    before = environment | {"KEYTURN_DATA_DIR": str(tmp_path / "data"), "KEYTURN_REDIS_URL": "none"}
    keyturn = Command(dict(before), capsys)
    with Service.start(before, logs=logs) as service, client_of(service) as http:
        held = Scene(http, keyturn).sign_in()
    after = before | {"KEYTURN_SECRET": NEW_SECRET}
    keyturn.environment["KEYTURN_SECRET"] = NEW_SECRET
    steps = [line for line in printed(keyturn.ok("incident", "master-secret").out) if not line.startswith("federation")]
    replace, look = steps
    keyturn.ok(*replace.split())
    with Service.start(after, logs=logs) as service, client_of(service) as http:
        scene = Scene(http, keyturn)
        assert (scene.bearer(held.access), scene.refresh(held.refresh)) == (401, 401)
        assert held.id not in keyturn.ok(*look.split()).out
        assert scene.live() == set()
        now = scene.sign_in()
        assert scene.live() == {now.id}
        assert scene.bearer(now.access) == 200
