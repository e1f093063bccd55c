"""The database: engines, transactions and its clock.

PostgreSQL and SQLite behind the same three functions: `begin` (a transaction that writes), `fetch` (one statement that
writes, committed by itself) and `look` (statements that read, on the primary).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    ExceptionContext,
    String,
    any_,
    bindparam,
    event,
    func,
    literal,
    literal_column,
)
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.pool import ConnectionPoolEntry

from ..settings import Settings
from .outages import is_lost, outage
from .postgres import Postgres, answers
from .sqlite import sqlite_engine
from .tables import Moment
from .tasks import QUEUE_LIMIT, finish

_RESTED = timedelta(seconds=2)
"""After so long without use a connection is asked before it is used. A balancer, a firewall or a NAT may have forgotten
it, and tells nobody: the statement that finds out would cost a user the request."""

_T = TypeVar("_T")


class Database:
    """Engines of one process, separate for the hot path so that logins can't starve refreshes."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing yet; the first use connects."""
        self.is_postgres = settings.postgres is not None
        self._zero: datetime | None = None  # what the database's clock said when `monotonic` was at zero
        # Held between statements, with when it was last used: to take one out of the pool costs as much as to send
        # the statement.
        self._lines: list[tuple[AsyncConnection, Any, float]] = []
        self._most_lines = 0  # SQLite's one connection that writes is for all
        self._era = 0
        if settings.postgres is not None:
            self._pooled = settings.pgbouncer
            self._servers = Postgres(settings.postgres, pooled=self._pooled)
            hot = max(1, settings.database_pool * 2 // 5)
            self._most_lines = min(2, hot - 1)
            self._engine = self._servers.engine(settings.database_pool - hot, patience=QUEUE_LIMIT)
            self._writer = self._reader = self._autocommitting(self._servers.engine(hot, patience=QUEUE_LIMIT / 2))
            self._aside = self._autocommitting(self._engine)
            # Its own connections, so that our own queue is never taken for an outage of the database.
            self._heart = self._autocommitting(self._servers.engine(2, patience=QUEUE_LIMIT))
            for engine in (self._engine, self._writer, self._heart):
                self._use_only_what_lives(engine)
        else:
            url = settings.sqlalchemy_url
            self._engine = self._writer = sqlite_engine(url, size=1, writes=True)
            self._reader = self._aside = sqlite_engine(url, size=2, writes=False)
            self._heart = sqlite_engine(url, size=1, writes=False)

    def _autocommitting(self, engine: AsyncEngine) -> AsyncEngine:
        """One round trip a statement; but a pooler keeps the messages of one together only in a transaction."""
        return engine if self._pooled else engine.execution_options(isolation_level="AUTOCOMMIT")

    def now(self) -> ColumnElement[datetime]:
        """The database's clock inside a statement: one reading for the whole of it.

        Postgres: ``statement_timestamp()`` (``now()`` is when the transaction began, ``clock_timestamp()`` differs
        within a statement). SQLite is this machine's file, so its clock is this process's.
        """
        if self.is_postgres:
            return func.statement_timestamp(type_=Moment())
        return bindparam("now", callable_=lambda: datetime.now(UTC), type_=Moment(), unique=True)

    def among(self, column: InstrumentedAttribute[_T]) -> ColumnElement[bool]:
        """Whether a column's value is one of the parameter ``ids``, a list: one statement whatever their number.

        With a placeholder for each value, each number of them would be compiled and prepared by itself.
        """
        if self.is_postgres:
            return column == any_(bindparam("ids", type_=ARRAY(column.type)))
        return column.in_(bindparam("ids", expanding=True))

    def incarnation(self, *, writing: bool = False) -> ColumnElement[str]:
        """Which life of the database a statement on the fence runs in, and that the fence's row was written in it.

        A file that is put back needs a new start of Postgres, a standby that takes over had another; a dump that is
        loaded writes the row, or the table of the sessions, in another transaction. Each role may ask for all of it.
        SQLite tells nothing: "".

        Args:
            writing: for the statement that writes the row; else for one that reads it.
        """
        if not self.is_postgres:
            return literal("")
        writer = "pg_current_xact_id()::xid" if writing else "cache_fence.xmin"
        return literal_column(
            "concat_ws(':', extract(epoch FROM pg_postmaster_start_time()),"
            f" pg_relation_filenode(to_regclass('sessions')), {writer})",
            String,
        )

    def read_only(self) -> ColumnElement[str]:
        """Says "on" where a statement runs on a server that is not the primary (any more)."""
        return func.current_setting("transaction_read_only") if self.is_postgres else literal("off")

    def clock(self) -> datetime:
        """The database's clock as this process last saw it, for what is decided without a statement.

        This machine's clock has no part in it once the database was asked: a step of it must refuse no token.
        """
        return datetime.now(UTC) if self._zero is None else self._zero + timedelta(seconds=monotonic())

    def observe(self, now: datetime, elapsed: timedelta) -> None:
        """Learns what the database's clock says, from a reading that took `elapsed` to come."""
        if self.is_postgres:
            self._zero = now + elapsed / 2 - timedelta(seconds=monotonic())

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction. Commits at the end of the block, rolls back if an exception leaves it.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        with outage():
            async with self._engine.begin() as tx:
                yield tx

    async def fetch(self, statement: str, *parameters: Any) -> Sequence[Any]:
        """One statement that writes and is its own transaction, by the driver itself; parameters and rows are its own.

        For the one of the hot path: compiled and fetched by SQLAlchemy it costs each refresh of a batch of
        eight some 70 microseconds more.
        """
        with outage():
            line, driver = await self._line()
            try:
                rows = await self._send(driver, statement, parameters)
            except Exception as e:
                # SQLAlchemy did not see it, so nobody knows what state the connection is in.
                lost = self.is_postgres and is_lost(e)
                if lost:
                    self._begin_an_era(line.sync_connection)
                await line.invalidate()
                await line.close()
                raise DBAPIError(None, None, e, connection_invalidated=lost) from e
            if len(self._lines) < self._most_lines:
                self._lines.append((line, driver, monotonic()))
            else:
                await line.close()
            return rows

    async def _send(self, driver: Any, statement: str, parameters: Sequence[Any]) -> Sequence[Any]:
        rows: Sequence[Any]
        if not self.is_postgres:
            # Alone it is its own transaction, and takes the write lock before it reads.
            rows = await driver.execute_fetchall(statement, parameters)
            return rows
        if self._pooled:
            await driver.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; {self._servers.set_local}")
        rows = await driver.fetch(statement, *parameters)
        if self._pooled:
            await driver.execute("COMMIT")
        return rows

    async def _line(self) -> tuple[AsyncConnection, Any]:
        while self._lines:
            line, driver, used = self._lines.pop()
            if not self.is_postgres or (
                _era_of(line.sync_connection) == self._era
                and not driver.is_closed()
                and (monotonic() - used < _RESTED.total_seconds() or await self._answers(driver, self._era))
            ):
                return line, driver
            driver.terminate()
            await line.invalidate()
            await line.close()
        connection = await self._writer.connect()
        return connection, (await connection.get_raw_connection()).driver_connection

    async def _answers(self, driver: Any, era: int) -> bool:
        """Asks a connection that has rested; one that died in silence tells of all that were made before it."""
        if await answers(driver):
            return True
        if era == self._era:
            self._era += 1
        return False

    def _use_only_what_lives(self, engine: AsyncEngine) -> None:
        """The pool replaces a connection that is dead, or was made before another was lost, when it is taken.

        Where one connection is lost, or leads to what is no primary any more, so are all that were made before.
        Without this each of them would cost a request its 503 before it is found out.
        """

        @event.listens_for(engine.sync_engine, "connect")
        def made(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["era"] = self._era
            record.info["used"] = monotonic()

        @event.listens_for(engine.sync_engine, "checkin")
        def given_back(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["used"] = monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def taken(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
            driver: Any = record.driver_connection
            if (
                record.info["era"] == self._era
                and not driver.is_closed()
                and (
                    monotonic() - record.info["used"] < _RESTED.total_seconds()
                    or connection.run_async(lambda driver: self._answers(driver, record.info["era"]))
                )
            ):
                return
            driver.terminate()  # without the two seconds that a farewell to a dead server takes
            raise DisconnectionError("dead, or from before an outage")  # the pool makes another in its place

        @event.listens_for(engine.sync_engine, "handle_error")
        def failed(context: ExceptionContext) -> None:
            if context.is_disconnect:
                self._begin_an_era(context.connection)

    def _begin_an_era(self, lost: Connection | None) -> None:
        # Only one of this era ends it: those made since may be good.
        if lost is not None and _era_of(lost) == self._era:
            self._era += 1

    async def leave(self, connection: AsyncConnection) -> None:
        """Gives up a connection to what is no primary any more, and with it all that were made before."""
        self._begin_an_era(connection.sync_connection)
        await connection.invalidate()

    @asynccontextmanager
    async def look(self, *, aside: bool = False) -> AsyncIterator[AsyncConnection]:
        """For statements that only read, each with a snapshot of its own; `aside` of the hot path's connections."""
        with outage():
            async with (self._aside if aside else self._reader).connect() as connection:
                yield connection

    @asynccontextmanager
    async def beat(self) -> AsyncIterator[AsyncConnection]:
        """As `look`, for the reading of the fence alone: it must not queue behind anything."""
        with outage():
            async with self._heart.connect() as connection:
                yield connection

    async def close(self) -> None:
        """Lets what is under way end (a few seconds at most), then closes the connections."""
        await finish()
        for line, *_ in self._lines:
            await line.close()
        for engine in {self._engine, self._writer, self._reader, self._heart}:
            await engine.dispose()


def _era_of(connection: Connection | None) -> object:
    return connection.info.get("era") if connection is not None and not connection.invalidated else None
