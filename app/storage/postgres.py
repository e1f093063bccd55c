"""Connections to Postgres: to which of its servers, with which settings, and how a dead one is noticed.

A connection goes straight to the server, or through PgBouncer in transaction mode. Behind PgBouncer, each transaction
may be on another connection of the server, so three rules hold. (1) No statement stays prepared for a later use. (2)
The name of a prepared statement is unique. (3) Each transaction makes its settings, as PgBouncer refuses most start
parameters.
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
"""The driver waits longer for a statement than the server lets it run (`STATEMENT_LIMIT`). So the process learns the
outcome of a statement unless the server is silent."""

_CONNECT_LIMIT = timedelta(seconds=2)
_HOST_LIMIT = timedelta(seconds=1)
"""How long the connection to one of several servers may take, so that a dead machine leaves time for the next."""
_ANSWER_LIMIT = timedelta(seconds=1)

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Seconds of silence before the first probe (Linux, macOS), between probes, and their number. Load balancers and NAT
drop a connection after some 240 to 350 seconds of silence."""

_SETTINGS = {
    "statement_timeout": f"{STATEMENT_LIMIT // timedelta(milliseconds=1)}ms",
    "lock_timeout": f"{LOCK_LIMIT // timedelta(milliseconds=1)}ms",
    "idle_in_transaction_session_timeout": f"{DRIVER_LIMIT // timedelta(milliseconds=1)}ms",
    "jit": "off",
    # The driver sends seven days as calendar days. With summer time, these may be 167 or 169 hours.
    "TimeZone": "UTC",
    # A policy of row-level security could hide a session. With this, Postgres refuses the statement instead.
    "row_security": "off",
}


# A migration takes as long as the tables need, even if role or database set limits for requests.
_WITHOUT_LIMITS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}


def _without_transaction_limit(local: str) -> str:
    version = "current_setting('server_version_num')::int >= 170000"
    return f"CASE WHEN {version} THEN set_config('transaction_timeout', '0', {local}) END"


def _set_config(*, local: bool, search_path: str | None) -> str:
    """The statement that makes the settings that can't be start parameters; behind a pooler, all settings.

    A default of a role or a database is overridden only if it would break a guarantee. A stronger
    ``synchronous_commit``, or ``default_transaction_read_only``, stays as the operator has it.
    """
    flag = "true" if local else "false"
    settings = {**_SETTINGS, **({"search_path": search_path} if search_path else {})} if local else {}
    calls = [f"set_config('{name}', '{value}', {flag})" for name, value in settings.items()]
    # Keyturn's pool tests its idle connections itself, and the limits of statements bound each transaction.
    for name, since in (("idle_session_timeout", 14), ("transaction_timeout", 17)):
        if not (local and name == "idle_session_timeout"):  # the connection is the pooler's
            version = f"current_setting('server_version_num')::int >= {since}0000"
            calls.append(f"CASE WHEN {version} THEN set_config('{name}', '0', {flag}) END")
    # An acknowledged refresh must survive a crash (guarantee 3). "local", "remote_write" and "remote_apply" suffice.
    calls.append(
        f"CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', {flag}) END"
    )
    return f"SELECT {', '.join(calls)}"


class Postgres:
    """The servers of one URL."""

    def __init__(self, url: PostgresURL, *, pooled: bool) -> None:
        """Connects to nothing yet.

        Raises:
            WrongSettings: one of libpq's variables is malformed or would have no effect.
        """
        try:
            self._url = url.within(os.environ)
        except ValueError as e:
            raise WrongSettings(str(e)) from None
        self.search_path = self._url.search_path
        """The search path of the URL or of libpq's variable; None if role and database decide."""
        self._pooled = pooled
        self._primary = self._url.addresses[0]
        self.set_local = _set_config(local=True, search_path=self.search_path)
        """The statement with which each transaction begins behind a pooler."""

    def engine(self, size: int, *, wait: timedelta) -> AsyncEngine:
        """An engine with a pool of `size` connections. A request waits at most `wait` for one of them."""
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

        Each transaction makes its own settings, so this works behind a pooler that no setting names.
        """
        connect = partial(self._connect, name="keyturn migrate", limit=None)
        # With the empty name, no statement stays prepared on a connection that the pooler gives to other clients.
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
        """A connection to the primary. The server that was the primary last is tried first.

        Args:
            name: the name by which Postgres shows the connection to an operator.
            limit: how long the driver waits for a statement.

        Raises:
            TemporarilyUnavailable: servers can be reached, and none of them is a primary.
            OSError: no server can be reached. If none lets Keyturn in, a PostgresError of the driver.
        """
        several = len(self._url.addresses) > 1
        if several and self._url.attribute != "read-write":
            # Prefer a primary that takes writes: after a switch-over by hand, the former one is often set read-only.
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
        """A connection to one server, or None if that is no primary."""
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
            # Ask the server, because a pooler repeats an old greeting, maybe of another server. Ask in a transaction,
            # so that all messages of the statement reach the same server.
            async with connection.transaction():
                standby, read_only = await connection.fetchrow(
                    "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'"
                )
        else:
            greeting = connection.get_settings()  # PostgreSQL 14 and later report these two
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
    """Whether the server still answers on a connection of the driver. If not, the connection is dropped at once."""
    if connection.is_closed():
        return False
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.execute("SELECT", timeout=_ANSWER_LIMIT.total_seconds())
        return True
    connection.terminate()
    return False


def _leave_a_read_only_server(context: ExceptionContext) -> None:
    # After a failover, the connections to the former primary stay open, and none of them can ever write again.
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True
