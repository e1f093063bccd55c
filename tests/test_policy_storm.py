"""A policy changes while clients refresh without a pause, and while parts of the deployment are away."""

from __future__ import annotations

import asyncio
import random
import secrets
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.actors import SERVICE, Actor
from app.errors import TemporarilyUnavailable
from app.policies import Policy
from app.sessions.answers import Tokens
from app.storage.migrating import migrate
from tests.conftest import PASSWORD, Opener, a_user, settings_of, sync, time_passes
from tests.servers import Postgres
from tests.service import Service
from tests.test_policy_changes import changes
from tests.test_races import Stage, a_client, at, connected, logins, refresh, serve

SECOND = timedelta(seconds=1)
ROOT = Actor("command", "root")
SHORT = {"access_lifetime": 60, "retry_window": 20, "idle_lifetime": 600, "absolute_lifetime": 7200}


@pytest.fixture(params=["postgres", "sqlite"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two services on one Postgres, or one on SQLite, for this test alone."""
    folder = tmp_path_factory.mktemp("stage")
    with ExitStack() as stack:
        count = 1
        if request.param == "postgres":
            postgres = request.getfixturevalue("postgres")
            name = f"stage_{secrets.token_hex(6)}"
            sync(postgres.create_database(name, template=request.getfixturevalue("template")))
            stack.callback(lambda: sync(postgres.drop_database(name)))
            url, count = postgres.url(name), 2
        else:
            url = f"sqlite+aiosqlite:///{folder / 'keyturn.db'}"
            migrate(settings_of(url, None))
        yield Stage(url, [stack.enter_context(serve(url, folder)) for _ in range(count)])


@dataclass
class Storm:
    """Clients that refresh without a pause, each its own session, on whichever service."""

    stage: Stage
    client: httpx2.AsyncClient
    statuses: Counter[int] = field(default_factory=Counter)
    told: list[tuple[float, float, str, Any]] = field(default_factory=list)
    """For each answer: when its request began and when it arrived, the service, and the body."""
    going: bool = True

    async def run(self, tokens: Tokens) -> None:
        token = tokens.refresh_token
        while self.going:
            service, began = random.choice(self.stage.services), monotonic()
            answer = await refresh(self.client, service, token)
            self.statuses[answer.status_code] += 1
            body = answer.json()
            self.told.append((began, monotonic(), service.url, body))
            if answer.status_code == 200:
                token = body["refresh_token"]
            else:
                await asyncio.sleep(0.05)

    async def until(self, condition: Any, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def storm(stage: Stage, tokens: list[Tokens]) -> AsyncIterator[Storm]:
    async with a_client(30) as client, asyncio.TaskGroup() as tasks:
        blowing = Storm(stage, client)
        for each in tokens:
            tasks.create_task(blowing.run(each))
        try:
            await blowing.until(lambda: sum(blowing.statuses.values()) > 5 * len(tokens))
            yield blowing
        finally:
            blowing.going = False


async def put(stage: Stage, client: httpx2.AsyncClient, policy: dict[str, int]) -> float:
    """Sets the policy as an administrator does, on one service. Returns the moment of the answer."""
    login = {"email": "root@example.com", "password": PASSWORD}
    service = stage.services[0]
    token = (await client.post(f"{service.url}/auth/login", json=login)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = await client.put(f"{service.url}/admin/policies/global", json=policy, headers=headers)
    assert answer.status_code == 200, answer.text
    return monotonic()


async def test_a_longer_policy_under_a_storm_of_refreshes_signs_nobody_out_and_lengthens_no_session(
    stage: Stage,
) -> None:
    async with at(stage.database_url) as keyturn:
        await a_user(keyturn, "root@example.com", "admin")
        await keyturn.policies.change("global", {name: value * SECOND for name, value in SHORT.items()}, by=ROOT)
        await keyturn.policies.load()
        tokens = await logins(keyturn, 12)
    async with storm(stage, tokens) as blowing:
        for policy in ({}, SHORT, {}, SHORT, {}):
            await put(stage, blowing.client, policy)
            seen = sum(blowing.statuses.values())
            await blowing.until(lambda: sum(blowing.statuses.values()) > seen + 10 * len(tokens))  # noqa: B023  # called at once
        after = {"expires_in": 0}
        async with asyncio.timeout(10):  # until the process that is asked goes by the longer policy
            while after["expires_in"] <= SHORT["access_lifetime"]:
                after = (await blowing.client.post(f"{stage.any().url}/auth/login", json=LOGIN)).json()
    assert blowing.statuses.keys() == {200}
    for _, _, _, body in blowing.told:
        assert body["expires_in"] <= SHORT["access_lifetime"]
        assert body["refresh_expires_in"] <= SHORT["idle_lifetime"]
        assert body["session_expires_in"] <= SHORT["absolute_lifetime"]
    assert after["expires_in"] == 900  # of a sign-in under the longer policy


LOGIN = {"email": "root@example.com", "password": PASSWORD}


async def test_a_shorter_policy_under_a_storm_of_refreshes_ends_everyone_on_every_service_and_at_once(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    async with at(stage.database_url) as keyturn:
        tokens = await logins(keyturn, 12)
        await time_passes(keyturn, timedelta(hours=2))
        young = await logins(keyturn, 4)
        await a_user(keyturn, "root@example.com", "admin")
    async with storm(stage, tokens + young) as blowing:
        shorter = SHORT | {"absolute_lifetime": 3600}
        changed = await put(stage, blowing.client, shorter)
        old = {str(each.session_id) for each in tokens}
        urls = {service.url for service in stage.services}
        refusing: dict[str, float] = {}

        def everywhere() -> bool:
            for _, arrived, url, body in blowing.told:
                if "error" in body:
                    refusing.setdefault(url, arrived)
            return refusing.keys() == urls

        await blowing.until(everywhere)
        seen = sum(blowing.statuses.values())
        await blowing.until(lambda: sum(blowing.statuses.values()) > seen + 100)
    assert blowing.statuses.keys() == {200, 401}
    assert {body["reason"] for *_, body in blowing.told if "error" in body} == {"absolute_timeout"}
    last = 0.0
    for began, _, url, body in blowing.told:
        if body.get("session_id") in old:
            last = max(last, began)
            assert began < refusing[url], "a service that has once refused goes by the policy"
        elif "error" not in body and began > refusing[url]:
            # The young sessions go on, with the deadlines of the new policy.
            assert body["expires_in"] == 60
            assert body["session_expires_in"] <= 3600
    assert any(body.get("session_id") not in old and began > last for began, _, _, body in blowing.told)
    with capsys.disabled():
        print(
            f"\nlast accepted {last - changed:+.3f} s after the answer; first refusals "
            f"{', '.join(f'{began - changed:+.3f} s' for began in refusing.values())}; {dict(blowing.statuses)}"
        )


# -- restarts and outages


async def test_instances_with_other_settings_share_a_row_while_they_take_over_from_each_other(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as old:
        await old.policies.change("global", {"access_lifetime": 600 * SECOND, "session_limit": 20}, by=ROOT)
        async with open_keyturn(access_token_lifetime=300, session_limit=5) as new:
            await old.policies.load()
            proof = await a_user(old)
            tokens = await old.starting.start(proof, by=SERVICE)
            for each, lifetime, limit in ((new, 300, 5), (old, 600, 20), (new, 300, 5)):
                assert (each.policies.in_force.access_lifetime, each.policies.in_force.session_limit) == (
                    lifetime * SECOND,
                    limit,
                )
                tokens = await each.rotation.refresh(tokens.refresh_token, by=SERVICE)
                assert tokens.body()["expires_in"] == lifetime
                for reader in (old, new):
                    await reader.reading.verify(tokens.access_token)
    async with open_keyturn() as again:  # a restart reads the row before the first request
        assert again.policies.in_force.access_lifetime == 600 * SECOND


async def test_a_change_that_finds_the_database_locked_is_refused_and_leaves_nothing(
    open_keyturn: Opener, database_url: str, engine: str
) -> None:
    async with open_keyturn() as keyturn:
        if engine == "sqlite":
            with closing(sqlite3.connect(database_url.partition("///")[2], isolation_level=None)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                with pytest.raises(TemporarilyUnavailable):
                    await keyturn.policies.change("global", {"remember": False}, by=ROOT)
                connection.execute("ROLLBACK")
        else:
            async with connected(database_url) as connection:
                await connection.execute(text("BEGIN"))
                await connection.execute(text("SELECT * FROM pulse FOR UPDATE"))
                with pytest.raises(TemporarilyUnavailable):
                    await keyturn.policies.change("global", {"remember": False}, by=ROOT)
                await connection.execute(text("ROLLBACK"))
        assert await changes(keyturn) == []
        await keyturn.policies.change("global", {"remember": False}, by=ROOT)
        assert len(await changes(keyturn)) == 1


async def test_a_policy_survives_an_outage_of_the_database_and_a_change_made_meanwhile_holds_afterwards(
    tmp_path: Path, logs: Path
) -> None:
    with Postgres.start(durable=True) as postgres:
        url = postgres.url()
        await asyncio.to_thread(migrate, settings_of(url, None))
        async with at(url) as keyturn:
            proof = await a_user(keyturn)
            await keyturn.policies.change("global", {"access_lifetime": 600 * SECOND}, by=ROOT)
            await keyturn.policies.load()
            tokens = await keyturn.starting.start(proof, by=SERVICE)
        service: Service
        async with a_client(30) as client:
            with await asyncio.to_thread(serve, url, logs) as service:
                first = (await refresh(client, service, tokens.refresh_token)).json()
                assert first["expires_in"] == 600
                postgres.stop()
                assert (await refresh(client, service, first["refresh_token"])).status_code == 503
                await asyncio.to_thread(postgres.restart)
                async with at(url) as keyturn:
                    assert keyturn.policies.in_force.access_lifetime == 600 * SECOND
                    await keyturn.policies.change("global", {"access_lifetime": 300 * SECOND}, by=ROOT)
                token, told = first["refresh_token"], 600
                async with asyncio.timeout(30):
                    while told != 300:
                        answer = await refresh(client, service, token)
                        assert answer.status_code in {200, 503}
                        if answer.status_code == 200:
                            token, told = answer.json()["refresh_token"], answer.json()["expires_in"]


def test_a_policy_that_no_row_makes_stricter_is_the_settings_own_object(open_keyturn: Opener) -> None:
    async def run() -> None:
        async with open_keyturn() as keyturn:
            assert keyturn.policies.in_force is keyturn.policies.first
            assert keyturn.policies.first == Policy.of(keyturn.settings)

    sync(run())
