"""The promise of a logout, kept by real processes while Redis, PostgreSQL or one of them fails.

Two processes of the service, `here` and `there`, share one PostgreSQL and one Redis. Each reaches Redis through a link
of its own. A test can cut a link or lead it to another server. While something goes wrong, sessions end at `here`
without pause, and `there` is asked about them without pause. No verification that began after the logout had returned
may accept an access token of that session.

A process remembers each session that it has once refused. Therefore `there` is first asked about each session at
another moment: before its logout, at its return, or up to some seconds later. `pytest -rP` prints the numbers of
logouts and verifications.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import asyncio as redis_asyncio

from app.actors import SERVICE
from app.keyturn import opened
from app.revocation.lifetimes import VOUCHES_FOR
from app.storage.migrating import migrate
from tests.conftest import CHEAP, PASSWORD, SECRET, settings_of
from tests.servers import Postgres, Redis
from tests.service import Service

EMAIL = "ada@example.com"
MARKER = "{keyturn}:complete"
NONCE = "{keyturn}:rebuild"
PATIENCE = 60.0  # seconds within which a condition must come true
WITHOUT_DATABASE = 3.0  # seconds; KEYTURN_VERIFY_WITHOUT_DATABASE of the third process, `brief`


class Link:
    """A TCP proxy between a process and Redis."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._state = "open"
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)

    def cut(self) -> None:
        """Breaks the open connections, and closes each new one at once."""
        self._to("closed")

    def swallow(self) -> None:
        """Loses all bytes that either side sends from now on. The connections stay open, so neither side notices."""
        self._state = "silent"

    def mend(self, target: int | None = None) -> None:
        """Leads new connections to the target again, or to another one, and breaks the old ones."""
        self._target = target or self._target
        self._to("open")

    def _to(self, state: str) -> None:
        self._state = state
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._state == "closed":
                return
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(server_writer)
                try:
                    if self._state == "closed":
                        return
                    back = asyncio.create_task(self._pump(server_reader, writer))
                    await self._pump(reader, server_writer)
                    await back
                finally:
                    server_writer.transport.abort()
                    self._writers.discard(server_writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self._state != "silent":
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()


@dataclass
class World:
    """The servers, processes and links that the tests of this module share."""

    postgres: Postgres
    redis: Redis
    environment: dict[str, str]
    logs: Path
    here_link: Link
    there_link: Link
    client: httpx2.AsyncClient
    stack: AsyncExitStack
    here: Service = field(init=False)
    there: Service = field(init=False)
    brief: Service = field(init=False)

    async def serve(self, link: Link, port: int | None = None, **more: str) -> Service:
        environment = self.environment | {"KEYTURN_REDIS_URL": f"redis://127.0.0.1:{link.port}/0"} | more
        return await asyncio.to_thread(Service.start, environment, logs=self.logs, port=port)

    async def sessions(self, count: int) -> list[dict[str, Any]]:
        """Logs in that many times through an instance that is closed afterwards, and returns the answers."""
        url = self.environment["KEYTURN_DATABASE_URL"]
        async with opened(settings_of(url, None)) as keyturn:
            await keyturn.keys.make_first(by=SERVICE)
            await keyturn.keys.load()
            with suppress(Exception):  # from the second call on, the user exists
                await keyturn.users.create(EMAIL, PASSWORD, "user", by=SERVICE)
            proof = await keyturn.sign_in.authenticate(EMAIL, PASSWORD)
            return [dict((await keyturn.starting.start(proof, by=SERVICE)).body()) for _ in range(count)]

    async def verify(self, service: Service, access_token: str) -> httpx2.Response:
        return await self.client.get(f"{service.url}/auth/verify", headers={"Authorization": f"Bearer {access_token}"})

    async def post(self, service: Service, path: str, **body: str) -> httpx2.Response:
        return await self.client.post(f"{service.url}/auth/{path}", json=body)

    async def logout(self, service: Service, tokens: dict[str, Any]) -> httpx2.Response:
        return await self.post(service, "logout", refresh_token=tokens["refresh_token"])

    async def complete(self) -> None:
        """Waits until all three processes believe the one Redis."""
        # Normally a process waits ten seconds before it claims a server that the fence does not name. A logout at such
        # a server fences, and a fence without a server can be claimed at once.
        for tokens in await self.sessions(1):
            assert (await self.logout(self.here, tokens)).status_code == 204
        for service in (self.here, self.there, self.brief):
            await eventually(partial(self._is_complete, service))

    async def _is_complete(self, service: Service) -> bool:
        return (await self.client.get(f"{service.url}/readyz")).json()["cache"] == "complete"

    async def new_redis(self, *settings: str) -> Redis:
        """Starts one more server, which is stopped at the end of the module."""
        return self.stack.enter_context(await asyncio.to_thread(Redis.start, settings=list(settings)))

    def command(self, server: Redis) -> redis_asyncio.Redis:
        return redis_asyncio.Redis.from_url(server.url())


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    until = time.monotonic() + PATIENCE  # a clock of its own: see `flushed_during_rebuilds`
    while not await condition():
        assert time.monotonic() < until, f"not within {PATIENCE} s"
        await asyncio.sleep(0.03)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Postgres, Redis]]:
    with Postgres.start() as postgres, Redis.start() as redis:
        if not (postgres.ours and redis.ours):
            pytest.skip("TEST_DATABASE_URL or TEST_REDIS_URL names the server: these tests pause and kill their own")
        yield postgres, redis


