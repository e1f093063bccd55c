"""Lost connections: if a process loses one, it no longer uses the connections that it made before.

If a server dies or is no longer the primary, all connections to it are useless. Without this file, each of them would
cost one request a 503 before the process noticed.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy import Connection, ExceptionContext, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from .postgres import answers

RESTED = timedelta(seconds=2)
"""A connection that was idle for this long is tested before it is used. A load balancer, firewall or NAT may have
dropped it without notice, and then the next statement on it would fail a request."""


class Losses:
    """Counts how often this process lost its connections. Each connection keeps the count at which it was made."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, count: int | None) -> None:
        """Notes the loss of a connection that was made at this count. An older count tells nothing of later ones."""
        if count == self.count:
            self.count += 1

    async def answers(self, driver: Any, count: int | None) -> bool:
        """Whether the server answers on a connection. If not, the connection counts as lost."""
        if await answers(driver):
            return True
        self.note(count)
        return False

    def watch(self, engine: AsyncEngine) -> None:
        """Makes an engine's pool replace a connection that it gives out, if it is dead or from before a loss."""

        @event.listens_for(engine.sync_engine, "connect")
        def made(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["losses"] = self.count
            record.info["used"] = monotonic()

        @event.listens_for(engine.sync_engine, "checkin")
        def given_back(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["used"] = monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def taken(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
            driver: Any = record.driver_connection
            count: int = record.info["losses"]
            if (
                count == self.count
                and not driver.is_closed()
                and (
                    monotonic() - record.info["used"] < RESTED.total_seconds()
                    or connection.run_async(lambda driver: self.answers(driver, count))
                )
            ):
                return
            driver.terminate()  # an orderly end would wait two seconds for a dead server
            raise DisconnectionError("dead, or from before a loss")  # the pool makes another in its place

        @event.listens_for(engine.sync_engine, "handle_error")
        def failed(context: ExceptionContext) -> None:
            if context.is_disconnect:
                self.note(count_of(context.connection))


def count_of(connection: Connection | None) -> int | None:
    """The number of losses at which a connection was made; None if the connection is gone."""
    if connection is None or connection.invalidated:
        return None
    found: int | None = connection.info.get("losses")
    return found
