"""The states of Redis that /readyz tells apart, each on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from redis import asyncio as redis_asyncio

from app.actors import SERVICE
from app.keyturn import opened, running
from app.revocation.rebuild import CacheState
from app.revocation.redis_server import MARKER
from app.routes.health import readyz
from tests.conftest import CHEAP, SECRET, Opener, settings_of
from tests.instances import own_redis, report_to
from tests.servers import Redis, free_port
from tests.service import ROOT

__all__ = ["own_redis"]

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"


@pytest.fixture
def engine() -> str:
    return "sqlite"


async def state(keyturn: Any) -> tuple[str, str]:
    """`status` and `cache` of /readyz."""
    _, _, body = await readyz(keyturn, None)  # type: ignore[arg-type]  # it reads nothing of the request
    said = json.loads(body)
    return said["status"], said["cache"]


def doctor(database: Any, url: str) -> tuple[int, dict[str, str]]:
    """The exit code of the doctor, in a process of its own, and what it says about Redis."""
    own = {"DATABASE_URL": database.get_secret_value(), "REDIS_URL": url, "SECRET": SECRET} | CHEAP
    environment = os.environ | {f"KEYTURN_{name.upper()}": value for name, value in own.items()}
    command = [sys.executable, "-m", "app", "doctor", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=60, check=False)
    findings = {each["check"]: each["advice"] for each in json.loads(done.stdout)}
    return done.returncode, {check: advice for check, advice in findings.items() if check.startswith("cache")}


async def until(keyturn: Any, cache: str) -> None:
    async with asyncio.timeout(15):
        while (await state(keyturn))[1] != cache:
            await asyncio.sleep(0.05)
    assert (await state(keyturn))[0] == ("ready" if cache in {"complete", "none"} else "degraded")


async def test_two_keyturns_with_two_databases_on_one_redis_are_told_so(
    open_keyturn: Opener, own_redis: Redis, sqlite_template: Path, tmp_path: Path
) -> None:
    other_file = tmp_path / "other.db"
    other_file.write_bytes(sqlite_template.read_bytes())
    url = own_redis.url(5)
    async with open_keyturn(redis_url=url) as one:
        noted: list[str] = []
        report_to(one, lambda event, **_: noted.append(event))
        await until(one, "complete")
        settings = settings_of(f"sqlite+aiosqlite:///{other_file}", url)
        async with opened(settings) as two, running(two), redis_asyncio.Redis.from_url(url) as client:
            await until(one, "shared with another Keyturn")
            await until(two, "shared with another Keyturn")
            # Both fill Redis in turns. The log does not tell of each turn.
            markers: set[bytes | str | None] = set()
            async with asyncio.timeout(15):
                while len(markers) < 5:
                    markers.add(await client.get(MARKER))
                    await asyncio.sleep(0.02)
            for database in (one.settings.database_url, settings.database_url):
                code, advice = await asyncio.to_thread(doctor, database, url)
                assert (code, list(advice)) == (1, ["cache (shared with another Keyturn)"])
                assert "its own number in KEYTURN_REDIS_URL" in advice["cache (shared with another Keyturn)"]
            assert noted.count("redis_shared") == 1
            assert noted[-1] == "redis_shared"
        async with asyncio.timeout(15):
            while (await state(one))[1] != "complete":
                one.revocations.rebuild._shared_until = 0.0  # a minute later
                await asyncio.sleep(0.05)
        async with redis_asyncio.Redis.from_url(url) as client:
            await client.flushdb()


async def test_instances_of_one_keyturn_and_a_flush_are_no_other_keyturn(
    open_keyturn: Opener, own_redis: Redis
) -> None:
    url = own_redis.url(6)
    seen: set[str] = set()
    async with AsyncExitStack() as stack:
        instances = [await stack.enter_async_context(open_keyturn(redis_url=url)) for _ in range(3)]
        async with redis_asyncio.Redis.from_url(url) as client:
            for _ in range(2):
                for each in instances:
                    await until(each, "complete")
                await instances[0].restored.take(by=SERVICE)  # the fence changes while the old marker stands
                seen |= {each.revocations.rebuild.cache for each in instances}
                await client.flushdb()
                for _ in range(20):
                    seen |= {each.revocations.rebuild.cache for each in instances}
                    await asyncio.sleep(0.05)
            for each in instances:
                await until(each, "complete")
            await instances[0].restored.take(by=SERVICE)
            assert not await instances[1].revocations.is_shared()
    assert seen <= {"not filled", "complete"}


@asynccontextmanager
async def _evicting(_: Redis) -> Any:
    with Redis.start(settings=["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]) as server:
        yield server.url()


@asynccontextmanager
async def _replica(primary: Redis) -> Any:
    with Redis.start(settings=["--replicaof", "127.0.0.1", str(primary.port)]) as server:
        yield server.url()


@asynccontextmanager
async def _nobody(_: Redis) -> Any:
    yield f"redis://127.0.0.1:{free_port()}"


@asynccontextmanager
async def _none(_: Redis) -> Any:
    yield None


@pytest.mark.parametrize(
    ("start", "cache"),
    [(_evicting, "may evict"), (_replica, "refuses commands"), (_nobody, "away"), (_none, "none")],
)
async def test_each_fault_of_redis_has_its_word(
    open_keyturn: Opener, own_redis: Redis, start: Callable[[Redis], Any], cache: str
) -> None:
    async with start(own_redis) as url, open_keyturn(redis_url=url) as keyturn:
        await until(keyturn, cache)


async def test_an_instance_with_another_number_of_the_database_is_told_so(
    open_keyturn: Opener, own_redis: Redis
) -> None:
    async with open_keyturn(redis_url=own_redis.url(7)) as one:
        await until(one, "complete")
        async with open_keyturn(redis_url=own_redis.url(8)) as apart:
            await until(apart, "another Redis")
            assert (await state(one))[1] == "complete"


def test_the_page_for_operators_explains_each_state() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [word for word in get_args(CacheState) if f"`{word}`" not in page] == []
