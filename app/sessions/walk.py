"""The walk over the table of sessions, in ranges of its primary key.

Deadlines and keys are not indexed (guarantee 5), so whoever looks for them reads the whole table. Each range is a
statement of bounded work, however few sessions fit. Identifiers rise with time, so new sessions come at the end.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..storage.tables import Session

BEGINNING = UUID(int=0)
"""The place before all sessions."""

_LOOK = 10_000
"""How many sessions one range looks at."""


class Range(NamedTuple):
    """One range of the walk."""

    ids: list[UUID]
    """The sessions of the range that fit."""
    last: UUID | None
    """The place where the next range begins. None: this range was the last one."""


async def next_range(
    connection: AsyncConnection, after: UUID, which: ColumnElement[bool], *, most: int, of_user: UUID | None = None
) -> Range:
    """The range that begins after a session.

    Args:
        connection: a connection, or a transaction that changes what the range finds.
        after: where the range before ended, or `BEGINNING`.
        which: the condition.
        most: how many sessions may fit. The range ends at the last of them.
        of_user: the user to whom the condition limits the sessions. Then the walk takes the index of users.
    """
    ordered, end = await _look(connection, after, of_user)
    within = ordered.where(which) if end is None else ordered.where(which, Session.id <= end)
    ids = list((await connection.scalars(within.limit(most))).all())
    return Range(ids, ids[-1] if len(ids) == most else end)


async def count(
    connection: AsyncConnection, after: UUID, which: ColumnElement[bool], *, of_user: UUID | None = None
) -> tuple[int, UUID | None]:
    """As `next_range`, but how many sessions of the range fit, without a limit."""
    ordered, end = await _look(connection, after, of_user)
    within = ordered.where(which) if end is None else ordered.where(which, Session.id <= end)
    counted = await connection.scalar(select(func.count()).select_from(within.order_by(None).subquery()))
    return counted or 0, end


async def _look(connection: AsyncConnection, after: UUID, of_user: UUID | None) -> tuple[Select[UUID], UUID | None]:
    """The sessions after a place, in their order, and the end of the range: None if it is the last one."""
    here = [Session.id > after] if of_user is None else [Session.user_id == of_user, Session.id > after]
    ordered = select(Session.id).where(*here).order_by(Session.id)
    return ordered, await connection.scalar(ordered.offset(_LOOK - 1).limit(1))
