"""Connections to Postgres: to which of its servers, with which settings, and how their death is noticed.

Straight to the server, or through PgBouncer in transaction mode. Behind that, each transaction may be on another server
connection: no statement can be prepared for later, its name must be nobody else's, and settings can be made for the
transaction only (it refuses most start parameters).
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from datetime import timedelta
from functools import partial
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

import asyncpg  # type: ignore[import-untyped]  # it has no types
from sqlalchemy import ExceptionContext, event, pool
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..errors import TemporarilyUnavailable, WrongSettings
from ..postgres_url import PostgresURL
from .locks import LOCK_LIMIT
from .outages import READ_ONLY, sqlstate

STATEMENT_LIMIT = timedelta(seconds=4)
DRIVER_LIMIT = timedelta(seconds=6)
"""The driver gives a silent server up later than the server would give the statement up, so that the outcome of a
statement is known wherever it can be."""

_CONNECT_LIMIT = timedelta(seconds=2)
_HOST_LIMIT = timedelta(seconds=1)
"""How long one of several servers may take, so that a machine that vanished leaves time for the next."""
_ANSWER_LIMIT = timedelta(seconds=1)

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Seconds of silence before the first probe (Linux, macOS), between probes, and their number. Load balancers and NAT
forget a connection after some 240 to 350 silent seconds."""

_SETTINGS = {
    "statement_timeout": f"{STATEMENT_LIMIT // timedelta(milliseconds=1)}ms",
    "lock_timeout": f"{LOCK_LIMIT // timedelta(milliseconds=1)}ms",
    "idle_in_transaction_session_timeout": f"{DRIVER_LIMIT // timedelta(milliseconds=1)}ms",
    "jit": "off",
    # The driver sends seven days as seven calendar days, which are 167 or 169 hours where clocks change.
    "TimeZone": "UTC",
    # A policy of row-level security could hide a session. With this, Postgres refuses the statement instead.
    "row_security": "off",
}


# A migration takes the time that the tables need, whatever limits role or database set for requests.
_WITHOUT_LIMITS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}


def _without_transaction_limit(local: str) -> str:
    version = "current_setting('server_version_num')::int >= 170000"
    return f"CASE WHEN {version} THEN set_config('transaction_timeout', '0', {local}) END"


def _set_config(*, local: bool, search_path: str | None) -> str:
    """The statement that makes the settings which can't be start parameters; behind a pooler, all of them.

    Defaults of a role or a database are overridden only where they break a promise. A stronger ``synchronous_commit``,
    or ``default_transaction_read_only``, stays as the operator has it.
    """
    flag = "true" if local else "false"
    settings = {**_SETTINGS, **({"search_path": search_path} if search_path else {})} if local else {}
    calls = [f"set_config('{name}', '{value}', {flag})" for name, value in settings.items()]
    # A pool takes care of its idle connections itself; a transaction's length is bounded by those of its statements.
    for name, since in (("idle_session_timeout", 14), ("transaction_timeout", 17)):
        if not (local and name == "idle_session_timeout"):  # the pooler's connection is not ours
            version = f"current_setting('server_version_num')::int >= {since}0000"
            calls.append(f"CASE WHEN {version} THEN set_config('{name}', '0', {flag}) END")
    # So an acknowledged refresh survives a crash (guarantee 3). "local", "remote_write", "remote_apply" suffice for it.
    calls.append(
        f"CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', {flag}) END"
    )
    return f"SELECT {', '.join(calls)}"


