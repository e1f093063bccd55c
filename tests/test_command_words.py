"""The words of the command line: wrong use, help, options, and who is said to have given a command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.actors import Actor
from app.command_name import called
from app.commands.acts import by
from app.commands.command import main, parser
from app.commands.examples import EXAMPLES
from tests.command_line import ROOT, Command, keyturn, on_sqlite, user

__all__ = ["keyturn"]  # fixtures


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
        positionals = any(not a.option_strings and not isinstance(a, _SubParsersAction) for a in each._actions)
        if positionals and "For example: " not in (each.epilog or ""):
            lacking.append(f"{each.prog} (example)")
        if not each.description:
            lacking.append(f"{each.prog} (description)")
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


def test_an_error_of_use_shows_the_example_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["users", "create"])
    *_, example, error = capsys.readouterr().err.splitlines()
    assert example == "For example: keyturn users create ada@example.com --role admin"
    assert error == "keyturn users create: error: the following arguments are required: email"


@pytest.mark.parametrize(("words", "example"), EXAMPLES.items())
def test_each_example_of_a_help_is_of_its_command_and_is_understood(words: str, example: str) -> None:
    (typed,) = [shlex.split(part) for part in example.split(" | ") if part.startswith("keyturn ")]
    assert typed[: len(words.split())] == words.split()
    understood, unknown = parser().parse_known_args(typed[1:])
    assert understood.parser.prog == words
    assert unknown == []


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
