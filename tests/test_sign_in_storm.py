"""Fifty sign-ins of one user at once, on two processes: the limit is never exceeded, and never fewer sessions live."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.storage.migrating import migrate
from app.storage.tables import Event, Session
from tests.conftest import PASSWORD, a_user, settings_of, sync
from tests.servers import Redis
from tests.service import Service
from tests.test_races import a_client, all_ready, at, connected, serve, until, verify

LIMIT = 3
LOGINS = 50


@dataclass
class Stage:
    """A database and two services on it, under a limit of sessions."""

    database_url: str
    services: list[Service]
    redis: Redis | None


@pytest.fixture(scope="module", params=["postgres-redis", "postgres-redis-stops", "postgres", "sqlite"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("storm")
    with ExitStack() as stack:
        redis = stack.enter_context(Redis.start()) if "redis" in request.param else None
        if request.param == "sqlite":
            url = f"sqlite+aiosqlite:///{folder / 'keyturn.db'}"
            migrate(settings_of(url, None))
        else:
            postgres = request.getfixturevalue("postgres")
            name = f"storm_{secrets.token_hex(6)}"
            sync(postgres.create_database(name, template=request.getfixturevalue("template")))
            stack.callback(lambda: sync(postgres.drop_database(name)))
            url = postgres.url(name)
        redis_url = redis.url() if redis else "none"
        services = [stack.enter_context(serve(url, folder, redis_url=redis_url, session_limit=LIMIT)) for _ in range(2)]
        sync(until(lambda: all_ready(services), 30))
        if redis is not None and request.param.endswith("stops"):
            redis.stop()
        yield Stage(url, services, redis)


@dataclass
class Storm:
    """Sign-ins of one user, and what was seen of them."""

    stage: Stage
    watching: AsyncConnection
    """A connection of the test alone, so that no pool of Keyturn's is in its way."""
    client: httpx2.AsyncClient
    email: str
    user_id: UUID
    tokens: dict[UUID, str] = field(default_factory=dict)
    refused_at_once: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def sign_in(self, number: int, body: Mapping[str, str]) -> None:
        """Signs in at one service, and asks the other for the tokens of the sessions that this sign-in ended."""
        here, there = self.stage.services[number % 2], self.stage.services[1 - number % 2]
        body = {"email": self.email, "password": PASSWORD, **body}
        for _ in range(60):
            answer = await self.client.post(f"{here.url}/auth/login", json=body)
            if answer.status_code != 503:
                break
            await asyncio.sleep(0.5)
        assert answer.status_code == 200, answer.text
        self.tokens[UUID(answer.json()["session_id"])] = answer.json()["access_token"]
        for session_id in await self.ended_by(answer.headers["x-request-id"]):
            if session_id in self.tokens:
                refused = await verify(self.client, there, self.tokens[session_id])
                assert refused.status_code == 401, refused.text
                assert refused.json()["reason"] in {"session_limit", "replaced"}
                self.refused_at_once += 1

    async def read(self, query: Any) -> Sequence[Any]:
        async with self.turn:
            return (await self.watching.execute(query)).all()

    async def ended_by(self, request_id: str) -> list[UUID]:
        query = select(Event.session_id).where(Event.event == "session_ended", Event.request_id == request_id)
        return [row.session_id for row in await self.read(query)]

    async def sessions(self) -> Sequence[Any]:
        query = select(Session.id, Session.end_reason).where(Session.user_id == self.user_id)
        return await self.read(query.order_by(Session.id))

    async def watch(self) -> None:
        """Notes how many sessions live, until it is cancelled. Each reading is a snapshot between two commits."""
        while True:
            self.counts[sum(row.end_reason is None for row in await self.sessions())] += 1
            await asyncio.sleep(0.005)


async def raged(storm: Storm, body: Mapping[str, str], first: int) -> None:
    """Signs in as often as the limit allows, and then many times at once."""
    for number in range(first):
        await storm.sign_in(number, body)
    watch = asyncio.create_task(storm.watch())
    await asyncio.gather(*(storm.sign_in(number, body) for number in range(LOGINS)))
    async with storm.turn:  # the watch is between two readings
        watch.cancel()
    await asyncio.wait({watch})


@pytest.mark.parametrize("device", [False, True], ids=["limit", "device"])
async def test_50_sign_ins_at_once_on_two_processes_leave_exactly_what_may_live_at_every_moment(
    stage: Stage, device: bool
) -> None:
    email = f"{secrets.token_hex(8)}@example.com"
    async with at(stage.database_url) as keyturn:
        user_id = (await a_user(keyturn, email)).user_id
    async with connected(stage.database_url) as watching, a_client(30) as client:
        storm = Storm(stage, watching, client, email, user_id)
        body, exactly = ({"device_id": "laptop"}, 1) if device else ({}, LIMIT)
        await raged(storm, body, exactly)
        assert storm.counts.keys() == {exactly}, f"exceeded, or fewer: {storm.counts}"
        rows = await storm.sessions()
        # One that a service answered with 503 may have been started all the same.
        assert len(rows) >= LOGINS + exactly
        reason = "replaced" if device else "session_limit"
        assert [row.end_reason for row in rows] == [reason] * (len(rows) - exactly) + [None] * exactly
        print(
            f"{len(rows)} sessions, counted {storm.counts[exactly]} times meanwhile,"
            f" {storm.refused_at_once} of the ended ones asked for at once"
        )
        assert storm.refused_at_once >= LOGINS / 5
        for row in rows:
            for service in stage.services if row.id in storm.tokens else ():
                answer = await verify(client, service, storm.tokens[row.id])
                assert answer.status_code == (401 if row.end_reason else 200)
