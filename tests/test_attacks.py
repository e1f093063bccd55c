"""Attacks and faults that no other file tests, against real processes on a real PostgreSQL and Valkey.

They are: a network that loses packets, a schema that changes under traffic, and clients that only send. Further:
clocks that step, and claims invented by a holder of the shared key.

TCP hides the loss of a packet from programs. A program sees only that data comes later, because TCP sent the packet
again, or that the connection breaks. The proxy in this file makes just these two effects.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import jwt
import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import make_url

from app.actors import SERVICE
from app.errors import InvalidToken, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.revocation.lifetimes import KNOWN_TO_ALL_IN, REMEMBERED_FOR
from tests.conftest import CHEAP, PASSWORD, SECRET, a_user
from tests.instances import KEYS, MARKER, Pair, a_session, cache, keep_complete, logout, pair, read, refused
from tests.servers import Redis
from tests.service import Service
from tests.test_migrations import ROOT, command
from tests.test_races import a_client, all_ready, login, refresh, serve, until, verify

__all__ = ["cache", "pair"]  # fixtures

LOST = 0.1  # share of all packets that are lost
SENT_AGAIN = 0.2  # seconds until TCP sends a packet again (TCP_RTO_MIN of Linux), doubled each time
GIVEN_UP = 4  # how often one packet is lost before the connection breaks
BREAKS = 0.005  # share of all packets at which the connection breaks
LOCK_TIMEOUT = 2.0  # seconds, in migrations and in the service


class Lossy:
    """A TCP proxy over a network that loses packets while `loses` is set."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.loses = False
        self.seen = Counter[str]()
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Lossy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A plain function that makes the task, because asyncio's own task would log its cancellation as an error.
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
                writers.append(server_writer)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, server_writer, writers))
                    both.create_task(self._pump(server_reader, writer, writers))
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, both: list[asyncio.StreamWriter]
    ) -> None:
        with suppress(OSError):
            while packet := await reader.read(1400):
                if not self.loses or await self._arrives():
                    writer.write(packet)
                else:
                    break
        for each in both:
            each.transport.abort()

    async def _arrives(self) -> bool:
        """Returns True once the next packet has arrived, or False if it breaks the connection. Later packets wait."""
        self.seen["packets"] += 1
        wait = SENT_AGAIN
        for _ in range(GIVEN_UP):
            if random.random() >= LOST:
                broken = random.random() < BREAKS
                self.seen["connections broken"] += broken
                return not broken
            self.seen["packets lost"] += 1
            await asyncio.sleep(wait)
            wait *= 2
        self.seen["connections broken"] += 1
        return False


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with Redis.start() as server:
        yield server


@pytest.fixture
def engine() -> str:
    return "postgres"


