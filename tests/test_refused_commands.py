"""Commands that can't do their work: an address that is taken, a database that is away, settings that can't work."""

from __future__ import annotations

import socket
from pathlib import Path
from uuid import UUID

import pytest

from app.command_name import called
from tests.command_line import Command, findings, keyturn, on_sqlite
from tests.conftest import SECRET
from tests.servers import free_port

__all__ = ["keyturn"]  # fixtures


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
