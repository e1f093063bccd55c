"""Rotation of every key under storms of refreshes, verifications and cookies on two processes: nobody is refused."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import httpx2
import jwt
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.errors import TemporarilyUnavailable
from app.keyturn import Keyturn, opened
from app.settings import Algorithm
from app.storage.tables import microseconds
from app.tokens.key_set import Use
from app.tokens.key_table import PUBLISHED_FOR
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, settings_of
from tests.cookies import set_cookies
from tests.service import Service
from tests.test_keys import status

OTHER = "b" + SECRET[1:]
ADA = {"email": "ada@example.com", "password": PASSWORD}
LONG = "TEST_LONG" in os.environ
Json = dict[str, Any]


def environment(database_url: str, **more: str) -> dict[str, str]:
    values = {
        "database_url": database_url, "redis_url": "none", "secret": SECRET, "issuer": "https://auth.example.com",
        "registration": "true", **CHEAP, **more,
    }  # fmt: skip
    return {f"KEYTURN_{name.upper()}": value for name, value in values.items()}


class Storm:
    """Clients that refresh and verify without a pause, each request at the other process, and count the answers."""

    def __init__(self, *services: Service) -> None:
        self.services = list(services)
        self.answers: Counter[str] = Counter()
        self.refused: list[str] = []
        self.kids: list[dict[str, Any]] = [{} for _ in range(6)]  # by client: ids of the keys of its newest tokens
        self._client = httpx2.AsyncClient(trust_env=False, timeout=20)
        self._turn = 0

    async def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """Sends a request to the next process. Where it is being restarted, the same request goes to the other."""
        while True:
            self._turn += 1
            url = self.services[self._turn % len(self.services)].url
            try:
                answer = await self._client.request(method, url + path, **more)
            except httpx2.TransportError:
                self.answers["retried"] += 1
                await asyncio.sleep(0.05)
                continue
            self.answers[path] += 1
            if answer.status_code == 503:  # no verdict: a busy machine may be slow, and the client asks again
                self.answers["503"] += 1
                await asyncio.sleep(0.2)
                continue
            if answer.status_code not in {200, 204}:
                self.refused.append(f"{path} {answer.status_code} {answer.text}")
            return answer

    async def bearer(self, kids: dict[str, Any]) -> None:
        tokens = (await self.ask("POST", "/auth/login", json=ADA)).json()
        while not self.refused:
            await asyncio.sleep(0.02)  # the machine has other work too
            bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
            await self.ask("GET", "/auth/verify", headers=bearer)
            tokens = (await self.ask("POST", "/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).json()
            if "access_token" in tokens:
                kids["access"] = jwt.get_unverified_header(tokens["access_token"])["kid"]
                kids["refresh"] = tokens["refresh_token"][4:6]  # the first byte after `ktr_` is the key's number
                kids["rounds"] = kids.get("rounds", 0) + 1

    async def cookie(self, kids: dict[str, Any]) -> None:
        same, jar = {"Sec-Fetch-Site": "same-origin"}, dict[str, str]()
        answer = await self.ask("POST", "/auth/login", json={**ADA, "mode": "cookie"}, headers=same)
        while not self.refused:
            await asyncio.sleep(0.02)
            jar |= {each.name: each.value for each in set_cookies(answer)}
            kids["cookie"] = [
                value[:10] for name, value in jar.items() if "refresh" in name
            ]  # the key's id comes first
            kids["rounds"] = kids.get("rounds", 0) + 1
            fields = {**same, "Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
            await self.ask("GET", "/auth/verify", headers=fields)
            answer = await self.ask("POST", "/auth/refresh", headers=fields)

    @asynccontextmanager
    async def blowing(self) -> AsyncIterator[None]:
        await self._client.post(self.services[0].url + "/auth/register", json=ADA)
        clients = [asyncio.create_task((self.bearer, self.cookie)[n % 2](kids)) for n, kids in enumerate(self.kids)]
        try:
            await self.until(lambda: all(self.kids))
            yield
        finally:
            for client in clients:
                client.cancel()
                with suppress(asyncio.CancelledError):
                    await client
            await self._client.aclose()
        print(f"{dict(self.answers)}; refused: {self.refused}")

    async def until(self, seen: Callable[[], bool], seconds: float = 120) -> None:
        async with asyncio.timeout(seconds):
            while not seen():
                assert self.refused == []
                await asyncio.sleep(0.05)

    async def goes_on(self) -> None:
        """Waits until every client has new tokens."""
        before = [kids["rounds"] for kids in self.kids]
        await self.until(lambda: all(k["rounds"] > was + 1 for k, was in zip(self.kids, before, strict=True)))


async def moved(keyturn: Keyturn, kid: str, column: str, seconds: int) -> None:
    """Moves a moment of a key to some seconds from now, and tells all processes."""
    now = "statement_timestamp()" if keyturn.db.is_postgres else str(microseconds(keyturn.db.clock()))
    ahead = f"{now} + interval '{seconds} seconds'" if keyturn.db.is_postgres else f"{now} + {seconds * 1_000_000}"
    async with keyturn.db.begin() as tx:
        await tx.execute(text(f"UPDATE keys SET {column} = {ahead} WHERE kid = :kid"), {"kid": kid})
        await tx.execute(text("UPDATE pulse SET keys = keys + 1"))


async def rotated(storm: Storm, keyturn: Keyturn, use: Use, algorithm: Algorithm | None, *, truly: bool) -> None:
    before = [dict(kids) for kids in storm.kids if use in kids]
    made = await asked_again(lambda: keyturn.key_changes.rotate(use, algorithm, by=SERVICE))
    old = next(key["kid"] for key in made.keys if key["status"] == "signs")
    if not truly:
        await moved(keyturn, made.kid, "signs_from", 4)
    waiting = asyncio.create_task(asked_again(lambda: keyturn.key_changes.signs(made.kid)))
    await storm.until(waiting.done)

    def all_moved() -> bool:
        return all(kids[use] != was[use] for kids, was in zip((k for k in storm.kids if use in k), before, strict=True))

    await storm.until(all_moved)
    # All tokens are under the new key now. So the moment of the old key may come.
    await moved(keyturn, old, "retired_at", 1)
    async with asyncio.timeout(30):
        while (await status(keyturn))[old] != "retired":
            await asyncio.sleep(0.1)
    await asyncio.sleep(1.5)
    await storm.goes_on()


async def asked_again(act: Callable[[], Awaitable[Any]]) -> Any:
    """The outcome of an act that may be called again when the busy machine lets it wait for too long."""
    while True:
        with suppress(TemporarilyUnavailable):
            return await act()


def went_by_its_keys(service: Service) -> bool:
    """Whether the process had the keys that it needed, at each moment."""
    return not re.search("no key set in force|no cookie key in force|the key set is out of date", service.text())


ROTATIONS: tuple[tuple[Use, Algorithm | None], ...] = (
    ("access", "EdDSA"), ("refresh", None), ("cookie", None), ("access", "ES256"),
)  # fmt: skip


async def test_nobody_is_refused_while_the_keys_of_each_use_are_rotated(
    database_url: str, open_keyturn: Opener, logs: Path
) -> None:
    values = environment(database_url)
    with Service.start(values, logs=logs) as one, Service.start(values, logs=logs) as two:
        storm = Storm(one, two)
        async with open_keyturn() as keyturn, storm.blowing():
            for use, algorithm in ROTATIONS:
                await rotated(storm, keyturn, use, algorithm, truly=False)
            assert list((await status(keyturn)).values()).count("retired") == len(ROTATIONS)
        assert went_by_its_keys(one)
        assert went_by_its_keys(two)
    assert storm.refused == []
    assert storm.answers["retried"] == 0


@pytest.mark.skipif(not LONG, reason=f"TEST_LONG is not set: each rotation waits {PUBLISHED_FOR.seconds} s")
async def test_nobody_is_refused_in_the_true_minute_between_publication_and_signature(
    database_url: str, open_keyturn: Opener, logs: Path
) -> None:
    values = environment(database_url)
    with Service.start(values, logs=logs) as one, Service.start(values, logs=logs) as two:
        storm = Storm(one, two)
        async with open_keyturn() as keyturn, storm.blowing():
            acts = [rotated(storm, keyturn, use, a, truly=True) for use, a in ROTATIONS[:3]]
            await asyncio.gather(*acts)  # at once: each waits for its minute
        assert went_by_its_keys(one)
        assert went_by_its_keys(two)
    assert storm.refused == []
    assert storm.answers["retried"] == 0


async def test_nobody_is_refused_while_the_master_secret_changes(database_url: str, logs: Path) -> None:
    before, both = environment(database_url), environment(database_url, secret=OTHER, secret_previous=SECRET)
    after = environment(database_url, secret=OTHER)
    running = [Service.start(before, logs=logs) for _ in range(2)]
    storm = Storm(*running)

    async def restarted(values: dict[str, str]) -> None:
        """Restarts the instances one after another, as an operator does."""
        for n, service in enumerate(running):
            await asyncio.to_thread(service.terminate)
            running[n] = storm.services[n] = await asyncio.to_thread(Service.start, values, logs=logs)
            await storm.goes_on()

    try:
        async with storm.blowing():
            await restarted(both)
            async with opened(settings_of(database_url, None, secret=OTHER, secret_previous=SECRET)) as keyturn:
                await keyturn.keys.load()
                assert await asked_again(lambda: keyturn.key_rotation.rewrap(by=SERVICE)) in {0, 3}  # at once
                assert {key["sealed_under"] for key in await keyturn.keys.list()} == {"current"}
            await asyncio.sleep(1.5)
            await storm.goes_on()
            await restarted(after)
    finally:
        for service in running:
            service.close()
    assert storm.refused == []


def test_every_use_is_rotated_here() -> None:
    assert {use for use, _ in ROTATIONS} == set(get_args(Use))
