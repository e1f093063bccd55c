"""Migrations as an operator runs them: the real `alembic`, which gets the database's URL and nothing else."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url

from tests.conftest import sync
from tests.servers import Postgres, free_port

ROOT = Path(__file__).parent.parent
LOCK = 0x6B657900
TABLES = {
    *("alembic_version", "cache_fence", "events", "identities", "issuers", "keys", "policies", "pulse", "sessions"),
    *("taken_tokens", "upstream_sessions", "users"),
}


def command(*words: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, Path(sys.executable).parent / "alembic", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alembic(*words: str, **environment: str) -> str:
    """Runs `alembic`, which must succeed within 30 s, and returns its standard output."""
    with command(*words, before=(), **environment) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def empty(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if engine == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'keyturn.db'}"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    sync(postgres.create_database(name))
    yield postgres.url(name)
    sync(postgres.drop_database(name))


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Runs SQL without Keyturn's code. On SQLite, a script of several statements gives no rows."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///"))) as connection:
            if statement.count(";") > 1:
                connection.executescript(statement)
                return []
            return connection.execute(statement).fetchall()
    rows: list[tuple[Any, ...]] = []

    async def on_postgres() -> None:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        if statement.count(";") > 1:
            await connection.execute(statement)
        else:
            rows.extend(tuple(row) for row in await connection.fetch(statement))
        await connection.close()

    sync(on_postgres())
    return rows


def tables(url: str) -> set[str]:
    statement = (
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        if url.startswith("sqlite")
        else "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'"
    )
    return {name for (name,) in ask(url, statement)}


def test_the_schema_goes_up_without_drift_down_to_nothing_and_up_again(empty: str) -> None:
    environment = {"KEYTURN_DATABASE_URL": empty}
    alembic("upgrade", "head", **environment)
    assert tables(empty) == TABLES
    assert "No new upgrade operations detected" in alembic("check", **environment)
    alembic("downgrade", "base", **environment)
    assert tables(empty) == {"alembic_version"}
    assert ask(empty, "SELECT * FROM alembic_version") == []
    alembic("upgrade", "head", **environment)
    assert tables(empty) == TABLES
    assert ask(empty, "SELECT id, epoch, server FROM cache_fence") == [(1, "none", None)]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_check_finds_a_planted_drift(database_url: str) -> None:
    ask(database_url, "DROP INDEX ix_sessions_user_id_id")
    with command("check", KEYTURN_DATABASE_URL=database_url) as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "ix_sessions_user_id_id" in out


def test_the_offline_sql_makes_the_same_schema(empty: str) -> None:
    script = alembic("upgrade", "head", "--sql", KEYTURN_DATABASE_URL=empty)
    if empty.startswith("postgresql"):
        # The script has the same locks as a migration online: one migration at a time, short waits, limits for this
        # transaction only.
        assert [line for line in script.splitlines() if line][:4] == [
            "BEGIN;",
            "SET LOCAL lock_timeout = '20000ms';",
            f"SELECT pg_advisory_xact_lock({LOCK});",
            "SET LOCAL lock_timeout = '2000ms';",
        ]
    assert script.split().count("BEGIN;") == script.split().count("COMMIT;") == 1
    assert script.rstrip().endswith("COMMIT;")
    ask(empty, script)
    assert tables(empty) == TABLES
    assert ask(empty, "SELECT id, epoch, server FROM cache_fence") == [(1, "none", None)]
    assert ask(empty, "SELECT version_num FROM alembic_version") == [("0001",)]
    assert "No new upgrade operations detected" in alembic("check", KEYTURN_DATABASE_URL=empty)


def test_the_offline_sql_takes_the_schema_down_again(database_url: str) -> None:
    ask(database_url, alembic("downgrade", "head:base", "--sql", KEYTURN_DATABASE_URL=database_url))
    assert tables(database_url) - {"alembic_version"} == set()


def test_offline_sql_needs_no_database() -> None:
    url = "postgresql://nobody:hunter2@host.invalid/none"
    script = alembic("upgrade", "head", "--sql", KEYTURN_DATABASE_URL=url)
    assert "CREATE TABLE sessions" in script
    assert "hunter2" not in script


@pytest.mark.parametrize(
    ("url", "saying"),
    [
        ("mysql://u:hunter2@db/keyturn", "must begin with postgresql://"),
        ("postgresql://u:hun:hunter2@db:x/keyturn", "port must be a whole number"),
        ("postgresql://u:12/hunter2@db/keyturn", "is not a URL"),
        ("postgresql://u:hunter2@db/keyturn?target_session_attrs=any", "must be primary or read-write"),
    ],
)
@pytest.mark.parametrize("offline", [(), ("--sql",)])
def test_a_url_that_can_not_work_is_told_in_one_line(url: str, saying: str, offline: tuple[str, ...]) -> None:
    line = refused(url, *offline)
    assert line.startswith("keyturn: KEYTURN_DATABASE_URL")
    assert saying in line


def refused(url: str, *offline: str, **environment: str) -> str:
    """Runs `alembic`, which must fail with one line; returns that line, which must not hold the password."""
    with command("upgrade", "head", *offline, KEYTURN_DATABASE_URL=url, before=(), **environment) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, (out, err)
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("keyturn: migrating ")]
    assert len(lines) == 1, err
    assert "hunter2" not in err
    return lines[0]


def test_a_database_that_can_not_be_reached_is_told_in_one_line(tmp_path: Path) -> None:
    away = f"postgresql://u:hunter2@127.0.0.1:{free_port()}/keyturn"
    assert "the database is not available (database: ConnectionRefusedError)" in refused(away)
    assert "can't be opened" in refused(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/keyturn.db")
    (tmp_path / "other").write_bytes(b"not a database " * 100)
    assert "is no SQLite database" in refused(f"sqlite+aiosqlite:///{tmp_path}/other")


def test_a_database_that_is_not_there_is_told_in_one_line(postgres: Postgres) -> None:
    assert "there is no such database" in refused(postgres.url("no_such_database"))


def test_alembic_says_that_it_migrates_only_where_it_changes_the_database(database_url: str) -> None:
    for words, said in (
        (("current",), "keyturn: the database is "),
        (("check",), "keyturn: the database is "),
        (("upgrade", "head"), "keyturn: migrating "),
        (("downgrade", "base"), "keyturn: migrating "),
    ):
        with command(*words, KEYTURN_DATABASE_URL=database_url) as process:
            _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert err.splitlines()[0].startswith(said)


def test_a_migration_needs_no_secret_and_no_other_setting(tmp_path: Path) -> None:
    settings = {"SECRET_FILE": "/no/such/file", "REDIS_URL_FILE": "/no/such/file", "PORT": "http", "UNKNOWN": "x"}
    place = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/keyturn.db"}
    alembic("upgrade", "head", **{f"KEYTURN_{name}": value for name, value in (settings | place).items()})
    with command("upgrade", "head", KEYTURN_DATABASE_URL_FILE="/no/such/file") as process:
        _, err = process.communicate(timeout=30)
    assert err == "keyturn: KEYTURN_DATABASE_URL_FILE: can't be read (No such file or directory)\n"


def test_two_migrations_at_once_both_succeed(empty: str) -> None:
    with (
        command("upgrade", "head", KEYTURN_DATABASE_URL=empty) as one,
        command("upgrade", "head", KEYTURN_DATABASE_URL=empty) as two,
    ):
        said = [process.communicate(timeout=30)[1] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], said
    assert tables(empty) == TABLES
    assert ask(empty, "SELECT count(*) FROM cache_fence") == [(1,)]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_migration_does_not_wait_long_for_a_lock(database_url: str) -> None:
    # A migration that waits for an exclusive lock blocks every later reader of the table, so the wait must be short.
    reader = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    async with reader.transaction():
        await reader.fetch("SELECT * FROM users")
        with command("downgrade", "base", KEYTURN_DATABASE_URL=database_url) as process:
            _, err = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode != 0
        assert "canceling statement due to lock timeout" in err
        assert err.splitlines()[-1].startswith("keyturn: a table stayed locked: try again")
    # The migration left nothing half done. Postgres released its advisory lock with its connection.
    assert await asyncio.to_thread(tables, database_url) == TABLES
    assert await reader.fetchval("SELECT version_num FROM alembic_version") == "0001"
    held = (
        "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE locktype = 'advisory' AND datname = $1"
    )
    assert not await reader.fetch(held, await reader.fetchval("SELECT current_database()"))
    await reader.close()


async def hold_the_lock(url: str) -> asyncpg.Connection:
    """Holds the migration lock for the whole connection, as an earlier release did on a pooled connection."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), server_settings={"application_name": "left over"})
    await connection.execute(f"SELECT pg_advisory_lock({LOCK})")
    return connection


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_migration_takes_the_time_that_it_needs_whatever_limits_the_database_has(
    empty: str, postgres: Postgres
) -> None:
    name = make_url(empty).database
    for limit in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
        await postgres._execute(f"ALTER DATABASE \"{name}\" SET {limit} = '20ms'")
    await asyncio.to_thread(alembic, "upgrade", "head", KEYTURN_DATABASE_URL=empty)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_migration_says_whom_it_waits_for_and_goes_on_after(empty: str) -> None:
    holder = await hold_the_lock(empty)
    with command("upgrade", "head", KEYTURN_DATABASE_URL=empty) as process:
        assert process.stderr
        assert (await asyncio.to_thread(process.stderr.readline)).startswith("keyturn: migrating ")
        line = await asyncio.to_thread(process.stderr.readline)
        assert f"for another migration: Postgres process {holder.get_server_pid()} (left over), idle since" in line
        await holder.close()
        assert await asyncio.to_thread(process.wait, 30) == 0
    assert await asyncio.to_thread(tables, empty) == TABLES


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_migration_does_not_wait_for_another_without_end(empty: str) -> None:
    holder = await hold_the_lock(empty)
    with command("upgrade", "head", KEYTURN_DATABASE_URL=empty) as process:
        _, err = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 1
    _, waiting, gave_up = err.splitlines()
    assert waiting.startswith("keyturn: waiting up to 20 s for another migration: ")
    assert gave_up.startswith("keyturn: another migration holds the lock of migrations: Postgres process ")
    assert gave_up.endswith(f"end it: SELECT pg_terminate_backend({holder.get_server_pid()})")
    assert await asyncio.to_thread(tables, empty) == set()
    await holder.close()


