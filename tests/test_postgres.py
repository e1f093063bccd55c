"""Connections to Postgres: hosts, roles of servers, silent failures, defaults, rights and schemas."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from sqlalchemy import make_url, text

from app.actors import SERVICE
from app.command_name import called
from app.commands import doctor
from app.commands.command import main
from app.errors import ConfigurationError, InvalidToken, TemporarilyUnavailable
from app.keyturn import Keyturn, opened, running
from app.sessions import marking, rotation
from app.storage.copies import READ_BY_ALL
from app.storage.migrating import migrate
from app.storage.rights import grants
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, a_user, settings_of, sync
from tests.servers import Postgres, free_port
from tests.service import Service
from tests.test_migrations import alembic

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


async def execute(url: str, *statements: str) -> Any:
    """Runs statements without Keyturn's code, and returns the value of the last."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in statements:
            value = await connection.fetchval(statement)
    finally:
        await connection.close()
    return value


def named(url: str) -> str:
    return url.rpartition("/")[2]


def as_user(url: str, user: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}@{rest.rpartition('@')[2]}"


# -- hosts


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    if "TEST_DATABASE_URL" in os.environ:
        pytest.skip("TEST_DATABASE_URL names a server, of which there is no standby to promote")
    with Postgres.start() as primary:
        sync(primary.create_database("keyturn"))
        migrate(settings_of(primary.url("keyturn"), None))
        with Postgres.standby_of(primary) as standby:
            yield primary, standby


def environment(url: str) -> dict[str, str]:
    values = {"DATABASE_URL": url, "REDIS_URL": "none", "SECRET": SECRET, "ISSUER": "https://a.example", **CHEAP}
    return {f"KEYTURN_{name.upper()}": value for name, value in values.items()}


async def sign_in(client: httpx2.AsyncClient, service: Service) -> int:
    body = {"email": "ada@example.com", "password": PASSWORD}
    return (await client.post(f"{service.url}/auth/login", json=body)).status_code


async def ready(client: httpx2.AsyncClient, service: Service, status: int) -> None:
    for _ in range(100):
        if (await client.get(f"{service.url}/readyz")).status_code == status:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"/readyz was never {status}")


async def test_a_switch_over_with_both_servers_alive_is_followed_and_told_once_each_way(
    pair: tuple[Postgres, Postgres], logs: Path
) -> None:
    first, second = pair
    url = f"postgresql://postgres@/keyturn?host=127.0.0.1:{second.port}&host=127.0.0.1:{first.port}"
    async with opened(settings_of(url, None)) as keyturn, running(keyturn):
        await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)
        with await asyncio.to_thread(Service.start, environment(url), logs=logs) as service:
            async with httpx2.AsyncClient(timeout=10) as client:
                assert await sign_in(client, service) == 200
                await asyncio.to_thread(first.stop)
                await ready(client, service, 503)
                await execute(second.url(), "SELECT pg_promote()")
                first.follow(second)
                await asyncio.to_thread(first.restart)
                await ready(client, service, 200)
                assert [await sign_in(client, service) for _ in range(8)] == [200] * 8
                # If the first host does not answer at all, the process still has time to try the second.
                first.pause()
                try:
                    url = f"postgresql://postgres@127.0.0.1:{first.port},127.0.0.1:{second.port}/keyturn"
                    async with opened(settings_of(url, None)) as other, running(other):
                        assert await other.sign_in.authenticate("ada@example.com", PASSWORD)
                finally:
                    first.resume()
            said = [json.loads(line).get("event") for line in service.text().splitlines() if line.startswith("{")]
            assert said.count("database_away") == said.count("database_back") == 1


