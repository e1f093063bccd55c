"""Real servers, one of each for the whole run; a database of its own for each test."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.keyturn import Keyturn, opened, running
from app.passwords import Authenticated
from app.settings import Settings, read
from app.setup import migrate
from tests.servers import Postgres, Redis

SECRET = "x3pQkq0q4v0Tn5oHn1o9R2m8mWb7s3eJf6dKz1uYc5g="
"""The master secret of all tests. Random, so that it passes for one; worth nothing."""

CHEAP = {"argon2_memory": "8", "argon2_passes": "1", "argon2_lanes": "1"}
PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    server = Redis.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where services write their logs; tests/test_zz_secrets.py searches them in the end."""
    return tmp_path_factory.mktemp("logs")


def sync(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Runs a coroutine on a loop of its own, for fixtures that are not on the tests' loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """A Postgres database at the newest schema, to be copied."""
    name = f"template_{secrets.token_hex(4)}"
    sync(postgres.create_database(name))
    migrate(settings_of(postgres.url(name), None))
    return name


def settings_of(database_url: str, redis_url: str | None, **more: Any) -> Settings:
    """Settings for tests, read as the service reads them."""
    values = {
        "database_url": database_url,
        "redis_url": redis_url or "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        **CHEAP,
        **more,
    }
    return read({f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()})


@pytest.fixture(params=["postgres", "sqlite"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each test that uses it runs on both databases."""
    return str(request.param)


@pytest.fixture
def database_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database at the newest schema."""
    if engine == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'keyturn.db'}"
        migrate(settings_of(url, None))
        yield url
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    sync(postgres.create_database(name, template=request.getfixturevalue("template")))
    yield postgres.url(name)
    sync(postgres.drop_database(name))


Opener = Callable[..., AbstractAsyncContextManager[Keyturn]]


@pytest.fixture
def open_keyturn(database_url: str) -> Opener:
    """Opens a Keyturn on the test's database; several are several instances."""

    @asynccontextmanager
    async def opener(*, redis_url: str | None = None, **settings: Any) -> AsyncIterator[Keyturn]:
        async with opened(settings_of(database_url, redis_url, **settings)) as keyturn, running(keyturn):
            yield keyturn

    return opener


@pytest.fixture
async def keyturn(open_keyturn: Opener) -> AsyncIterator[Keyturn]:
    """One instance, without Redis."""
    async with open_keyturn() as keyturn:
        yield keyturn


async def a_user(keyturn: Keyturn, email: str = "ada@example.com", role: str = "user") -> Authenticated:
    """A user who has just proved the password."""
    await keyturn.users.create(email, PASSWORD, role)
    return await keyturn.users.authenticate(email, PASSWORD)


async def time_passes(keyturn: Keyturn, how_much: timedelta) -> None:
    """Lets the sessions grow older: the clock is the database's, so their moments move and the clock stays.

    Only whole seconds, so that what is derived from a moment's seconds stays the same but for the shift.
    """
    columns = ("created_at", "rotated_at", "idle_expires_at", "absolute_expires_at", "ended_at")
    shift: Any = how_much
    if not keyturn.db.is_postgres:
        shift = int(how_much.total_seconds()) * 1_000_000
    moves = ", ".join(
        f"{c} = {c} - " + ("CAST(:shift AS interval)" if keyturn.db.is_postgres else ":shift") for c in columns
    )
    async with keyturn.db.begin() as tx:
        await tx.execute(text(f"UPDATE sessions SET {moves}"), {"shift": shift})


def pytest_configure() -> None:
    # The tests decide what the service sees of the environment.
    for name in [n for n in os.environ if n.startswith("KEYTURN_")]:
        del os.environ[name]