@pytest.fixture(scope="module")
async def world(servers: tuple[Postgres, Redis], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    postgres, redis = servers
    await postgres.create_database("keyturn")
    url = postgres.url("keyturn")
    await asyncio.to_thread(migrate, settings_of(url, None))
    environment = {
        "KEYTURN_DATABASE_URL": url,
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_ISSUER": "https://auth.example.com",
        **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()},
    }
    async with AsyncExitStack() as stack:
        links = [Link(redis.port), Link(redis.port)]
        for link in links:
            await link.start()
            stack.push_async_callback(link.close)
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=20, limits=limits, trust_env=False))
        world = World(postgres, redis, environment, tmp_path_factory.mktemp("logs"), links[0], links[1], client, stack)
        world.here, world.there, world.brief = await asyncio.gather(
            world.serve(links[0]),
            world.serve(links[1]),
            world.serve(links[1], KEYTURN_VERIFY_WITHOUT_DATABASE=str(int(WITHOUT_DATABASE))),
        )
        for service in (world.here, world.there, world.brief):
            stack.callback(service.close)
        yield world


class Traffic:
    """Logouts at `here`, and the verdicts of `there` on them; beside them logins, refreshes and live sessions."""

    def __init__(self, world: World, tokens: list[dict[str, Any]]) -> None:
        self.world = world
        *self._fresh, self._refreshed = tokens[4:]
        self._live = tokens[:4]
        self._first_asked: dict[int, float] = {}
        self._returned: dict[int, float] = {}
        self._tokens: list[dict[str, Any]] = []
        self._open: set[int] = set()
        self._logouts: list[asyncio.Task[None]] = []
        self._over = False
        self.unanswered: list[int] = []
        self.counts = Counter[str]()
        self.accepted: list[str] = []

    # Each task below counts its answers in `counts`.

    async def ask(self, n: int) -> None:
        """Asks `there` about a session that is ending or has ended."""
        began = time.monotonic()
        status = (await self.world.verify(self.world.there, self._tokens[n]["access_token"])).status_code
        after = self._returned.get(n, float("inf")) <= began
        self.counts[f"verified {'after' if after else 'before'} the return: {status}"] += 1
        if status == 401:
            self._open.discard(n)
        elif after and status == 200:
            self.accepted.append(f"{time.monotonic() - self._returned[n]:.3f} s after its return")
            self._open.discard(n)

    async def ask_without_pause(self) -> None:
        while not self._over:
            now = time.monotonic()
            due = [n for n in self._open if self._first_asked[n] <= now]
            if due:
                await self.ask(random.choice(due))
            if not due or random.random() < 0.2:
                live = random.choice(self._live)["access_token"]
                status = (await self.world.verify(self.world.there, live)).status_code
                self.counts[f"live session verified: {status}"] += 1

    async def refresh_and_login(self) -> None:
        while not self._over:
            service = random.choice([self.world.here, self.world.there])
            try:
                token = self._refreshed["refresh_token"]
                answer = await self.world.post(service, "refresh", refresh_token=token)
                self.counts[f"refresh: {answer.status_code}"] += 1
                if answer.status_code == 200:
                    self._refreshed = answer.json()
                answer = await self.world.post(service, "login", email=EMAIL, password=PASSWORD)
                self.counts[f"login: {answer.status_code}"] += 1
            except httpx2.TransportError:
                assert service is not self.world.there
                self.counts["here did not answer"] += 1
            await asyncio.sleep(0.05)

    async def logouts(self, count: int, seconds: float) -> None:
        """Starts that many logouts within that time, and does not wait for their answers."""
        for _ in range(count):
            self._logouts.append(asyncio.create_task(self._logout()))
            await asyncio.sleep(seconds / count)

    async def _logout(self) -> None:
        n = len(self._tokens)
        self._tokens.append(self._fresh.pop())
        # `there` is asked about half of the sessions before the logout returns. About the others, it is first asked at
        # the return or up to three seconds later.
        self._first_asked[n] = 0 if random.random() < 0.5 else float("inf")
        self._open.add(n)
        try:
            answer = await self.world.logout(self.world.here, self._tokens[n])
        except httpx2.TransportError:
            self.counts["logout: no answer"] += 1
            self.unanswered.append(n)
            return
        self.counts[f"logout: {answer.status_code}"] += 1
        if answer.status_code == 204:
            now = self._returned[n] = time.monotonic()
            self._first_asked[n] = min(self._first_asked[n], now + random.choice([0, random.uniform(0, 3)]))
            if self._first_asked[n] <= now:
                await self.ask(n)
        else:
            self.unanswered.append(n)

    async def again(self) -> None:
        """Repeats each logout that got no answer."""
        while self.unanswered:
            n = self.unanswered.pop()
            assert (await self.world.logout(self.world.here, self._tokens[n])).status_code == 204
            self._returned[n] = time.monotonic()
            self._first_asked[n] = 0
            await self.ask(n)

    async def returned(self) -> None:
        await asyncio.gather(*self._logouts)

    async def end(self) -> None:
        """Checks that each session that was logged out is refused."""
        await self.returned()
        self._over = True
        for n in sorted(self._open & self._returned.keys()):
            await self.ask(n)
        assert not self._open & self._returned.keys()