async def test_a_list_as_libpq_writes_it_leads_to_the_primary_and_a_standby_alone_is_named(
    pair: tuple[Postgres, Postgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [server.port for server in pair]
    for url in (
        f"postgresql://postgres@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/keyturn",
        f"postgresql://postgres@127.0.0.1:{ports[1]},127.0.0.1:{ports[0]}/keyturn?target_session_attrs=read-write",
        f"postgresql://postgres@/keyturn?host=127.0.0.1,127.0.0.1&port={ports[0]},{ports[1]}",
        f"postgresql://postgres@127.0.0.1:{free_port()},127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/keyturn",
    ):
        async with opened(settings_of(url, None)) as keyturn, running(keyturn):
            rows = await keyturn.db.fetch("SELECT pg_is_in_recovery() AS standby")
            assert [row["standby"] for row in rows] == [False]
    standby = [p for p, s in zip(ports, pair, strict=True) if await execute(s.url(), "SELECT pg_is_in_recovery()")]
    for name, value in environment(f"postgresql://postgres@127.0.0.1:{standby[0]}/keyturn").items():
        monkeypatch.setenv(name, value)
    found = (await doctor.examine())[-1]
    assert found.away
    assert "no server that can be reached is a primary" in found.advice


async def test_of_two_primaries_the_one_that_takes_writes_is_used(
    pair: tuple[Postgres, Postgres], postgres: Postgres
) -> None:
    """Two primaries exist after a manual switch-over in which the former one was only made read-only."""
    await postgres.create_database("keyturn")
    try:
        await postgres._execute("ALTER DATABASE keyturn SET default_transaction_read_only = on")
        ports = (make_url(postgres.url()).port, *(server.port for server in pair))
        url = f"postgresql://postgres@{','.join(f'127.0.0.1:{port}' for port in ports)}/keyturn"
        async with opened(settings_of(url, None)) as keyturn, running(keyturn):
            await keyturn.users.create("grace@example.com", PASSWORD, by=SERVICE)
    finally:
        await postgres.drop_database("keyturn")


# -- silent failures


class Forgetful:
    """A load balancer that, on demand, drops its state of each connection and informs neither end."""

    def __init__(self) -> None:
        self.made = 0
        self.open = 0
        self._all: list[list[bool]] = []

    @asynccontextmanager
    async def before(self, url: str) -> AsyncIterator[str]:
        where, _, port = url.partition("@")[2].partition("/")[0].rpartition(":")

        async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forgotten: list[bool]) -> None:
            while data := await reader.read(65536):
                if not forgotten:
                    writer.write(data)
            writer.close()

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.made += 1
            forgotten: list[bool] = []
            self._all.append(forgotten)
            behind, to_it = await asyncio.open_connection(where, int(port))
            self.open += 1
            await asyncio.gather(
                pipe(reader, to_it, forgotten), pipe(behind, writer, forgotten), return_exceptions=True
            )
            self.open -= 1

        server = await asyncio.start_server(served, "127.0.0.1", 0)
        mine = server.sockets[0].getsockname()[1]
        yield url.replace(f"@{where}:{port}/", f"@127.0.0.1:{mine}/")
        server.close()
        while self.open:
            await asyncio.sleep(0.01)

    def forget(self) -> None:
        for each in self._all:
            each.append(True)


@on_postgres
async def test_connections_that_were_forgotten_on_the_way_cost_no_request(database_url: str) -> None:
    balancer = Forgetful()
    async with balancer.before(database_url) as url, opened(settings_of(url, None)) as keyturn:
        await keyturn.keys.make_first(by=SERVICE)
        await keyturn.keys.load()
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await keyturn.reading.verify(tokens.access_token)
        await asyncio.sleep(2.2)
        balancer.forget()
        began = asyncio.get_running_loop().time()
        renewed, proof, _ = await asyncio.gather(
            keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE),
            keyturn.sign_in.authenticate("ada@example.com", PASSWORD),
            keyturn.reading.verify(tokens.access_token),
        )
        await keyturn.starting.start(proof, by=SERVICE)
        assert asyncio.get_running_loop().time() - began < 4
        # The process does not check the warm connections again, so it opens no new one.
        made = balancer.made
        for _ in range(5):
            renewed = await keyturn.rotation.refresh(renewed.refresh_token, by=SERVICE)
        assert balancer.made == made


