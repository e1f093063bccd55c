"""Naming the device of a session, by the user whose session it is."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import update

from ..actors import Actor
from ..events.audit import Event, record
from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import own_task


class Naming:
    """Names devices."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def name(self, session_id: UUID, user_id: UUID, device_name: str | None, *, by: Actor) -> None:
        """Gives the device of a session another name, or takes the name away. The same name again changes nothing.

        A session that is over can be named too: the name helps its user to recognise it. The event does not repeat the
        name, because events outlive what users write about themselves.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        renames = (
            update(Session)
            .where(
                Session.id == session_id,
                Session.user_id == user_id,
                Session.device_name.is_distinct_from(device_name),
            )
            .values(device_name=device_name)
            .returning(Session.client_id, self._db.now().label("now"))
        )
        async with self._db.begin() as tx:
            renamed = (await tx.execute(renames)).one_or_none()
            if renamed is not None:
                await record(tx, renamed.now, by, [Event("session_renamed", user_id, session_id, renamed.client_id)])
