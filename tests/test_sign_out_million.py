"""Signing everyone out where a million sessions live: how soon the last token is refused, and how much is written."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.keyturn import Keyturn, opened, running
from app.storage.tables import Session
from tests.conftest import a_user, settings_of
from tests.servers import Postgres
from tests.service import Service
from tests.test_key_storms import ADA, environment

SESSIONS = 1_000_000
_STEP = 20_000
Json = dict[str, Any]

_OTHERS = [column.name for column in Session.__table__.columns if column.name not in {"id", "token_digest"}]
# Copies of one live session, with ids and digests of their own.
_MANY = f"""
INSERT INTO sessions (id, token_digest, {", ".join(_OTHERS)})
SELECT CAST('018f0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid), sha256(CAST(CAST(n AS text) AS bytea)),
  {", ".join(f"s.{name}" for name in _OTHERS)}
FROM (SELECT * FROM sessions LIMIT 1) s, generate_series(CAST(:first AS integer), CAST(:last AS integer)) n
"""


async def wal(keyturn: Keyturn) -> int:
    async with keyturn.db.look() as connection:
        lsn = text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
        return int(await connection.scalar(lsn) or 0)


async def last_accepted(asks: list[Callable[[], Awaitable[bool]]], act: Callable[[], Awaitable[object]]) -> list[float]:
    """For each of several clients that ask without a pause, how long after the act it was accepted for the last time."""
    accepted = [0.0] * len(asks)
    over = [False] * len(asks)

    async def poll(n: int) -> None:
        while True:
            began = monotonic()
            if not await asks[n]():
                over[n] = True
                return
            accepted[n] = began  # later, it might not have been
            await asyncio.sleep(0.005)

    polling = [asyncio.create_task(poll(n)) for n in range(len(asks))]
    await asyncio.sleep(1)
    began = monotonic()
    await act()
    done = monotonic()
    async with asyncio.timeout(30):
        await asyncio.gather(*polling)
    print(f"the call took {done - began:.3f} s")
    return [moment - began for moment in accepted]


@pytest.mark.skipif("TEST_LONG" not in os.environ, reason=f"TEST_LONG is not set: it makes {SESSIONS:,} sessions")
async def test_a_million_sessions_are_signed_out_by_a_write_of_some_kilobytes(
    postgres: Postgres, template: str, logs: Path
) -> None:
    name = f"test_{secrets.token_hex(6)}"
    await postgres.create_database(name, template=template)
    url = postgres.url(name)
    async with opened(settings_of(url, None)) as keyturn, running(keyturn):
        proof = await a_user(keyturn)
        await keyturn.starting.start(proof, by=SERVICE)
        async with keyturn.db.begin() as tx:  # its writes would count too
            await tx.execute(text("ALTER TABLE sessions SET (autovacuum_enabled = false)"))
        for first in range(1, SESSIONS, _STEP):
            async with keyturn.db.begin() as tx:
                await tx.execute(text(_MANY), {"first": first, "last": min(first + _STEP, SESSIONS) - 1})
        values = environment(url)
        with Service.start(values, logs=logs) as one, Service.start(values, logs=logs) as two:
            async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:

                async def login() -> Json:
                    tokens: Json = (await client.post(one.url + "/auth/login", json=ADA)).json()
                    return tokens

                def verified(url: str, tokens: Json) -> Callable[[], Awaitable[bool]]:
                    async def ask() -> bool:
                        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
                        return (await client.get(url + "/auth/verify", headers=bearer)).status_code == 200

                    return ask

                def refreshed(url: str, tokens: Json) -> Callable[[], Awaitable[bool]]:
                    async def ask() -> bool:
                        body = {"refresh_token": tokens["refresh_token"]}
                        answer = await client.post(url + "/auth/refresh", json=body)
                        if answer.status_code == 200:
                            tokens.update(answer.json())
                            return True
                        assert (answer.status_code, answer.json()["reason"]) == (401, "signed_out_everywhere")
                        return False

                    return ask

                urls = (one.url, two.url)
                asks = [verified(url, await login()) for url in urls]
                async with keyturn.db.look() as connection:
                    before = (await connection.execute(text("SELECT count(*), max(xmin::text) FROM sessions"))).one()
                written = -await wal(keyturn)
                late = await last_accepted(asks, lambda: keyturn.key_changes.sign_everyone_out(by=SERVICE))
                written += await wal(keyturn)
                async with keyturn.db.look() as connection:
                    after = (await connection.execute(text("SELECT count(*), max(xmin::text) FROM sessions"))).one()
                print(f"{before[0]:,} sessions; last accepted access token after {late} s; {written:,} bytes of WAL")
                assert before == after
                assert before[0] >= SESSIONS
                assert written < 100_000
                asks = [kind(url, await login()) for url in urls for kind in (verified, refreshed)]
                late = await last_accepted(asks, lambda: keyturn.key_changes.sign_everyone_out(by=SERVICE))
                print(f"last accepted access token and refresh token after {late} s")
                fresh = await login()
                assert await verified(two.url, fresh)()
                assert await refreshed(two.url, fresh)()
    await postgres.drop_database(name)
