"""Local sessions that came from an upstream session, made without an exchange."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.actors import SERVICE
from app.keyturn import Keyturn, opened
from app.sessions.answers import Tokens
from app.sessions.start import Vouched
from app.storage.tables import UpstreamSession
from tests.conftest import PASSWORD, settings_of
from tests.upstream.upstream import Upstream

NAME = "acme"


def file_of_issuers(folder: Path, upstream: Upstream, **changes: Any) -> Path:
    """A file of issuers that names the stand-in."""
    path = folder / "issuers.toml"
    path.write_text(upstream.toml(NAME, **changes))
    path.chmod(0o600)
    return path


async def a_user_id(keyturn: Keyturn, email: str = "ada@example.com") -> UUID:
    return UUID(str((await keyturn.users.create(email, PASSWORD, "user", by=SERVICE)).id))


async def federated(
    keyturn: Keyturn, user_id: UUID, upstream_id: str | None, issuer: str = NAME, **more: Any
) -> Tokens:
    """A local session of a user, which came from this session of an issuer."""

    async def note(tx: AsyncConnection, session_id: UUID, now: datetime) -> None:
        row = {"session_id": session_id, "issuer_name": issuer, "upstream_id": upstream_id, "created_at": now}
        await tx.execute(insert(UpstreamSession).values(row))

    return await keyturn.starting.start(Vouched(user_id, os.urandom(32), note), by=SERVICE, **more)


@asynccontextmanager
async def without_tasks(database_url: str, **settings: Any) -> AsyncIterator[Keyturn]:
    """The parts of a process as a command has them: without background tasks."""
    async with opened(settings_of(database_url, None, **settings)) as keyturn:
        await keyturn.keys.load()
        await keyturn.policies.load()
        await keyturn.issuers.load()
        await keyturn.revocations.fence.read()
        yield keyturn


async def rows(keyturn: Keyturn) -> dict[UUID, Any]:
    """The rows of all upstream sessions, by their local sessions."""
    async with keyturn.db.look(hot_path=False) as connection:
        found = await connection.execute(select(UpstreamSession.__table__))
    return {row.session_id: row for row in found}


async def write(keyturn: Keyturn, session_id: UUID, **values: Any) -> None:
    """Changes the row of an upstream session."""
    async with keyturn.db.begin() as tx:
        await tx.execute(update(UpstreamSession).where(UpstreamSession.session_id == session_id).values(**values))


async def becomes(true: Callable[[], Awaitable[object]], seconds: float = 60) -> None:
    """Waits until something is true. The time is that of a hopelessly busy machine."""
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.05)
