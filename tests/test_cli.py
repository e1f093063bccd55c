"""The `keyturn` command: its output, its exit codes, and how it reads passwords."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock
from uuid import UUID

import pytest
import redis
from sqlalchemy import text, update

from app.actors import SERVICE, Actor
from app.command_name import called
from app.commands.acts import by
from app.commands.command import main, parser
from app.events.audit import Event, record
from app.keyturn import Keyturn, opened, running
from app.sessions.answers import Tokens
from app.settings import read
from app.storage.tables import User, uuid7
from app.users.first_administrator import first_administrator
from tests.conftest import CHEAP, PASSWORD, SECRET, time_passes
from tests.servers import Redis, free_port

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


def test_users_are_made_listed_and_changed(keyturn: Command) -> None:
    ada, bob = user(keyturn, "Ada@Example.com"), user(keyturn, "bob@example.com", "--role", "admin")
    assert UUID(ada) < UUID(bob)
    listed = keyturn.ok("users", "list", "--json").json
    assert [(u["id"], u["email"], u["role"], u["status"]) for u in listed] == [
        (ada, "ada@example.com", "user", "enabled"),
        (bob, "bob@example.com", "admin", "enabled"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", listed[0]["created_at"])
    assert set(listed[0]) == {"id", "email", "role", "status", "created_at"}
    assert [u["id"] for u in keyturn.ok("users", "list", "--json", "--limit", "1").json] == [ada]
    assert [u["id"] for u in keyturn.ok("users", "list", "--json", "--after", ada).json] == [bob]
    table = keyturn.ok("users", "list").out.splitlines()
    assert table[0].split() == ["id", "email", "role", "status", "created_at"]
    assert [line.split()[1] for line in table[1:]] == ["ada@example.com", "bob@example.com"]

    output = keyturn.ok("users", "set-role", "ADA@example.com", "auditor").out
    assert output.startswith("ada@example.com has the role auditor (before: user)\naccess tokens say user until ")
    output = keyturn.ok("users", "set-role", "ADA@example.com", "auditor").out
    assert output == "ada@example.com had the role auditor already\n"
    session = keyturn.login("ada@example.com")
    assert keyturn.ok("users", "disable", ada).out == "ada@example.com is disabled; 1 session ended\n"
    assert keyturn.ok("users", "disable", ada).out == "ada@example.com was disabled already; 0 sessions ended\n"
    changed = keyturn.ok("users", "list", "--json").json[0]
    assert (changed["role"], changed["status"]) == ("auditor", "disabled")
    assert keyturn.ok("sessions", "show", "--json", str(session.session_id)).json["status"] == "user_disabled"
    assert keyturn.ok("users", "enable", "ada@example.com").out == "ada@example.com may sign in again\n"
    assert keyturn.ok("users", "enable", "ada@example.com").out == "ada@example.com was enabled already\n"
    assert keyturn.login("ada@example.com")


@on_sqlite
def test_a_blank_around_an_e_mail_address_makes_no_difference(keyturn: Command) -> None:
    user(keyturn, " ada@example.com")
    keyturn.ok("users", "set-role", "ada@example.com\t", "auditor")
    [ada] = keyturn.ok("users", "list", "--json").json
    assert (ada["email"], ada["role"]) == ("ada@example.com", "auditor")


@on_sqlite
def test_users_that_are_not_there_or_may_not_be_so_are_refused(keyturn: Command) -> None:
    user(keyturn, "ada@example.com", "--role", "admin")
    for verb in ("disable", "enable", "set-role", "set-password"):
        more = ("user",) if verb == "set-role" else ()
        for name in ("nobody@example.com", str(uuid7()), "nobody"):
            assert "no such user" in keyturn.refused(1, "users", verb, name, *more, stdin=PASSWORD.encode())
    exists = keyturn.refused(1, "users", "create", "ADA@example.com", stdin=PASSWORD.encode())
    assert "There is a user of this address" in exists
    assert "last enabled administrator" in keyturn.refused(1, "users", "disable", "ada@example.com")
    assert "last enabled administrator" in keyturn.refused(1, "users", "set-role", "ada@example.com", "user")
    assert "role: " in keyturn.refused(1, "users", "set-role", "ada@example.com", "Admin!")
    assert "email: " in keyturn.refused(1, "users", "create", "not an address", stdin=PASSWORD.encode())
    assert len(keyturn.ok("users", "list", "--json").json) == 1


@on_sqlite
def test_a_password_is_read_from_standard_input_as_it_stands(keyturn: Command) -> None:
    for i, (line, password) in enumerate(
        (
            (b"  with some blanks  \n", "  with some blanks  "),
            (b"with carriage return\r\nsecond line\n", "with carriage return"),
            ("grüße 😀 ohne Ende".encode(), "grüße 😀 ohne Ende"),
        )
    ):
        email = f"user{i}@example.com"
        keyturn.ok("users", "create", email, "--password-stdin", stdin=line)
        assert keyturn.login(email, password)
    before = keyturn.login("user0@example.com", "  with some blanks  ")
    done = keyturn.ok("users", "set-password", "user0@example.com", "--password-stdin", stdin=b"one more password\n")
    assert done.out == "user0@example.com has a new password; 2 sessions ended\n"
    assert keyturn.ok("sessions", "show", str(before.session_id), "--json").json["status"] == "password_changed"
    assert keyturn.login("user0@example.com", "one more password")


@on_sqlite
def test_a_generated_password_is_printed_once_and_works(keyturn: Command) -> None:
    identifier, password = keyturn.ok("users", "create", "ada@example.com", "--generate").out.split()
    assert UUID(identifier)
    assert len(password) == 20
    assert keyturn.login("ada@example.com", password)
    line, other = keyturn.ok("users", "set-password", "ada@example.com", "--generate").out.splitlines()
    assert line == "ada@example.com has a new password; 1 session ended"
    assert other != password
    assert keyturn.login("ada@example.com", other)


@on_sqlite
@pytest.mark.parametrize("line", [b"", b"\n", b"hunter2", b"hunter2\0hunter2", b"hunter2" * 200, b"hunter2\xff\xfe\n"])
def test_a_password_that_is_none_is_refused_and_not_repeated(keyturn: Command, line: bytes) -> None:
    user(keyturn)
    for words in (("create", "bob@example.com"), ("set-password", "ada@example.com")):
        assert "hunter2" not in keyturn.refused(1, "users", *words, "--password-stdin", stdin=line)
    assert len(keyturn.ok("users", "list", "--json").json) == 1
    assert keyturn.login("ada@example.com")


@pytest.mark.parametrize(
    "words",
    [
        ("users", "create", "ada@example.com", "hunter2"),
        ("users", "create", "ada@example.com", "--password", "hunter2"),
        ("users", "create", "ada@example.com", "--password=hunter2"),
        ("users", "create", "ada@example.com", "--password-stdin=hunter2"),
        ("users", "set-password", "ada@example.com", "hunter2"),
        ("users", "set-password", "--gen", "ada@example.com"),
        ("users", "create", "ada@example.com", "--generate", "--password-stdin"),
    ],
)
def test_no_password_goes_on_the_command_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = Command({}, capsys)(*words)
    assert (done.code, done.out) == (2, "")
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("users",),
        ("fly",),
        ("users", "create"),
        ("users", "list", "--limit", "-1"),
        ("users", "list", "--limit", "1000000"),
        ("users", "list", "--after", "x"),
        ("sessions", "show", "x"),
        ("events", "list", "--session", "x"),
        ("keys", "generate", "biscuit"),
        ("keys", "generate", "access", "--algorithm", "PS256"),
        ("gc", "--keep-days", "999999"),
        ("serve", "--port", "http"),
    ],
)
def test_wrong_use_is_refused_with_code_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = Command({}, capsys)(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: keyturn")


def words_of(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """A parser and all below it: those of the nouns, and those of their verbs."""
    yield parser
    for action in parser._actions:  # argparse has no other way to list them
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from words_of(below)


def test_each_option_of_each_command_has_a_help_text_and_each_that_takes_a_value_a_default() -> None:
    everything = list(words_of(parser()))
    assert len(everything) > 40
    lacking = []
    for each in everything:
        assert each.format_help()  # a % in a text would fail here
        for action in each._actions:
            if isinstance(action, _SubParsersAction):
                lacking += [f"{each.prog} {below.dest}" for below in action._choices_actions if not below.help]
                continue
            name = f"{each.prog} {'/'.join(action.option_strings) or action.dest}"
            if not action.help:
                lacking.append(name)
            takes_a_value = action.nargs != 0 and (action.option_strings or action.nargs in {"?", "*"})
            if takes_a_value and "default: " not in (action.help or ""):
                lacking.append(f"{name} (default)")
            if takes_a_value and action.default not in (None, [], SUPPRESS):
                assert "%(default)s" in (action.help or ""), name
    assert lacking == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("users", "list", "--nope"), "there is no --nope"),
        (("--nope", "users", "list"), "there is no --nope"),
        (("users", "list", "--keep_days=7", "-x"), "there is no --keep_days; there is no -x"),
        (("users", "list", "-phunter"), "1 word too many"),
        (("users", "list", f"--{'a' * 40}"), "1 word too many"),
        (("users", "list", "--\x1b[2J"), "1 word too many"),
        (("users", "create", "ada@example.com", "hunter2"), "1 word too many"),
    ],
)
def test_an_unknown_option_is_named_and_any_other_word_only_counted(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Command({}, capsys)(*words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "hunter2" not in done.err
    assert done.err.replace("\n", "").isprintable()


def test_sessions_are_listed_shown_and_ended(keyturn: Command) -> None:
    ada, bob = user(keyturn), user(keyturn, "bob@example.com")
    tokens = [keyturn.login(email) for email in ("ada@example.com", "ada@example.com", "bob@example.com")]
    ids = [str(token.session_id) for token in tokens]
    listed = keyturn.ok("sessions", "list", "--json").json
    assert [(s["id"], s["user_id"], s["status"]) for s in listed] == [
        (ids[2], bob, "live"),
        (ids[1], ada, "live"),
        (ids[0], ada, "live"),
    ]
    assert not {"token_digest", "refresh_token"} & set(listed[0])
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--limit", "1").json] == [ids[2]]
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--before", ids[1]).json] == [ids[0]]
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--user", "bob@example.com").json] == [ids[2]]
    assert ids[0] in keyturn.ok("sessions", "list").out

    table = keyturn.ok("sessions", "list").out.splitlines()
    assert table[0].split() == ["id", "email", "status", "begun", "refreshed", "ends"]
    assert table[1].split()[:3] == [ids[2], "bob@example.com", "live"]
    assert max(map(len, table)) <= 100

    # If one of the ids is unknown, the command still ends the other sessions.
    unknown = str(uuid7())
    partly = keyturn("sessions", "end", ids[0], unknown, ids[2])
    assert (partly.code, partly.out) == (1, "2 sessions ended\n")
    assert f"no such session {unknown};" in partly.err
    assert ids[0] not in partly.err
    assert (
        keyturn.ok("sessions", "end", ids[0]).out == f"0 sessions ended\n{ids[0]} was over before (revoked_by_admin)\n"
    )
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--status", "live").json] == [ids[1]]
    shown = keyturn.ok("sessions", "show", ids[0], "--json").json
    assert shown["status"] == "revoked_by_admin"
    assert shown["ended_at"]
    assert (shown["user_id"], shown["email"]) == (ada, "ada@example.com")
    lines = keyturn.ok("sessions", "show", ids[0]).out.splitlines()
    assert [line.split()[0] for line in lines] == list(shown)
    assert keyturn.ok("sessions", "end", "--user", ada).out == "1 session ended\n"
    assert keyturn.ok("sessions", "list", "--status", "live").out == ""
    assert keyturn.ok("sessions", "list", "--status", "live", "--json").json == []


def test_sessions_are_listed_previewed_and_ended_by_the_same_filters(keyturn: Command) -> None:
    ada, _ = user(keyturn), user(keyturn, "bob@example.com")
    mine = [str(keyturn.login("ada@example.com").session_id) for _ in range(2)]
    theirs = str(keyturn.login("bob@example.com").session_id)
    begun = keyturn.ok("sessions", "show", mine[1], "--json").json["created_at"]
    cases = [
        (("--user", "ada@example.com"), mine),
        (("--user", ada, "--created-after", "2020-01-01"), mine),
        (("--user", ada, "--created-before", begun), mine[:1]),
        (("--client", "first-party", "--user", ada, "--idle-since", begun), mine[:1]),
        (("--created-before", "2020-01-01"), []),
        (("--client", "shop"), []),
        (("--address", "192.0.2.1"), []),
        (("--device", "phone-1"), []),
        (("--issuer", "acme"), []),
    ]
    for words, wanted in cases:
        listed = keyturn.ok("sessions", "list", "--json", "--status", "live", *words).json
        assert [session["id"] for session in listed] == wanted[::-1], words
        number = f"{len(wanted)} session{'s' * (len(wanted) != 1)}"
        assert keyturn.ok("sessions", "end", *words, "--preview").out == f"{number} would end\n"
    assert keyturn.ok("sessions", "end", "--user", ada, "--created-before", begun).out == "1 session ended\n"
    assert keyturn.ok("sessions", "end", "--user", ada).out == "1 session ended\n"
    ended = keyturn.ok("sessions", "list", "--json", "--status", "ended").json
    assert [(session["id"], session["status"]) for session in ended] == [
        (each, "revoked_by_admin") for each in mine[::-1]
    ]
    assert [session["id"] for session in keyturn.ok("sessions", "list", "--json").json] == [theirs, *mine[::-1]]
    assert "there are more: --before" in keyturn.ok("sessions", "list", "--limit", "2").err
    assert "there are more" not in keyturn.ok("sessions", "list", "--limit", "3").err


@on_sqlite
def test_sessions_that_are_not_there_are_refused(keyturn: Command) -> None:
    assert "no such session" in keyturn.refused(1, "sessions", "show", str(uuid7()))
    assert "no such user" in keyturn.refused(1, "sessions", "list", "--user", "nobody@example.com")
    assert "no such user" in keyturn.refused(1, "sessions", "end", "--user", "nobody@example.com")
    gone = str(uuid7())
    assert f"no such session {gone};" in keyturn.refused(1, "sessions", "end", gone)
    assert "ids or a filter are required" in keyturn.refused(2, "sessions", "end")
    assert "not allowed with" in keyturn.refused(2, "sessions", "end", str(uuid7()), "--user", "x")
    assert "--preview needs a filter" in keyturn.refused(2, "sessions", "end", str(uuid7()), "--preview")
    for moment in ("yesterday", "2026-13-31", "0001-01-01T00:00:00+14:00"):
        assert "must be a moment" in keyturn.refused(2, "sessions", "end", "--idle-since", moment)
    assert "ktr_" not in keyturn.refused(2, "sessions", "show", "ktr_" + "x" * 84)


def test_retiring_a_refresh_key_ends_the_sessions_under_it_and_says_how_many(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    user(keyturn)
    sessions = [keyturn.login("ada@example.com").session_id for _ in range(2)]
    assert keyturn.ok("keys", "generate", "refresh").out.strip() == "refresh-2"
    assert "wait 60 seconds" in keyturn.refused(1, "keys", "retire", "refresh-1")

    async def a_minute_passes(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text("UPDATE keys SET signs_from = created_at"))

    keyturn.inside(a_minute_passes)
    done = keyturn.ok("keys", "retire", "refresh-1").out.splitlines()
    assert done[0] == "refresh-1 is retired; within 2 s its tokens are refused everywhere"
    assert done[1] == "refresh-2 (HMAC-SHA256) signs refresh tokens now"
    assert [line.partition(" ended")[0] for line in done[2:]] == ["2 sessions", "0 sessions more"]
    for session in sessions:
        assert keyturn.ok("sessions", "show", str(session), "--json").json["status"] == "revoked_by_admin"
    # An operator may call the command again after it broke off.
    again = keyturn.ok("keys", "retire", "refresh-1").out.splitlines()
    assert again[0].startswith("refresh-1 was retired already, at ")
    assert again[2].startswith("0 sessions ended")


def test_keys_are_made_listed_and_retired(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")  # makes the first keys, as a service does
    first = {key["use"]: key for key in keyturn.ok("keys", "list", "--json").json}
    assert {key["status"] for key in first.values()} == {"signs"}
    assert not {"sealed", "secret"} & set(first["access"])
    made = [
        keyturn.ok("keys", "generate", *words).out.strip()
        for words in (("access",), ("access", "--algorithm", "EdDSA"), ("refresh",))
    ]
    assert made[2] == "refresh-2"
    listed = {key["kid"]: key for key in keyturn.ok("keys", "list", "--json").json}
    assert [listed[kid]["status"] for kid in made] == ["published"] * 3
    assert [listed[kid]["algorithm"] for kid in made] == ["HS256", "EdDSA", "HMAC-SHA256"]
    assert made[1] in keyturn.ok("keys", "list").out
    cookie = keyturn.ok("keys", "generate", "cookie")
    assert cookie.err.startswith(
        f"{first['cookie']['kid']} (A256GCM) seals cookies now; {cookie.out.strip()} (A256GCM) is "
    )
    assert "is published and seals from " in cookie.err
    output = keyturn.ok("keys", "retire", cookie.out.strip()).out.splitlines()
    assert output == [
        f"{cookie.out.strip()} is retired; within 2 s its cookies are refused everywhere",
        f"{first['cookie']['kid']} (A256GCM) seals cookies now",
    ]
    only = keyturn.refused(1, "keys", "retire", first["cookie"]["kid"])
    assert "It is the only cookie key that can seal" in only
    output = keyturn.ok("keys", "retire", made[0]).out.splitlines()
    assert output[0] == f"{made[0]} is retired; within 2 s its tokens are refused everywhere"
    assert output[1].startswith(
        f"{first['access']['kid']} (HS256) signs access tokens now; {made[1]} (EdDSA) is published"
    )
    assert {k["kid"]: k["status"] for k in keyturn.ok("keys", "list", "--json").json}[made[0]] == "retired"
    assert "was retired already" in keyturn.ok("keys", "retire", made[0]).out
    assert "no such key" in keyturn.refused(1, "keys", "retire", "no-such-key")
    assert "It is the only access key that can sign" in keyturn.refused(1, "keys", "retire", first["access"]["kid"])
    wrong = keyturn.refused(1, "keys", "generate", "refresh", "--algorithm", "ES256")
    assert "algorithm and bits are for access keys" in wrong


def test_the_size_of_an_rsa_key_is_said_where_it_is_made(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    made = [
        keyturn.ok("keys", "generate", "access", "--algorithm", "RS256", *bits).out.strip()
        for bits in ((), ("--bits", "2048"), ("--bits", "3072"))
    ]
    listed = {key["kid"]: key["algorithm"] for key in keyturn.ok("keys", "list", "--json").json}
    assert {listed[kid] for kid in made} == {"RS256"}
    for words in (
        ("refresh", "--bits", "3072"),
        ("access", "--bits", "3072"),
        ("access", "--algorithm", "ES256", "--bits", "2048"),
    ):
        assert "bits" in keyturn.refused(1, "keys", "generate", *words)
    keyturn.refused(2, "keys", "generate", "access", "--algorithm", "RS256", "--bits", "1024")


def test_gc_deletes_what_is_long_over_and_nothing_else(keyturn: Command) -> None:
    user(keyturn)
    old = str(keyturn.login("ada@example.com").session_id)
    keyturn.ok("sessions", "end", old)
    keyturn.inside(lambda k: time_passes(k, timedelta(days=10)))
    live = str(keyturn.login("ada@example.com").session_id)
    assert keyturn.ok("gc", "--keep-days", "11").out.startswith("0 sessions deleted; kept: ")
    assert keyturn.ok("gc", "--keep-days", "99999", "--json").json["deleted"] == 0
    assert keyturn.ok("gc", "--keep-days", "9", "--json").json == {
        "deleted": 1,
        "kept_for_seconds": 777_600,
        "taken_tokens": 0,
        "upstream_sessions": 0,
    }
    assert "90065 s is the least: " in keyturn.ok("gc", "--keep-days", "0").out
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json").json] == [live]


async def record_some(keyturn: Keyturn) -> None:
    """Records five events about two users and a key, one in each hour."""
    ada, bob = [await keyturn.users.find(name) for name in ("ada@example.com", "bob@example.com")]
    begun = datetime(2026, 11, 27, 8, 0, 0, 250_000, UTC)
    itself = Actor("user", str(ada.id), "192.0.2.7", "request-1")
    acts = (
        (Actor("command", "root"), Event("role_changed", ada.id, detail="auditor")),
        (itself, Event("session_started", ada.id, SESSION, "web")),
        (Actor("administrator", str(bob.id), "2001:db8::1", "request-2"),
         Event("session_ended", ada.id, SESSION, "web", "revoked_by_admin")),
        (Actor("anonymous", None, "\x1b[2J"), Event("session_ended", bob.id, uuid7(), None, "reuse_detected")),
        (SERVICE, Event("key_generated", detail="refresh-9")),
    )  # fmt: skip
    for hours, (who, event) in enumerate(acts):
        async with keyturn.db.begin() as tx:
            await record(tx, begun + timedelta(hours=hours), who, [event])
        await asyncio.sleep(0.002)  # ids are in order only from one millisecond to the next


SESSION = uuid7()


def test_events_are_listed_the_newest_first_with_everything_that_they_say(keyturn: Command) -> None:
    ada, bob = user(keyturn), user(keyturn, "bob@example.com")
    keyturn.inside(record_some)
    listed = keyturn.ok("events", "list", "--json").json[:5]
    assert [e["id"] for e in listed] == sorted((e["id"] for e in listed), reverse=True)
    assert listed[2] == {
        "id": listed[2]["id"],
        "at": "2026-11-27T10:00:00.250000Z",
        "event": "session_ended",
        "actor": "administrator",
        "actor_id": bob,
        "user_id": ada,
        "session_id": str(SESSION),
        "client_id": "web",
        "address": "2001:db8::1",
        "request_id": "request-2",
        "reason": "revoked_by_admin",
        "detail": None,
    }
    assert [e["event"] for e in listed] == [
        "key_generated", "session_ended", "session_ended", "session_started", "role_changed"
    ]  # fmt: skip
    assert (listed[4]["actor"], listed[4]["actor_id"], listed[4]["detail"]) == ("command", "root", "auditor")


def test_events_are_listed_of_one_user_of_one_session_and_page_by_page(keyturn: Command) -> None:
    ada = user(keyturn)
    user(keyturn, "bob@example.com")
    keyturn.inside(record_some)
    listed = keyturn.ok("events", "list", "--json").json
    for name in (ada, "ada@example.com"):
        of_user = keyturn.ok("events", "list", "--json", "--user", name).json
        assert of_user == [event for event in listed if event["user_id"] == ada]
        assert len(of_user) >= 3
    of_session = keyturn.ok("events", "list", "--json", "--session", str(SESSION)).json
    assert of_session == [event for event in listed if event["session_id"] == str(SESSION)]
    assert len(of_session) == 2
    pages: list[Any] = []
    last: list[str] = []
    while len(pages) < len(listed):
        pages += keyturn.ok("events", "list", "--json", "--limit", "2", *last).json
        last = ["--before", pages[-1]["id"]]
    assert pages == listed
    assert keyturn.ok("events", "list", "--json", *last).json == []
    done = keyturn.ok("events", "list", "--limit", "2")
    assert done.err == f"there may be more: --before {listed[1]['id']}, or a higher --limit\n"
    assert keyturn.ok("events", "list", "--limit", "2", "--json").err == ""
    assert "no such user" in keyturn.refused(1, "events", "list", "--user", "nobody@example.com")
    none = keyturn.ok("events", "list", "--session", str(uuid7()))
    assert (none.out, none.err) == ("", "there are none\n")


@on_sqlite
def test_events_are_listed_by_kind_by_actor_and_between_two_moments(keyturn: Command) -> None:
    ada = user(keyturn)
    keyturn.ok("users", "set-role", ada, "editor")
    keyturn.login("ada@example.com")
    listed = keyturn.ok("events", "list", "--json").json
    moments = [event["at"] for event in listed]
    assert len(set(moments)) > 3

    def found(*options: str) -> list[Any]:
        events: list[Any] = keyturn.ok("events", "list", "--json", *options).json
        return events

    assert found("--event", "role_changed") == [e for e in listed if e["event"] == "role_changed"] != []
    assert found("--actor", "command") == [e for e in listed if e["actor"] == "command"] != []
    assert found("--actor", ada) == []
    assert found("--since", moments[1]) == [e for e in listed if e["at"] >= moments[1]]
    assert found("--until", moments[1].removesuffix("Z")) == [e for e in listed if e["at"] < moments[1]]
    for wrong in (("--event", "nothing"), ("--actor", "nobody"), ("--since", "yesterday"), ("--until", "12:00")):
        keyturn.refused(2, "events", "list", *wrong)


def test_stats_tell_users_and_live_sessions(keyturn: Command) -> None:
    ada = user(keyturn)
    user(keyturn, "bob@example.com")
    keyturn.login("bob@example.com")
    keyturn.ok("users", "disable", ada)
    assert keyturn.ok("stats", "--json").json == {
        "users": {"enabled": 1, "disabled": 1},
        "sessions": [{"client_id": "first-party", "live": 1}],
        "complete": True,
    }
    done = keyturn.ok("stats")
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [
        "of", "users, enabled", "users, disabled", "live sessions of first-party"
    ]  # fmt: skip
    assert "GET /admin/stats" in done.err


def test_the_table_of_events_names_who_and_on_whom_and_no_terminal_obeys_it(keyturn: Command) -> None:
    user(keyturn)
    user(keyturn, "bob@example.com")
    keyturn.inside(record_some)
    done = keyturn.ok("events", "list")
    assert done.err == ""
    head, *lines = done.out.splitlines()
    assert head.split() == ["at", "event", "by", "on", "detail"]
    cells = [re.split(r"  +", line) for line in lines]
    started = ["2026-11-27T09:00:00Z", "session_started", "user", "ada@example.com"]
    assert started in cells
    ended = ["2026-11-27T10:00:00Z", "session_ended", "bob@example.com", "ada@example.com"]
    assert [*ended, "revoked_by_admin"] in cells
    assert ["2026-11-27T08:00:00Z", "role_changed", "command root", "ada@example.com", "auditor"] in cells
    assert ["2026-11-27T12:00:00Z", "key_generated", "service", "refresh-9"] in cells
    assert done.out.replace("\n", "").isprintable()
    wide = keyturn.ok("events", "list", "--wide").out
    assert {str(SESSION), "192.0.2.7", "2001:db8::1", r"\x1b[2J"} <= set(wide.split())
    assert wide.replace("\n", "").isprintable()


def test_the_actor_of_a_command_is_the_systems_user_who_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert by() == Actor("command", "ada")
    monkeypatch.setenv("LOGNAME", "a" * 1000)  # an event keeps 64 characters
    assert by() == Actor("command", "a" * 64)
    monkeypatch.setenv("LOGNAME", "ad\udcffa")  # a byte that is not UTF-8, as Python reads it: no database takes it
    assert by() == Actor("command", "ad?a")

    def nameless() -> str:
        raise KeyError("uid not found")  # so does Python 3.11 if the system has no name for the user, as in a container

    monkeypatch.setattr("getpass.getuser", nameless)
    assert by() == Actor("command", None)


def findings(done: Done) -> dict[str, str]:
    assert all(finding["ok"] == (not finding["advice"]) for finding in done.json)
    return {finding["check"]: finding["advice"] for finding in done.json}


def test_the_doctor_counts_the_stored_hashes_that_are_not_computed(keyturn: Command) -> None:
    made = [user(keyturn, f"user{i}@example.com", "--role", "admin") for i in range(4)]
    assert findings(keyturn("doctor", "--json"))["stored password hashes"] == ""
    for user_id, stored in zip(
        made[1:], ("", "$2b$12$x", f"$argon2id$v=19$m=4194304,t=1,p=1${'A' * 22}${'A' * 43}"), strict=True
    ):
        keyturn.inside(partial(store, user_id=user_id, stored=stored))
    found = keyturn("doctor", "--json")
    assert found.code == 1
    advice = findings(found)["stored password hashes"]
    assert advice.startswith("3 are not computed")
    assert f"users set-password {made[1]}" in advice
    keyturn.ok("users", "set-password", made[1], stdin=PASSWORD.encode())
    assert findings(keyturn("doctor", "--json"))["stored password hashes"].startswith("2 are not computed")


async def store(keyturn: Keyturn, user_id: str, stored: str) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(update(User).where(User.id == UUID(user_id)).values(password_hash=stored))


@on_sqlite
def test_the_doctor_says_what_room_there_is_for_hashes(keyturn: Command) -> None:
    [words] = [check for check in findings(keyturn("doctor", "--json")) if check.startswith("password hashes: ")]
    assert "at a time in each process, 8 KiB each, 32 may wait" in words
    assert "cores: " in words


def test_the_doctor_finds_what_is_amiss_and_nothing_else(keyturn: Command) -> None:
    done = keyturn("doctor", "--json")
    assert done.code == 1
    found = findings(done)
    assert found["settings"] == found["master secret"] == found["database and schema"] == ""
    assert found["keys"] == f"run {called()} serve once to make them"
    assert found["administrator"] == f"make one: {called()} users create EMAIL --role admin"

    keyturn.inside(lambda k: first_administrator(k.db, k.users))
    done = keyturn("doctor", "--json")
    assert done.code == 1
    assert {check: advice for check, advice in findings(done).items() if advice} == {
        "initial password": f"change it: {called()} users set-password admin@localhost"
    }
    text = keyturn("doctor")
    assert text.code == 1
    assert f"!!  initial password: change it: {called()} users set-password admin@localhost\n" in text.out

    keyturn.ok("users", "set-password", "admin@localhost", "--password-stdin", stdin=b"a better password\n")
    assert set(findings(keyturn.ok("doctor", "--json")).values()) == {""}
    assert keyturn.ok("doctor").out.startswith("ok  settings\n")


@on_sqlite
@pytest.mark.parametrize(("files", "clients"), [(1024, 768), (128, 64)])
def test_the_doctor_says_that_few_files_may_be_open(keyturn: Command, files: int, clients: int) -> None:
    limited = f'ulimit -n {files} && exec "$@"'
    basis = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ("sh", "-c", limited, "sh", sys.executable, "-m", "app", "doctor", "--json"),
        env=basis | keyturn.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    advice = findings(Done(done.returncode, done.stdout, done.stderr))[f"open files ({files})"]
    assert advice == f"raise the limit of open files (ulimit -n): each process serves {clients} connections at once"


@on_sqlite
def test_the_doctor_says_which_part_of_a_set_up_is_no_good(keyturn: Command) -> None:
    good = keyturn.environment
    for change, advice in (
        ({"KEYTURN_RETRY_WINDOWS": "hunter2"}, "KEYTURN_RETRY_WINDOWS: there is no such setting"),
        ({"KEYTURN_SECRET": "hunter2" * 8}, "KEYTURN_SECRET: "),
    ):
        keyturn.environment = good | change
        done = keyturn("doctor", "--json")
        assert done.code == 1
        assert advice in findings(done)["set-up"]
        assert "hunter2" not in done.out
    # The keys were sealed under another master secret than this one.
    keyturn.environment = good
    keyturn.inside(lambda k: k.keys.load())
    keyturn.environment = good | {"KEYTURN_SECRET": "b" + SECRET[1:]}
    assert "can't be unsealed" in findings(keyturn("doctor", "--json"))["set-up"]


@on_sqlite
def test_the_doctor_says_that_a_start_that_traces_lacks_the_sdk(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert "set-up" not in findings(keyturn("doctor", "--json"))
    keyturn.environment = keyturn.environment | {"KEYTURN_TRACING": "true"}
    assert findings(keyturn("doctor", "--json"))["set-up"].startswith("KEYTURN_TRACING needs OpenTelemetry's SDK")


@on_sqlite
def test_the_doctor_says_by_which_proxies_clients_are_known(keyturn: Command) -> None:
    def said() -> list[str]:
        found = findings(keyturn("doctor", "--json"))
        return [f"{check}{advice}" for check, advice in found.items() if check.startswith("addresses of clients: ")]

    of_connections = "those of the connections, as KEYTURN_TRUSTED_PROXIES names no proxy"
    assert said() == [f"addresses of clients: {of_connections}"]
    keyturn.environment = keyturn.environment | {"KEYTURN_TRUSTED_PROXIES": "10.0.0.5"}
    assert said() == ["addresses of clients: by x-forwarded-for of the proxies 10.0.0.5"]


@on_sqlite
def test_the_doctor_sees_that_redis_is_away(keyturn: Command) -> None:
    keyturn.environment["KEYTURN_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
    done = keyturn("doctor", "--json")
    assert done.code == 3
    assert findings(done)["cache (away)"] == (
        "away: Redis can't be reached (Connection refused); the database answers in its place: "
        "start Redis, or look at KEYTURN_REDIS_URL"
    )


@on_sqlite
def test_the_doctor_tells_a_redis_that_nobody_filled_from_one_that_may_evict(keyturn: Command) -> None:
    with (
        Redis.start(settings=["--maxmemory-policy", "noeviction"]) as server,
        closing(redis.Redis.from_url(server.url())) as client,
    ):
        keyturn.environment["KEYTURN_REDIS_URL"] = server.url()
        advice = findings(keyturn("doctor", "--json"))["cache (not filled)"]
        assert advice.startswith("Redis is not filled yet, and the database answers")
        assert advice.endswith(f"{called()} serve")
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        advice = findings(keyturn("doctor", "--json"))["cache (may evict)"]
        assert advice.endswith("set maxmemory-policy noeviction")


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_the_doctor_sees_that_postgres_does_not_enforce_foreign_keys(keyturn: Command) -> None:
    assert findings(keyturn("doctor", "--json"))["foreign keys are enforced"] == ""

    async def switched_off(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            name = await tx.scalar(text("SELECT current_database()"))
            await tx.execute(text(f"ALTER DATABASE {name} SET session_replication_role = replica"))

    keyturn.inside(switched_off)
    found = keyturn("doctor", "--json")
    assert found.code == 1
    advice = "set session_replication_role = origin for this role and database"
    assert findings(found)["foreign keys are enforced"] == advice


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize(("seconds", "differs"), [(0, False), (30, True), (-30, True)])
def test_the_doctor_compares_this_machines_clock_with_the_databases(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch, seconds: int, differs: bool
) -> None:
    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:
            return super().now(tz) + timedelta(seconds=seconds)

    monkeypatch.setattr("app.storage.condition.datetime", Shifted)
    advice = findings(keyturn("doctor", "--json"))["clock"]
    assert advice == ("it differs from the database's: let NTP set both" if differs else "")


def test_a_command_is_named_as_it_can_be_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for started, prefix, name in (
        ("/opt/venv/bin/keyturn", "/opt/venv", "/opt/venv/bin/keyturn"),
        (str(ROOT / "app" / "__main__.py"), str(ROOT / ".venv"), "python3 dev.py keyturn"),
        (str(ROOT / "app" / "__main__.py"), "/opt/venv", "python -m app"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        monkeypatch.setattr(sys, "prefix", prefix)
        assert called() == name
    # In the image, `keyturn` is on PATH and starts the module.
    (tmp_path / "keyturn").write_text("#!/bin/sh\n")
    (tmp_path / "keyturn").chmod(0o755)
    assert called() == "keyturn"


def test_the_doctor_sees_that_tokens_are_still_signed_by_another_algorithm(keyturn: Command) -> None:
    keyturn.inside(lambda k: k.keys.load())
    keyturn.environment["KEYTURN_SIGNING_ALGORITHM"] = "EdDSA"
    old = next(key["kid"] for key in keyturn.ok("keys", "list", "--json").json if key["use"] == "access")
    advice = (
        "KEYTURN_SIGNING_ALGORITHM is EdDSA, and access tokens are signed with HS256: "
        f"{called()} keys rotate access --algorithm EdDSA, or change the setting"
    )
    assert findings(keyturn("doctor", "--json"))[f"access tokens signed with HS256 (key {old}) now"] == advice
    done = keyturn.ok("keys", "generate", "access")
    new = done.out.strip()
    assert done.err.startswith(f"{old} (HS256) signs access tokens now; {new} (EdDSA) is published and signs from ")
    both = f"access tokens signed with HS256 (key {old}) now, EdDSA (key {new}) from "
    assert [advice for check, advice in findings(keyturn("doctor", "--json")).items() if check.startswith(both)] == [""]

    async def a_minute_passes(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text("UPDATE keys SET signs_from = created_at"))

    keyturn.inside(a_minute_passes)
    assert findings(keyturn("doctor", "--json"))[f"access tokens signed with EdDSA (key {new}) now"] == ""
    # The older key signs again, and the command says so.
    output = keyturn.ok("keys", "retire", new).out.splitlines()
    assert output[1] == f"{old} (HS256) signs access tokens now (until now: the retired key)"
    assert findings(keyturn("doctor", "--json"))[f"access tokens signed with HS256 (key {old}) now"] == advice


def test_an_address_that_is_taken_stops_the_start_before_anything_is_made(keyturn: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        keyturn.environment |= {"KEYTURN_PORT": str(taken.getsockname()[1]), "KEYTURN_DATA_DIR": str(tmp_path / "new")}
        line = keyturn.refused(1, "serve")
    assert "choose another --port" in line
    assert not (tmp_path / "new").exists()


@on_sqlite
@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_stops_the_start(keyturn: Command, host: str) -> None:
    assert "choose another --host" in keyturn.refused(1, "serve", "--host", host)


EVERY_VERB = [
    ("users", "list", "--json"),
    ("users", "create", "ada@example.com", "--generate"),
    ("users", "disable", "ada@example.com"),
    ("sessions", "list"),
    ("sessions", "end", str(UUID(int=1))),
    ("keys", "generate", "access"),
    ("keys", "list"),
    ("events", "list"),
    ("gc",),
]


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The `keyturn` command with the URL of a Postgres that does not run."""
    monkeypatch.chdir(tmp_path)
    settings = {
        "database_url": f"postgresql://keyturn:hunter2@127.0.0.1:{free_port()}/keyturn",
        "redis_url": "none",
        "issuer": "https://auth.example.com",
        "secret": SECRET,
        "port": "0",
    }
    return Command({f"KEYTURN_{name.upper()}": value for name, value in settings.items()}, capsys)


