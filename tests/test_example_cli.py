"""examples/python-cli before a real Keyturn and a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.example_servers import ACCOUNT, EXAMPLES, keyturn, uvicorn
from tests.servers import free_port
from tests.service import Service

STRICT = {"retry_window": 0}
"""Two refreshes with one token are reuse, unless both have the same key."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("cli"), logs, **STRICT) as service:
        yield service


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[str]:
    with uvicorn("fastapi-api", "main:app", free_port(), KEYTURN=service.url) as api:
        yield api


class Terminal:
    """A user's account on a machine, with the command."""

    def __init__(self, home: Path, service: Service, api: str) -> None:
        self.file = home / "keyturn-example" / "tokens.json"
        self.service = service
        self.environment = {"XDG_STATE_HOME": str(home), "KEYTURN": service.url, "SERVICE": api, "NO_PROXY": "*"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(EXAMPLES / "python-cli" / "cli.py"), *words],
            env={"PATH": os.environ["PATH"], **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0,
            start_new_session=True,  # without a terminal, from which getpass would read the password
        )

    def type(self, *words: str, answer: str = "") -> tuple[int, str]:
        """The exit code, and all that was printed."""
        with self.start(*words) as process:
            printed = "".join(process.communicate(answer, timeout=30))
        return process.returncode, printed

    def login(self) -> None:
        code, printed = self.type("login", ACCOUNT["email"], answer=ACCOUNT["password"] + "\n")
        assert (code, "Signed in." in printed) == (0, True), printed

    @property
    def stored(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.file.read_text())
        return record

    def time_passes(self, *, over: bool = False) -> None:
        """The access token comes into the last fifth of its life, or is over."""
        self.file.write_text(json.dumps(self.stored | {"refresh_at": 0} | ({"expires_at": 0} if over else {})))

    def refreshes(self) -> int:
        return self.service.text().count("/auth/refresh")


@pytest.fixture
def terminal(service: Service, api: str, tmp_path: Path) -> Terminal:
    terminal = Terminal(tmp_path, service, api)
    terminal.login()
    return terminal


def test_the_command_signs_in_calls_a_service_and_logs_out(terminal: Terminal) -> None:
    assert terminal.file.stat().st_mode & 0o777 == 0o600
    code, printed = terminal.type("hello")
    assert (code, printed[:12]) == (0, '200 {"hello"'), printed
    assert terminal.type("logout") == (0, "Logged out.\n")
    assert not terminal.file.exists()
    code, printed = terminal.type("hello")
    assert code == 1
    assert "nobody is signed in" in printed


def test_a_wrong_password_is_told_and_stores_nothing(service: Service, api: str, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, service, api)
    assert terminal.type("login", ACCOUNT["email"], answer="wrong\n")[0] == 1
    assert not terminal.file.exists()


def test_no_refresh_is_sent_before_four_fifths_of_the_lifetime(terminal: Terminal) -> None:
    stored = terminal.stored
    assert stored["expires_at"] - stored["refresh_at"] == pytest.approx(900 / 5)
    before = terminal.refreshes()
    assert terminal.type("hello")[0] == 0
    assert terminal.stored == stored
    assert terminal.refreshes() == before


def test_processes_that_find_a_refresh_due_at_once_share_one(terminal: Terminal) -> None:
    before, old = terminal.refreshes(), terminal.stored
    terminal.time_passes()
    with ExitStack() as stack:
        processes = [stack.enter_context(terminal.start("hello")) for _ in range(4)]
        printed = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    assert terminal.refreshes() == before + 1
    assert terminal.stored["access_token"] != old["access_token"]
    assert terminal.file.stat().st_mode & 0o777 == 0o600


def test_an_answer_that_was_lost_with_its_process_is_asked_for_again(terminal: Terminal) -> None:
    terminal.time_passes()
    stored = terminal.stored
    terminal.file.write_text(json.dumps(stored | {"retry_key": "the-key-of-the-dead-process"}))
    lost = httpx2.post(
        f"{terminal.service.url}/auth/refresh",
        json={"refresh_token": stored["refresh_token"]},
        headers={"Idempotency-Key": "the-key-of-the-dead-process"},
        trust_env=False,
    ).json()
    assert terminal.type("hello")[0] == 0
    assert terminal.stored["refresh_token"] == lost["refresh_token"]
    assert "retry_key" not in terminal.stored


def test_a_session_that_was_ended_is_told_with_the_reason_and_forgotten(terminal: Terminal) -> None:
    body = {"refresh_token": terminal.stored["refresh_token"]}
    httpx2.post(f"{terminal.service.url}/auth/logout", json=body, trust_env=False).raise_for_status()
    code, printed = terminal.type("hello")
    assert code == 1
    assert "Not signed in: logout." in printed, printed
    assert not terminal.file.exists()


def test_while_keyturn_is_away_the_tokens_are_kept_and_the_user_hears_of_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, logs: Path
) -> None:
    folder = tmp_path_factory.mktemp("away")
    with (
        keyturn(folder, logs, **STRICT) as service,
        uvicorn("fastapi-api", "main:app", free_port(), KEYTURN=service.url) as api,
    ):
        terminal = Terminal(tmp_path, service, api)
        terminal.login()
        terminal.time_passes(over=True)
        tokens = terminal.stored
        service.kill()
        for word in ("hello", "logout"):
            code, printed = terminal.type(word)
            assert code == 3
            assert "You are still signed in" in printed
        assert terminal.stored | tokens == terminal.stored
        terminal.file.write_text(json.dumps(terminal.stored | {"refresh_at": 0, "expires_at": time.time() + 60}))
        code, printed = terminal.type("hello")  # the old access token, which the service can't ask about
        assert (code, printed[:3]) == (3, "503")
        with keyturn(folder, logs, port=service.port, **STRICT):
            assert terminal.type("hello")[0] == 0
            assert terminal.stored["refresh_token"] != tokens["refresh_token"]