STEP = """
revision, down_revision, branch_labels, depends_on = "{0}", "{1}", None, None

from alembic import op

def upgrade() -> None:
    op.execute("CREATE TABLE step_{0} (id integer)")
    {2}
"""


@pytest.fixture
def steps(tmp_path: Path, empty: str) -> Callable[..., subprocess.Popen[str]]:
    """Gives a function that starts `alembic` with two more migrations and returns the process.

    The last of the two also runs a Python statement that the test chooses.
    """
    folder = tmp_path / "steps"
    shutil.copytree(ROOT / "migrations", folder / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    ini = folder / "alembic.ini"
    ini.write_text(
        f"[alembic]\nscript_location = {folder / 'migrations'}\nprepend_sys_path = {ROOT}\npath_separator = os\n"
    )

    def run(last: str, *before: str) -> subprocess.Popen[str]:
        (folder / "migrations" / "versions" / "0002.py").write_text(STEP.format("0002", "0001", ""))
        (folder / "migrations" / "versions" / "0003.py").write_text(STEP.format("0003", "0002", last))
        return command("-c", str(ini), "upgrade", "head", before=before, KEYTURN_DATABASE_URL=empty)

    return run


def test_a_migration_that_fails_leaves_the_schema_as_it_was(steps: Any, empty: str) -> None:
    with steps("raise SystemError") as process:
        process.communicate(timeout=30)
    assert process.returncode == 1
    assert tables(empty) == set()
    with steps("") as process:
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert tables(empty) == TABLES | {"step_0002", "step_0003"}


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_several_migrations_at_once_all_succeed_with_several_steps(steps: Any, empty: str) -> None:
    with steps("") as one, steps("") as two, steps("") as three:
        said = [process.communicate(timeout=60)[1] for process in (one, two, three)]
    assert [one.returncode, two.returncode, three.returncode] == [0, 0, 0], said
    assert tables(empty) == TABLES | {"step_0002", "step_0003"}


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_what_comes_after_an_autocommit_block_has_the_lock_again(steps: Any, empty: str) -> None:
    indexed = """
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY ix ON step_0002 (id)")
    found = op.get_bind().exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar()
    assert (found, op.get_bind().exec_driver_sql("SHOW lock_timeout").scalar()) == (1, "2s")
"""
    with steps(indexed) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


FIRST_PROCESS = ("unshare", "--fork", "--pid", "--kill-child") + (() if os.geteuid() == 0 else ("--user", "-r"))
may_unshare = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*FIRST_PROCESS, "true"], check=False, capture_output=True).returncode != 0,
    reason="no process can be made the first of a namespace of its own here (unshare)",
)


@may_unshare
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_migration_ends_at_sigterm_as_the_first_process_of_a_container(steps: Any, empty: str) -> None:
    slow = "op.get_bind().exec_driver_sql('SELECT pg_sleep(60)')"
    with steps(slow, *FIRST_PROCESS) as process:
        until = time.monotonic() + 30
        while not ask(
            empty, "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid != pg_backend_pid()"
        ):
            assert time.monotonic() < until
            time.sleep(0.1)
        [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[1:] == ["keyturn: ended by SIGTERM"]
    time.sleep(0.5)
    assert ask(empty, "SELECT FROM pg_stat_activity WHERE application_name = 'keyturn migrate'") == []
    assert tables(empty) == set()


def test_the_embedded_default_is_migrated_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with command("upgrade", "head", KEYTURN_DATA_DIR=str(folder)) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert f"migrating embedded SQLite in {folder}: KEYTURN_DATABASE_URL is not set\n" in said
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert tables(f"sqlite+aiosqlite:///{folder / 'keyturn.db'}") == TABLES
