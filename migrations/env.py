"""Runs the migrations on the database that the settings name, online or as SQL (`--sql`).

One migration at a time (advisory lock), and none that waits long for a lock while clients queue up behind it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from alembic import context
from sqlalchemy import Connection, make_url, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.db import sqlite_hooks
from app.models import Base
from app.settings import ConfigurationError, database_url_of_migrations

_LOCK = 0x6B657900


def _configure(**where: Any) -> None:
    context.configure(
        target_metadata=Base.metadata, render_as_batch=True, compare_type=True, transaction_per_migration=True, **where
    )


def _offline(url: str) -> None:
    _configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()


def _run(connection: Connection) -> None:
    _configure(connection=connection)
    if connection.dialect.name == "postgresql":
        # The lock is the session's, so that it covers every migration's own transaction. Whoever comes second waits
        # for the first and then finds nothing to do.
        connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
        connection.execute(text("SET lock_timeout = '2s'"))
        connection.commit()
    with context.begin_transaction():
        context.run_migrations()


async def _online(url: str) -> None:
    engine = create_async_engine(url, poolclass=pool.NullPool)
    if engine.dialect.name == "sqlite":
        sqlite_hooks(engine.sync_engine, writes=True)
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    _offline(database_url_of_migrations())
elif url := context.config.attributes.get("url"):
    asyncio.run(_online(url))
else:
    try:
        url = database_url_of_migrations()
    except ConfigurationError as e:
        sys.exit(f"keyturn: {e}")
    # A job that lost its KEYTURN_DATABASE_URL must be seen to migrate the embedded default.
    print(f"keyturn: migrating {make_url(url).render_as_string(hide_password=True)}", file=sys.stderr)  # noqa: T201
    asyncio.run(_online(url))
