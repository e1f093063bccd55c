"""The door to the metrics, and its numbers held against what really happened."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text
from redis import asyncio as redis_asyncio
from sqlalchemy import text

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.metrics import METRICS
from app.storage.migrating import migrate
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, settings_of, sync, time_passes
from tests.federated import file_of
from tests.servers import Postgres, Redis, free_port
from tests.service import Service
from tests.upstream.upstream import Upstream

TOKEN = "a-token-of-a-scraper-and-not-of-a-user"
EMAILS = tuple(f"{name}@example.com" for name in ("ada", "bob", "cyd"))
JUNK = "ktr_" + "A" * 84
PATIENCE = 20.0
WORKERS = 2

Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def numbers(body: str, *, parse: Any = prometheus_text) -> Numbers:
    """Each sample of a scrape by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body)
        for sample in family.samples
    }


def by(found: Numbers, name: str, label: str = "outcome") -> dict[str, int]:
    """The words of one label that were counted, with their counts."""
    counts: Counter[str] = Counter()
    for (sample, labels), value in found.items():
        if sample == name:
            counts[dict(labels)[label]] += int(value)
    return {word: count for word, count in counts.items() if count}


def environment(database_url: str, redis_url: str | None = None, **more: Any) -> dict[str, str]:
    values = {
        "database_url": database_url,
        "redis_url": redis_url or "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        **CHEAP,
        **more,
    }
    return {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}


@asynccontextmanager
async def started(logs: Path, values: Mapping[str, str]) -> AsyncIterator[tuple[Service, httpx2.AsyncClient]]:
    """A service, and a client that opens a connection for each request, so that all workers get some."""
    with await asyncio.to_thread(Service.start, values, logs=logs) as service:
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=30, limits=limits) as client:
            yield service, client


