"""Tables of the `keyturn` command: 100 columns at most, ids and moments whole, all of it with `--wide`."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from uuid import UUID

import pytest

from app.actors import Actor
from app.commands.table import WIDEST, record, table
from app.events import audit
from app.keyturn import Keyturn
from app.storage.tables import uuid7
from tests.command_line import Command, command, user

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
LONG = f"{'a' * 60}@{'b' * 60}.example.com"


def test_what_fits_is_not_cut() -> None:
    row = {"id": "x" * 50, "email": "y" * 48}
    assert table([row], ("email",)) == [f"id{' ' * 50}email", f"{'x' * 50}  {'y' * 48}"]


def test_the_widest_of_the_columns_that_may_be_cut_gives_way_and_the_cut_shows() -> None:
    row = {"id": UUID(int=1), "at": NOON, "email": LONG, "role": "auditor"}
    head, line = table([row], ("email", "role"))
    assert len(line) == WIDEST
    shown = line.split()
    assert shown[:2] == [str(UUID(int=1)), "2026-11-28T12:00:00Z"]
    assert LONG.startswith(shown[2].removesuffix("…"))
    assert shown[2].endswith("…")
    assert shown[3] == "auditor"
    assert head.split() == ["id", "at", "email", "role"]


def test_columns_that_may_not_be_cut_stay_whole_even_if_the_table_is_too_wide_then() -> None:
    row = {"id": "x" * 120, "email": LONG}
    line = table([row], ("email",))[1]
    assert line == f"{'x' * 120}  aaaaa…"


def test_a_wide_table_and_a_record_cut_nothing() -> None:
    row = {"id": "x" * 120, "email": LONG}
    assert table([row], ("email",), widest=None)[1] == f"{'x' * 120}  {LONG}"
    assert record(row) == [f"id     {'x' * 120}", f"email  {LONG}"]


def test_a_terminal_obeys_no_cell() -> None:
    row = {"device": "\x1b[2J\nphone\u202e"}
    assert table([row])[1] == r"\x1b[2J\nphone\u202e"
    assert record(row) == [r"device  \x1b[2J\nphone\u202e"]


@pytest.fixture
def keyturn(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(database_url, capsys)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_each_table_fits_100_columns_and_says_how_to_see_what_was_cut(keyturn: Command) -> None:
    user_id = user(keyturn, LONG, "--role", "r" * 32)
    session_id = str(keyturn.login(LONG).session_id)
    keyturn.ok("users", "disable", user_id)
    keyturn.ok("users", "enable", user_id)
    keyturn.login(LONG)
    keyturn.ok("users", "set-claims", user_id, "--json-stdin", stdin=b'{"plan": "team"}')
    keyturn.ok("keys", "rotate", "access", "--no-wait")
    keyturn.ok("policies", "set", "global", "idle_lifetime=3600", "retry_window=10", "session_limit=7", "mode=bearer")
    scopes = " ".join(f"scope-{i}" for i in range(9))
    keyturn.environment["KEYTURN_SCOPES"] = scopes
    keyturn.ok("policies", "set", "global", f"scopes={scopes}", "access_lifetime=600", "absolute_lifetime=86400")

    async def some(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            by = Actor("administrator", str(uuid7()))
            events = [audit.Event(kind, uuid7(), uuid7(), detail="d" * 200) for kind in get_args(audit.EventKind)]
            await audit.record(tx, NOON, by, events)

    keyturn.inside(some)
    keyturn.environment["KEYTURN_SECRET_PREVIOUS"] = secrets.token_hex(32)
    for words in (
        ("users", "list"), ("sessions", "list"), ("events", "list"), ("keys", "list"), ("policies", "list"),
        ("policies", "show", "global"), ("stats",), ("federation", "list"), ("federation", "revocations"),
        ("users", "identities", user_id),
    ):  # fmt: skip
        done = keyturn.ok(*words)
        assert max(map(len, done.out.splitlines()), default=0) <= WIDEST, words
        assert ("--wide" in done.err) == ("…" in done.out), words
        wide = keyturn.ok(*words, "--wide")
        assert "…" not in wide.out or words[0] == "events"  # an event bounds its detail, and shows it likewise
        assert "--wide" not in wide.err
        assert not done.out or wide.out.split("\n")[0].split()[0] == done.out.split("\n")[0].split()[0]
    for words in (("users", "list"), ("sessions", "list")):
        assert user_id in keyturn.ok("users", "list").out
        assert re.search(r"a{5,}…", keyturn.ok(*words).out), words
        assert LONG in keyturn.ok(*words, "--wide").out, words
    assert session_id in keyturn.ok("sessions", "list").out


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_one_user_and_one_session_are_records_with_a_line_for_each_member(keyturn: Command) -> None:
    user_id = user(keyturn, LONG)
    session_id = str(keyturn.login(LONG).session_id)
    for noun, named in (("users", user_id), ("sessions", session_id)):
        lines = keyturn.ok(noun, "show", named).out.splitlines()
        members = keyturn.ok(noun, "show", named, "--json").json
        assert [line.split()[0] for line in lines] == list(members)
        assert [line.split()[1] for line in lines if line.startswith("email ")] == [LONG]
