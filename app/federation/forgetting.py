"""Forgetting: taken tokens that nobody could take again, and upstream sessions whose local sessions are gone."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import delete, exists, func, or_, select

from ..sessions.upkeep import KEPT_FOR
from ..storage.database import Database
from ..storage.tables import Session, TakenToken, UpstreamSession
from ..storage.tasks import own_task

_BEGINNING = UUID(int=0)


class Forgotten(NamedTuple):
    """How many rows were deleted."""

    taken_tokens: int
    upstream_sessions: int


class Forgetting:
    """Deletes rows of federation that are no longer needed. `keyturn gc` calls it after `Upkeep.gc`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def gc(self, *, most: int = 1000) -> Forgotten:
        """Deletes what is no longer needed, `most` in a transaction.

        No event tells of it: the sessions that began by these tokens have theirs.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        tokens = 0
        while deleted := await self._taken(most):
            tokens += deleted
        sessions, last = 0, _BEGINNING
        while (end := await self._upstream(last, most)) is not None:
            last = end.last
            sessions += end.deleted
        return Forgotten(tokens, sessions)

    @own_task
    async def _taken(self, most: int) -> int:
        """Deletes taken tokens that are refused as expired by now. An index has them in the order of their ends."""
        async with self._db.begin() as tx:
            over = select(TakenToken.digest).where(TakenToken.expires_at < self._db.now())
            doomed = over.order_by(TakenToken.expires_at).limit(most).with_for_update(skip_locked=True)
            gone = await tx.scalars(
                delete(TakenToken).where(TakenToken.digest.in_(doomed)).returning(TakenToken.digest)
            )
            return len(gone.all())

    @own_task
    async def _upstream(self, after: UUID, most: int) -> _Range | None:
        """Deletes the rows of one range of the primary key whose sessions are gone. None: there are no more rows.

        A row that is still to be revoked stays, however long its session has been gone. One that was given up stays for
        `KEPT_FOR`, so that an operator can try it again: the session of an erased user goes after a day. A session and
        its row are inserted together, so a row without a session is never a new one.
        """
        lately = self._db.after(self._db.now(), -KEPT_FOR)
        async with self._db.begin() as tx:
            ordered = select(UpstreamSession.session_id).where(UpstreamSession.session_id > after)
            ids = (await tx.scalars(ordered.order_by(UpstreamSession.session_id).limit(most))).all()
            if not ids:
                return None
            doomed = ordered.where(
                UpstreamSession.session_id <= ids[-1],
                UpstreamSession.due_at.is_(None),
                or_(func.coalesce(UpstreamSession.outcome, "") != "given_up", UpstreamSession.settled_at < lately),
                ~exists().where(Session.id == UpstreamSession.session_id),
            ).with_for_update(skip_locked=True)
            gone = await tx.scalars(
                delete(UpstreamSession)
                .where(UpstreamSession.session_id.in_(doomed))
                .returning(UpstreamSession.session_id)
            )
            return _Range(len(gone.all()), ids[-1])


class _Range(NamedTuple):
    """One range of the walk: how many rows were deleted, and its last row."""

    deleted: int
    last: UUID
