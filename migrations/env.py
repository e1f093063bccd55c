"""Runs the migrations on the database that the settings name, online or as SQL (`--sql`).

One migration at a time (advisory lock), and none that waits long for a lock while clients queue up behind it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine, make_url, pool, text
from sqlalchemy.exc import DBAPIError

from app.db import outage, sqlite_hooks
from app.errors import TemporarilyUnavailable
from app.models import Base
from app.postgres import Postgres
from app.postgres_url import PostgresURL
from app.settings import ConfigurationError, database_url_of_migrations
from app.setup import not_let_in

_LOCK = 0x6B657900


def _configure(**where: Any) -> None:
    context.configure(
        target_metadata=Base.metadata, render_as_batch=True, compare_type=True, transaction_per_migration=True, **where
    )


# The lock is the session's, so that it covers every migration's own transaction. Whoever comes second waits for the
# first and then finds nothing to do.
_GUARD = (f"SELECT pg_advisory_lock({_LOCK})", "SET lock_timeout = '2s'")


def _offline(url: str) -> None:
    guarded = url.startswith("postgresql")
    dialect = "postgresql" if guarded else "sqlite"
    _configure(dialect_name=dialect, literal_binds=True, dialect_opts={"paramstyle": "named"})
    if guarded and (search_path := Postgres(PostgresURL.parse(url), pooled=True).search_path):
        context.execute(f"SELECT set_config('search_path', '{search_path}', false)")
    for statement in _GUARD if guarded else ():
        context.execute(statement)
    with context.begin_transaction():
        context.run_migrations()
    for statement in (f"SELECT pg_advisory_unlock({_LOCK})", "RESET lock_timeout") if guarded else ():
        context.execute(statement)


def _run(connection: Connection) -> None:
    _configure(connection=connection)
    if connection.dialect.name == "postgresql":
        for statement in _GUARD:
            connection.execute(text(statement))
        connection.commit()
    with context.begin_transaction():
        context.run_migrations()


async def _on_postgres(url: str) -> None:
    servers = Postgres(PostgresURL.parse(url), pooled=True)  # with what works through a pooler and without one
    async with servers.migrating().connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()


def _online(url: str) -> None:
    if url.startswith("postgresql"):
        asyncio.run(_on_postgres(url))
        return
    # aiosqlite's thread may report to the event loop after that is closed; nothing else runs here that would wait.
    engine = create_engine(make_url(url).set(drivername="sqlite"), poolclass=pool.NullPool)
    sqlite_hooks(engine, writes=True)
    with engine.connect() as connection:
        _run(connection)
        connection.commit()


def _as_a_command() -> None:
    """For `alembic`: what is wrong with the set-up is one line, and no traceback that might show a part of it.

    Raises:
        SystemExit: it is.
    """
    try:
        url = database_url_of_migrations()
        if context.is_offline_mode():
            _offline(url)
            return
        # A job that lost its KEYTURN_DATABASE_URL must be seen to migrate the embedded default.
        where = PostgresURL.parse(url) if url.startswith("postgresql") else url
        print(f"keyturn: migrating {where}", file=sys.stderr)  # noqa: T201
        with outage():
            _online(url)
    except ConfigurationError as e:
        sys.exit(f"keyturn: {e}")
    except TemporarilyUnavailable as e:
        why = getattr(e.__cause__, "orig", None) or e.cause
        sys.exit(f"keyturn: {not_let_in(e) or f'the database is not available ({why})'}")
    except DBAPIError as e:
        if line := not_let_in(e):
            sys.exit(f"keyturn: {line}")
        raise


if url_of_a_start := context.config.attributes.get("url"):
    _online(url_of_a_start)
else:
    _as_a_command()
