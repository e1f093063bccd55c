"""Runs last, as files run by name: nothing secret is in any log that the services wrote in this test run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import CHEAP, PASSWORD, SECRET, settings_of
from tests.service import Service
from tests.test_api import NEW

SECRETS = {
    "refresh token": re.compile(r"ktr_[A-Za-z0-9_-]{84}"),
    "JWT": re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "password": re.compile("|".join(re.escape(password) for password in (PASSWORD, NEW))),
    "master secret": re.compile(re.escape(SECRET.rstrip("="))),
    "Argon2 hash": re.compile(r"\$argon2(?:id|i|d)\$"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


def found(folder: Path) -> Iterator[str]:
    """Which secrets stand where in the services' logs; never the secret itself."""
    for log in sorted(folder.rglob("service-*.log")):
        with log.open(errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                for name, pattern in SECRETS.items():
                    if pattern.search(line):
                        yield f"{name} in {log.relative_to(folder)}, line {number}"


def test_each_kind_of_secret_would_be_found(tmp_path: Path) -> None:
    planted = [
        "ktr_" + "aB3-_x" * 14,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9m",
        PASSWORD,
        SECRET,
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA",
        "-----BEGIN EC PRIVATE KEY-----",
    ]
    nested = tmp_path / "a" / "test0"
    nested.mkdir(parents=True)
    log = nested / "service-1-x.log"
    log.write_text("".join(f'{{"event": "request", "path": "{secret}"}}\n' for secret in planted))
    (tmp_path / "other.log").write_text(PASSWORD)  # not a service's
    assert list(found(tmp_path)) == [
        f"{name} in a/test0/service-1-x.log, line {n}" for n, name in enumerate(SECRETS, 1)
    ]
    # What is no secret is not taken for one; and nothing planted is left for the search of the whole run.
    log.write_text('{"event": "request", "path": "/auth/login", "request_id": "0123456789abcdef"}\n' * 3)
    assert list(found(tmp_path)) == []


def test_requests_full_of_secrets_leave_none_in_a_service_s_log(tmp_path: Path, logs: Path) -> None:
    values = {"data_dir": tmp_path / "data", "secret": SECRET, "registration": "true", "log_level": "debug"} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    account = {"email": "ada@example.com", "password": PASSWORD}
    with (
        Service.start(environment, logs=logs) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        assert client.post("/auth/register", json=account).status_code == 201
        tokens = client.post("/auth/login", json=account).json()
        access, refresh = tokens["access_token"], tokens["refresh_token"]
        for token in (access, refresh):
            client.get(f"/{token}/x", headers={"X-Request-Id": token})
        for secret in (access, refresh, PASSWORD, SECRET):
            client.get("/auth/me", params={"q": secret}, headers={"X-Request-Id": secret.replace(" ", "-")})
            client.post("/auth/login", json=account | {secret: secret})
            client.post("/auth/login", content=f'{{"password": "{secret}', headers={"Content-Type": "application/json"})
            client.post("/auth/refresh", json={"refresh_token": secret})
            client.get("/auth/me", headers={"Authorization": f"Basic {secret}", "Cookie": f"a={secret}"})
            client.post("/auth/logout", json={"refresh_token": secret, "scope": "others"})
        change = {"current_password": PASSWORD, "new_password": NEW}
        bearer = {"Authorization": f"Bearer {access}"}
        assert client.post("/auth/password", json=change, headers=bearer).status_code == 204
        assert client.post("/auth/refresh", json={"refresh_token": refresh}).status_code == 200
        service.terminate()
        written = service.text()
    assert written.count('"event": "request"') > 25
    assert not [name for name, pattern in SECRETS.items() if pattern.search(written)]


def test_no_log_of_the_whole_run_has_a_secret(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    logs = sum(log.stat().st_size > 0 for log in base.rglob("service-*.log"))
    assert logs, "the service of the test before has written one"
    secrets = list(found(base))
    assert not secrets, f"in {logs} logs: " + "; ".join(secrets[:20])


def test_settings_hide_what_they_hold() -> None:
    settings = settings_of(
        "postgresql://keyturn:hunter22@db.example.com/keyturn", "redis://:hunter22@cache.example.com"
    )
    for shown in (repr(settings), str(settings), f"{settings.model_dump()}"):
        assert SECRET not in shown
        assert "hunter22" not in shown
