"""The database: engines, transactions and its clock.

PostgreSQL and SQLite have the same three functions: `begin` (a transaction that writes), `fetch` (one statement that
writes, committed by itself) and `look` (statements that read, on the primary).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, TypeVar, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Interval,
    SQLColumnExpression,
    String,
    any_,
    bindparam,
    func,
    literal,
    literal_column,
    type_coerce,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import InstrumentedAttribute

from .. import tracing
from ..settings import Settings
from . import statement_spans
from .losses import RESTED, Losses, count_of
from .outages import is_lost, refusal_of
from .pools import Connections, connections
from .postgres import Postgres
from .sqlite import sqlite_engine
from .tables import Moment, microseconds
from .tasks import QUEUE_LIMIT, finish

_T = TypeVar("_T")


_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"


@dataclass(slots=True)
class _Held:
    """A connection that `fetch` holds between statements."""

    connection: AsyncConnection
    driver: Any
    losses: int | None
    """The process's number of losses (see `Losses`) when the connection was made."""
    used: float
    """When the connection was last used, by `monotonic`."""


class Database:
    """The engines of one process. The hot path has its own, so that logins can't starve refreshes."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing yet; the first use connects."""
        self.is_postgres = settings.postgres is not None
        self.where = settings.where  # for an operator: without password and options
        self._system = "postgresql" if self.is_postgres else "sqlite"  # OpenTelemetry's words
        self._zero: datetime | None = None  # the database's clock at the zero of `monotonic`
        # Connections that stay out of the pool between statements: taking one out costs as much as a statement.
        self._held: list[_Held] = []
        self._most_held = 0  # on SQLite, where all callers share the one connection that writes
        self._wrapped = ""  # behind a pooler: how the transaction of a statement of `fetch` begins
        self._losses = Losses()
        if settings.postgres is not None:
            self._pooled = settings.pgbouncer
            self._servers = Postgres(settings.postgres, pooled=self._pooled)
            hot = max(1, settings.database_pool * 3 // 5)
            self._most_held = min(4, hot - 1)
            if self._pooled:
                self._wrapped = f"{_BEGIN}; {self._servers.set_local}"
            self._engine = self._servers.engine(settings.database_pool - hot, wait=QUEUE_LIMIT)
            self._writer = self._reader = self._autocommitting(self._servers.engine(hot, wait=QUEUE_LIMIT / 2))
            self._other_reader = self._autocommitting(self._engine)
            # The fence is read on connections of its own, so that a full pool never looks like an outage.
            self._watch_engine = self._autocommitting(self._servers.engine(2, wait=QUEUE_LIMIT))
            for engine in (self._engine, self._writer, self._watch_engine):
                self._losses.watch(engine)
        else:
            url = settings.sqlalchemy_url
            self._engine = self._writer = sqlite_engine(url, size=1, writes=True)
            self._reader = self._other_reader = sqlite_engine(url, size=2, writes=False)
            self._watch_engine = sqlite_engine(url, size=1, writes=False)
        statement_spans.watch((self._engine, self._writer, self._reader, self._watch_engine), self._system)

    def _autocommitting(self, engine: AsyncEngine) -> AsyncEngine:
        """Makes a statement cost one round trip. Behind a pooler, only a transaction keeps its messages together."""
        return engine if self._pooled else engine.execution_options(isolation_level="AUTOCOMMIT")

    def now(self) -> ColumnElement[datetime]:
        """The database's clock inside a statement: one reading for the whole of it.

        Postgres: ``statement_timestamp()`` (``now()`` is when the transaction began, ``clock_timestamp()`` differs
        within a statement). SQLite is a file on this machine, so its clock is this machine's.
        """
        if self.is_postgres:
            return func.statement_timestamp(type_=Moment())
        return bindparam("now", callable_=lambda: datetime.now(UTC), type_=Moment(), unique=True)

    def after(self, moment: SQLColumnExpression[datetime], duration: timedelta) -> ColumnElement[datetime]:
        """The moment that lies `duration` after another one, inside a statement."""
        later = literal(duration, Interval()) if self.is_postgres else literal(microseconds(duration), BigInteger())
        return type_coerce(moment.op("+")(later), Moment())

    def earliest(self, *moments: SQLColumnExpression[datetime]) -> ColumnElement[datetime]:
        """The earliest of some moments, inside a statement."""
        return (func.least if self.is_postgres else func.min)(*moments, type_=Moment())

    def among(self, column: InstrumentedAttribute[_T]) -> ColumnElement[bool]:
        """Whether a column's value is in the list ``ids``, a parameter. The statement is the same for every length.

        With a placeholder for each value, the statement would be compiled and prepared for every length.
        """
        if self.is_postgres:
            return column == any_(bindparam("ids", type_=ARRAY(column.type)))
        return column.in_(bindparam("ids", expanding=True))

    def incarnation(self, *, writing: bool = False) -> ColumnElement[str]:
        """The incarnation of the database. A fence counts only in the incarnation in which its row was written.

        The value changes whenever the database returns to an older state. (1) If files are restored, Postgres has to be
        started anew. (2) A standby that takes over was started at another time. (3) If a dump is loaded, another
        transaction writes the row or makes the table of sessions. Every role may read these. On SQLite the value is "".

        Args:
            writing: whether the statement writes the row; else it reads the row.
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
        """The text "on" if the statement runs on a server that is no primary, or no longer one."""
        return func.current_setting("transaction_read_only") if self.is_postgres else literal("off")

    def clock(self) -> datetime:
        """The database's clock as this process estimates it, for decisions without a statement.

        After the first reading, this machine's clock has no part in it. So a step of that clock refuses no token.
        """
        return datetime.now(UTC) if self._zero is None else self._zero + timedelta(seconds=monotonic())

    def observe(self, now: datetime, elapsed: timedelta) -> None:
        """Corrects the estimate of the database's clock by a reading that took `elapsed`."""
        if self.is_postgres:
            self._zero = now + elapsed / 2 - timedelta(seconds=monotonic())

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction. Commits at the end of the block, rolls back if an exception leaves it.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        try:
            with statement_spans.transaction(self._system):
                async with self._engine.begin() as tx:
                    yield tx
        except Exception as e:
            _refuse(e)
            raise

    async def fetch(self, statement: str, *parameters: Any, first: str = "") -> Sequence[Any]:
        """Runs one statement that writes, as its own transaction. Parameters and rows are the driver's.

        Rotations and logouts use this. Through SQLAlchemy, a rotation of eight would cost each refresh some 70
        microseconds more.

        Args:
            statement: the statement.
            parameters: its parameters.
            first: a statement of Postgres that goes before it in the same transaction, in the message of its BEGIN.

        Raises:
            TemporarilyUnavailable: the database is away; the statement may have been committed or not.
        """
        span = None if tracing.active is None else statement_spans.begin(statement, self._system)
        try:
            held = self._held.pop() if self._held else None
            if held is None or (self.is_postgres and not self._is_fresh(held)):
                held = await self._replaced(held)
            try:
                if self._wrapped or first:
                    await held.driver.execute(f"{self._wrapped or _BEGIN}; {first}")
                    rows = await held.driver.fetch(statement, *parameters)
                    await held.driver.execute("COMMIT")
                elif self.is_postgres:
                    rows = await held.driver.fetch(statement, *parameters)
                else:
                    # A single statement is its own transaction, and takes the write lock before it reads.
                    rows = await held.driver.execute_fetchall(statement, parameters)
            except Exception as e:
                # SQLAlchemy did not see the error, so the state of the connection is unknown.
                lost = self.is_postgres and is_lost(e)
                if lost:
                    self._losses.note(held.losses)
                await _drop(held.connection)
                raise DBAPIError(None, None, e, connection_invalidated=lost) from e
            if len(self._held) < self._most_held:
                held.used = monotonic()
                self._held.append(held)
            else:
                await held.connection.close()
        except Exception as e:
            statement_spans.end(span, e)
            _refuse(e)
            raise
        if span is not None:
            statement_spans.end(span)
        return cast("Sequence[Any]", rows)

    def _is_fresh(self, held: _Held) -> bool:
        """Whether a held connection may be used without first asking its server for an answer."""
        return (
            held.losses == self._losses.count
            and monotonic() - held.used < RESTED.total_seconds()
            and not held.driver.is_closed()
        )

    async def _replaced(self, held: _Held | None) -> _Held:
        """The first held connection whose server still answers, beginning with this one; else a new connection."""
        while held is not None:
            may_live = held.losses == self._losses.count and not held.driver.is_closed()
            if may_live and await self._losses.answers(held.driver, held.losses):
                return held
            held.driver.terminate()
            await _drop(held.connection)
            held = self._held.pop() if self._held else None
        connection = await self._writer.connect()
        driver = (await connection.get_raw_connection()).driver_connection
        return _Held(connection, driver, count_of(connection.sync_connection), monotonic())

    async def discard(self, connection: AsyncConnection) -> None:
        """Drops a connection to a server that is no longer the primary, and all connections made before now."""
        self._losses.note(count_of(connection.sync_connection))
        await connection.invalidate()

    @asynccontextmanager
    async def look(self, *, hot_path: bool = True) -> AsyncIterator[AsyncConnection]:
        """A connection for statements that only read, each with a snapshot of its own.

        Args:
            hot_path: whether to take one of the connections that refreshes and verifications wait for.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        try:
            async with (self._reader if hot_path else self._other_reader).connect() as connection:
                yield connection
        except Exception as e:
            _refuse(e)
            raise

    @asynccontextmanager
    async def watch_connection(self) -> AsyncIterator[AsyncConnection]:
        """As `look`, for the fence, the pulse and what follows it: these must not wait for other statements.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        try:
            async with self._watch_engine.connect() as connection:
                yield connection
        except Exception as e:
            _refuse(e)
            raise

    def connections(self) -> Iterator[Connections]:
        """The connections of each pool."""
        hot = {engine.sync_engine.pool for engine in (self._writer, self._reader)}
        yield connections("hot", hot, idle=len(self._held))
        yield connections("other", {self._engine.sync_engine.pool} - hot)
        yield connections("watch", {self._watch_engine.sync_engine.pool})

    async def close(self) -> None:
        """Waits until the tasks under way have ended (`TIME_LIMIT` at most), then closes the connections."""
        await finish()
        for held in self._held:
            await held.connection.close()
        for engine in {self._engine, self._writer, self._reader, self._watch_engine}:
            await engine.dispose()


def _refuse(error: Exception) -> None:
    if (refusal := refusal_of(error)) is not None:
        raise refusal from error


async def _drop(connection: AsyncConnection) -> None:
    """Closes a connection. Its pool makes another in its place."""
    await connection.invalidate()
    await connection.close()