@pytest.mark.parametrize("words", [*EVERY_VERB, ("serve",)])
def test_a_database_that_is_away_is_reported_with_code_3(away: Command, words: tuple[str, ...]) -> None:
    line = away.refused(3, *words)
    assert line.startswith("keyturn: not available: the database can't be reached")
    assert "hunter2" not in line


def test_the_doctor_says_that_the_database_is_away(away: Command) -> None:
    done = away("doctor", "--json")
    assert done.code == 3
    assert "can't be reached" in findings(done)["database"]


@pytest.mark.parametrize("words", [*EVERY_VERB, ("serve",)])
def test_settings_that_can_not_work_are_refused_with_code_2(away: Command, words: tuple[str, ...]) -> None:
    del away.environment["KEYTURN_ISSUER"]
    assert "KEYTURN_ISSUER must be set" in away.refused(2, *words)
    away.environment["KEYTURN_NONSENSE"] = "hunter2"
    assert "KEYTURN_NONSENSE: there is no such setting" in away.refused(2, *words)


@pytest.mark.parametrize("words", EVERY_VERB)
def test_before_the_first_start_there_is_nothing_to_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = Command({}, capsys).refused(1, *words)
    assert f"set KEYTURN_SECRET and KEYTURN_DATABASE_URL, or run {called()} serve once" in line
    assert not (tmp_path / "keyturn-data").exists()


