"""HTTP clients by others, with their default settings: each signs in, refreshes, verifies and logs out."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.service import Service

EMAIL = "ada@example.com"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("clients")
    values = {"data_dir": folder / "data", "secret": SECRET, "registration": "true"} | CHEAP
    with Service.start({f"KEYTURN_{n.upper()}": str(v) for n, v in values.items()}, logs=folder) as service:
        answer = httpx2.post(f"{service.url}/auth/register", json={"email": EMAIL, "password": PASSWORD})
        assert answer.status_code == 201
        yield service


def program(name: str) -> str:
    """The path of a program. If the program is not installed, the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str, text: str = "") -> str:
    ran = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_java_s_client_that_offers_http_2_keeps_a_session(service: Service) -> None:
    java = program("java")
    program("javac")  # `java` needs the compiler to run a source file
    turn = ["refresh 200", "verify 200", "verify 200", "me 200"]
    printed = run(java, str(HERE / "Client.java"), service.url, EMAIL, PASSWORD).splitlines()
    assert printed == ["login 200", *turn * 3, "logout 204", "verify 401"]


def test_curl_that_offers_http_2_keeps_a_session(service: Service) -> None:
    curl = program("curl")
    if "HTTP2" not in run(curl, "--version"):
        pytest.skip("this curl knows no HTTP/2")

    def call(path: str, *arguments: str, body: dict[str, str] | None = None) -> tuple[str, Any]:
        sent = ("-H", "Content-Type: application/json", "-d", json.dumps(body)) if body else ()
        output = run(
            curl, "-s", "--http2", "-w", "\n%{http_code} %{http_version}", *arguments, *sent, service.url + path
        )
        answer, _, status = output.rpartition("\n")
        return status, json.loads(answer) if answer else None

    status, tokens = call("/auth/login", body={"email": EMAIL, "password": PASSWORD})
    assert status == "200 1.1"
    status, tokens = call("/auth/refresh", body={"refresh_token": tokens["refresh_token"]})
    assert status == "200 1.1"
    bearer = ("-H", f"Authorization: Bearer {tokens['access_token']}")
    assert call("/auth/verify", *bearer)[0] == "200 1.1"
    assert call("/auth/verify/x", "-X", "PROPFIND", *bearer)[0] == "200 1.1"
    assert call("/auth/logout", *bearer, body={"refresh_token": tokens["refresh_token"]})[0] == "204 1.1"
    assert call("/auth/verify", *bearer)[0] == "401 1.1"


def test_python_s_client_keeps_a_session_on_one_connection(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.connect()
    first = connection.sock

    def call(method: str, path: str, bearer: str = "", body: dict[str, str] | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if body:
            headers["Content-Type"] = "application/json ; charset=UTF-8"
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert connection.sock is first
        return answer.status, json.loads(text) if text else None

    status, tokens = call("POST", "/auth/login", body={"email": EMAIL, "password": PASSWORD})
    assert status == 200
    status, tokens = call("POST", "/auth/refresh", body={"refresh_token": tokens["refresh_token"]})
    assert status == 200
    for method in ("GET", "HEAD", "POST", "REPORT", "purge-all"):
        assert call(method, "/auth/verify", tokens["access_token"])[0] == 200
    assert call("POST", "/auth/logout", tokens["access_token"])[0] == 204
    assert call("GET", "/auth/verify", tokens["access_token"])[0] == 401
    connection.close()


FETCH = """
const [base, email, password] = process.argv.slice(2);
async function call(path, method, bearer, body) {
  const headers = bearer ? { Authorization: `Bearer ${bearer}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(base + path, { method, headers, body: body && JSON.stringify(body) });
  console.log(path, answer.status);
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}
let tokens = await call("/auth/login", "POST", null, { email, password });
tokens = await call("/auth/refresh", "POST", null, { refresh_token: tokens.refresh_token });
await call("/auth/verify", "GET", tokens.access_token);
await call("/auth/verify", "PROPFIND", tokens.access_token);
await call("/auth/logout", "POST", tokens.access_token);
await call("/auth/verify", "GET", tokens.access_token);
"""


def test_node_s_fetch_keeps_a_session(service: Service) -> None:
    node = program("node")
    if int(run(node, "--version").lstrip("v").partition(".")[0]) < 18:
        pytest.skip("this node has no fetch")
    printed = run(node, "--input-type=module", "-", service.url, EMAIL, PASSWORD, text=FETCH).splitlines()
    statuses = [line.split()[1] for line in printed]
    assert statuses == ["200", "200", "200", "200", "204", "401"]
