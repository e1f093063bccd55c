"""Lost connections: where a process loses one, it does not use those again that it made before.

A server that dies, or is no primary any more, takes all its connections along. Without this each of them would cost a
request its 503 before the process finds out.
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
"""After so long without use a connection is asked before it is used. A balancer, a firewall or a NAT may have forgotten
it, and tells nobody: the statement that finds out would cost a user the request."""


class Losses:
    """The number of times that this process lost its connections. Each connection carries the number at its making."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, count: int | None) -> None:
        """Notes the loss of a connection that was made at this number. One from before tells nothing of later ones."""
        if count == self.count:
            self.count += 1

    async def answers(self, driver: Any, count: int | None) -> bool:
        """Whether the server answers on a connection; one that died in silence counts as lost."""
        if await answers(driver):
            return True
        self.note(count)
        return False

    def watch(self, engine: AsyncEngine) -> None:
        """Makes the pool of an engine replace a connection when it is taken, if it is dead or from before a loss."""

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
            driver.terminate()  # without the two seconds that a farewell to a dead server takes
            raise DisconnectionError("dead, or from before a loss")  # the pool makes another in its place

        @event.listens_for(engine.sync_engine, "handle_error")
        def failed(context: ExceptionContext) -> None:
            if context.is_disconnect:
                self.note(count_of(context.connection))


def count_of(connection: Connection | None) -> int | None:
    """The number of losses at which a connection was made; None where it is gone."""
    if connection is None or connection.invalidated:
        return None
    found: int | None = connection.info.get("losses")
    return found