def test_the_doctor_says_where_the_database_is_if_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = Command({}, capsys)("doctor").out
    assert f"ok  embedded SQLite in {tmp_path / 'keyturn-data'}: KEYTURN_DATABASE_URL is not set\n" in said


def test_the_openapi_document_needs_no_set_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "openapi"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert document["openapi"].startswith("3.1")
    assert "/auth/refresh" in document["paths"]
    assert not list(tmp_path.iterdir())


def test_a_config_file_is_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keyturn.toml").write_text('retry_windows = "hunter2"\n')
    named = ("--config", "keyturn.toml")
    for words in ((*named, "users", "list"), ("users", *named, "list"), ("users", "list", *named)):
        line = Command({}, capsys).refused(2, *words)
        assert line == "keyturn: KEYTURN_RETRY_WINDOWS: there is no such setting\n"
    assert "none.toml can't be read" in Command({}, capsys).refused(2, "users", "list", "--config", "none.toml")


def test_the_release_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"keyturn \d\S*\n", Command({}, capsys).ok("--version").out)


def test_an_unknown_option_is_named_and_an_unknown_word_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    output = Command({}, capsys).refused(2, "users", "create", "ada@example.com", "--pass-word=hunter2", "hunter2")
    assert "there is no --pass-word; 1 word too many" in output
    assert output.startswith("usage: keyturn users create")
    assert "hunter2" not in output
    assert "2 words too many" in Command({}, capsys).refused(2, "users", "list", "--hunter2", "x1")


