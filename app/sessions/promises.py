"""Promises: the lifetimes under which a session began, as its row has them, whatever policy is in force now.

A `SessionRow` has each lifetime as the policy in force has cut it. An operator who asks why a session ended early needs
both: the lifetime that the sign-in was promised, and the one that binds the session.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select

from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import own_task


class Promised(NamedTuple):
    """The columns of a session that no policy has cut."""

    idle_lifetime: timedelta
    absolute_lifetime: timedelta
    retry_window: timedelta
    access_lifetime: timedelta
    created_at: datetime
    absolute_expires_at: datetime
    moved_at: datetime | None
    """When a refresh from another address or device was noted last. None: never."""

    @property
    def bounded_upstream(self) -> bool:
        """Whether the absolute deadline is earlier than the promise, because the issuer's own session ends then."""
        return self.absolute_expires_at < self.created_at + self.absolute_lifetime


class Promises:
    """Reads promises."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def of(self, session_id: UUID) -> Promised | None:
        """The promise to a session. None if there is no such row.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        columns = [getattr(Session, name) for name in Promised._fields]
        async with self._db.look(hot_path=False) as connection:
            found = (await connection.execute(select(*columns).where(Session.id == session_id))).one_or_none()
            return None if found is None else Promised(*found)
