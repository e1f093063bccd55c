"""examples/express before a real Keyturn. Skipped without node, or where express is not in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest

from tests.example_servers import ACCOUNT, EXAMPLES, keyturn, running
from tests.servers import free_port
from tests.service import Service
from tests.toolchains import installed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its dependencies, beside the client that it uses."""
    sources = [EXAMPLES / "express" / name for name in ("package.json", "package-lock.json")]
    modules = installed("express", sources, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    copy = tmp_path_factory.mktemp("examples") / "express"
    shutil.copytree(EXAMPLES / "express", copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(modules / "node_modules")
    shutil.copy(EXAMPLES / "client.mjs", copy.parent)
    return copy


@pytest.fixture(scope="module")
def service(folder: Path, logs: Path) -> Iterator[Service]:
    with keyturn(folder.parent, logs) as service:
        yield service


def serving(folder: Path, keyturn: str) -> AbstractContextManager[str]:
    port = free_port()
    return running(["node", "server.mjs"], port, folder=folder, environment={"KEYTURN": keyturn, "PORT": str(port)})


@pytest.fixture(scope="module")
def api(folder: Path, service: Service) -> Iterator[str]:
    with serving(folder, service.url) as api:
        yield api


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False, timeout=10) as http:
        yield http


def test_the_protected_route_is_for_those_who_are_signed_in(service: Service, api: str, http: httpx2.Client) -> None:
    tokens = http.post(f"{service.url}/auth/login", json=ACCOUNT).raise_for_status().json()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    subject = http.get(f"{service.url}/auth/me", headers=bearer).json()["user"]["id"]
    assert http.get(f"{api}/hello", headers=bearer).json() == {"hello": subject}
    assert http.post(f"{service.url}/auth/logout", headers=bearer).status_code == 204
    for refused in ({}, {"Authorization": "Bearer junk"}, bearer):
        answer = http.get(f"{api}/hello", headers=refused)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_while_keyturn_is_away_the_service_says_503(folder: Path, http: httpx2.Client) -> None:
    with serving(folder, f"http://127.0.0.1:{free_port()}") as api:
        answer = http.get(f"{api}/hello", headers={"Authorization": "Bearer good"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_the_client_refreshes_once_after_the_session_has_ended_and_then_ends(
    folder: Path, service: Service, api: str
) -> None:
    before = service.text().count("/auth/refresh")
    done = subprocess.run(
        ["node", "client.mjs", ACCOUNT["email"]],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "KEYTURN": service.url, "SERVICE": api},
        input=ACCOUNT["password"] + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["200", "stored", "signed out", "401", "401", ""]
    assert service.text_with("/auth/refresh", before + 1).count("/auth/refresh") == before + 1