@asynccontextmanager
async def traffic(world: World, sessions: int) -> AsyncIterator[Traffic]:
    """Runs traffic while the block runs, beginning with a complete Redis. Then checks the promise."""
    await world.complete()
    flow = Traffic(world, await world.sessions(sessions + 5))
    tasks = [asyncio.create_task(flow.ask_without_pause()) for _ in range(2)]
    tasks.append(asyncio.create_task(flow.refresh_and_login()))
    try:
        yield flow
        await flow.end()
    finally:
        flow._over = True
        await asyncio.gather(*tasks)
    print(*(f"{count:6} {what}" for what, count in sorted(flow.counts.items())), sep="\n")
    print(f"{len(flow.accepted):6} accepted after the return", *flow.accepted)
    assert flow.accepted == []
    assert {what for what in flow.counts if what.startswith("live")} == {"live session verified: 200"}
    assert flow.counts["live session verified: 200"] > 20
    for what in ("refresh", "login"):
        assert {answer for answer in flow.counts if answer.startswith(what)} == {f"{what}: 200"}


async def flushed(world: World, flow: Traffic) -> None:
    async with world.command(world.redis) as redis:
        for _ in range(2):
            await flow.logouts(6, 0.3)
            await redis.flushall()
            await flow.logouts(6, 0.3)


async def flushed_during_rebuilds(world: World, flow: Traffic) -> None:
    """Flushes Redis between a rebuild's nonce and its marker, six times."""
    # A clock of its own, because `asyncio.timeout` does not end this: with Python 3.11, redis-py may lose a cancellation.
    until = time.monotonic() + PATIENCE
    async with world.command(world.redis) as redis:
        await redis.flushall()
        hits = logged_out = 0
        while hits < 6:
            await flow.logouts(4 if logged_out < 24 else 1, 0.05)
            logged_out += 4
            while not await redis.exists(NONCE):
                assert time.monotonic() < until, f"{hits} of 6 rebuilds were hit"
                # A rebuild takes milliseconds, and may have ended unseen. Then only another flush brings one more.
                await redis.delete(MARKER)
                await asyncio.sleep(0.001)
            # One transaction of Redis checks for the nonce and flushes, so that no step of the rebuild falls between
            # the two.
            together: Any = redis.pipeline(transaction=True)
            hit, _ = await together.exists(NONCE).flushall().execute()
            hits += hit