class Postgres:
    """The servers of one URL."""

    def __init__(self, url: PostgresURL, *, pooled: bool) -> None:
        """Connects to nothing yet.

        Raises:
            WrongSettings: a variable of libpq's asks for what has no effect here.
        """
        try:
            self._url = url.within(os.environ)
        except ValueError as e:
            raise WrongSettings(str(e)) from None
        self.search_path = self._url.search_path
        """The search path of the URL or of libpq's variable; None where role and database decide."""
        self._pooled = pooled
        self._primary = self._url.addresses[0]
        self.set_local = _set_config(local=True, search_path=self.search_path)
        """The statement with which each transaction begins behind a pooler."""

    def engine(self, size: int, *, wait: timedelta) -> AsyncEngine:
        """An engine with a pool of that many connections; a request waits `wait` for one of them."""
        engine = create_async_engine(
            "postgresql+asyncpg://",
            pool_size=size,
            max_overflow=0,
            pool_timeout=wait.total_seconds(),
            pool_use_lifo=True,
            hide_parameters=True,  # parameters hold digests and hashes; none belongs into a traceback
            connect_args=self._arguments(),
            **({"isolation_level": "READ COMMITTED"} if self._pooled else {}),
        )
        event.listen(engine.sync_engine, "handle_error", _leave_a_read_only_server)
        if self._pooled:
            event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(self.set_local))
        return engine

    def migrating(self) -> AsyncEngine:
        """An engine for migrations, with one connection at a time and none of the limits of a request.

        Its settings are each transaction's, so that a pooler may stand between without being named.
        """
        connect = partial(self._connect, name="keyturn migrate", limit=None)
        # With the empty name no statement stays prepared on the server connection that the pooler gives to others.
        arguments = self._arguments() | {"async_creator_fn": connect, "prepared_statement_name_func": str}
        engine = create_async_engine("postgresql+asyncpg://", poolclass=pool.NullPool, connect_args=arguments)
        settings = {"TimeZone": "UTC", "row_security": "off", **_WITHOUT_LIMITS}
        settings |= {"search_path": self.search_path} if self.search_path else {}
        calls = [f"set_config('{name}', '{value}', true)" for name, value in settings.items()]
        statement = f"SELECT {', '.join([*calls, _without_transaction_limit('true')])}"
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(statement))
        return engine

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"async_creator_fn": self._connect}
        if self._url.prepared_statement_cache_size is not None:
            arguments["prepared_statement_cache_size"] = self._url.prepared_statement_cache_size
        if self._pooled:
            arguments |= {
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"keyturn_{token_hex(16)}",
            }
        return arguments

    async def _connect(self, *, name: str = "keyturn", limit: timedelta | None = DRIVER_LIMIT) -> Any:
        """A connection to the primary. The server that was it last is tried first.

        Args:
            name: by which Postgres shows it to an operator.
            limit: how long the driver waits for a statement.

        Raises:
            TemporarilyUnavailable: there are servers, and none of them is a primary.
            OSError: none can be reached; a PostgresError of the driver: none lets us in.
        """
        several = len(self._url.addresses) > 1
        if several and self._url.attribute != "read-write":
            # Of two primaries the one that takes writes: after a switch-over by hand, the former one is often locked.
            with suppress(OSError, asyncpg.PostgresError, TemporarilyUnavailable):
                return await self._connect_to(name, limit, writable=True)
        return await self._connect_to(name, limit, writable=self._url.attribute == "read-write")

    async def _connect_to(self, name: str, limit: timedelta | None, *, writable: bool) -> Any:
        failure: Exception | None = None
        standby = False
        addresses = sorted(self._url.addresses, key=lambda address: address != self._primary)
        wait = _CONNECT_LIMIT if len(addresses) == 1 else _HOST_LIMIT
        for address in addresses:
            try:
                async with asyncio.timeout(wait.total_seconds()):
                    connection = await self._open(*address, name, limit, writable=writable)
            except (OSError, asyncpg.PostgresError) as e:
                failure = e
                continue
            if connection is not None:
                self._primary = address
                return connection
            standby = True
        if standby or failure is None:
            raise TemporarilyUnavailable("database: no server that can be reached is a primary, which takes writes")
        raise failure

    async def _open(
        self, host: str | None, port: int, name: str, limit: timedelta | None, *, writable: bool
    ) -> Any | None:
        """A connection to one server, or None where that is no primary."""
        own: dict[str, Any] = {"statement_cache_size": 0} if self._pooled else {}
        settings = {"application_name": name}
        if not self._pooled:
            settings |= {"default_transaction_isolation": "read committed", **_SETTINGS}
            if self.search_path:
                settings["search_path"] = self.search_path
        connection = await asyncpg.connect(
            f"postgresql://?{urlencode(self._url.tls)}",  # the driver takes these in a URL only
            host=host,
            port=port,
            user=self._url.user,
            password=self._url.password,
            database=self._url.database,
            target_session_attrs="any",  # judged here: its own time limit is one for all servers together
            timeout=_CONNECT_LIMIT.total_seconds(),
            command_timeout=limit.total_seconds() if limit else None,
            server_settings=settings,
            **own,
        )
        try:
            _keep_alive(connection)
            if await self._is_primary(connection, writable=writable):
                if not self._pooled:
                    await connection.execute(_set_config(local=False, search_path=None))
                return connection
        except BaseException:
            connection.terminate()
            raise
        connection.terminate()
        return None

    async def _is_primary(self, connection: Any, *, writable: bool) -> bool:
        if self._pooled:
            # Asked, as a pooler repeats what some server once said of itself; in a transaction, so that one server
            # gets all messages of the statement.
            async with connection.transaction():
                standby, read_only = await connection.fetchrow(
                    "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'"
                )
        else:
            greeting = connection.get_settings()  # from PostgreSQL 14 on each server tells these two
            standby = getattr(greeting, "in_hot_standby", "off") == "on"
            read_only = getattr(greeting, "default_transaction_read_only", "off") == "on"
        return not standby and not (read_only and writable)


def _keep_alive(connection: Any) -> None:
    found = connection._transport.get_extra_info("socket")  # noqa: SLF001  # the driver has no other way to it
    if found is not None and found.family != socket.AF_UNIX:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                found.setsockopt(socket.IPPROTO_TCP, option, value)


async def answers(connection: Any) -> bool:
    """Whether the server still answers on a connection of the driver; one that is dead is dropped without ceremony."""
    if connection.is_closed():
        return False
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.execute("SELECT", timeout=_ANSWER_LIMIT.total_seconds())
        return True
    connection.terminate()
    return False


def _leave_a_read_only_server(context: ExceptionContext) -> None:
    # After a failover the connections to what was the primary live on, and none of them ever writes again.
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True
