"""`keyturn users` for users with a password: how they are made, listed and changed, and how a password is read."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from app.storage.tables import uuid7
from tests.command_line import ROOT, Command, keyturn, on_sqlite, user
from tests.conftest import PASSWORD

__all__ = ["keyturn"]  # fixtures


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
