"""A database that was restored: Redis from before is not believed, and each process reads its copies again.

Keyturn notices most restores by itself (`Database.incarnation`). Two remain: rows that were put back into the same
table, and a machine that went back to a snapshot of its memory.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update

from ..actors import Actor
from ..events.audit import Event, record
from ..events.reading import Events
from ..revocation.publishing import Publishing
from ..storage.database import Database
from ..storage.tables import Pulse
from ..storage.tasks import own_task

_NEWEST = 20
"""How many events are looked at. An operator may have given the command some times already."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """The outcome of `Restored.take`."""

    at: datetime
    """The database's clock at the change. Of access tokens issued before, each needs a session in the database."""
    newest: datetime | None
    """When the newest event before the change happened, other than such changes. None if there is none."""


class Restored:
    """Takes a restored database into use."""

    def __init__(self, db: Database, publishing: Publishing, events: Events) -> None:
        self._db = db
        self._publishing = publishing
        self._events = events

    @own_task
    async def take(self, *, by: Actor) -> Restoration:
        """Makes every process disbelieve Redis, and read keys, policies and issuers again.

        On return, no process that reaches the database accepts an access token by the silence of a Redis from before. A
        call too many costs one look-up a session, and a rebuild of Redis.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        newest = [each["at"] for each in await self._events.list(limit=_NEWEST) if each["event"] != "database_restored"]
        async with self._db.begin() as tx:
            await self._publishing.hold(tx)
            now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
            # Before the fence and the pulse: locks are taken in the order of `storage.locks`.
            await record(tx, now, by, [Event("database_restored")])
            fenced = await self._publishing.fence(tx)
            versions = {name: secrets.randbits(62) for name in ("keys", "policies", "issuers")}
            await tx.execute(update(Pulse).values(versions))
        await fenced.known_to_all()
        return Restoration(now, newest[0] if newest else None)