async def swapped(world: World, flow: Traffic) -> None:
    """SWAPDB before and after logouts, and at any moment of a rebuild. The other database holds older keys."""
    async with world.command(world.redis) as redis:
        for seconds in (0.4, 0.05, 0.2, 0.05, 0.6, 0.1):
            await flow.logouts(4, 0.2)
            await redis.execute_command("SWAPDB", "0", "1")
            await flow.logouts(3, seconds)
            await redis.execute_command("SWAPDB", "1", "0")
        await flow.returned()
        await redis.execute_command("FLUSHALL")


async def restarted_from_an_old_snapshot(world: World, flow: Traffic) -> None:
    await asyncio.to_thread(world.redis.snapshot)
    await flow.logouts(12, 0.4)
    await flow.returned()
    await asyncio.to_thread(world.redis.kill)
    await asyncio.to_thread(world.redis.restart, keep_data=True)
    await flow.logouts(12, 0.6)


async def killed_and_restarted_empty(world: World, flow: Traffic) -> None:
    await flow.logouts(12, 0.4)
    await asyncio.to_thread(world.redis.kill)
    await flow.logouts(12, 1.2)
    await asyncio.to_thread(world.redis.restart, keep_data=False)
    await flow.logouts(12, 0.5)


async def paused(world: World, flow: Traffic) -> None:
    await flow.logouts(12, 0.4)
    for seconds in (0.1, 0.3, 1.0):
        await asyncio.to_thread(world.redis.pause)
        await flow.logouts(6, seconds)
        await asyncio.to_thread(world.redis.resume)
        await flow.logouts(4, 0.3)


async def cut_off_from_the_process_that_logs_out(world: World, flow: Traffic) -> None:
    await flow.logouts(8, 0.3)
    world.here_link.cut()
    await flow.logouts(10, 1.0)
    world.here_link.mend()
    await flow.logouts(6, 0.3)
    world.here_link.swallow()
    await flow.logouts(10, 1.0)
    world.here_link.mend()
    await flow.logouts(6, 0.3)


async def evicting(world: World, flow: Traffic) -> None:
    """Redis may evict keys, and does. With or without its marker, a server that may evict is not believed."""
    async with world.command(world.redis) as redis:
        await flow.logouts(12, 0.4)
        await flow.returned()
        before = (await redis.info("stats"))["evicted_keys"]
        await redis.set("filler", "x" * 2_000_000)
        await redis.config_set("maxmemory-policy", "volatile-ttl")
        await redis.config_set("maxmemory", "1mb")
        await flow.logouts(12, 0.6)
        assert (await redis.info("stats"))["evicted_keys"] - before >= 12, "no key of the first logouts had to go"
        await redis.delete("filler")
        await redis.config_set("maxmemory", "0")
        await redis.config_set("maxmemory-policy", "noeviction")
        await flow.logouts(6, 0.5)


async def a_replica(world: World) -> Redis:
    """Starts a replica of Redis, and waits until it has the data."""
    replica = await world.new_redis("--replicaof", "127.0.0.1", str(world.redis.port))
    async with world.command(replica) as redis:

        async def has_the_marker() -> bool:
            return bool(await redis.exists(MARKER))

        await eventually(has_the_marker)
    return replica


async def promoted_without_the_last_writes(world: World, flow: Traffic) -> None:
    replica = await a_replica(world)
    async with world.command(replica) as redis:
        await redis.execute_command("REPLICAOF", "NO", "ONE")
    await flow.logouts(12, 0.4)
    await flow.returned()
    for link in (world.there_link, world.here_link):
        link.mend(replica.port)
        await flow.logouts(6, 0.2)
    await flow.logouts(6, 0.4)
    # After a restart this server would be a replica again, so the next test gets a new server.
    world.redis.close()
    world.redis = await world.new_redis()
    for link in (world.there_link, world.here_link):
        link.mend(world.redis.port)


