"""Erasing a user: account, sessions and identity go in one transaction. A random pseudonym takes the place of the id.

Two things stay, without anything that is personal:

1. The rows of the sessions, so that no access token is accepted: a rebuild of Redis reads which sessions ended lately.
   `Upkeep.gc` deletes the rows as soon as the last token is over.
2. The events, so that the record of what administrators did has no gap.

The transaction locks the user's row, then the rows of the sessions. Each transaction that writes an event about a user
has locked one of these before. So it has committed before this transaction rewrites the events, or it finds no user.
"""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import and_, case, delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import NotFound
from ..events.audit import Event, record
from ..sessions.ending import Ending
from ..storage.database import Database
from ..storage.tables import Event as EventRow
from ..storage.tables import Session, User
from .administrators import check_still, keep_one


class Erasing:
    """Erases users."""

    def __init__(self, db: Database, ending: Ending) -> None:
        """Needs `ending`, because the user's sessions end."""
        self._db = db
        self._ending = ending

    async def erase(self, user_id: UUID, *, by: Actor) -> UUID:
        """Erases a user. Returns the pseudonym under which events and ended sessions stay.

        Raises:
            NotFound: there is no such user.
            Conflict: the user is the last enabled administrator.
            TemporarilyUnavailable: the database is away. The user is erased or not: call again.
        """
        # Version 4: the ids of users are of version 7, and would tell when the account was made.
        pseudonym, sender = uuid4(), by
        if by.id == str(user_id):  # administrators may erase themselves
            by = Actor(by.kind, str(pseudonym))

        async def change(tx: AsyncConnection) -> None:
            await check_still(tx, sender)
            await keep_one(tx, user_id)
            columns = User.role, self._db.now().label("now")
            user = (await tx.execute(select(*columns).where(User.id == user_id).with_for_update())).one_or_none()
            if user is None:
                raise NotFound("no such user")
            await _take_from_sessions(tx, user_id, pseudonym)
            await _take_from_events(tx, user_id, pseudonym, was_admin=user.role == "admin")
            await tx.execute(delete(User).where(User.id == user_id))
            await record(tx, user.now, by, [Event("user_erased", pseudonym)])

        await self._ending.end_of_user(user_id, "user_erased", by=by, also=change, renamed=pseudonym)
        return pseudonym


async def _take_from_sessions(tx: AsyncConnection, user_id: UUID, pseudonym: UUID) -> None:
    """Takes all that is personal from the rows of the sessions, also of those that ended before."""
    its = select(Session.id).where(Session.user_id == user_id).order_by(Session.id).with_for_update()
    await tx.execute(
        update(Session)
        .where(Session.id.in_(its))
        .values(
            user_id=pseudonym,
            end_reason=case((Session.ended_at.is_not(None), "user_erased")),
            claims=None,
            cnf_jkt=None,
            device_id=None,
            device_name=None,
            address=None,
            user_agent=None,
            moved_at=None,
            retry_key_digest=None,
        )
    )


async def _take_from_events(tx: AsyncConnection, user_id: UUID, pseudonym: UUID, *, was_admin: bool) -> None:
    """Puts the pseudonym into the events, and takes addresses, details and ids of requests from them.

    Clients choose the ids of requests, so these may hold anything.
    """
    itself = and_(EventRow.actor.in_(("user", "administrator")), EventRow.actor_id == str(user_id))
    about, has_had_roles = (
        EventRow.user_id == user_id,
        exists().where(EventRow.user_id == user_id, EventRow.event == "role_changed"),
    )
    # Only administrators act on others. No index finds their acts, so nobody else's erasure reads all events.
    reads_all = was_admin or await tx.scalar(select(has_had_roles))
    await tx.execute(
        update(EventRow)
        .where(or_(about, itself) if reads_all else about)
        .values(
            user_id=case((about, pseudonym), else_=EventRow.user_id),
            actor_id=case((itself, str(pseudonym)), else_=EventRow.actor_id),
            address=None,
            request_id=None,
            detail=case((about, None), else_=EventRow.detail),
        )
    )
