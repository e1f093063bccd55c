"""Deleting sessions that have long been over."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, delete, or_, select

from ..actors import Actor
from ..events.audit import Event, record
from ..revocation.lifetimes import LOOK_BACK
from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import own_task
from .walk import BEGINNING

KEPT_FOR = timedelta(days=30)
"""How long a session that is over stays, with its reason, before `Upkeep.gc` may delete it."""

assert KEPT_FOR > LOOK_BACK, "a rebuild must find every session whose tokens could live"


class Upkeep:
    """Deletes rows of sessions that are no longer needed."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def gc(self, *, by: Actor, kept_for: timedelta = KEPT_FOR, most: int = 1000) -> int:
        """Deletes sessions that have been over for `kept_for`, `most` in a transaction. Returns how many in all.

        The sessions of an erased user stay only for `LOOK_BACK`, as long as a rebuild of Redis has to find them.

        The deadlines must not be indexed (guarantee 5). So `gc` walks the primary key, which is ordered by age.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        deleted, after = 0, BEGINNING
        while True:
            last, count = await self._gc_range(after, kept_for, most, by)
            deleted += count
            if last is None:
                return deleted
            after = last

    @own_task
    async def _gc_range(self, after: UUID, kept_for: timedelta, most: int, by: Actor) -> tuple[UUID | None, int]:
        async with self._db.begin() as tx:
            now = await tx.scalar(select(self._db.now()))
            assert now is not None
            long_ago = now - max(kept_for, LOOK_BACK)
            erased = and_(Session.end_reason == "user_erased", Session.ended_at < now - LOOK_BACK)
            ids = (
                await tx.scalars(select(Session.id).where(Session.id > after).order_by(Session.id).limit(most))
            ).all()
            if not ids:
                return None, 0
            over = select(Session.id).where(
                Session.id > after,
                Session.id <= ids[-1],
                or_(Session.ended_at < long_ago, Session.idle_expires_at < long_ago, erased),
            )
            # If another transaction holds a row, it refreshes or ends the session. So this one leaves the row out.
            doomed = over.order_by(Session.id).with_for_update(skip_locked=True)
            gone = (await tx.scalars(delete(Session).where(Session.id.in_(doomed)).returning(Session.id))).all()
            if gone:
                await record(tx, now, by, [Event("sessions_deleted", detail=str(len(gone)))])
            return ids[-1], len(gone)