async def seen_as_two_servers(world: World, flow: Traffic) -> None:
    """A split brain with the same marker on both servers: logouts write to one, verifications read from the other."""
    replica = await a_replica(world)
    world.there_link.mend(replica.port)
    await flow.logouts(12, 0.5)
    async with world.command(replica) as redis:
        await redis.execute_command("REPLICAOF", "NO", "ONE")
    await flow.logouts(12, 0.5)
    world.there_link.mend(world.redis.port)
    await flow.logouts(6, 0.3)


async def demoted(world: World, flow: Traffic) -> None:
    """The old master, now a replica of the new one, loses its last writes and keeps its clients' connections."""
    replica = await a_replica(world)
    async with world.command(replica) as new, world.command(world.redis) as old:
        await new.execute_command("REPLICAOF", "NO", "ONE")
        await flow.logouts(12, 0.4)
        await flow.returned()
        await old.execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
        await flow.logouts(8, 1.5)
        await old.execute_command("REPLICAOF", "NO", "ONE")
        await flow.logouts(6, 0.4)


@pytest.mark.parametrize(
    "fault",
    [
        flushed,
        flushed_during_rebuilds,
        swapped,
        restarted_from_an_old_snapshot,
        killed_and_restarted_empty,
        paused,
        cut_off_from_the_process_that_logs_out,
        evicting,
        promoted_without_the_last_writes,
        seen_as_two_servers,
        demoted,
    ],
    ids=lambda fault: fault.__name__,
)
async def test_no_token_is_accepted_after_its_logout_returned_while_redis_is(
    world: World, fault: Callable[[World, Traffic], Awaitable[None]]
) -> None:
    async with traffic(world, 50) as flow:
        await fault(world, flow)
    assert flow.counts["logout: 204"] >= 24
    assert not flow.unanswered


async def test_no_token_is_accepted_after_its_logout_returned_when_the_process_is_killed_at_any_step(
    world: World,
) -> None:
    async with traffic(world, 100) as flow:
        for with_redis in (True, False, True):
            heir = asyncio.create_task(world.serve(world.here_link))
            await flow.logouts(2, 0.1)
            if not with_redis:
                world.here_link.cut()
            # A logout that fences spends most of its time in the wait, where the kill is likely to hit it. A logout
            # that does not fence has no long step.
            await asyncio.gather(
                flow.logouts(25, 0.4),
                _after(random.uniform(0.1, 0.5) if with_redis else random.uniform(0.3, 1.5), world.here.kill),
            )
            await flow.returned()
            world.here_link.mend()
            world.here.close()
            world.here = await heir
        assert flow.unanswered
        await flow.again()
    assert flow.counts["logout: 204"]


async def _after(seconds: float, do: Callable[[], object]) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(do)


# -- without the database


class Outage:
    """The answers of a process to each kind of request while the database is away."""

    def __init__(self, world: World, tokens: list[dict[str, Any]]) -> None:
        self.world = world
        self.live, self.ended, self.remembered, self.leaving = tokens

    async def prepare(self, service: Service) -> None:
        world = self.world
        assert (await world.logout(world.here, self.ended)).status_code == 204
        assert (await world.logout(world.here, self.remembered)).status_code == 204
        assert (await world.verify(service, self.remembered["access_token"])).status_code == 401
        assert (await world.verify(service, self.live["access_token"])).status_code == 200

    async def junk_and_the_remembered_are_refused(self, service: Service) -> None:
        world, live = self.world, self.live["access_token"]
        for token in ("junk", "a.b.c", f"{live}x", live[:-4] + "AAAA", self.remembered["access_token"]):
            assert (await world.verify(service, token)).status_code == 401
        assert (await world.post(service, "refresh", refresh_token="ktr_" + "x" * 84)).status_code == 401

    async def nothing_is_decided(self, service: Service, *requests: str) -> None:
        """Checks that each of these requests gets 503 with Retry-After."""
        world = self.world
        ask: dict[str, Callable[[], Awaitable[httpx2.Response]]] = {
            "refresh": lambda: world.post(service, "refresh", refresh_token=self.live["refresh_token"]),
            "login": lambda: world.post(service, "login", email=EMAIL, password=PASSWORD),
            "logout": lambda: world.logout(service, self.leaving),
            "live": lambda: world.verify(service, self.live["access_token"]),
            "ended": lambda: world.verify(service, self.ended["access_token"]),
        }
        for request, answer in zip(requests, await asyncio.gather(*(ask[r]() for r in requests)), strict=True):
            assert answer.status_code == 503, request
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"] == "temporarily_unavailable"

    async def everything_works(self, service: Service) -> None:
        """Checks that the process serves each request again, without a restart and with the same refresh token."""
        world = self.world

        async def refreshes() -> bool:
            answer = await world.post(service, "refresh", refresh_token=self.live["refresh_token"])
            assert answer.status_code in {200, 503}
            return answer.status_code == 200

        async def verifies() -> bool:
            answer = await world.verify(service, self.live["access_token"])
            assert answer.status_code in {200, 503}
            return answer.status_code == 200

        async def refuses() -> bool:
            answer = await world.verify(service, self.ended["access_token"])
            assert answer.status_code in {401, 503}
            return answer.status_code == 401

        async def logs_in() -> bool:
            answer = await world.post(service, "login", email=EMAIL, password=PASSWORD)
            assert answer.status_code in {200, 503}
            return answer.status_code == 200

        async def logs_out() -> bool:
            answer = await world.logout(service, self.leaving)
            assert answer.status_code in {204, 503}
            return answer.status_code == 204

        for works in (refreshes, verifies, refuses, logs_in, logs_out):
            await eventually(works)


