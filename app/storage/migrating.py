"""Changes the schema: by `keyturn db upgrade`, or by `alembic` through `migrations/env.py`, also for `--sql`.

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
from ..printable import LONGEST_MESSAGE, printable
from ..settings import place_of_migrations
from .locks import LOCK_LIMIT, MIGRATIONS
from .outages import LOCK_NOT_AVAILABLE, READ_ONLY, not_let_in, outage, sqlstate
from .postgres import Postgres
from .schema import alembic_config
from .sqlite import configure_sqlite
from .tables import Base

_WAIT_FOR_ANOTHER = timedelta(seconds=20)
"""How long one migration waits for another to end."""

_TAKE_LOCK = f"SELECT pg_advisory_xact_lock({MIGRATIONS})"


def _limit(wait: timedelta) -> str:
    return f"SET LOCAL lock_timeout = '{wait // timedelta(milliseconds=1)}ms'"


# Clients queue up behind a statement that waits for a lock on a table, so no statement waits long.
_SHORT_WAIT = _limit(LOCK_LIMIT)


def migrate(place: Place) -> None:
    """Brings a database to this release's schema. Blocks the thread, so do not call it on the event loop.

    Raises:
        ConfigurationError: the database can't be written, is none, refuses Keyturn, or another migration is running.
        TemporarilyUnavailable: the database can't be reached, is read-only, or a table stayed locked.
    """
    config = alembic_config()
    config.attributes["place"] = place
    try:
        with outage():
            command.upgrade(config, "head")
    except (TemporarilyUnavailable, DBAPIError) as e:
        raise _in_words(e, place) from None


def run() -> None:
    """Carries out Alembic's command on the database that the settings name.

    Raises:
        ConfigurationError: another migration holds the lock.
        SystemExit: there was an error, and Alembic's own command is running.
    """
    if place := context.config.attributes.get("place"):
        _online(place)  # called by `migrate`, which explains errors
    else:
        _as_alembics_command()


_CHANGES = {"upgrade", "downgrade", "stamp"}
"""The commands of Alembic that change a database."""


def _as_alembics_command() -> None:
    """Runs `alembic`. An error of the set-up is one line, because a traceback might show a part of a secret."""
    end_at_sigterm()
    try:
        place = place_of_migrations()
        if context.is_offline_mode():
            _offline(place)
            return
        options = context.config.cmd_opts
        say(place, changes=options is None or options.cmd[0].__name__ in _CHANGES)
        try:
            with outage():
                _online(place)
        except TemporarilyUnavailable as e:
            raise _in_words(e, place) from None
        except DBAPIError as e:
            if not_let_in(e, place.where):
                raise _in_words(e, place) from None
            raise  # a defect of a migration, whose author needs the traceback
    except ConfigurationError as e:
        sys.exit(f"keyturn: {printable(str(e), LONGEST_MESSAGE)}")
    except TemporarilyUnavailable as e:
        sys.exit(f"keyturn: {printable(e.cause, LONGEST_MESSAGE)}")


def _in_words(error: TemporarilyUnavailable | DBAPIError, place: Place) -> ConfigurationError | TemporarilyUnavailable:
    """An error of a migration, in words for an operator."""
    if line := not_let_in(error, place.where):
        return ConfigurationError(line)
    why = error.orig if isinstance(error, DBAPIError) else getattr(error.__cause__, "orig", None) or error.cause
    state = sqlstate(error.__cause__)
    if state == READ_ONLY:
        return TemporarilyUnavailable("the database is read-only: a standby, or default_transaction_read_only is on")
    if state == LOCK_NOT_AVAILABLE:
        return TemporarilyUnavailable(f"a table stayed locked: try again ({why})")
    if isinstance(error, TemporarilyUnavailable) and place.postgres is not None:
        return TemporarilyUnavailable(f"the database is not available ({why})")
    return ConfigurationError(f"the database can't be brought to this release's schema ({why})")


def say(place: Place, *, changes: bool = True) -> None:
    """Names the database. If a job has lost its KEYTURN_DATABASE_URL, an operator sees which database it migrates."""
    print(f"keyturn: {'migrating' if changes else 'the database is'} {place.embedded or place.where}", file=sys.stderr)


def end_at_sigterm() -> None:
    """Ends this process at SIGTERM with code 143, even if it is the first process of its container.

    The kernel gives that process only signals for which it has a handler. The exception leaves the transaction, so the
    driver asks Postgres to cancel the statement.
    """

    def end(*_: object) -> None:
        print("keyturn: ended by SIGTERM", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def _configure(**where: Any) -> None:
    context.configure(
        target_metadata=Base.metadata, render_as_batch=True, compare_type=True, transactional_ddl=True, **where
    )


def _offline(place: Place) -> None:
    dialect = "sqlite" if place.postgres is None else "postgresql"
    _configure(dialect_name=dialect, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        if place.postgres is not None:
            search_path = Postgres(place.postgres, pooled=True).search_path
            where = (f"SELECT set_config('search_path', '{search_path}', true)",) if search_path else ()
            for statement in (*where, _limit(_WAIT_FOR_ANOTHER), _TAKE_LOCK, _SHORT_WAIT):
                context.execute(statement)
        context.run_migrations()


def _run(connection: Connection) -> None:
    _configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def _online(place: Place) -> None:
    if place.postgres is not None:
        asyncio.run(_on_postgres(place.postgres))
        return
    # Not aiosqlite: its thread may call the event loop after that is closed. No other task runs, so this may block.
    engine = create_engine(make_url(place.sqlalchemy_url).set(drivername="sqlite"), poolclass=pool.NullPool)
    configure_sqlite(engine, writes=True)
    with engine.connect() as connection:
        _run(connection)


async def _on_postgres(url: PostgresURL) -> None:
    engine = Postgres(url, pooled=True).migrating()
    # In each transaction: if a migration asks for an `autocommit_block`, Alembic ends one and begins another.
    event.listen(engine.sync_engine, "begin", _one_at_a_time)
    async with engine.connect() as connection:
        await connection.run_sync(_run)


def _one_at_a_time(connection: Connection) -> None:
    """Takes the lock for the transaction. A second migration waits, and then finds nothing to do."""
    if not connection.exec_driver_sql(_TAKE_LOCK.replace("pg_advisory", "pg_try_advisory")).scalar():
        other = connection.execute(_HOLDER).scalar() or "which has just ended"
        waiting = f"waiting up to {_WAIT_FOR_ANOTHER.seconds} s for another migration: {other}"
        print(f"keyturn: {printable(waiting)}", file=sys.stderr)  # another user of the server may have chosen its name
        connection.exec_driver_sql(_limit(_WAIT_FOR_ANOTHER))
        try:
            connection.exec_driver_sql(_TAKE_LOCK)
        except DBAPIError as e:
            if sqlstate(e) != LOCK_NOT_AVAILABLE:
                raise
            raise ConfigurationError(f"another migration holds the lock of migrations: {other}") from None
    connection.exec_driver_sql(_SHORT_WAIT)


# The text says how to end the holder, because a pooler may keep a connection whose session holds the lock.
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
    """The holder of the lock of migrations on a Postgres, in words; None if there is none."""
    found: str | None = await connection.scalar(_HOLDER)
    return found
