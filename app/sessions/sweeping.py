"""Ending sessions by a walk over the table: those under a key, those that a filter finds, those over by a policy.

Each range of the walk is a transaction of its own, so a call that breaks off is simply made again.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_

from ..actors import Actor
from ..policies import Policies
from ..revocation.publishing import Publishing
from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import own_task
from .ending import Ending
from .filters import Filter
from .marking import lived, locked
from .walk import BEGINNING, next_range


class Sweeping:
    """Ends many sessions, of any users."""

    def __init__(self, db: Database, publishing: Publishing, ending: Ending, policies: Policies) -> None:
        self._db = db
        self._publishing = publishing
        self._ending = ending
        self._policies = policies

    async def end_under(self, key_number: int, *, by: Actor, most: int = 1000) -> int:
        """Ends the live sessions under a retired refresh key, `most` in a transaction. Returns how many were live.

        If a call breaks off, call it again. A process that has not read yet that the key is retired may still start
        sessions under the key. So call it once more later: `KeyChanges` does.

        Raises:
            TemporarilyUnavailable: as `Ending.end`.
        """
        return (await self._end_each(Session.key_number == key_number, by=by, most=most))[0]

    async def end_all_but_under(self, key_number: int, *, by: Actor, most: int = 1000) -> int:
        """Ends the live sessions under all refresh keys but one, as `end_under` does. Returns how many were live."""
        return (await self._end_each(Session.key_number != key_number, by=by, most=most))[0]

    async def end_matching(
        self, filtered: Filter, *, by: Actor, after: UUID = BEGINNING, ranges: int, most: int = 1000
    ) -> tuple[int, UUID | None]:
        """Ends the live sessions that a filter lets through, `most` in a transaction.

        The statement that ends a session checks the filter again. So a session that was refreshed in the meantime, and
        is no longer idle, stays. If a call breaks off, call it again: those that ended are no longer found.

        Args:
            filtered: the filter. Its status has no part in this, since only live sessions can end.
            by: the actor.
            after: where the call before ended.
            ranges: how many ranges of the walk one call takes, at most.
            most: how many sessions end in one transaction, at most.

        Returns:
            How many were live, and where the next call goes on: None at the end.

        Raises:
            TemporarilyUnavailable: as `Ending.end`.
        """
        which = and_(*filtered.matching())
        return await self._end_each(which, by=by, most=most, after=after, ranges=ranges, of_user=filtered.user_id)

    async def end_over(self, *, by: Actor, most: int = 1000) -> None:
        """Marks the sessions that are over by the policy in force alone, each with the deadline that it had.

        Those whose own deadlines have passed need no mark: no policy can lengthen these. If a call breaks off, call it
        again.

        Raises:
            TemporarilyUnavailable: as `Ending.end`.
        """
        policy, now = self._policies.in_force, self._db.now()
        over = or_(
            self._db.after(Session.rotated_at, policy.idle_lifetime) <= now,
            self._db.after(Session.created_at, policy.absolute_lifetime) <= now,
        )
        alone = and_(over, Session.idle_expires_at > now, Session.absolute_expires_at > now)
        await self._end_each(alone, by=by, most=most)

    async def _end_each(
        self,
        which: ColumnElement[bool],
        *,
        by: Actor,
        most: int,
        after: UUID = BEGINNING,
        ranges: int | None = None,
        of_user: UUID | None = None,
    ) -> tuple[int, UUID | None]:
        ended, last, done = 0, after, 0
        while ranges is None or done < ranges:
            count, end = await self._end_range(last, which, most, by, of_user)
            ended, done = ended + count, done + 1
            if end is None:
                return ended, None
            last = end
        return ended, last

    @own_task
    async def _end_range(
        self, after: UUID, which: ColumnElement[bool], most: int, by: Actor, of_user: UUID | None = None
    ) -> tuple[int, UUID | None]:
        async with self._db.look(hot_path=False) as connection:
            doomed = and_(which, Session.ended_at.is_(None))
            ids, last = await next_range(connection, after, doomed, most=most, of_user=of_user)
        if not ids:
            return 0, last
        await self._publishing.read_fence()  # the walk may take longer than a reading counts
        # A session may change between the two statements, for example by a refresh, which moves it to another key. So
        # the second statement checks `which` again.
        condition = and_(locked(Session.id.in_(ids), which), which)
        ended = await self._ending.end_where(ids, "revoked_by_admin", condition, by=by)
        return lived(ended), last
