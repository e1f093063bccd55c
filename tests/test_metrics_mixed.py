"""A mixed run on several workers, with faults of Redis, the database and the workers: every answer is counted once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest
from redis import asyncio as redis_asyncio
from sqlalchemy import text

from app.actors import SERVICE
from app.keyturn import opened
from tests.conftest import PASSWORD, settings_of
from tests.servers import Postgres, Redis, free_port
from tests.test_metrics import (
    JUNK,
    PATIENCE,
    Numbers,
    by,
    environment,
    numbers,
    own_postgres,
    scrape,
    started,
    until_there_are,
    workers_of,
)

__all__ = ["own_postgres"]  # a fixture

WORKERS, CLIENTS, STEPS, ROTATIONS = 3, 12, 25, 6
WRONG = "a wrong password, long enough"
SETTINGS = {
    "limit_account": "4/240",
    "limit_session": f"{ROTATIONS}/60",
    "limit_junk": "20/60",
    "trusted_proxies": "127.0.0.1",
    "verify_without_database": 0,
    # Hashes of the tests are cheap, and all of them find a place.
    "hashing_queue": 1000,
}


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with Redis.start() as server:
        yield server


class Client:
    """One user with a session, who does what dice say, and notes how each request was answered."""

    def __init__(self, number: int, http: httpx2.AsyncClient, answers: dict[str, Counter[str]]) -> None:
        self.dice = random.Random(number)
        self.email = f"user{number}@example.com"
        self.address = f"10.0.{number}.1"
        self.http = http
        self.answers = answers
        self.tokens: list[dict[str, Any]] = []

    async def ask(self, method: str, path: str, body: Any = None, bearer: str | None = None) -> httpx2.Response:
        headers = {"X-Forwarded-For": self.address} | ({} if bearer is None else {"Authorization": f"Bearer {bearer}"})
        answer = await self.http.request(method, path, json=body, headers=headers)
        word = str(answer.status_code)
        if answer.status_code == 401:
            word += " " + answer.json().get("reason", "")
        self.answers[path.rpartition("/")[2]][word] += 1
        return answer

    async def sign_in(self) -> None:
        answer = await self.ask("POST", "/auth/login", {"email": self.email, "password": PASSWORD})
        if answer.status_code == 200:
            self.tokens = [answer.json()]

    async def guess(self) -> None:
        await self.ask("POST", "/auth/login", {"email": self.email, "password": WRONG})

    async def refresh(self) -> None:
        answer = await self.ask("POST", "/auth/refresh", {"refresh_token": self.tokens[-1]["refresh_token"]})
        if answer.status_code == 200:
            self.tokens.append(answer.json())
        elif answer.status_code == 401:
            await self.sign_in()

    async def refresh_in_a_loop(self) -> None:
        """More often than all workers together allow, so one of them refuses."""
        await self.sign_in()
        for _ in range(WORKERS * ROTATIONS + WORKERS):
            await self.refresh()

    async def refresh_at_once(self) -> None:
        body = {"refresh_token": self.tokens[-1]["refresh_token"]}
        answers = await asyncio.gather(*(self.ask("POST", "/auth/refresh", body) for _ in range(4)))
        good = [answer.json() for answer in answers if answer.status_code == 200]
        self.tokens += good[:1]

    async def present_an_older_token(self) -> None:
        await self.ask("POST", "/auth/refresh", {"refresh_token": self.tokens[0]["refresh_token"]})

    async def verify(self) -> None:
        await self.ask("GET", "/auth/verify", bearer=self.tokens[-1]["access_token"])

    async def log_out(self) -> None:
        answer = await self.ask("POST", "/auth/logout", {"refresh_token": self.tokens[-1]["refresh_token"]})
        if answer.status_code == 204 and self.dice.random() < 0.5:
            await self.verify()
        await self.sign_in()

    async def junk(self) -> None:
        await self.ask("POST", "/auth/refresh", {"refresh_token": JUNK})
        await self.ask("GET", "/auth/verify", bearer="a.b.c")
        await self.ask("POST", "/auth/logout", {"refresh_token": JUNK})

    async def step(self) -> None:
        if not self.tokens:
            return await self.sign_in()
        acts: list[Callable[[], Awaitable[None]]] = [self.refresh, self.verify, self.refresh_at_once, self.junk]
        acts += [self.refresh, self.verify, self.verify, self.guess, self.log_out, self.present_an_older_token]
        await self.dice.choice(acts)()
        return None


async def run(clients: list[Client], steps: int = STEPS) -> None:
    async def go_on(client: Client) -> None:
        for _ in range(steps):
            await client.step()

    await asyncio.gather(*(go_on(client) for client in clients))


async def each_answer_is_counted(port: int, answers: dict[str, Counter[str]]) -> Numbers:
    found = numbers((await scrape(port)).text)

    def of(path: str, *words: str) -> int:
        return sum(count for word, count in answers[path].items() if word in words)

    refreshes, verifications = by(found, "keyturn_refreshes_total"), by(found, "keyturn_verifications_total")
    logins, logouts = by(found, "keyturn_logins_total"), by(found, "keyturn_logouts_total")
    # An ended session tells the same reason to the reuse that ended it, and to those that come later.
    over = {"ended": refreshes.pop("ended", 0) + refreshes.pop("reuse", 0)}
    tokens = {"good": refreshes.pop("rotated", 0) + refreshes.pop("retried", 0)}
    assert refreshes | over | tokens == _some(
        good=of("refresh", "200"),
        ended=of("refresh", "401 reuse_detected", "401 logout"),
        junk=of("refresh", "401 "),
        limited=of("refresh", "429"),
        unavailable=of("refresh", "503"),
    ) | {name: n for name, n in (over | tokens).items() if not n}
    assert verifications == _some(
        accepted=of("verify", "200"),
        ended=of("verify", "401 reuse_detected", "401 logout"),
        junk=of("verify", "401 "),
        limited=of("verify", "429"),
        unavailable=of("verify", "503"),
    )
    assert logins == _some(
        signed_in=of("login", "200"),
        refused=of("login", "401 "),
        limited=of("login", "429"),
        unavailable=of("login", "503"),
    )
    assert logouts == _some(done=of("logout", "204"), junk=of("logout", "401 "), unavailable=of("logout", "503"))
    limited = {path: of(path, "429") for path in ("refresh", "verify", "login")}
    assert by(found, "keyturn_limits_hit_total", "surface") == _some(**limited)
    assert found["keyturn_metrics_unlisted_total", ()] == 0
    assert sum(sum(each.values()) for each in answers.values()) > 100
    known = {"200", "204", "401 ", "401 reuse_detected", "401 logout", "429", "503"}
    assert {word for each in answers.values() for word in each} <= known
    return found


def _some(**counts: int) -> dict[str, int]:
    return {word: count for word, count in counts.items() if count}


async def until_counted(port: int, answers: dict[str, Counter[str]]) -> None:
    """Durations are noted right after the answer, so those of the last requests may be still to come."""
    wanted = {path: sum(each.values()) for path, each in answers.items()}
    end, counted = monotonic() + PATIENCE, dict[str, int]()
    while counted != wanted:
        assert monotonic() < end, (counted, wanted)
        found = numbers((await scrape(port)).text)
        durations = by(found, "keyturn_http_request_duration_seconds_count", "endpoint")
        counted = {path: durations.get(path, 0) for path in wanted}
    refusals = by(found, "keyturn_http_refusals_total")
    for word, status in (("limited", "429"), ("unavailable", "503")):
        assert refusals.get(word, 0) == sum(each[status] for each in answers.values())


async def test_in_a_mixed_run_with_faults_every_answer_of_every_worker_is_counted_once(
    own_postgres: Postgres,  # the fixture
    own_redis: Redis,
    logs: Path,
) -> None:
    port, url = free_port(), own_postgres.url("keyturn")
    values = environment(url, own_redis.url(), workers=WORKERS, metrics_port=port, **SETTINGS)
    answers = defaultdict[str, Counter[str]](Counter)
    async with opened(settings_of(url, own_redis.url())) as keyturn:
        await keyturn.keys.make_first(by=SERVICE)
        await keyturn.keys.load()
        for number in range(CLIENTS + 1):
            await keyturn.users.create(f"user{number}@example.com", PASSWORD, by=SERVICE)
        async with started(logs, values) as (service, http):
            clients = [Client(number, http, answers) for number in range(CLIENTS)]
            await until_there_are(port, WORKERS)
            await run(clients)
            # Redis is paused, then empty, in the middle of the run; a worker is killed between two runs.
            running = asyncio.create_task(run(clients))
            await asyncio.sleep(0.3)
            own_redis.pause()
            await asyncio.sleep(1)
            own_redis.resume()
            async with redis_asyncio.from_url(own_redis.url()) as connection:
                await connection.flushall()
            await running
            os.kill(workers_of(service)[0], signal.SIGKILL)
            await asyncio.to_thread(service.text_with, "Application startup complete", WORKERS + 1)
            await until_there_are(port, WORKERS)
            await run(clients)
            await Client(CLIENTS, http, answers).refresh_in_a_loop()
            found = await each_answer_is_counted(port, answers)
            await until_counted(port, answers)
            async with keyturn.db.look() as connection:
                rotated = await connection.scalar(text("SELECT sum(generation) FROM sessions"))
                started_ = await connection.scalar(text("SELECT count(*) FROM sessions"))
                query = text(
                    "SELECT end_reason, count(*) AS sessions FROM sessions WHERE end_reason IS NOT NULL GROUP BY 1"
                )
                ended = {row.end_reason: row.sessions for row in await connection.execute(query)}
            assert by(found, "keyturn_refreshes_total")["rotated"] == rotated
            assert by(found, "keyturn_logins_total")["signed_in"] == started_
            assert by(found, "keyturn_sessions_ended_total", "reason") == ended
            assert by(found, "keyturn_refreshes_total")["reuse"] == ended["reuse_detected"]
            hashes = by(found, "keyturn_hashes_total")
            assert hashes == {"done": answers["login"]["200"] + answers["login"]["401 "]}
            for word in ("rotated", "retried", "reuse", "limited", "junk"):
                assert by(found, "keyturn_refreshes_total").get(word), f"the run had none of {word}"
            # The database stands still, so most requests are answered 503.
            own_postgres.pause()
            try:
                await run(clients, 1)
            finally:
                own_postgres.resume()
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while (await http.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.2)
            await run(clients, 3)
            await each_answer_is_counted(port, answers)
            await until_counted(port, answers)
            assert sum(each["503"] for each in answers.values()) > 0
