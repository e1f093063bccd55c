"""The `keyturn` command on a test's database, run in this process: its output and its exit codes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import pytest

from app.actors import SERVICE
from app.commands.command import main
from app.keyturn import Keyturn, opened, running
from app.sessions.answers import Tokens
from app.settings import read
from tests.conftest import CHEAP, PASSWORD, SECRET

ROOT = Path(__file__).parent.parent
_T = TypeVar("_T")

on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""For tests of the command itself, in which the kind of database makes no difference."""


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """The `keyturn` command on one database, run in this process."""

    def __init__(self, environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self.environment = environment
        self._capsys = capsys

    def __call__(self, *words: str, stdin: bytes = b"") -> Done:
        with (
            mock.patch.dict(os.environ, self.environment),  # and restores it, because `main` adds to it
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
        ):
            try:
                code = main(words)
            except SystemExit as e:
                code = int(e.code or 0)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    def ok(self, *words: str, stdin: bytes = b"") -> Done:
        """Asserts that the command succeeds. Its stderr may hold advice, but no error."""
        done = self(*words, stdin=stdin)
        assert done.code == 0
        assert "keyturn: " not in done.err
        return done

    def refused(self, code: int, *words: str, stdin: bytes = b"") -> str:
        """Asserts that the command exits with this code, prints nothing and gives the reason in one line of stderr."""
        done = self(*words, stdin=stdin)
        assert (done.code, done.out) == (code, "")
        assert re.fullmatch(r"keyturn: [^\n]+\n", done.err) or code == 2
        return done.err

    def inside(self, act: Callable[[Keyturn], Awaitable[_T]]) -> _T:
        """Runs `act` on the same database, for changes that the command cannot make."""

        async def run() -> _T:
            async with opened(read(self.environment)) as keyturn, running(keyturn):
                return await act(keyturn)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()

    def login(self, email: str, password: str = PASSWORD) -> Tokens:
        async def act(keyturn: Keyturn) -> Tokens:
            return await keyturn.starting.start(await keyturn.sign_in.authenticate(email, password), by=SERVICE)

        return self.inside(act)


def command(database_url: str, capsys: pytest.CaptureFixture[str], **more: str) -> Command:
    """The command without a Redis, and with these settings beside the usual ones."""
    settings = {
        "database_url": database_url,
        "redis_url": "none",
        "issuer": "https://auth.example.com",
        "secret": SECRET,
        **CHEAP,
        **more,
    }
    return Command({f"KEYTURN_{name.upper()}": value for name, value in settings.items()}, capsys)


@pytest.fixture
def keyturn(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(database_url, capsys)


def user(keyturn: Command, email: str = "ada@example.com", *more: str) -> str:
    return keyturn.ok("users", "create", email, *more, stdin=PASSWORD.encode()).out.strip()


def findings(done: Done) -> dict[str, str]:
    assert all(finding["ok"] == (not finding["advice"]) for finding in done.json)
    return {finding["check"]: finding["advice"] for finding in done.json}