@dataclass
class Refreshing:
    """A client that refreshes again and again. After a 503 it presents the same token again."""

    token: str
    pause: float = 0.05  # seconds on average, so that the clients leave the service some CPU time
    rotations: int = 0
    said: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    async def refresh(self, client: httpx2.AsyncClient, service: Service) -> bool:
        began = monotonic()
        answer = await refresh(client, service, self.token)
        self.longest = max(self.longest, monotonic() - began)
        self.said[f"refresh: {answer.status_code}"] += 1
        if answer.status_code == 200:
            self.token, self.rotations = answer.json()["refresh_token"], self.rotations + 1
            return True
        # An outage is not a verdict (guarantee 8): a refresh is never refused while a server is away.
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable"), answer.text
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        return False

    async def go_on(self, client: httpx2.AsyncClient, services: list[Service], stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.refresh(client, random.choice(services))
            await asyncio.sleep(random.uniform(0, 2 * self.pause))


async def all_live(client: httpx2.AsyncClient, service: Service, clients: list[Refreshing]) -> None:
    """Asserts that each client can go on with the token that it holds.

    The client holds the newest token of its session, or the one before it if the last answer was lost.
    """
    assert all(await asyncio.gather(*(each.refresh(client, service) for each in clients)))


async def a_registered_user(client: httpx2.AsyncClient, service: Service, email: str) -> None:
    answer = await client.post(f"{service.url}/auth/register", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 201


async def sessions(client: httpx2.AsyncClient, service: Service, count: int) -> list[dict[str, Any]]:
    email = f"{secrets.token_hex(6)}@example.com"
    await a_registered_user(client, service, email)
    answers = []
    for some in range(0, count, 20):  # fewer than the queue for hashes holds
        answers += await asyncio.gather(*(login(client, service, email) for _ in range(min(20, count - some))))
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


def through(url: str, proxy: Lossy) -> str:
    return make_url(url).set(port=proxy.port).render_as_string(hide_password=False)


@pytest.mark.deep
async def test_a_network_that_loses_one_packet_in_ten_ends_no_session_and_revives_none(
    database_url: str, own_redis: Redis, logs: Path
) -> None:
    database = make_url(database_url).port
    assert database is not None
    async with Lossy(database).open() as to_postgres, Lossy(own_redis.port).open() as to_redis, a_client() as client:
        url, redis_url = through(database_url, to_postgres), f"redis://127.0.0.1:{to_redis.port}/0"
        with ExitStack() as stack:
            services = [
                stack.enter_context(service)
                for service in await asyncio.gather(
                    *(asyncio.to_thread(serve, url, logs, redis_url=redis_url, registration="true") for _ in range(2))
                )
            ]
            # SIGKILL, because a service that ends in good order still talks to Postgres and Redis. This event loop runs
            # the proxies to them, and is blocked until the service has ended.
            for service in services:
                stack.callback(service.kill)
            await until(lambda: all_ready(services))
            here, there = services
            live, *ending = await sessions(client, here, 11)
            clients = [Refreshing(tokens["refresh_token"]) for tokens in await sessions(client, there, 8)]
            said = Counter[str]()

            async def ask(stop: asyncio.Event) -> None:
                while not stop.is_set():
                    answer = await verify(client, random.choice(services), live["access_token"])
                    said[f"live session verified: {answer.status_code}"] += 1
                    assert answer.status_code in {200, 503}, answer.text
                    await asyncio.sleep(0.01)

            async def end(tokens: dict[str, Any]) -> None:
                body = {"refresh_token": tokens["refresh_token"]}
                while (answer := await client.post(f"{here.url}/auth/logout", json=body)).status_code != 204:
                    assert answer.status_code == 503, answer.text
                    said["logout: 503"] += 1
                for _ in range(10):
                    answers = await asyncio.gather(*(verify(client, each, tokens["access_token"]) for each in services))
                    said.update(f"ended session verified: {answer.status_code}" for answer in answers)
                    assert not [answer for answer in answers if answer.status_code not in {401, 503}]
                    await asyncio.sleep(KNOWN_TO_ALL_IN.total_seconds() / 10)

            stop = asyncio.Event()
            to_postgres.loses = to_redis.loses = True
            async with asyncio.TaskGroup() as tasks:
                for each in clients:
                    tasks.create_task(each.go_on(client, services, stop))
                tasks.create_task(ask(stop))
                for tokens in ending:
                    tasks.create_task(end(tokens))
                    await asyncio.sleep(0.25)
                stop.set()
            print(to_postgres.seen, to_redis.seen, said, sum((each.said for each in clients), Counter()))
            assert to_postgres.seen["packets lost"] > 10 < to_redis.seen["packets lost"]
            assert said["ended session verified: 401"] > 0 < said["live session verified: 200"]

            # The services recover without a restart.
            to_postgres.loses = to_redis.loses = False
            await until(lambda: all_answer(client, services))
            await all_live(client, there, clients)
            assert min(each.rotations for each in clients) > 1
            for tokens in ending:
                for service in services:
                    answer = await verify(client, service, tokens["access_token"])
                    assert (answer.status_code, answer.json()["reason"]) == (401, "logout")
            assert (await verify(client, there, live["access_token"])).status_code == 200
            rows = await generations(database_url)
    assert sorted(rows)[-len(clients) :] == sorted(each.rotations for each in clients)


async def all_answer(client: httpx2.AsyncClient, services: list[Service]) -> bool:
    """Whether all services are ready.

    Redis may still be incomplete: a rebuild that was cut off leaves it so for up to 15 seconds more.
    """
    return {(await client.get(f"{service.url}/readyz")).status_code for service in services} == {200}


async def generations(database_url: str) -> list[int]:
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    rows = await connection.fetch("SELECT generation FROM sessions")
    await connection.close()
    return [row["generation"] for row in rows]


NEXT = """
revision, down_revision, branch_labels, depends_on = "next", "0001", None, None

import sqlalchemy as sa
from alembic import op

def upgrade() -> None:
    op.add_column("sessions", sa.Column("note", sa.String(64)))
    # Prepared statements return a column of another type from now on.
    op.alter_column("sessions", "client_id", type_=sa.String(128))
"""


@pytest.fixture
def upgrade(tmp_path: Path, database_url: str) -> Callable[[], tuple[int, str]]:
    """Runs `alembic` with the real environment and one additional migration. Returns its exit code and its stderr."""
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "migrations" / "versions" / "next.py").write_text(NEXT)
    ini = tmp_path / "alembic.ini"
    ini.write_text(
        f"[alembic]\nscript_location = {tmp_path / 'migrations'}\nprepend_sys_path = {ROOT}\npath_separator = os\n"
    )

    def run() -> tuple[int, str]:
        with command("-c", str(ini), "upgrade", "head", KEYTURN_DATABASE_URL=database_url) as process:
            _, err = process.communicate(timeout=30)
        return process.returncode, err

    return run


@asynccontextmanager
async def a_hundred(client: httpx2.AsyncClient, service: Service, clients: list[Refreshing]) -> AsyncIterator[None]:
    """All clients refresh while the block runs, and each of them once more afterwards."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for each in clients:
            tasks.create_task(each.go_on(client, [service], stop))
        await asyncio.sleep(0.5)
        yield
        await asyncio.sleep(0.5)
        stop.set()
    await all_live(client, service, clients)


@pytest.mark.deep
async def test_while_a_migration_runs_no_refresh_of_a_hundred_clients_waits_longer_than_the_lock_timeout(
    database_url: str, logs: Path, upgrade: Callable[[], tuple[int, str]]
) -> None:
    async with a_client(15) as client:
        with await asyncio.to_thread(serve, database_url, logs, registration="true") as service:
            clients = [Refreshing(tokens["refresh_token"], 0.25) for tokens in await sessions(client, service, 100)]

            # The migration waits for the lock of a slow reader (a backup), and all refreshes wait for the migration.
            reader = await asyncpg.connect(database_url.replace("+asyncpg", ""))
            async with a_hundred(client, service, clients), reader.transaction():
                await reader.fetch("SELECT count(*) FROM sessions")
                code, said = await asyncio.to_thread(upgrade)
                assert code != 0
                assert "canceling statement due to lock timeout" in said
            await reader.close()
            print(sum((each.said for each in clients), Counter()), max(each.longest for each in clients))
            assert max(each.longest for each in clients) < LOCK_TIMEOUT + 1.5

            async with a_hundred(client, service, clients):
                code, said = await asyncio.to_thread(upgrade)
                assert code == 0, said
            print(sum((each.said for each in clients), Counter()), max(each.longest for each in clients))
            assert max(each.longest for each in clients) < LOCK_TIMEOUT + 1.5
            assert min(each.rotations for each in clients) > 2
            assert sorted(await generations(database_url)) == sorted(each.rotations for each in clients)


def test_a_client_that_sends_without_reading_costs_little(tmp_path: Path, logs: Path) -> None:
    values = {"data_dir": tmp_path / "data", "secret": SECRET} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    with Service.start(environment, logs=logs) as service, ExitStack() as open_clients:

        def resident() -> int:  # MiB
            pages = int(Path(f"/proc/{service.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

        def worked() -> float:  # seconds of a core
            user, system = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

        before, began = resident(), worked()
        for _ in range(10):
            client = open_clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", service.port))
            client.settimeout(0.3)
            with suppress(OSError):
                while True:
                    client.send(requests)
        grown = resident() - before
        assert grown < 50, f"{grown} MiB for 10 connections"
        # Seconds of work, and not of the clock: a busy machine changes little. Reading on would take 20 a connection.
        assert worked() - began < 20, f"{worked() - began:.1f} s of a core for 10 connections"
        print(f"{grown} MiB and {worked() - began:.1f} s of a core for 10 connections")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost:", 200),
        (b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 503),
    ],
    ids=["that never ask", "that asked once", "in the middle of a head", "in the middle of a body"],
)
def test_beside_more_connections_than_files_may_be_open_a_newcomer_is_answered_and_the_log_says_why(
    tmp_path: Path, logs: Path, sent: bytes, status: int
) -> None:
    values = {"data_dir": tmp_path / "data", "secret": SECRET} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    limited = ("sh", "-c", 'ulimit -n 512 && exec "$@"', "sh", sys.executable, "-m", "app", "serve")
    with Service.start(environment, logs=logs, command=limited) as service, ExitStack() as open_clients:

        def connect() -> socket.socket:
            client = open_clients.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            with suppress(OSError):
                client.sendall(sent)
            return client

        clients = [connect() for _ in range(600 if status == 200 else 260)]
        answer = httpx2.get(f"{service.url}/healthz")
        assert answer.status_code == status
        if status == 503:
            assert (answer.json()["error"], answer.headers["retry-after"]) == ("temporarily_unavailable", "1")
            assert answer.headers["connection"] == "close"
            for client in clients[:8]:  # these clients leave
                client.close()
            sleep(0.2)
            assert httpx2.get(f"{service.url}/healthz").status_code == 200
        lines = [
            json.loads(line)
            for line in service.text_with("connections_full").splitlines()
            if "connections_full" in line
        ]
        (line,) = [line for line in lines if line["event"] == "connections_full"]
        assert (line["level"], line["limit"]) == ("warning", 256)
        assert "ulimit -n" in line["advice"]
        assert '"level": "error"' not in service.text()


def test_a_start_raises_the_limit_of_open_files_as_far_as_it_may(tmp_path: Path, logs: Path) -> None:
    if not Path("/proc/self/limits").exists():
        pytest.skip("no /proc to read a process's limits from")
    values = {"data_dir": tmp_path / "data", "secret": SECRET} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    limited = (
        "sh",
        "-c",
        'ulimit -S -n 100 && ulimit -H -n 400 && exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "app",
        "serve",
    )
    with Service.start(environment, logs=logs, command=limited) as service:
        limits = Path(f"/proc/{service.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3:5] == ["400", "400"]


async def test_a_redis_whose_clock_steps_ahead_is_not_believed(pair: Pair, cache: redis_asyncio.Redis) -> None:
    tokens = await a_session(pair.here)
    await logout(pair.here, tokens)
    # A step of Redis's clock by 4000 s shortens the life of each key by as much. Keys with less life left are gone.
    for name in await cache.keys("*"):
        if (left := await cache.pttl(name)) >= 0:
            await cache.pexpire(name, left - 4_000_000)
    await read(pair.here, pair.there)
    await refused(pair.there, tokens)


async def test_no_step_of_redis_clock_takes_a_key_that_is_needed_and_leaves_the_marker(
    pair: Pair, cache: redis_asyncio.Redis
) -> None:
    tokens = await a_session(pair.here)
    await logout(pair.here, tokens)
    await keep_complete(pair.here)
    margin = await cache.pttl(f"{KEYS}{tokens.session_id}") - await cache.pttl(MARKER)
    assert margin >= REMEMBERED_FOR.total_seconds() * 1000 - 10_000


async def test_a_rebuild_that_was_cut_off_keeps_no_other_waiting(
    pair: Pair, cache: redis_asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.delete(MARKER)

    async def lost(_: object) -> Any:
        raise TemporarilyUnavailable("the network")

    with monkeypatch.context() as broken:
        broken.setattr(pair.here.revocations.rebuild, "_ended_lately", lost)
        await keep_complete(pair.here)
    await keep_complete(pair.there)
    await read(pair.there)
    assert await pair.there.revocations.ping() == "complete"


async def test_a_minted_token_of_another_subject_ends_no_other_session(keyturn: Keyturn) -> None:
    victim = await a_user(keyturn, "victim@example.com")
    other = await keyturn.starting.start(victim, by=SERVICE)
    tokens = await keyturn.starting.start(victim, by=SERVICE)
    key = keyturn.keys.signing_access
    claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
    headers = {"typ": "at+jwt", "kid": key.kid}
    minted = jwt.encode(claims | {"sub": str(UUID(int=1))}, key.signing, "HS256", headers=headers)
    with pytest.raises(InvalidToken):
        await keyturn.ending.logout([minted], (), "all", by=SERVICE)
    await keyturn.reading.verify(other.access_token)


async def test_a_marker_that_is_rubbish_is_replaced_by_a_rebuild(pair: Pair, cache: redis_asyncio.Redis) -> None:
    await cache.set(MARKER, b"\xff\xfe")
    tokens = await a_session(pair.here)
    await pair.there.reading.verify(tokens.access_token)  # without a marker that is right, the database answers
    await keep_complete(pair.here)
    await read(pair.there)
    assert await pair.there.revocations.ping() == "complete"