def test_a_lost_master_secret_is_answered_by_new_keys_and_no_session_stays_live(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    user(keyturn)
    sessions = [str(keyturn.login("ada@example.com").session_id) for _ in range(2)]
    keyturn.environment["KEYTURN_SECRET"] = "b" + SECRET[1:]
    assert "keys replace" in keyturn.refused(1, "sessions", "list")
    assert "--sign-everyone-out" in keyturn.refused(2, "keys", "replace")
    output = keyturn.ok("keys", "replace", "--sign-everyone-out").out
    assert "refresh-2 (HMAC-SHA256) signs refresh tokens now" in output
    assert "(A256GCM) seals cookies now" in output
    assert "2 sessions ended; everyone has to sign in again" in output
    assert keyturn.ok("sessions", "list", "--status", "live", "--json").json == []
    new = str(keyturn.login("ada@example.com").session_id)
    listed = {s["id"]: s["status"] for s in keyturn.ok("sessions", "list", "--json").json}
    assert listed == {new: "live", **dict.fromkeys(sessions, "revoked_by_admin")}


def test_a_session_under_no_key_that_could_open_its_token_is_not_live(keyturn: Command) -> None:
    user(keyturn)
    old = str(keyturn.login("ada@example.com").session_id)

    async def all_keys_are_deleted(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text("DELETE FROM keys"))

    keyturn.inside(all_keys_are_deleted)
    new = str(keyturn.login("ada@example.com").session_id)  # the new key has the same number as the deleted one
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--status", "live", "--json").json] == [new]
    assert keyturn.ok("sessions", "show", old, "--json").json["status"] == "revoked_by_admin"


def test_a_session_over_by_a_policy_that_was_made_stricter_is_not_listed_as_live(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    keyturn.inside(lambda k: time_passes(k, timedelta(hours=2)))
    assert len(keyturn.ok("sessions", "list", "--status", "live", "--json").json) == 1
    keyturn.environment["KEYTURN_REFRESH_TOKEN_LIFETIME"] = "3600"
    assert keyturn.ok("sessions", "list", "--json").json[0]["status"] == "idle_timeout"
    assert keyturn.ok("sessions", "list", "--status", "live", "--json").json == []


@on_sqlite
def test_at_a_terminal_the_password_is_asked_for_twice_and_not_shown(keyturn: Command, tmp_path: Path) -> None:
    def converse(*typed: str) -> tuple[int, str]:
        terminal, end = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "users", "create", "ada@example.com"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **keyturn.environment},
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        shown, prompts = b"", 0
        try:
            while True:
                shown += os.read(terminal, 4096)
                if shown.count(b": ") > prompts and shown.endswith(b": ") and prompts < len(typed):
                    os.write(terminal, typed[prompts].encode())
                    prompts += 1
        except OSError:  # the process has closed its end
            pass
        finally:
            os.close(terminal)
        return process.wait(30), shown.decode()

    code, shown = converse("hunter of a quiet roof\n", "hunter of a loud roof\n")
    assert (code, "hunter" in shown) == (1, False)
    assert "The two passwords differ." in shown
    code, shown = converse("\x04")  # end of input
    assert (code, "Traceback" in shown) == (1, False)
    code, shown = converse("hunter of a quiet roof\n", "hunter of a quiet roof\n")
    assert (code, "hunter" in shown) == (0, False)
    assert keyturn.login("ada@example.com", "hunter of a quiet roof")


@on_sqlite
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_can_not_be_written_is_reported_in_one_line(keyturn: Command, tmp_path: Path) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")

    def to(output: int, *words: str) -> tuple[int, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "app", *words],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **keyturn.environment},
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
        return done.returncode, done.stderr

    reader, nobody_reads = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for words in (("users", "list"), ("sessions", "list", "--json"), ("keys", "list"), ("doctor",), ("openapi",)):
            assert to(full, *words) == (1, b"keyturn: the output can't be written (No space left on device)\n"), words
        # A reader that closes the pipe, as `head` does, wants no more output. So the command reports no error.
        for words in (("users", "list"), ("openapi",)):
            assert to(nobody_reads, *words) == (1, b""), words
    finally:
        os.close(full)
        os.close(nobody_reads)
