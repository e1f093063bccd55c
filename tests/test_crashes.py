"""kill -9, outages, a read-only database and TERM. Acknowledged refreshes stay, and the service recovers by itself.

While the database is away, the service answers 503. PostgreSQL runs with its default durability.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.sessions.answers import Tokens
from app.storage.migrating import migrate
from tests.conftest import settings_of, sync
from tests.servers import Postgres
from tests.service import Service
from tests.test_races import a_client, at, connected, login, logins, refresh, serve, someone, until, verify


@pytest.fixture(scope="module")
def durable() -> Iterator[Postgres]:
    """A PostgreSQL with its default durability, which these tests kill with SIGKILL."""
    with Postgres.start(durable=True) as server:
        if not server.ours:
            pytest.skip("TEST_DATABASE_URL names the server, and tests kill only their own")
        yield server


@pytest.fixture(scope="module")
def url(durable: Postgres) -> str:
    sync(durable.create_database("crashes"))
    migrate(settings_of(durable.url("crashes"), None))
    return durable.url("crashes")


class Restarted:
    """The service, which `again` replaces by a new process on the same port."""

    def __init__(self, url: str, logs: Path) -> None:
        self._url, self._logs = url, logs
        self.now = serve(url, logs)

    def again(self) -> None:
        port = self.now.port
        self.now.close()
        self.now = serve(self._url, self._logs, port=port)


@pytest.fixture(scope="module")
def restarted(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    holder = Restarted(url, tmp_path_factory.mktemp("crashes"))
    yield holder
    holder.now.close()


@pytest.fixture
def service(restarted: Restarted) -> Service:
    return restarted.now


# -- a storm of refreshes


@dataclass
class Holder:
    """A client that refreshes without pause, and takes over a token only from a whole answer."""

    session_id: UUID
    held: list[str]  # all tokens that the client got, the newest last
    outcomes: list[int | None] = field(default_factory=list)  # statuses; None: no answer came

    @classmethod
    def of(cls, tokens: Tokens) -> Holder:
        return cls(tokens.session_id, [tokens.refresh_token])

    @property
    def generation(self) -> int:
        return len(self.held) - 1

    async def ask(self, client: httpx2.AsyncClient, service: Service) -> None:
        try:
            answer = await refresh(client, service, self.held[-1])
        except httpx2.TransportError:
            self.outcomes.append(None)
            await asyncio.sleep(0.02)
            return
        self.outcomes.append(answer.status_code)
        if answer.status_code == 200:
            self.held.append(answer.json()["refresh_token"])
        else:
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.02)


@asynccontextmanager
async def storm(holders: list[Holder], service: Service) -> AsyncIterator[None]:
    """All holders refresh while the block runs."""
    over = asyncio.Event()

    async def go_on(client: httpx2.AsyncClient, holder: Holder) -> None:
        while not over.is_set():
            await holder.ask(client, service)

    async with a_client() as client, asyncio.TaskGroup() as tasks:
        for holder in holders:
            tasks.create_task(go_on(client, holder))
        try:
            yield
        finally:
            over.set()


async def check(url: str, holders: list[Holder]) -> int:
    """Asserts that each row holds the acknowledged token or its successor. Returns how many hold the successor."""
    async with connected(url) as connection:
        found = {row.id: row for row in await connection.execute(text("SELECT * FROM sessions"))}
    for holder in holders:
        row = found[holder.session_id]
        assert row.ended_at is None
        assert row.generation - holder.generation in {0, 1}
        if row.generation == holder.generation:
            assert bytes(row.token_digest) == digest(holder.held[-1])
    return sum(found[holder.session_id].generation - holder.generation for holder in holders)


def digest(token: str) -> bytes:
    return sha256(base64.urlsafe_b64decode(token[4:])).digest()


async def all_work(holders: list[Holder], service: Service) -> None:
    """Asserts that each newest token gets a successor, and that the token before gets the same successor."""
    async with a_client() as client:

        async def works(holder: Holder) -> None:
            generation = holder.generation

            async def went_on() -> bool:
                await holder.ask(client, service)
                return holder.generation > generation

            await until(went_on)

            async def again() -> bool:
                answer = await refresh(client, service, holder.held[-2])
                if answer.status_code == 503:  # the service still had a connection from before the last kill
                    return False
                assert (answer.status_code, answer.json().get("refresh_token")) == (200, holder.held[-1])
                return True

            await until(again)

        await asyncio.gather(*map(works, holders))


async def test_what_was_acknowledged_survives_kill_9_of_service_and_postgres_in_a_storm(
    durable: Postgres, url: str, restarted: Restarted
) -> None:
    dice, seen = random.Random(1), Counter[str]()
    async with at(url) as keyturn:
        holders = [Holder.of(tokens) for tokens in await logins(keyturn, 20)]
    for turn in range(20):
        victim = durable if turn % 4 else restarted.now
        seen[type(victim).__name__] += 1
        async with storm(holders, restarted.now):
            await asyncio.sleep(dice.uniform(0.05, 0.3))
            await asyncio.to_thread(victim.kill)
        if isinstance(victim, Service):
            restarted.again()
        else:
            durable.restart()
        seen["committed and not acknowledged"] += await check(url, holders)
        await all_work(holders, restarted.now)
        assert await check(url, holders) == 0
    seen["acknowledged"] = sum(holder.generation for holder in holders)
    print(dict(seen))
    assert seen["acknowledged"] > 20 * 20
    assert seen["committed and not acknowledged"] > 0, "no kill fell between a commit and its answer"
    # Each chain has one end. So a token before the newest two is refused and ends the session.
    async with a_client() as client:
        for holder in holders:
            answer = await refresh(client, restarted.now, holder.held[-3])
            if answer.status_code == 503:  # the service still had a connection from before the last kill
                answer = await refresh(client, restarted.now, holder.held[-3])
            assert (answer.status_code, answer.json()["reason"]) == (401, "reuse_detected")


# -- outages


def away(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"] == "temporarily_unavailable"
    assert 1 <= int(answer.headers["retry-after"]) <= 10


@dataclass
class Cast:
    """A user with two sessions, one to refresh and one to log out."""

    email: str
    refreshing: Tokens
    leaving: Tokens

    async def all_away(self, client: httpx2.AsyncClient, service: Service) -> None:
        """Asserts that every request that needs the database gets 503, and that junk still gets 401."""
        bearer = {"authorization": f"Bearer {self.refreshing.access_token}"}
        refreshes = [refresh(client, service, self.refreshing.refresh_token) for _ in range(10)]
        answers = await asyncio.gather(
            *refreshes,
            login(client, service, self.email),
            client.post(f"{service.url}/auth/logout", json={"refresh_token": self.leaving.refresh_token}),
            client.get(f"{service.url}/auth/me", headers=bearer),
            verify(client, service, self.refreshing.access_token),
        )
        for answer in answers:
            away(answer)
        assert (await refresh(client, service, "ktr_" + "x" * 84)).status_code == 401

        async def not_ready() -> bool:
            return (await client.get(f"{service.url}/readyz")).status_code == 503

        await until(not_ready, 2)  # the fence is read every half second, and a reading may take its whole time limit

    async def all_back(self, client: httpx2.AsyncClient, service: Service) -> None:
        """Asserts that the service works again, without a restart and with the tokens from before the outage."""

        async def ready() -> bool:
            return (await refresh(client, service, self.refreshing.refresh_token)).status_code == 200

        async def open_again() -> bool:  # each dead connection of the other pool may cost one 503
            return (await login(client, service, self.email)).status_code == 200

        await until(ready)
        await until(open_again)
        assert (await verify(client, service, self.refreshing.access_token)).status_code == 200
        body = {"refresh_token": self.leaving.refresh_token}
        assert (await client.post(f"{service.url}/auth/logout", json=body)).status_code == 204
        refused = await verify(client, service, self.leaving.access_token)
        assert (refused.status_code, refused.json()["reason"]) == (401, "logout")


@pytest.fixture
async def cast(url: str) -> Cast:
    async with at(url) as keyturn:
        email, proof = await someone(keyturn)
        return Cast(
            email, await keyturn.starting.start(proof, by=SERVICE), await keyturn.starting.start(proof, by=SERVICE)
        )


async def test_postgres_that_never_answers_is_503_within_six_seconds_and_passes(
    durable: Postgres, service: Service, cast: Cast
) -> None:
    async with a_client(6) as client:
        durable.pause()
        try:
            await cast.all_away(client, service)
        finally:
            durable.resume()
        await cast.all_back(client, service)


async def test_postgres_that_is_gone_is_503_within_six_seconds_and_passes(
    durable: Postgres, service: Service, cast: Cast
) -> None:
    async with a_client(6) as client:
        durable.kill()
        await cast.all_away(client, service)
        await cast.all_away(client, service)
        durable.restart()
        await cast.all_back(client, service)


async def test_a_read_only_database_is_503_and_no_success_is_claimed(
    durable: Postgres, url: str, service: Service, cast: Cast
) -> None:
    async def read_only(value: str) -> None:
        async with connected(durable.url()) as connection:
            await connection.execute(text(f"ALTER DATABASE crashes SET default_transaction_read_only = {value}"))

    async with a_client(6) as client:
        await read_only("on")
        async with connected(durable.url()) as connection:  # as a failover does
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keyturn'")
            )
        for _ in range(3):
            away(await refresh(client, service, cast.refreshing.refresh_token))
            away(await login(client, service, cast.email))
            body = {"refresh_token": cast.leaving.refresh_token}
            away(await client.post(f"{service.url}/auth/logout", json=body))
        for tokens in (cast.refreshing, cast.leaving):
            assert (await verify(client, service, tokens.access_token)).status_code == 200
        async with connected(url) as connection:
            ids = {"ids": [cast.refreshing.session_id, cast.leaving.session_id]}
            query = text("SELECT generation, ended_at FROM sessions WHERE id = ANY(:ids)")
            assert {tuple(row) for row in await connection.execute(query, ids)} == {(0, None)}
        # The address leads to the new primary now, while the connections to the old one stay open.
        await read_only("off")
        await cast.all_back(client, service)


# -- the end in good order


async def test_a_service_that_gets_term_in_a_storm_answers_what_is_in_flight_and_exits_with_0(
    url: str, restarted: Restarted
) -> None:
    service = restarted.now
    async with at(url) as keyturn:
        holders = [Holder.of(tokens) for tokens in await logins(keyturn, 20)]
    async with storm(holders, service), connected(url) as connection:
        await asyncio.sleep(0.2)
        await connection.execute(text("BEGIN"))
        await connection.execute(text("LOCK TABLE sessions"))
        await asyncio.sleep(0.4)  # by now the service has read a request of each holder and can answer none
        before = [len(holder.outcomes) for holder in holders]
        end: asyncio.Task[Any] = asyncio.create_task(asyncio.to_thread(service.terminate))
        await asyncio.sleep(0.2)
        assert [len(holder.outcomes) for holder in holders] == before
        await connection.execute(text("COMMIT"))
        exit_code = await end
    assert [holder.outcomes[n] for holder, n in zip(holders, before, strict=True)] == [200] * 20
    assert exit_code == 0
    restarted.again()
    assert await check(url, holders) == 0  # no answer was lost
    await all_work(holders, restarted.now)
