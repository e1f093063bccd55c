"""The lines of docs/restore.md, typed into a shell as they stand: on a real Postgres, and on a SQLite file in use."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.command_line import Command, command
from tests.conftest import PASSWORD, sync
from tests.example_servers import ACCOUNT, keyturn
from tests.servers import Postgres
from tests.service import ROOT, Service
from tests.test_postgres import execute
from tests.test_production import step
from tests.test_restore import refreshed, verified

PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "restore.md").read_text(encoding="utf-8"))
ADA = "ada@example.com"


def line(beginning: str) -> str:
    """The only line of the page that begins so."""
    [found] = {each for each in re.findall(r"`([^`]+)`", PAGE) if each.startswith(beginning)}
    return str(found)


def typed(line: str, folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        ["sh", "-euc", line],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Installed:
    """A database with the page's two roles. They belong to the whole server, so their names get an ending here."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self.name = f"keyturn_{secrets.token_hex(4)}"

    def here(self, text: str) -> str:
        return re.sub(r"\bkeyturn(?=\b|_owner\b|_test\b)(?!\.dump)", self.name, text)

    def url(self, user: str, database: str) -> str:
        return self.here(re.sub(r"//.*@", f"//{user}:PASSWORD@", self.postgres.url(database)))

    def typed(self, line: str, folder: Path, **environment: str) -> None:
        """Types a line where PostgreSQL's own programs are found first."""
        path = f"{self.postgres._bin}{os.pathsep}{os.environ['PATH']}"
        server = {"PGHOST": "127.0.0.1", "PGPORT": str(self.postgres.port), "PATH": path}
        typed(self.here(line), folder, {**server, **{name: self.here(each) for name, each in environment.items()}})


@pytest.fixture
def installed(postgres: Postgres) -> Iterator[Installed]:
    if not postgres.ours:
        pytest.skip("TEST_DATABASE_URL names a server, whose programs this test does not know")
    installed = Installed(postgres)
    try:
        for statement in filter(str.strip, installed.here(step(1, "sql")).split(";")):
            sync(execute(postgres.url("postgres"), statement))
        yield installed
    finally:
        for database in ("keyturn", "keyturn_test"):
            sync(postgres.drop_database(installed.here(database)))
        for role in ("keyturn", "keyturn_owner"):
            sync(execute(postgres.url("postgres"), installed.here(f"DROP ROLE IF EXISTS {role}")))


def test_the_lines_for_postgres_dump_test_and_restore(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def as_role(user: str, database: str = "keyturn") -> Command:
        return command(installed.url(user, database), capsys)

    assert as_role("keyturn_owner")("db", "upgrade").code == 0
    rights = as_role("keyturn_owner").ok("db", "rights", installed.name).out
    sync(execute(installed.url("keyturn_owner", "keyturn"), *filter(str.strip, rights.split(";"))))
    service = as_role("keyturn")
    service.ok("users", "create", ADA, "--role", "admin", stdin=PASSWORD.encode())
    kept = service.login(ADA)
    installed.typed(line("pg_dump"), tmp_path, PGUSER="keyturn_owner")
    later = service.login(ADA)

    installed.typed(line("createdb"), tmp_path, PGUSER="postgres")
    installed.typed(line("pg_restore --username=keyturn_owner --dbname=keyturn_test"), tmp_path)
    copy = as_role("keyturn", "keyturn_test")
    checks = copy("doctor").out.splitlines()
    for check in ("master secret", "database and schema", "keys"):
        assert any(re.match(rf"ok  {check}\b", each) for each in checks), checks
    assert ADA in copy.ok("users", "list").out

    installed.typed(line("pg_restore --username=keyturn_owner --clean"), tmp_path)
    assert "Redis from before the restore is not believed" in service.ok("doctor", "--after-restore").out
    assert service.inside(lambda k: verified(k, later)) == service.inside(lambda k: refreshed(k, later)) == "unknown"
    assert service.inside(lambda k: verified(k, kept)) == service.inside(lambda k: refreshed(k, kept)) == "accepted"


def test_the_line_for_sqlite_backs_up_a_file_in_use_and_the_file_can_be_put_back(tmp_path: Path, logs: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("the shell of SQLite (sqlite3) is not installed")
    data = tmp_path / "keyturn-data"

    def signed_in(service: Service) -> str:
        answer = httpx2.post(f"{service.url}/auth/login", json=ACCOUNT, trust_env=False)
        return str(answer.raise_for_status().json()["access_token"])

    def status(service: Service, token: str) -> int:
        bearer = {"Authorization": f"Bearer {token}"}
        return httpx2.get(f"{service.url}/auth/verify", headers=bearer, trust_env=False).status_code

    with keyturn(tmp_path, logs, data_dir=data) as service:
        kept = signed_in(service)
        typed(line("sqlite3"), tmp_path)
        later = signed_in(service)
        assert (status(service, kept), status(service, later)) == (200, 200)
    for name in re.findall(r"`(keyturn\.db-\w+)`", PAGE):
        (data / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "keyturn.backup.db", data / "keyturn.db")
    with keyturn(tmp_path, logs, data_dir=data) as service:
        assert (status(service, kept), status(service, later)) == (200, 401)