@on_postgres
async def test_connections_that_postgres_closed_cost_no_request(keyturn: Keyturn, database_url: str) -> None:
    proof = await a_user(keyturn)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    for _ in range(3):
        await execute(
            database_url,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'keyturn' AND datname = current_database()",
        )
        await asyncio.sleep(0.1)
        tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await keyturn.reading.verify(tokens.access_token)
        await keyturn.starting.start(await keyturn.sign_in.authenticate("ada@example.com", PASSWORD), by=SERVICE)


@on_postgres
async def test_idle_connections_are_kept_alive_below_the_patience_of_a_nat(keyturn: Keyturn) -> None:
    async with keyturn.db.look() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        found = driver._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert found.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0) or socket.TCP_KEEPALIVE) <= 200  # type: ignore[attr-defined]  # macOS has it


# -- defaults of roles and databases

DEFAULTS = {
    "TimeZone": "Europe/Berlin",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "statement_timeout": "10ms",
    "lock_timeout": "10ms",
    "idle_session_timeout": "100ms",
    "idle_in_transaction_session_timeout": "10ms",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "client_encoding": "LATIN1",
    "plan_cache_mode": "force_generic_plan",
}


@on_postgres
async def test_defaults_that_a_database_brings_change_no_answer_and_no_deadline(
    database_url: str, open_keyturn: Opener
) -> None:
    name = named(database_url)
    newer = (
        {"transaction_timeout": "100ms"} if await execute(database_url, "SHOW server_version_num") >= "170000" else {}
    )
    # Use one connection: the defaults hold for later connections, and 10 ms are too short on a busy machine.
    changes = (f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'" for setting, value in (DEFAULTS | newer).items())
    await execute(database_url, *changes)
    async with open_keyturn() as keyturn:
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await asyncio.sleep(0.3)
        tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await keyturn.reading.verify(tokens.access_token)
        # In Berlin, summer time begins on 29 March 2026.
        rows = await keyturn.db.fetch(
            "SELECT extract(epoch FROM timestamptz '2026-03-25 12:00Z' + $1::interval - timestamptz '2026-03-25 12:00Z')"
            "::int AS seconds",
            timedelta(days=7),
        )
        assert rows[0]["seconds"] == 7 * 86400
        for door in (keyturn.db.begin, keyturn.db.look, keyturn.db.watch_connection):
            async with door() as connection:
                for setting, value in {
                    "TimeZone": "UTC",
                    "statement_timeout": "4s",
                    "lock_timeout": "2s",
                    "idle_session_timeout": "0",
                    "default_transaction_isolation": "read committed",
                    "synchronous_commit": "on",
                    "row_security": "off",
                    **dict.fromkeys(newer, "0"),
                }.items():
                    assert await connection.scalar(text(f"SHOW {setting}")) == value, setting


@on_postgres
async def test_a_stronger_promise_than_ours_stays_as_the_operator_has_it(
    database_url: str, open_keyturn: Opener
) -> None:
    await execute(database_url, f'ALTER DATABASE "{named(database_url)}" SET synchronous_commit = remote_apply')
    async with open_keyturn() as keyturn, keyturn.db.begin() as tx:
        assert await tx.scalar(text("SHOW synchronous_commit")) == "remote_apply"


# -- rights


@pytest.fixture
def user(database_url: str) -> Iterator[str]:
    """A role that may connect and owns nothing."""
    name = f"service_{secrets.token_hex(4)}"
    sync(execute(database_url, f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'"))
    yield name
    sync(execute(database_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


def of(url: str, user: str) -> str:
    return as_user(url, f"{user}:hunter2")


@on_postgres
async def test_the_documented_rights_suffice_for_all_that_a_service_does(database_url: str, user: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "postgres.md").read_text()
    assert "\n".join(grants("keyturn")) in page
    await execute(database_url, *grants(user))
    async with opened(settings_of(of(database_url, user), None)) as keyturn, running(keyturn):
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await keyturn.keys.generate("access", by=SERVICE)
        await keyturn.users.disable((await keyturn.users.find("ada@example.com")).id, by=SERVICE)
        await keyturn.upkeep.gc(by=SERVICE)


@on_postgres
async def test_a_process_that_may_not_read_the_keys_any_more_goes_by_no_retired_key(
    database_url: str, user: str, open_keyturn: Opener
) -> None:
    await execute(database_url, *grants(user))
    async with opened(settings_of(of(database_url, user), None)) as keyturn, running(keyturn), open_keyturn() as owner:
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await owner.keys.load()
        (kid,) = owner.keys._set.access
        await execute(
            database_url,
            f"REVOKE SELECT ON keys FROM {user}",
            "UPDATE keys SET signs_from = signs_from - interval '1 hour'",
        )
        await owner.keys.generate("access", by=SERVICE)
        await execute(database_url, "UPDATE keys SET signs_from = signs_from - interval '1 hour'")
        await owner.keys.retire(kid, by=SERVICE)
        await asyncio.sleep((READ_BY_ALL + timedelta(seconds=1)).total_seconds())
        with pytest.raises(TemporarilyUnavailable):
            await keyturn.reading.verify(tokens.access_token)
        await execute(database_url, f"GRANT SELECT ON keys TO {user}")
        async with asyncio.timeout(5):
            while keyturn.keys._signing is None:
                await asyncio.sleep(0.05)
        with pytest.raises(InvalidToken):
            await keyturn.reading.verify(tokens.access_token)


@on_postgres
@pytest.mark.parametrize(
    ("taken", "missing"),
    [
        ("REVOKE UPDATE ON sessions FROM {user}", "UPDATE on sessions"),
        ("REVOKE DELETE, INSERT ON sessions FROM {user}", "INSERT on sessions, DELETE on sessions"),
        ("REVOKE ALL ON keys FROM {user}", "SELECT on keys, INSERT on keys, UPDATE on keys"),
        ("REVOKE ALL ON alembic_version FROM {user}", "SELECT on alembic_version"),
        ("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY", "row-level security"),
        ("DROP TABLE cache_fence", "the table cache_fence"),
    ],
)
async def test_each_right_that_is_missing_stops_the_start_in_one_line_and_is_503_where_it_goes_later(
    database_url: str, user: str, taken: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await execute(database_url, *grants(user))
    url = of(database_url, user)
    async with opened(settings_of(url, None)) as keyturn, running(keyturn):
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await execute(database_url, taken.format(user=user))
        if "on sessions" in missing or "security" in missing:
            proof = await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
            act = (
                keyturn.starting.start(proof, by=SERVICE)
                if "INSERT" in missing
                else keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
            )
            with pytest.raises(TemporarilyUnavailable, match=r"database: 42501 .*sessions"):
                await act
    with pytest.raises(ConfigurationError, match=missing) as caught:
        async with opened(settings_of(url, None)) as keyturn, running(keyturn):
            pytest.fail("it started")
    assert "\n" not in str(caught.value)
    assert f"{called()} db rights {user} prints" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    assert missing in (await doctor.examine())[-1].advice


@on_postgres
def test_a_terminal_obeys_no_words_of_a_server(
    database_url: str, user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;" + "x" * 40 + "\n"  # a server may call the user of a connection as it likes
    named = f'"{evil}{user}"'
    sync(
        execute(database_url, f"CREATE ROLE {named}", f"GRANT {named} TO {user}", f"ALTER ROLE {user} SET ROLE {named}")
    )
    for name, value in environment(of(database_url, user)).items():
        monkeypatch.setenv(name, value)
    try:
        for words in (["doctor"], ["sessions", "list"]):
            assert main(words) == 1
            said = "".join(capsys.readouterr())
            assert r"\x1b]0;xxx" in said
            assert all(line.isprintable() for line in said.splitlines())
    finally:
        sync(execute(database_url, f"DROP OWNED BY {named}", f"DROP ROLE {named}"))


@on_postgres
async def test_a_schema_that_the_user_may_not_use_and_an_encoding_that_is_not_utf8_stop_the_start(
    database_url: str, user: str, postgres: Postgres
) -> None:
    await execute(database_url, "REVOKE ALL ON SCHEMA public FROM public", *list(grants(user))[1:])
    with pytest.raises(ConfigurationError, match=r"may not use the schema public, .*: grant USAGE on that schema"):
        async with opened(settings_of(of(database_url, user), None)) as keyturn, running(keyturn):
            pytest.fail("it started")
    await execute(database_url, next(grants(user)), f"ALTER ROLE {user} SET search_path = pg_catalog")
    advice = r"schema public has: add \?options=-csearch_path=public to KEYTURN_DATABASE_URL"
    with pytest.raises(ConfigurationError, match=advice):
        async with opened(settings_of(of(database_url, user), None)) as keyturn, running(keyturn):
            pytest.fail("it started")
    await execute(postgres.url(), f"CREATE DATABASE {user} TEMPLATE template0 ENCODING 'SQL_ASCII'")
    try:
        with pytest.raises(ConfigurationError, match="encoding is SQL_ASCII"):
            async with opened(settings_of(postgres.url(user), None)) as keyturn, running(keyturn):
                pytest.fail("it started")
    finally:
        await postgres.drop_database(user)


@on_postgres
async def test_a_database_that_is_locked_against_writes_is_named(database_url: str) -> None:
    await execute(database_url, f'ALTER DATABASE "{named(database_url)}" SET default_transaction_read_only = on')
    with pytest.raises(TemporarilyUnavailable, match="the database is read-only"):
        async with opened(settings_of(database_url, None)) as keyturn, running(keyturn):
            pytest.fail("it started")


# -- a schema of its own


@pytest.mark.parametrize("by", ["url", "PGOPTIONS", "role"])
async def test_a_schema_of_ones_own_holds_all_tables_for_migrations_and_service(
    postgres: Postgres, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test_{secrets.token_hex(6)}"
    await postgres.create_database(name)
    url, more = postgres.url(name), {}
    try:
        await execute(url, 'CREATE SCHEMA "our auth"')
        if by == "role":
            await execute(url, f"ALTER DATABASE {name} SET search_path = 'our auth'")
        elif by == "url":
            url += '?options=-c%20search_path%3D"our\\%20auth"'
        else:
            more = {"PGOPTIONS": '-c search_path="our\\ auth"'}
            monkeypatch.setenv("PGOPTIONS", more["PGOPTIONS"])
        script = await asyncio.to_thread(alembic, "upgrade", "head", "--sql", KEYTURN_DATABASE_URL=url, **more)
        assert ("set_config('search_path', '\"our auth\"', true)" in script) is (by != "role")
        await asyncio.to_thread(alembic, "upgrade", "head", KEYTURN_DATABASE_URL=url, **more)
        async with opened(settings_of(url, None)) as keyturn, running(keyturn):
            tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
            await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        monkeypatch.delenv("PGOPTIONS", raising=False)
        places = "SELECT string_agg(DISTINCT schemaname, ',') FROM pg_tables WHERE tablename IN ('users', 'sessions')"
        assert await execute(postgres.url(name), places) == "our auth"
    finally:
        await postgres.drop_database(name)


@on_postgres
async def test_refresh_and_logout_look_up_each_session_by_its_primary_key_also_without_statistics(
    keyturn: Keyturn,
) -> None:
    async with keyturn.db.begin() as tx:
        # Plans that were made while the table was empty, as a process makes them that has just been set up.
        await tx.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        for statement, types, values in (
            (rotation._POSTGRES, _ROTATION_TYPES, "'{}', '{}', '{}', 1, 9, '7 d', '30 d', '900 s', '{}'"),
            (marking._LOG_OUT, _LOGOUT_TYPES, "'{}', '{}', '{}', '{}', '{}', '{}', NULL, '{}', 'x', '7 d', '30 d'"),
        ):
            await tx.exec_driver_sql(f"PREPARE statement ({types}) AS {statement}")
            plan = "\n".join((await tx.exec_driver_sql(f"EXPLAIN EXECUTE statement ({values})")).scalars())
            await tx.exec_driver_sql("DEALLOCATE statement")
            assert plan.count("using pk_sessions") == 2, plan
            assert "Seq Scan on sessions" not in plan


_ROTATION_TYPES = "uuid[], bytea[], bytea[], smallint, int, interval, interval, interval, bytea[]"
_LOGOUT_TYPES = "uuid[], uuid[], text[], text[], text[], text[], text, text[], text, interval, interval"