@pytest.fixture
async def outage(world: World) -> Outage:
    await world.complete()
    outage = Outage(world, await world.sessions(4))
    await outage.prepare(world.brief)
    return outage


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_without_the_database_redis_answers_for_the_time_that_is_set_and_nothing_else_is_decided(
    world: World, outage: Outage, how: str
) -> None:
    live = outage.live["access_token"]
    await world.complete()
    await asyncio.sleep(1.5)  # /readyz shows a state that is up to half a second old, so look again later
    await world.complete()

    accepted: list[float] = []

    async def ask() -> int:
        moment = time.monotonic() - began
        status = (await world.verify(world.brief, live)).status_code
        if status == 200:
            accepted.append(moment)
        return status

    async def there_goes_on() -> bool:
        return (await world.verify(world.there, live)).status_code == 200

    await asyncio.to_thread(world.postgres.kill if how == "killed" else world.postgres.pause)
    try:
        began = time.monotonic()
        others = asyncio.create_task(outage.nothing_is_decided(world.brief, "refresh", "login", "logout", "ended"))
        limit = WITHOUT_DATABASE + VOUCHES_FOR.total_seconds()
        asked = []
        # Send the requests side by side. One that waits for the database, because the evidence of the outage is too
        # old, must not delay the next.
        while time.monotonic() - began < limit + 0.2:
            asked.append(asyncio.create_task(ask()))
            await asyncio.sleep(0.02)
        statuses = Counter(await asyncio.gather(*asked))
        print(f"{dict(statuses)}, accepted for {max(accepted):.1f} s without the database")
        assert statuses.keys() == {200, 503}
        assert limit - 2 <= max(accepted) <= limit
        # `there` has the default of a minute, so it goes on. But it does not decide about a session that has its key in
        # Redis.
        await eventually(there_goes_on)
        await asyncio.gather(
            others,
            outage.nothing_is_decided(world.brief, "live", "ended"),
            outage.nothing_is_decided(world.there, "ended"),
            outage.junk_and_the_remembered_are_refused(world.brief),
        )
    finally:
        await asyncio.to_thread(world.postgres.restart if how == "killed" else world.postgres.resume)
    for service in (world.brief, world.there, world.here):
        await outage.everything_works(service)
    await world.complete()


async def test_without_database_and_redis_nothing_is_decided_and_junk_is_still_junk(
    world: World, outage: Outage
) -> None:
    await asyncio.to_thread(world.redis.kill)
    await asyncio.to_thread(world.postgres.kill)
    try:
        await outage.nothing_is_decided(world.brief, "refresh", "login", "logout", "live", "ended")
        await outage.nothing_is_decided(world.there, "refresh", "login", "logout", "live", "ended")
        await outage.junk_and_the_remembered_are_refused(world.brief)
    finally:
        await asyncio.to_thread(world.redis.restart, keep_data=False)
        await asyncio.to_thread(world.postgres.restart)
    for service in (world.brief, world.there, world.here):
        await outage.everything_works(service)
    await world.complete()