async def scrape(port: int, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.get(f"http://127.0.0.1:{port}/metrics", headers=headers)


# -- the door


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_without_a_setting_there_is_no_door_to_the_metrics(database_url: str, logs: Path) -> None:
    async with started(logs, environment(database_url)) as (_, client):
        answer = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_at_the_public_port_the_metrics_need_the_token(database_url: str, logs: Path) -> None:
    async with started(logs, environment(database_url, metrics_token=TOKEN)) as (service, client):
        bare = await client.get("/metrics")
        assert (bare.status_code, bare.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in (TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "x", JUNK):
            answer = await client.get("/metrics", headers={b"Authorization": b"Bearer " + wrong.encode("latin-1")})
            assert answer.status_code == 401, wrong
        good = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (good.status_code, good.headers["cache-control"]) == (200, "no-store")
        assert good.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert (await client.post("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 405
        assert TOKEN not in service.text()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_the_port_of_the_metrics_serves_nothing_else(database_url: str, logs: Path) -> None:
    port = free_port()
    async with started(logs, environment(database_url, metrics_port=port, metrics_token=TOKEN)) as (_, client):
        assert (await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 404
        assert (await scrape(port)).status_code == 401
        assert (await scrape(port, Authorization=f"Bearer {TOKEN}")).status_code == 200
        own = f"http://127.0.0.1:{port}"
        for path in ("/healthz", "/readyz"):
            assert (await client.get(own + path)).status_code == 200
        for method, path in (
            ("POST", "/auth/login"),
            ("POST", "/auth/refresh"),
            ("GET", "/auth/verify"),
            ("GET", "/auth/verify/metrics"),
            ("GET", "/admin/users"),
            ("GET", "/openapi.json"),
            ("GET", "/"),
            ("GET", "/metrics/"),
        ):
            answer = await client.request(method, own + path, json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), path
        posted = await client.post(own + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")
        head = await client.head(own + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"metrics_port": 8000}, "KEYTURN_METRICS_PORT must not be KEYTURN_PORT"),
        ({"metrics_port": 0}, "KEYTURN_METRICS_PORT: must be 1 to 65535"),
        ({"metrics_token": "characters long"}, "KEYTURN_METRICS_TOKEN must have at least 16 characters"),
        ({"metrics_token": "sixteen characters long"}, "KEYTURN_METRICS_TOKEN must have at least 16 characters"),
    ],
)
def test_wrong_settings_of_the_metrics_stop_the_start(values: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words) as error:
        settings_of("sqlite+aiosqlite:///x", None, **values)
    assert "characters long" not in str(error.value)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_the_text_is_that_of_prometheus_or_of_openmetrics(database_url: str, logs: Path) -> None:
    port = free_port()
    async with started(logs, environment(database_url, metrics_port=port)):
        end = monotonic() + PATIENCE
        while "keyturn_sessions_live 0.0" not in (plain := await scrape(port)).text:  # counted by then
            assert monotonic() < end
        opened = await scrape(port, Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        for odd in ("version=x", "version=1.0.0.<b>", "version=" + "9" * 5000, ";;=", "version=1.0.0;version=2"):
            answer = await scrape(port, Accept=f"application/openmetrics-text;{odd}, */*")
            assert answer.status_code == 200, odd
            assert odd not in answer.headers["content-type"]
        preferred = await scrape(port, Accept="text/plain;version=0.0.4;q=0.5,application/openmetrics-text")
        assert preferred.headers["content-type"] == plain.headers["content-type"]
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert opened.text.endswith("# EOF\n")
    assert numbers(plain.text).keys() == numbers(opened.text, parse=open_metrics).keys()
    kinds = {family.name: (family.type, family.documentation) for family in prometheus_text(plain.text)}
    for metric in METRICS:
        if metric.name in plain.text:
            assert kinds[metric.name.removesuffix("_total")] == (metric.kind, metric.text)
    names = {name for name, _ in numbers(plain.text)}
    assert {metric.name for metric in METRICS if metric.kind == "counter"} <= names


# -- the numbers


COUNTED = ("refreshes", "verifications", "logins", "logouts")


class Crowd:
    """Clients that do what they are told, and remember how often they were answered in which way."""

    def __init__(self, client: httpx2.AsyncClient, keyturn: Keyturn) -> None:
        self.client = client
        self.keyturn = keyturn
        self.did: dict[str, Counter[str]] = {name: Counter() for name in (*COUNTED, "ended")}

    async def login(self, email: str, password: str = PASSWORD, word: str = "signed_in") -> dict[str, Any]:
        answer = await self.client.post("/auth/login", json={"email": email, "password": password})
        assert (answer.status_code == 200) == (word == "signed_in"), answer.text
        self.did["logins"][word] += 1
        given: dict[str, Any] = answer.json()
        return given

    async def refresh(self, token: str, word: str, **more: Any) -> dict[str, Any]:
        answer = await self.client.post("/auth/refresh", json={"refresh_token": token, **more})
        assert (answer.status_code == 200) == (word in {"rotated", "retried"}), answer.text
        self.did["refreshes"][word] += 1
        given: dict[str, Any] = answer.json()
        return given

    async def verify(self, token: str | None, word: str, query: str = "") -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = await self.client.get(f"/auth/verify{query}", headers=headers)
        assert (answer.status_code == 200) == (word == "accepted"), answer.text
        self.did["verifications"][word] += 1

    async def logout(self, word: str, **body: str) -> None:
        answer = await self.client.post("/auth/logout", json=body)
        assert (answer.status_code == 204) == (word == "done"), answer.text
        self.did["logouts"][word] += 1

    async def round(self) -> None:
        """Each outcome of refresh, verification, sign-in and logout that needs no outage, some several times."""
        first, second, third = [await self.login(email) for email in EMAILS]
        for email, password in (
            (EMAILS[0], "wrong password"),
            (EMAILS[1], "wrong password"),
            ("no@example.com", "x" * 9),
        ):
            await self.login(email, password, "refused")
        access = first["access_token"]
        for _ in range(7):
            await self.verify(access, "accepted")
        await self.verify(None, "missing")
        await self.verify(access[:-6] + "AAAAAA", "junk")
        await self.verify(access, "denied", "?role=admin")
        await self.verify(access, "malformed", "?max_age=soon")
        await self.refresh(JUNK, "junk")
        await self.refresh(first["refresh_token"], "denied", scope="orders.read")
        for _ in range(20):
            second = await self.refresh(second["refresh_token"], "rotated")
        for _ in range(3):
            await asyncio.gather(*(self.refresh_once_rotated(third["refresh_token"]) for _ in range(4)))
        older = await self.refresh(first["refresh_token"], "rotated")
        newest = await self.refresh(older["refresh_token"], "rotated")
        await self.refresh(first["refresh_token"], "reuse")
        self.did["ended"]["reuse_detected"] += 1
        await self.refresh(newest["refresh_token"], "ended")
        await self.refresh(first["refresh_token"], "ended")
        await self.verify(newest["access_token"], "ended")
        await self.logout("done", refresh_token=third["refresh_token"])
        self.did["ended"]["logout"] += 1
        await self.logout("done", refresh_token=third["refresh_token"])
        await self.logout("junk", refresh_token=JUNK)
        await self.logout("missing")
        await self.delete(second["session_id"])
        await self.refresh(second["refresh_token"], "unknown")

    async def refresh_once_rotated(self, token: str) -> None:
        """One of several that send the same token: the first one that comes rotates, all others are retries."""
        answer = await self.client.post("/auth/refresh", json={"refresh_token": token})
        assert answer.status_code == 200
        self.did["refreshes"]["one of several"] += 1

    async def delete(self, session_id: str) -> None:
        async with self.keyturn.db.begin() as tx:
            for table in ("events", "sessions"):
                column = "session_id" if table == "events" else "id"
                await tx.execute(text(f"DELETE FROM {table} WHERE {column} = :id"), {"id": session_id})

    def expected(self, what: str) -> dict[str, int]:
        counts = dict(self.did[what])
        if several := counts.pop("one of several", 0):
            rounds = several // 12  # each round's third session rotates once
            counts["rotated"] += rounds
            counts["retried"] = counts.get("retried", 0) + several - rounds
        return counts


async def exactly(port: int, crowd: Crowd) -> Numbers:
    """Holds a scrape, made at once, against what happened."""
    found = numbers((await scrape(port)).text)
    for what in COUNTED:
        assert by(found, f"keyturn_{what}_total") == crowd.expected(what), what
    assert by(found, "keyturn_sessions_ended_total", "reason") == crowd.expected("ended")
    assert found["keyturn_metrics_unlisted_total", ()] == 0
    return found


def workers_of(service: Service) -> list[int]:
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server of the test's own, with an empty database `keyturn` at the newest schema."""
    with Postgres.start() as server:
        sync(server.create_database("keyturn"))
        migrate(settings_of(server.url("keyturn"), None))
        yield server


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_every_counter_is_exact_with_several_workers_of_which_some_are_killed(
    database_url: str, redis: Redis, logs: Path, open_keyturn: Opener
) -> None:
    port = free_port()
    values = environment(database_url, redis.url(), workers=WORKERS, metrics_port=port)
    async with open_keyturn(redis_url=redis.url()) as keyturn:
        for email in EMAILS:
            await keyturn.users.create(email, PASSWORD, "user", by=SERVICE)
        async with started(logs, values) as (service, client):
            crowd = Crowd(client, keyturn)
            await crowd.round()
            await exactly(port, crowd)
            for started_before in (WORKERS, WORKERS + 1):
                killed = workers_of(service)
                assert len(killed) == WORKERS
                os.kill(killed[0], signal.SIGKILL)
                await asyncio.to_thread(service.text_with, "Application startup complete", started_before + 1)
                await until_there_are(port, WORKERS)
                await crowd.round()
                found = await exactly(port, crowd)
            assert found["keyturn_processes", ()] == WORKERS
            await requests_are_counted(port, found, crowd)


async def until_there_are(port: int, processes: int) -> None:
    end, seen = monotonic() + PATIENCE, list[float | None]()
    while seen[-1:] != [processes]:
        assert monotonic() < end, seen
        try:
            seen.append(numbers((await scrape(port)).text)["keyturn_processes", ()])
        except httpx2.HTTPError:  # the worker that was killed had taken the connection
            seen.append(None)
        await asyncio.sleep(0.1)


async def requests_are_counted(port: int, found: Numbers, crowd: Crowd) -> None:
    """Durations and refusals are noted right after the answer, so the last one may be still to come."""
    name = "keyturn_http_request_duration_seconds_count"
    wanted = {
        endpoint: sum(crowd.did[what].values())
        for endpoint, what in (
            ("refresh", "refreshes"),
            ("verify", "verifications"),
            ("login", "logins"),
            ("logout", "logouts"),
        )
    }
    end = monotonic() + PATIENCE
    while (counted := {word: by(found, name, "endpoint").get(word, 0) for word in wanted}) != wanted:
        assert monotonic() < end, (counted, wanted)
        found = numbers((await scrape(port)).text)
    refused = by(found, "keyturn_http_refusals_total")
    assert refused["reuse"] == crowd.did["refreshes"]["reuse"]
    assert refused["junk"] == sum(crowd.did[what]["junk"] for what in COUNTED)
    # Each rotation went in one batch, with one item or more.
    assert found["keyturn_batch_size_sum", (("batch", "rotation"),)] >= crowd.expected("refreshes")["rotated"]


async def test_no_count_is_lost_when_a_worker_is_killed_under_load(own_postgres: Postgres, logs: Path) -> None:
    """The clients know how many answers they got, and how many of their requests died with the worker."""
    port = free_port()
    values = environment(own_postgres.url("keyturn"), workers=WORKERS, metrics_port=port, registration="true")
    async with started(logs, values) as (service, client):
        answered = lost = 0
        over = False

        async def refreshing(number: int) -> None:
            nonlocal answered, lost
            account = {"email": f"user{number}@example.com", "password": PASSWORD}
            assert (await client.post("/auth/register", json=account)).status_code == 201
            token = (await client.post("/auth/login", json=account)).json()["refresh_token"]
            while not over:
                try:
                    answer = await client.post("/auth/refresh", json={"refresh_token": token})
                except httpx2.HTTPError:
                    lost += 1
                    continue
                assert answer.status_code == 200, answer.text
                answered += 1
                token = answer.json()["refresh_token"]

        clients = [asyncio.create_task(refreshing(number)) for number in range(8)]
        for kill in range(1, 4):
            await asyncio.sleep(1)
            os.kill(workers_of(service)[0], signal.SIGKILL)
            await asyncio.to_thread(service.text_with, "Application startup complete", WORKERS + kill)
        over = True
        await asyncio.gather(*clients)
        await until_there_are(port, WORKERS)
        found = by(numbers((await scrape(port)).text), "keyturn_refreshes_total")
    assert set(found) <= {"rotated", "retried"}
    assert answered > 100
    assert answered <= sum(found.values()) <= answered + lost


async def test_an_outage_is_counted_and_shown_while_it_lasts(own_postgres: Postgres, logs: Path) -> None:
    port = free_port()
    values = environment(own_postgres.url("keyturn"), metrics_port=port, registration="true")
    async with started(logs, values) as (_, client):
        account = {"email": EMAILS[0], "password": PASSWORD}
        assert (await client.post("/auth/register", json=account)).status_code == 201
        tokens = (await client.post("/auth/login", json=account)).json()
        before = numbers((await scrape(port)).text)
        assert before["keyturn_database_processes", (("state", "answers"),)] == 1
        own_postgres.pause()
        try:
            answers = [client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}) for _ in range(5)]
            checks = [client.get("/auth/verify", headers={"Authorization": f"Bearer {tokens['access_token']}"})] * 1
            statuses = [each.status_code for each in await asyncio.gather(*answers, *checks)]
            assert statuses == [503] * 6
            during = numbers((await scrape(port)).text)
        finally:
            own_postgres.resume()
        assert by(during, "keyturn_refreshes_total") == {"unavailable": 5}
        assert by(during, "keyturn_verifications_total") == {"unavailable": 1}
        assert by(during, "keyturn_revocation_answers_total", "answerer") == {"unavailable": 1}
        assert during["keyturn_database_processes", (("state", "away"),)] == 1
        assert during["keyturn_redis_processes", (("state", "none"),)] == 1
        end = monotonic() + PATIENCE
        while (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).status_code != 200:
            assert monotonic() < end
        found = by(numbers((await scrape(port)).text), "keyturn_refreshes_total")
        assert found.get("rotated", 0) + found.get("retried", 0) == 1  # the outage may have hidden the rotation


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_the_age_of_sessions_their_number_and_redis_are_shown(
    database_url: str, redis: Redis, logs: Path, open_keyturn: Opener
) -> None:
    port = free_port()
    async with (
        open_keyturn(redis_url=redis.url()) as keyturn,
        started(logs, environment(database_url, redis.url(), metrics_port=port)) as (_, client),
    ):
        for email in EMAILS:
            await keyturn.users.create(email, PASSWORD, "user", by=SERVICE)
        crowd = Crowd(client, keyturn)
        sessions = [await crowd.login(email) for email in EMAILS]
        end = monotonic() + PATIENCE
        while True:
            found = numbers((await scrape(port)).text)
            shown = found.get(("keyturn_sessions_live", ())), by(found, "keyturn_redis_processes", "state")
            if shown == (3, {"complete": 1}):
                break
            assert monotonic() < end, shown
        assert found["keyturn_fence_reading_age_seconds", ()] < 60
        assert found["keyturn_resident_memory_bytes", ()] > 10**7
        assert sum(by(found, "keyturn_database_connections", "pool").values()) > 0
        await time_passes(keyturn, timedelta(days=8))
        await crowd.refresh(sessions[0]["refresh_token"], "expired")
        await exactly(port, crowd)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_logout_that_redis_does_not_acknowledge_is_counted_as_fenced(
    database_url: str, logs: Path, open_keyturn: Opener
) -> None:
    with Redis.start() as own:
        port = free_port()
        async with (
            open_keyturn(redis_url=own.url()) as keyturn,
            started(logs, environment(database_url, own.url(), metrics_port=port)) as (_, client),
        ):
            await keyturn.users.create(EMAILS[0], PASSWORD, "user", by=SERVICE)
            crowd = Crowd(client, keyturn)
            first, second = [await crowd.login(EMAILS[0]) for _ in range(2)]
            end = monotonic() + PATIENCE
            while by(numbers((await scrape(port)).text), "keyturn_redis_processes", "state") != {"complete": 1}:
                assert monotonic() < end
            await crowd.logout("done", refresh_token=first["refresh_token"])
            crowd.did["ended"]["logout"] += 1
            found = await exactly(port, crowd)
            assert found["keyturn_fenced_endings_total", ()] == 0
            assert found["keyturn_revocation_lag_seconds_count", ()] == 1
            own.pause()
            try:
                await crowd.logout("done", refresh_token=second["refresh_token"])
                crowd.did["ended"]["logout"] += 1
                found = await exactly(port, crowd)
            finally:
                own.resume()
            assert found["keyturn_fenced_endings_total", ()] == 1
            # All processes rely on older readings for a second, so the answer waited.
            assert found["keyturn_revocation_lag_seconds_bucket", (("le", "0.5"),)] <= 1
            assert found["keyturn_revocation_lag_seconds_count", ()] == 2


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_limits_hashes_and_rebuilds_are_counted_exactly(
    database_url: str, logs: Path, open_keyturn: Opener
) -> None:
    async with open_keyturn() as keyturn:
        await keyturn.users.create(EMAILS[0], PASSWORD, "user", by=SERVICE)
    port = free_port()
    with Redis.start() as own:
        async with started(logs, environment(database_url, own.url(), metrics_port=port)) as (_, client):
            account = {"email": EMAILS[0], "password": "wrong password"}
            statuses = Counter([(await client.post("/auth/login", json=account)).status_code for _ in range(25)])
            assert set(statuses) == {401, 429}
            found = numbers((await scrape(port)).text)
            assert by(found, "keyturn_logins_total") == {"refused": statuses[401], "limited": statuses[429]}
            assert by(found, "keyturn_limits_hit_total", "surface") == {"login": statuses[429]}
            assert by(found, "keyturn_hashes_total") == {"done": statuses[401]}
            assert found["keyturn_hash_duration_seconds_count", ()] == statuses[401]
            assert found["keyturn_hash_slots", ()] >= 1
            assert (found["keyturn_hash_slots_used", ()], found["keyturn_hash_waiting", ()]) == (0, 0)
            end = monotonic() + PATIENCE
            while by(found, "keyturn_redis_processes", "state") != {"complete": 1}:
                assert monotonic() < end
                found = numbers((await scrape(port)).text)
            assert by(found, "keyturn_redis_rebuilds_total") == {"done": 1}
            before = found["keyturn_fence_epochs_total", ()]
            async with redis_asyncio.from_url(own.url()) as connection:
                await connection.flushall()
            while by(found, "keyturn_redis_rebuilds_total") != {"done": 2}:
                assert monotonic() < end
                found = numbers((await scrape(port)).text)
            while found["keyturn_fence_epochs_total", ()] != before + 1:
                assert monotonic() < end
                found = numbers((await scrape(port)).text)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_exchanges_and_requests_to_issuers_are_counted_exactly(
    database_url: str, logs: Path, tmp_path: Path, upstream: Upstream
) -> None:
    port = free_port()
    values = environment(database_url, metrics_port=port, federation_file=file_of(upstream, tmp_path))
    async with started(logs, values) as (_, client):
        did: Counter[str] = Counter()
        for number in range(3):
            token = upstream.mint(subject=upstream.other(number))
            answer = await client.post("/auth/exchange", json={"subject_token": token})
            assert answer.status_code == 200, answer.text
            did["exchanged"] += 1
            answer = await client.post("/auth/exchange", json={"subject_token": token[:-8] + "AAAAAAAA"})
            assert answer.status_code == 401
            did["refused"] += 1
        found = numbers((await scrape(port)).text)
        assert by(found, "keyturn_exchanges_total") == did
        # The stand-in does not know the sessions that these tokens name, so it answers 404 when it is asked for one.
        asked = Counter("answered" if each["status"] < 400 else "refused" for each in upstream.requests())
        assert by(found, "keyturn_federation_requests_total") == asked
        assert found["keyturn_federation_request_duration_seconds_count", ()] == asked.total() > 0
        answer = await client.post("/federation/acme/logout", data={"logout_token": "junk"})
        assert answer.status_code == 400
        found = numbers((await scrape(port)).text)
        assert by(found, "keyturn_upstream_logouts_total") == {"malformed": 1}
