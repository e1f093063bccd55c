"""examples/fastapi-api before a real Keyturn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest

from app.settings import DEFAULT_ISSUER
from tests.example_servers import ACCOUNT, EXAMPLES, keyturn, uvicorn
from tests.servers import free_port
from tests.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("fastapi"), logs, signing_algorithm="ES256") as service:
        yield service


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[str]:
    """The service that asks Keyturn."""
    with uvicorn("fastapi-api", "main:app", free_port(), KEYTURN=service.url) as api:
        yield api


@pytest.fixture(scope="module")
def local(service: Service) -> Iterator[str]:
    """The service that verifies by itself."""
    with uvicorn("fastapi-api", "local:app", free_port(), KEYTURN=service.url) as api:
        yield api


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False, timeout=10) as http:
        yield http


def sign_in(http: httpx2.Client, service: Service) -> dict[str, str]:
    tokens = http.post(f"{service.url}/auth/login", json=ACCOUNT).raise_for_status().json()
    return {"Authorization": f"Bearer {tokens['access_token']}"}


@pytest.mark.parametrize("way", ["api", "local"])
def test_a_protected_route_is_for_those_who_are_signed_in(
    service: Service, way: str, http: httpx2.Client, request: pytest.FixtureRequest
) -> None:
    api, bearer = request.getfixturevalue(way), sign_in(http, service)
    subject = http.get(f"{service.url}/auth/me", headers=bearer).json()["user"]["id"]
    assert http.get(f"{api}/hello", headers=bearer).json() == {"hello": subject}
    for refused in ({}, {"Authorization": "Bearer junk"}, {"Authorization": bearer["Authorization"][:-5]}):
        answer = http.get(f"{api}/hello", headers=refused)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_route_for_administrators_is_closed_to_others(service: Service, api: str, http: httpx2.Client) -> None:
    assert http.get(f"{api}/admin", headers=sign_in(http, service)).status_code == 403


def test_after_a_logout_the_token_is_refused(service: Service, api: str, http: httpx2.Client) -> None:
    bearer = sign_in(http, service)
    assert http.get(f"{api}/hello", headers=bearer).status_code == 200
    assert http.post(f"{service.url}/auth/logout", headers=bearer).status_code == 204
    assert http.get(f"{api}/hello", headers=bearer).status_code == 401


@pytest.mark.parametrize("module", ["main", "local"])
def test_while_keyturn_is_away_the_answer_is_503_and_nobody_is_signed_out(
    service: Service, http: httpx2.Client, module: str
) -> None:
    with uvicorn("fastapi-api", f"{module}:app", free_port(), KEYTURN=f"http://127.0.0.1:{free_port()}") as api:
        answer = http.get(f"{api}/hello", headers=sign_in(http, service))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"


@contextmanager
def saying(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """A server that says this alone, in Keyturn's place. Gives its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("way", ["api", "local"])
def test_a_token_of_other_characters_than_ascii_is_refused_as_junk(
    way: str, http: httpx2.Client, request: pytest.FixtureRequest
) -> None:
    junk = [(b"Authorization", b"Bearer \xff.\xff.\xff")]
    assert http.get(f"{request.getfixturevalue(way)}/hello", headers=junk).status_code == 401


def test_a_service_that_is_trusted_as_a_proxy_names_its_client(tmp_path: Path, logs: Path, http: httpx2.Client) -> None:
    with (
        keyturn(tmp_path, logs, trusted_proxies="127.0.0.1") as service,
        uvicorn("fastapi-api", "main:app", free_port(), KEYTURN=service.url, FORWARDED_ALLOW_IPS="127.0.0.1") as api,
    ):
        junk = {"Authorization": "Bearer junk", "X-Forwarded-For": "203.0.113.9"}
        assert http.get(f"{api}/hello", headers=junk).status_code == 401
        assert '"client": "203.0.113.9"' in service.text_with('"path": "/auth/verify"')


def test_a_question_that_keyturn_can_not_read_is_a_defect_of_the_service(http: httpx2.Client) -> None:
    port = free_port()
    with (
        saying(400, b'{"error": "planted"}') as keyturn,
        uvicorn("fastapi-api", "main:app", port, KEYTURN=keyturn) as api,
    ):
        answer = http.get(f"{api}/hello", headers={"Authorization": "Bearer junk"})
    assert answer.status_code == 500
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_keyturn_can_not_say_becomes_a_503_that_keeps_its_retry_after(http: httpx2.Client, status: int) -> None:
    with (
        saying(status, b"{}", Retry_After="7") as keyturn,
        uvicorn("fastapi-api", "main:app", free_port(), KEYTURN=keyturn) as api,
    ):
        answer = http.get(f"{api}/hello", headers={"Authorization": "Bearer junk"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "7"


@pytest.mark.parametrize("body", [b'{"keys": []}', b"<!doctype html>", b"[]"], ids=["empty", "html", "a list"])
def test_keys_that_can_not_be_read_are_a_503_and_blame_no_token(
    service: Service, http: httpx2.Client, body: bytes
) -> None:
    with (
        saying(200, body) as keyturn,
        uvicorn("fastapi-api", "local:app", free_port(), KEYTURN=keyturn, ISSUER=DEFAULT_ISSUER) as api,
    ):
        bearer = sign_in(http, service)
        for _ in range(2):  # a broken answer is not kept
            assert http.get(f"{api}/hello", headers=bearer).status_code == 503


def test_a_service_that_verifies_by_itself_hears_of_no_logout(
    service: Service, local: str, http: httpx2.Client
) -> None:
    bearer = sign_in(http, service)
    assert http.post(f"{service.url}/auth/logout", headers=bearer).status_code == 204
    assert http.get(f"{local}/hello", headers=bearer).status_code == 200


def test_the_client_calls_the_service_before_and_after_a_refresh_and_in_vain_after_the_logout(
    service: Service, api: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "fastapi-api" / "client.py", ACCOUNT["email"]],
        cwd=tmp_path,
        env={"NO_PROXY": "*", "KEYTURN": service.url, "SERVICE": api},
        input=ACCOUNT["password"] + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        start_new_session=True,  # without a terminal, from which getpass would read the password
    )
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert "hello" in first
    assert last == "401"
