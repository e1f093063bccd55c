"""Behind PgBouncer in transaction mode, each transaction may run on another server connection."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from app.actors import SERVICE
from app.errors import InvalidToken
from app.keyturn import Keyturn, opened, running
from app.sessions.filters import Filter
from tests.conftest import a_user, settings_of, sync
from tests.sentinel import Sentinel
from tests.servers import Postgres, Redis, free_port
from tests.test_migrations import alembic
from tests.test_postgres import execute

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no pgbouncer on PATH (no wheel has it; Debian's package does)")


@pytest.fixture
def pooled_url(postgres: Postgres, template: str, tmp_path: Path) -> Iterator[str]:
    """A fresh database, reached through a PgBouncer that has four server connections for all clients."""
    name = f"pooled_{os.urandom(4).hex()}"
    sync(postgres.create_database(name, template=template))
    given = make_url(postgres.url())
    port = free_port()
    nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None  # PgBouncer refuses to run as root
    sentinel = Sentinel(nobody)
    try:
        file = sentinel.folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = host={given.host} port={given.port} user={given.username}"
            + (f" password={given.password}" if given.password else "")
            + f"\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\n"
            "pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 100\n"
        )
        file.chmod(0o644)
        sentinel.run([str(PROGRAM), "-q", str(file)], environment=None, log=tmp_path / "pgbouncer.log")

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        assert sentinel.wait(10, listens) is None, (tmp_path / "pgbouncer.log").read_text()
        yield given.set(host="127.0.0.1", port=port, database=name).render_as_string(hide_password=False)
    finally:
        sentinel.close()
        sync(postgres.drop_database(name))


@pytest.fixture
def opener(pooled_url: str, redis: Redis) -> Callable[[], AbstractAsyncContextManager[Keyturn]]:
    @asynccontextmanager
    async def opener() -> AsyncIterator[Keyturn]:
        settings = settings_of(pooled_url, redis.url(11), pgbouncer="true")
        async with opened(settings) as keyturn, running(keyturn):
            yield keyturn

    return opener


Opener = Callable[[], AbstractAsyncContextManager[Keyturn]]


async def test_two_instances_sign_in_refresh_verify_and_log_out_through_pgbouncer(opener: Opener) -> None:
    async with opener() as here, opener() as there:
        proof = await a_user(here)
        # Four at once: on a slow machine, a task that waits two seconds for a connection is refused.
        turnstile = asyncio.Semaphore(4)

        async def chain() -> None:
            async with turnstile:
                tokens = await here.starting.start(proof, by=SERVICE)
            for turn in range(40):
                tokens = await (here, there)[turn % 2].rotation.refresh(tokens.refresh_token, by=SERVICE)
            assert (await there.reading.verify(tokens.access_token)).session_id == tokens.session_id
            async with turnstile:
                await here.ending.logout((), [tokens.refresh_token], "this", by=SERVICE)
            with pytest.raises(InvalidToken):
                await there.reading.verify(tokens.access_token)

        await asyncio.gather(*(chain() for _ in range(48)))  # 48 chains of 40 refreshes
        state = [
            (s.generation, s.end_reason) for s in (await here.reading.list(Filter(status="all"), limit=100)).sessions
        ]
        assert state == [(40, "logout")] * 48


async def test_the_limits_hold_in_each_transaction_and_leave_nothing_behind_on_the_pooled_connection(
    opener: Opener,
) -> None:
    async with opener() as keyturn:
        for door in (keyturn.db.begin, keyturn.db.look, keyturn.db.watch_connection):
            async with door() as connection:
                assert await connection.scalar(text("SHOW statement_timeout")) == "4s"
                assert await connection.scalar(text("SHOW lock_timeout")) == "2s"
        rows = await keyturn.db.fetch("SELECT current_setting('statement_timeout') AS limit")
        assert [row["limit"] for row in rows] == ["4s"]
        async with keyturn.db.begin() as tx:
            await tx.execute(text("SELECT set_config('statement_timeout', '0', true)"))
        async with keyturn.db.begin() as tx:
            assert await tx.scalar(text("SHOW statement_timeout")) == "4s"


async def test_a_statement_that_fails_on_a_pooled_connection_leaves_no_transaction_open(opener: Opener) -> None:
    async with opener() as keyturn:
        for _ in range(10):
            with pytest.raises(DBAPIError):
                await keyturn.db.fetch("SELECT 1 / 0")
        rows = await keyturn.db.fetch(
            "SELECT count(*) AS open FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
            " AND datname = current_database()"
        )
        assert rows[0]["open"] == 0


async def test_defaults_of_the_database_change_nothing_behind_pgbouncer_either(
    opener: Opener, pooled_url: str, postgres: Postgres
) -> None:
    name = make_url(pooled_url).database
    for setting in (
        "TimeZone = 'Europe/Berlin'",
        "default_transaction_isolation = serializable",
        "synchronous_commit = off",
        "row_security = on",
    ):
        await postgres._execute(f'ALTER DATABASE "{name}" SET {setting}')
    wanted = {"TimeZone": "UTC", "transaction_isolation": "read committed", "synchronous_commit": "on"}
    async with opener() as keyturn:
        for setting, value in wanted.items():
            rows = await keyturn.db.fetch(f"SELECT current_setting('{setting}') AS value")
            assert [row["value"] for row in rows] == [value]
            for door in (keyturn.db.begin, keyturn.db.look, keyturn.db.watch_connection):
                async with door() as connection:
                    assert await connection.scalar(text(f"SHOW {setting}")) == value


async def test_a_schema_of_ones_own_is_found_behind_pgbouncer_and_left_there(
    pooled_url: str, postgres: Postgres
) -> None:
    where = make_url(pooled_url)
    direct = make_url(postgres.url(str(where.database))).render_as_string(hide_password=False)
    await execute(direct, "CREATE SCHEMA auth")
    url = f"{pooled_url}?options=-csearch_path%3Dauth"
    await asyncio.to_thread(alembic, "upgrade", "head", KEYTURN_DATABASE_URL=url)
    async with opened(settings_of(url, None, pgbouncer="true")) as keyturn, running(keyturn):
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert await execute(direct, "SELECT count(*) FROM auth.sessions") == 1
    assert await execute(direct, "SELECT count(*) FROM public.sessions") == 0


async def test_migrations_through_the_pooler_leave_nothing_behind_on_its_connections(pooled_url: str) -> None:
    for words in (("downgrade", "base"), ("upgrade", "head"), ("upgrade", "head")):
        await asyncio.to_thread(alembic, *words, KEYTURN_DATABASE_URL=pooled_url)
    plain = pooled_url.replace("+asyncpg", "")
    seen: set[int] = set()
    connections = [await asyncpg.connect(plain, statement_cache_size=0) for _ in range(4)]
    try:
        for connection in connections:  # each open transaction occupies one server connection
            await connection.execute("BEGIN")
            seen.add(await connection.fetchval("SELECT pg_backend_pid()"))
            assert await connection.fetchval("SHOW lock_timeout") == "0"
            assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name != ''") == 0
            assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
            # Keyturn leaves no setting behind on a server connection. PgBouncer itself manages the settings in `kept`.
            changed = await connection.fetch("SELECT name, setting FROM pg_settings WHERE source = 'session'")
            kept = {"application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"}
            assert [row["name"] for row in changed if row["name"] not in kept] == []
    finally:
        for connection in connections:
            await connection.close()
    assert len(seen) == 4


async def test_migrations_at_once_through_a_pooler_all_succeed(pooled_url: str) -> None:
    await asyncio.to_thread(alembic, "downgrade", "base", KEYTURN_DATABASE_URL=pooled_url)
    at_once = [asyncio.to_thread(alembic, "upgrade", "head", KEYTURN_DATABASE_URL=pooled_url) for _ in range(3)]
    await asyncio.gather(*at_once)
