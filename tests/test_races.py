"""Parallel requests, lost answers and cancelled callers: one session stays one session. On both databases."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
import secrets
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidToken, Reason, TemporarilyUnavailable
from app.keyturn import Keyturn, opened, running
from app.sessions.answers import Tokens
from app.sessions.start import Authenticated
from app.storage.migrating import migrate
from app.storage.tables import Session
from app.tokens.access_tokens import AccessToken
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, a_user, settings_of, sync
from tests.servers import Redis
from tests.service import Service

T = TypeVar("T")

on_postgres = pytest.mark.parametrize("engine", ["postgres"])

# -- helpers of these tests, of test_crashes and of test_junk


def serve(database_url: str, logs: Path, *, port: int | None = None, **settings: Any) -> Service:
    """Starts the service on that database. Without `redis_url`, it runs without Redis."""
    values = {
        "database_url": database_url,
        "redis_url": "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        **CHEAP,
        **settings,
    }
    return Service.start({f"KEYTURN_{n.upper()}": str(v) for n, v in values.items()}, logs=logs, port=port)


@dataclass(frozen=True)
class Stage:
    """A database and the services that run on it."""

    database_url: str
    services: list[Service]

    def any(self) -> Service:
        return random.choice(self.services)


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two services on one Postgres, with Redis; or one service on SQLite, without Redis."""
    folder = tmp_path_factory.mktemp("stage")
    with ExitStack() as stack:
        if request.param == "postgres":
            postgres = request.getfixturevalue("postgres")
            name = f"stage_{secrets.token_hex(6)}"
            sync(postgres.create_database(name, template=request.getfixturevalue("template")))
            stack.callback(lambda: sync(postgres.drop_database(name)))
            url, redis_url, count = postgres.url(name), stack.enter_context(Redis.start()).url(), 2
        else:
            url, redis_url, count = f"sqlite+aiosqlite:///{folder / 'keyturn.db'}", "none", 1
            migrate(settings_of(url, None))
        with ThreadPoolExecutor(count) as threads:
            starts = [threads.submit(serve, url, folder, redis_url=redis_url) for _ in range(count)]
        services = [stack.enter_context(start.result()) for start in starts]
        sync(until(lambda: all_ready(services)))
        yield Stage(url, services)


