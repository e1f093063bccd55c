"""Instances of Keyturn that trust a stand-in of Scalekit, for the tests of exchange and identities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from app.actors import Actor
from app.federation.exchange import caller_of
from app.federation.issuer import Kind
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.storage.tables import Base, Event, Session, User
from tests.conftest import Opener
from tests.upstream.upstream import Upstream

BY = Actor("anonymous", address="192.0.2.7", request_id="r1")
CALLER = caller_of("keyturn", None, None, "agent/1")
ANOTHER = caller_of("keyturn", None, None, "agent/2")


def file_of(upstream: Upstream, folder: Path, name: str = "acme", **members: Any) -> str:
    """The path of a file of issuers that names the stand-in."""
    path = folder / f"{name}.toml"
    path.write_text(upstream.toml(name, **members), encoding="utf-8")
    path.chmod(0o600)
    return str(path)


@asynccontextmanager
async def federated(
    open_keyturn: Opener, upstream: Upstream, folder: Path, *, settings: dict[str, Any] | None = None, **members: Any
) -> AsyncIterator[Keyturn]:
    """An instance whose only issuer is the stand-in. `members` change its configuration."""
    async with open_keyturn(federation_file=file_of(upstream, folder, **members), **(settings or {})) as keyturn:
        yield keyturn


async def exchanged(
    keyturn: Keyturn, token: str, *, kind: Kind | None = None, caller: bytes = CALLER, **more: Any
) -> Tokens:
    return await keyturn.exchange.exchange(token, kind, caller=caller, by=BY, **more)


async def rows(keyturn: Keyturn, table: type[Base], **which: Any) -> list[Any]:
    """The rows of a table whose columns have these values."""
    query = select(table.__table__).where(*(getattr(table, name) == value for name, value in which.items()))
    async with keyturn.db.look(hot_path=False) as connection:
        return list((await connection.execute(query)).all())


async def count(keyturn: Keyturn, table: type[Base]) -> int:
    async with keyturn.db.look(hot_path=False) as connection:
        return await connection.scalar(select(func.count()).select_from(table)) or 0


async def the_user(keyturn: Keyturn, tokens: Tokens) -> Any:
    """The row of the user of a session."""
    [session] = await rows(keyturn, Session, id=tokens.session_id)
    [user] = await rows(keyturn, User, id=session.user_id)
    return user


async def told(keyturn: Keyturn, user_id: UUID) -> list[tuple[str, str, str | None, str | None]]:
    """The events about a user, in their order: kind, kind and id of the actor, reason or detail."""
    found = sorted(await rows(keyturn, Event, user_id=user_id), key=lambda row: row.id.int)
    return [(row.event, row.actor, row.actor_id, row.reason or row.detail) for row in found]
