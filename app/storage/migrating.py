"""Changes the schema: by `migrate`, or by `alembic`, which calls `run` through `migrations/env.py`, also for `--sql`.

All migrations of one call run in one transaction, on SQLite too. So a call that is cut off leaves the schema as it
was, and the locks and limits below end with the transaction: nothing stays on a connection that a pooler hands on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta
from typing import Any

from alembic import command, context
from sqlalchemy import BigInteger, Connection, bindparam, create_engine, event, make_url, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import ConfigurationError, TemporarilyUnavailable
from ..place import Place
from ..postgres_url import PostgresURL
from ..settings import place_of_migrations
from .locks import LOCK_LIMIT, MIGRATIONS
from .outages import LOCK_NOT_AVAILABLE, READ_ONLY, not_let_in, outage, sqlstate
from .postgres import Postgres
from .schema import alembic_config
from .sqlite import sqlite_hooks
from .tables import Base

_PATIENCE = timedelta(seconds=20)
"""How long one migration waits for another to end."""

_TAKE = f"SELECT pg_advisory_xact_lock({MIGRATIONS})"


def _limit(wait: timedelta) -> str:
    return f"SET LOCAL lock_timeout = '{wait // timedelta(milliseconds=1)}ms'"


# Clients queue up behind a statement that waits for a lock on a table, so none waits long.
_IMPATIENCE = _limit(LOCK_LIMIT)


def migrate(place: Place) -> None:
    """Brings a database to this release's schema. Blocks; not for the event loop.

    Raises:
        ConfigurationError: it can't be written, is no database, does not let us in, or another migration goes on.
        TemporarilyUnavailable: it can't be reached.
    """
    config = alembic_config()
    config.attributes["url"] = place.sqlalchemy_url
    try:
        with outage():
            command.upgrade(config, "head")
    except (TemporarilyUnavailable, DBAPIError) as e:
        if line := not_let_in(e):
            raise ConfigurationError(line) from None
        if sqlstate(e.__cause__) == READ_ONLY:
            raise TemporarilyUnavailable(
                "the database is read-only: a standby, or default_transaction_read_only is on"
            ) from None
        why = e.orig if isinstance(e, DBAPIError) else getattr(e.__cause__, "orig", None) or e.cause
        if isinstance(e, TemporarilyUnavailable) and place.sqlalchemy_url.startswith("postgresql"):
            raise TemporarilyUnavailable(f"the database is away, or a table stayed locked ({why})") from None
        raise ConfigurationError(f"the database can't be brought to this release's schema ({why})") from None


def run() -> None:
    """Does with the database that the settings name whatever Alembic was called for.

    Raises:
        ConfigurationError: another migration holds the lock.
        SystemExit: something is wrong, and Alembic's own command is running.
    """
    if url := context.config.attributes.get("url"):
        _online(url)  # our own command is running, and says what is wrong
    else:
        _as_alembics_command()


def _as_alembics_command() -> None:
    """For `alembic`: what is wrong with the set-up is one line, and no traceback that might show a part of it."""
    end_at_sigterm()
    try:
        url = place_of_migrations().sqlalchemy_url
        if context.is_offline_mode():
            _offline(url)
            return
        say(url)
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


def say(url: str) -> None:
    """Names the database: a job that lost its KEYTURN_DATABASE_URL must be seen to migrate the embedded default."""
    where = PostgresURL.parse(url) if url.startswith("postgresql") else url
    print(f"keyturn: migrating {where}", file=sys.stderr)


def end_at_sigterm() -> None:
    """Ends this process at SIGTERM with code 143, also where it is the first of its container.

    The kernel gives that one no signal that it has no handler for. The exception leaves the transaction, so Postgres
    is told to give its statement up.
    """

    def end(*_: object) -> None:
        print("keyturn: ended by SIGTERM", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def _configure(**where: Any) -> None:
    context.configure(
        target_metadata=Base.metadata, render_as_batch=True, compare_type=True, transactional_ddl=True, **where
    )


def _offline(url: str) -> None:
    on_postgres = url.startswith("postgresql")
    dialect = "postgresql" if on_postgres else "sqlite"
    _configure(dialect_name=dialect, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        if on_postgres:
            search_path = Postgres(PostgresURL.parse(url), pooled=True).search_path
            where = (f"SELECT set_config('search_path', '{search_path}', true)",) if search_path else ()
            for statement in (*where, _limit(_PATIENCE), _TAKE, _IMPATIENCE):
                context.execute(statement)
        context.run_migrations()


def _run(connection: Connection) -> None:
    _configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def _online(url: str) -> None:
    if url.startswith("postgresql"):
        asyncio.run(_on_postgres(url))
        return
    # aiosqlite's thread may report to the event loop after that is closed; nothing else runs here that would wait.
    engine = create_engine(make_url(url).set(drivername="sqlite"), poolclass=pool.NullPool)
    sqlite_hooks(engine, writes=True)
    with engine.connect() as connection:
        _run(connection)


async def _on_postgres(url: str) -> None:
    engine = Postgres(PostgresURL.parse(url), pooled=True).migrating()
    # In each transaction: Alembic ends one and begins another where a migration asks for an `autocommit_block`.
    event.listen(engine.sync_engine, "begin", _one_at_a_time)
    async with engine.connect() as connection:
        await connection.run_sync(_run)


def _one_at_a_time(connection: Connection) -> None:
    """Takes the lock for the transaction. The second to come waits, and then finds nothing to do."""
    if not connection.exec_driver_sql(_TAKE.replace("pg_advisory", "pg_try_advisory")).scalar():
        other = connection.execute(_HOLDER).scalar() or "which has just ended"
        print(f"keyturn: waiting up to {_PATIENCE.seconds} s for another migration: {other}", file=sys.stderr)
        connection.exec_driver_sql(_limit(_PATIENCE))
        try:
            connection.exec_driver_sql(_TAKE)
        except DBAPIError as e:
            if sqlstate(e) != LOCK_NOT_AVAILABLE:
                raise
            raise ConfigurationError(f"another migration holds the lock of migrations: {other}") from None
    connection.exec_driver_sql(_IMPATIENCE)


# A release before this one took the lock for its session, and a pooler kept that.
_HOLDER = text("""
    SELECT 'Postgres process ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') || coalesce(
        ', ' || state || ' since ' || to_char(state_change AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), '')
        || '; if no migration is running, end it: SELECT pg_terminate_backend(' || pid || ')'
    FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = :lock AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    LIMIT 1
""").bindparams(bindparam("lock", MIGRATIONS, type_=BigInteger))


async def migrating(connection: AsyncConnection) -> str | None:
    """The one who holds the lock of migrations on a Postgres, in words; None where nobody does."""
    found: str | None = await connection.scalar(_HOLDER)
    return found
