"""Starts Keyturn for browsers and the applications of examples/web, each in a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx2

from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.sentinel import Sentinel
from tests.servers import free_port
from tests.service import ROOT, START, Service

EMAIL = "ada@example.com"
ACCOUNT = {"email": EMAIL, "password": PASSWORD}


def keyturn_settings(folder: Path, issuer: str, lifetime: int, **more: str) -> dict[str, str]:
    """The environment of a Keyturn on SQLite whose access tokens live this many seconds. `more` overrides by name."""
    values = {
        "data_dir": str(folder / "data"),
        "secret": SECRET,
        "issuer": issuer,
        "registration": "true",
        "access_token_lifetime": str(lifetime),
        "retry_window": str(lifetime // 3),
        **CHEAP,
        **more,
    }
    return {f"KEYTURN_{name.upper()}": value for name, value in values.items()}


@asynccontextmanager
async def keyturn_for_browsers(
    environment: dict[str, str], logs: Path, port: int | None = None
) -> AsyncIterator[Service]:
    """A Keyturn with one user (`ACCOUNT`)."""
    with await asyncio.to_thread(Service.start, environment, logs=logs, port=port) as service:
        async with httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=20) as client:
            assert (await client.post("/auth/register", json=ACCOUNT)).status_code == 201
        yield service


def rotations(folder: Path) -> int:
    """How often the newest session of the Keyturn in this folder was rotated, as its row says."""
    with closing(sqlite3.connect(folder / "data" / "keyturn.db")) as database:
        (generation,) = database.execute("SELECT generation FROM sessions ORDER BY created_at DESC LIMIT 1").fetchone()
    return int(generation)


@asynccontextmanager
async def web_example(module: str, keyturn: str, origin: str, logs: Path) -> AsyncIterator[int]:
    """An application of examples/web, on a port of its own."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", f"examples.web.{module}:create", "--port", str(port)]
    place = {"WEB_KEYTURN_URL": keyturn, "WEB_ORIGIN": origin}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **place}

    def ready() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    sentinel = Sentinel()
    try:
        log = logs / f"service-{module}-{port}.log"  # a name for which the search for secrets looks
        sentinel.run(command, environment=environment, log=log)
        code = await asyncio.to_thread(sentinel.wait, START, ready)
        assert code is None, log.read_text()
        yield port
    finally:
        await asyncio.to_thread(sentinel.close)