async def all_ready(services: list[Service]) -> bool:
    async with a_client() as client:
        answers = [await client.get(f"{service.url}/readyz") for service in services]
    return all(answer.json()["status"] == "ready" for answer in answers)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Waits until the condition holds, and fails after that many seconds."""
    deadline = monotonic() + seconds
    while not await condition():
        assert monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.05)


def a_client(seconds: float = 10) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=seconds, trust_env=False, limits=httpx2.Limits(max_connections=100))


async def refresh(client: httpx2.AsyncClient, service: Service, token: str) -> httpx2.Response:
    return await client.post(f"{service.url}/auth/refresh", json={"refresh_token": token})


async def verify(client: httpx2.AsyncClient, service: Service, token: str) -> httpx2.Response:
    return await client.get(f"{service.url}/auth/verify", headers={"authorization": f"Bearer {token}"})


async def login(client: httpx2.AsyncClient, service: Service, email: str) -> httpx2.Response:
    return await client.post(f"{service.url}/auth/login", json={"email": email, "password": PASSWORD})


@asynccontextmanager
async def at(database_url: str) -> AsyncIterator[Keyturn]:
    """Opens an instance in this process, to prepare and inspect the database."""
    async with opened(settings_of(database_url, None)) as keyturn, running(keyturn):
        yield keyturn


async def someone(keyturn: Keyturn) -> tuple[str, Authenticated]:
    email = f"{secrets.token_hex(8)}@example.com"
    return email, await a_user(keyturn, email)


async def logins(keyturn: Keyturn, number: int) -> list[Tokens]:
    """Starts that many sessions (a multiple of 4, or 1) of one new user."""
    _, proof = await someone(keyturn)
    abreast = 4 if number > 1 else 1

    async def some() -> list[Tokens]:
        return [await keyturn.starting.start(proof, by=SERVICE) for _ in range(number // abreast)]

    return list(itertools.chain(*await asyncio.gather(*(some() for _ in range(abreast)))))


async def rows(keyturn: Keyturn, ids: set[UUID]) -> dict[UUID, Any]:
    async with keyturn.db.begin() as tx:
        everyone = (await tx.execute(select(Session))).all()
    return {row.id: row for row in everyone if row.id in ids}


async def attempt(call: Awaitable[T]) -> T | Reason | None:
    """The result of the call, or the reason for which it was refused."""
    try:
        return await call
    except (InvalidGrant, InvalidToken) as refusal:
        return refusal.reason


@asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection for observation, outside of Keyturn."""
    engine = create_async_engine(database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection


async def nothing_is_open(database_url: str) -> bool:
    """Whether no transaction is left open and no session row is locked."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.partition("///")[2], timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True
    async with connected(database_url) as connection:
        idle = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state LIKE 'idle in transaction%'"
            )
        )
        advisory = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE datname = current_database() AND locktype = 'advisory'"
            )
        )
        try:
            await connection.execute(text("SELECT 1 FROM sessions FOR UPDATE NOWAIT"))
        except DBAPIError:
            return False
        return (idle, advisory) == (0, 0)


def served(service: Service, path: str) -> int:
    """The number of requests to that path that the service has logged with status 200."""
    lines = [json.loads(line) for line in service.text().splitlines() if f'"{path}"' in line]
    return sum(line["path"] == path and line["status"] == 200 for line in lines)


# -- races


async def test_a_hundred_parallel_refreshes_with_one_token_are_one_rotation(stage: Stage) -> None:
    async with at(stage.database_url) as keyturn, a_client() as client:
        for _ in range(3):
            [first] = await logins(keyturn, 1)
            before = {service: served(service, "/auth/refresh") for service in stage.services}

            async def all_logged(before: dict[Service, int] = before, count: int = 100) -> bool:
                """The service logs a request after its answer, so the log has to be awaited."""
                return sum(served(s, "/auth/refresh") - b for s, b in before.items()) >= count

            turns = itertools.islice(itertools.cycle(stage.services), 100)
            answers = await asyncio.gather(*(refresh(client, service, first.refresh_token) for service in turns))

            assert Counter(answer.status_code for answer in answers) == {200: 100}
            assert len({answer.json()["refresh_token"] for answer in answers}) == 1
            assert len({answer.json()["access_token"] for answer in answers}) == 1
            row = (await rows(keyturn, {first.session_id}))[first.session_id]
            assert (row.generation, row.ended_at) == (1, None)
            await until(all_logged)
            shares = [served(service, "/auth/refresh") - b for service, b in before.items()]
            assert sum(shares) == 100
            assert min(shares) >= 30

            latest = answers[0].json()
            for service in stage.services:
                assert (await verify(client, service, latest["access_token"])).status_code == 200
                assert (await refresh(client, service, latest["refresh_token"])).status_code == 200
            await until(functools.partial(all_logged, count=100 + len(stage.services)))


# -- lost answers

Ask = Callable[[str], Coroutine[Any, Any, tuple[str, str]]]


async def careless(token: str, rotations: int, instances: list[Ask], dice: random.Random, seen: Counter[str]) -> str:
    """Refreshes as a client that loses 30 % of the answers, with a twin that holds the same token.

    Returns the newest token.
    """
    for _ in range(rotations):
        answers = []
        if dice.random() < 0.3:
            answers.append(await dice.choice(instances)(token))
            seen["lost"] += 1
        at_once = 2 if dice.random() < 0.3 else 1
        seen["twins"] += at_once - 1
        answers += await asyncio.gather(*(dice.choice(instances)(token) for _ in range(at_once)))
        assert len(set(answers)) == 1, "a fork"
        token = answers[0][0]
    return token


def patient(keyturn: Keyturn, seen: Counter[str]) -> Ask:
    """Refreshes in this process, and repeats the request while the queue for a connection is full."""

    async def ask(token: str) -> tuple[str, str]:
        for _ in range(20):
            with suppress(TemporarilyUnavailable):
                tokens = await keyturn.rotation.refresh(token, by=SERVICE)
                return tokens.refresh_token, tokens.access_token
            seen["503"] += 1
            await asyncio.sleep(0.1)
        raise AssertionError("away for good")

    return ask


async def intact(keyturn: Keyturn, first: list[Tokens], newest: list[str], generation: int) -> None:
    """Checks that each session is one row at that generation, and that its newest token works."""
    async with keyturn.db.look() as connection:
        user_id = (await keyturn.reading.find(first[0].session_id)).user_id
        statement = select(Session.id).where(Session.user_id == user_id)
        found = (await connection.scalars(statement)).all()
    assert sorted(found) == sorted(tokens.session_id for tokens in first)
    states = await rows(keyturn, {tokens.session_id for tokens in first})
    assert Counter((row.generation, row.ended_at) for row in states.values()) == {(generation, None): len(first)}
    for tokens, token in zip(first, newest, strict=True):
        assert states[tokens.session_id].token_digest == keyturn.keys.verify_refresh_token(token).digest
    await asyncio.gather(*map(patient(keyturn, Counter()), newest))


@pytest.mark.deep
async def test_answers_lost_after_the_commit_lose_no_session(open_keyturn: Opener, engine: str) -> None:
    number = 1000
    seen: Counter[str] = Counter()
    async with open_keyturn() as one, open_keyturn() as other:
        first = await logins(one, number)
        instances = [patient(one, seen), patient(other, seen)]
        dice = random.Random(3)
        newest: dict[UUID, str] = {}

        async def clients(sessions: Iterator[Tokens]) -> None:
            for tokens in sessions:
                newest[tokens.session_id] = await careless(tokens.refresh_token, 20, instances, dice, seen)

        queue = iter(first)
        await asyncio.gather(*(clients(queue) for _ in range(200)))
        print(f"{engine}: {number} sessions x 20 rotations, {dict(seen)}")
        assert seen["lost"] > number * 20 / 4
        await intact(one, first, [newest[tokens.session_id] for tokens in first], 20)


async def test_answers_lost_on_the_way_lose_no_session(stage: Stage) -> None:
    dice, seen = random.Random(4), Counter[str]()
    async with at(stage.database_url) as keyturn, a_client() as client:

        def over_http(service: Service) -> Ask:
            async def ask(token: str) -> tuple[str, str]:
                if dice.random() < 0.3:
                    # The client hangs up before, while or after the service answers.
                    request = asyncio.create_task(refresh(client, service, token))
                    await asyncio.wait({request}, timeout=dice.uniform(0, 0.04))
                    seen["cut off"] += request.cancel()
                    await asyncio.wait({request})
                answer = await refresh(client, service, token)
                assert answer.status_code == 200, answer.text
                return answer.json()["refresh_token"], answer.json()["access_token"]

            return ask

        instances = [over_http(service) for service in stage.services]
        first = await logins(keyturn, 40)
        newest = await asyncio.gather(*(careless(t.refresh_token, 5, instances, dice, seen) for t in first))
        print(f"{len(first)} sessions x 5 rotations over HTTP, {dict(seen)}")
        assert seen["lost"]
        assert seen["cut off"]
        await intact(keyturn, first, newest, 5)


# -- cancellation


async def test_calls_cancelled_at_random_points_leave_nothing_behind(
    keyturn: Keyturn, database_url: str, engine: str
) -> None:
    dice, outcomes = random.Random(5), Counter[str]()
    _, proof = await someone(keyturn)
    first = await logins(keyturn, 100)
    held = {tokens.session_id: tokens.refresh_token for tokens in first}
    ended: set[UUID] = set()

    async def cut_off(tokens: Tokens, act: str) -> None:
        token = held[tokens.session_id]
        match act:
            case "refresh":
                call: Coroutine[Any, Any, Any] = keyturn.rotation.refresh(token, by=SERVICE)
            case "start":
                call = keyturn.starting.start(proof, by=SERVICE)
            case "logout":
                call = keyturn.ending.logout((), [token], "this", by=SERVICE)
            case _:
                call = keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE)
        if act in {"logout", "end"}:
            ended.add(tokens.session_id)
        task = asyncio.create_task(attempt(call))
        for _ in range(dice.randrange(12)):
            await asyncio.sleep(0)
        await asyncio.wait({task}, timeout=dice.choice([0, 0.01, 0.1]) * dice.random())
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            outcomes[f"{act} cancelled"] += 1
        else:
            outcomes[f"{act} done"] += 1
            if act == "refresh" and isinstance(result, Tokens):
                held[tokens.session_id] = result.refresh_token

    for turn in range(10):
        acts = ["refresh"] * 12 + ["start"] * 4 + ["logout"] * 2 + ["end"] * 2
        await asyncio.gather(*map(cut_off, first[turn * 10 :] + first[: turn * 10], acts))
    print(f"{engine}: {dict(sorted(outcomes.items()))}")
    assert outcomes.total() == 200
    assert outcomes["refresh cancelled"] >= 20
    assert outcomes["start cancelled"] >= 5

    async def quiet() -> bool:
        engines = {keyturn.db._engine, keyturn.db._writer, keyturn.db._reader}
        held = len(keyturn.db._held) if keyturn.db.is_postgres else 0  # idle between statements
        return sum(engine.pool.checkedout() for engine in engines) == held  # type: ignore[attr-defined]  # a queue pool

    await until(quiet)
    await until(lambda: nothing_is_open(database_url))
    for session_id, token in held.items():
        outcome = await attempt(keyturn.rotation.refresh(token, by=SERVICE))
        assert isinstance(outcome, Tokens) or (outcome == "logout" and session_id in ended)
    states = await rows(keyturn, ended)
    for session_id in ended:  # a logout that was cancelled can be repeated
        await keyturn.ending.logout((), [held[session_id]], "this", by=SERVICE)
    assert {row.end_reason for row in states.values()} <= {None, "logout"}
    assert {row.end_reason for row in (await rows(keyturn, ended)).values()} == {"logout"}


async def test_clients_that_hang_up_at_random_points_leave_nothing_behind(stage: Stage) -> None:
    dice = random.Random(6)
    async with at(stage.database_url) as keyturn, a_client() as client:
        email, _ = await someone(keyturn)
        first = await logins(keyturn, 100)

        async def cut_off(tokens: Tokens, act: str) -> None:
            body: dict[str, str] = {"refresh_token": tokens.refresh_token}
            if act == "login":
                body = {"email": email, "password": PASSWORD}
            data = json.dumps(body)
            service = stage.any()
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            head = f"POST /auth/{act} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            request = f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode()
            writer.write(request[: dice.choice([len(request), len(request), len(request), len(request) // 2])])
            await asyncio.sleep(dice.uniform(0, 0.03))
            if dice.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

        for turn in range(10):
            acts = ["refresh"] * 12 + ["login"] * 4 + ["logout"] * 4
            await asyncio.gather(*map(cut_off, first[turn * 10 :] + first[: turn * 10], acts))
        await until(lambda: nothing_is_open(stage.database_url))
        for tokens in first:
            answer = await refresh(client, stage.any(), tokens.refresh_token)
            if answer.status_code != 200:
                assert (answer.status_code, answer.json()["reason"]) == (401, "logout")
        for service in stage.services:
            assert (await login(client, service, email)).status_code == 200
            assert '"status": 500' not in service.text()
            assert '"exception"' not in service.text()


# -- endings that race


async def test_a_login_beside_a_logout_of_all_is_ended_or_starts_after_it(open_keyturn: Opener) -> None:
    dice, outcomes = random.Random(8), Counter[str]()
    async with open_keyturn() as one, open_keyturn() as other:
        email, proof = await someone(one)

        async def start(instance: Keyturn) -> Tokens:
            await asyncio.sleep(dice.choice([0, 0.01, 0.1]) * dice.random())
            return await instance.starting.start(proof, by=SERVICE)

        for _ in range(20):
            earlier = await one.starting.start(proof, by=SERVICE)
            racing = [asyncio.create_task(start(instance)) for instance in (one, other) * 3]
            await asyncio.sleep(dice.random() * 0.01)
            await other.ending.logout((), [earlier.refresh_token], "all", by=SERVICE)
            later = await other.starting.start(await one.sign_in.authenticate(email, PASSWORD), by=SERVICE)
            await one.reading.verify(later.access_token)
            with pytest.raises(InvalidGrant):
                await one.rotation.refresh(earlier.refresh_token, by=SERVICE)
            for tokens in await asyncio.gather(*racing):
                verified = await attempt(one.reading.verify(tokens.access_token))
                refreshed = await attempt(other.rotation.refresh(tokens.refresh_token, by=SERVICE))
                alive = isinstance(verified, AccessToken)
                assert (verified, refreshed) == ("logout_all", "logout_all") or (
                    alive and isinstance(refreshed, Tokens)
                )
                outcomes["after" if alive else "ended"] += 1
            await one.ending.logout((), [later.refresh_token], "all", by=SERVICE)
    print(dict(outcomes))
    assert outcomes["after"]
    assert outcomes["ended"]


async def test_a_retry_beside_the_sessions_end_gives_no_pair_that_works(open_keyturn: Opener) -> None:
    dice, outcomes = random.Random(9), Counter[str]()
    async with open_keyturn() as one, open_keyturn() as other:
        for turn, first in enumerate(await logins(one, 40)):
            second = await one.rotation.refresh(first.refresh_token, by=SERVICE)
            end = asyncio.create_task(other.ending.end({first.session_id}, "revoked_by_admin", by=SERVICE))
            await asyncio.sleep(dice.random() * 0.02 * (turn % 2))
            again = await attempt(one.rotation.refresh(first.refresh_token, by=SERVICE))
            if isinstance(again, Tokens):
                assert again.refresh_token == second.refresh_token
                outcomes["pair"] += 1
            else:
                assert again == "revoked_by_admin"
                outcomes["reason"] += 1
            await end
            with pytest.raises(InvalidGrant) as caught:
                await one.rotation.refresh(second.refresh_token, by=SERVICE)
            assert caught.value.reason == "revoked_by_admin"
            with pytest.raises(InvalidToken):
                await one.reading.verify(second.access_token)
    print(dict(outcomes))
    assert outcomes["pair"]
    assert outcomes["reason"]


async def test_no_verification_that_began_after_the_logouts_answer_accepts_the_token(stage: Stage) -> None:
    async with at(stage.database_url) as keyturn, a_client() as client:
        for tokens in await logins(keyturn, 4):
            accepted: list[float] = []
            refused: list[float] = []
            done = asyncio.Event()

            async def read(
                service: Service,
                token: str = tokens.access_token,
                accepted: list[float] = accepted,
                refused: list[float] = refused,
                done: asyncio.Event = done,
            ) -> None:
                while not done.is_set():
                    began = monotonic()
                    answer = await verify(client, service, token)
                    if answer.status_code == 200:
                        accepted.append(began)
                    else:
                        assert (answer.status_code, answer.json()["reason"]) == (401, "logout")
                        refused.append(began)

            turns = itertools.islice(itertools.cycle(stage.services), 50)
            async with asyncio.timeout(20), asyncio.TaskGroup() as readers:
                for service in turns:
                    readers.create_task(read(service))
                await asyncio.sleep(0.15)
                while not accepted:
                    await asyncio.sleep(0.05)
                assert not refused
                body = {"refresh_token": tokens.refresh_token}
                # The logout has a client of its own: in the readers' client it would wait for a free connection.
                async with a_client() as other:
                    answer = await other.post(f"{stage.services[0].url}/auth/logout", json=body)
                answered = monotonic()
                await asyncio.sleep(0.15)
                while not refused or max(refused) < answered:
                    await asyncio.sleep(0.05)
                done.set()
            assert answer.status_code == 204
            assert max(accepted) < answered


# -- the table's size


@on_postgres
@pytest.mark.deep
async def test_refreshes_are_hot_updates_and_the_table_stays_flat(open_keyturn: Opener, database_url: str) -> None:
    sizes: list[int] = []
    async with open_keyturn() as keyturn, connected(database_url) as onlooker:
        held = {tokens.session_id: tokens.refresh_token for tokens in await logins(keyturn, 2000)}
        dice = random.Random(7)

        async def client(ids: list[UUID]) -> None:
            for session_id in ids:
                key = dice.choice([None, secrets.token_urlsafe(24)])
                tokens = await keyturn.rotation.refresh(held[session_id], by=SERVICE, retry_key=key)
                held[session_id] = tokens.refresh_token

        for _ in range(4):
            order = dice.sample([*held] * 2, 4000) + dice.sample([*held], 1000)
            # Each session is refreshed by one task only, so every refresh is a rotation.
            await asyncio.gather(*(client([i for i in order if i.int % 50 == n]) for n in range(50)))
            await onlooker.execute(text("VACUUM sessions"))
            sizes.append(await onlooker.scalar(text("SELECT pg_relation_size('sessions')")) or 0)
    # Postgres counts the updates of a connection at the latest when the connection closes.
    query = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'")
    async with connected(database_url) as onlooker:

        async def all_reported() -> bool:
            return int((await onlooker.execute(query)).one().n_tup_upd) >= 20_000

        await until(all_reported)
        updates, hot = (await onlooker.execute(query)).one()
    print(f"updates {updates}, HOT {hot} ({hot / updates:.2%}), bytes after each 5,000: {sizes}")
    assert updates == 20_000
    assert hot >= updates * 0.99
    assert sizes[-1] <= sizes[0] * 1.05
