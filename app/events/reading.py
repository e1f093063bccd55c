"""Reading the events: pages of the newest first, by filters, each in the order of an index.

No page sorts the table. Each filter bounds the part of it that a page may walk:

1. `user_id` and `session_id`: the events of one user, by their index.
2. `event`: the starts and ends of sessions are most of the table, so a page of them is near its end. All other kinds
   are few, and have an index.
3. `actor`: users on themselves are most of the table; all other actors have an index.
4. `since` and `until`: a range of ids, because the ids rise with time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, TextClause, literal, select, text

from ..actors import Kind
from ..storage.database import Database
from ..storage.tables import Event as Row
from ..storage.tables import microseconds
from ..storage.tables.events import FREQUENT, NOT_BY_USERS, RARE
from ..storage.tasks import own_task
from .audit import EventKind

_CLOCKS = timedelta(days=1)
"""By how much the clock of a process may differ from the database's.

An id has the process's clock, and `at` the database's. So the range of ids is wider than that of the moments, on each
side. A page reads a day of events more, at most.
"""
_BEGINNING = timedelta(hours=1)
"""How long after its id a session has its first event, at most: one transaction makes both."""
_LAST_TICK = (1 << 48) - 1


class Events:
    """The events in the database, for those who read them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def list(
        self,
        *,
        limit: int,
        before: UUID | None = None,
        user_id: UUID | None = None,
        session_id: UUID | None = None,
        event: EventKind | None = None,
        actor: Kind | UUID | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[Any]:
        """Events, the newest first.

        Args:
            limit: how many, at most.
            before: only those before the event of this id.
            user_id: only those on this user.
            session_id: only those on this session.
            event: only those of this kind.
            actor: only those by actors of this kind; or by this administrator, in that role.
            since: only those from this moment on.
            until: only those before this moment.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        which: list[ColumnElement[bool] | TextClause] = []
        if session_id is not None:
            owner = await self._user_of(session_id)
            if owner is None:
                return []
            which += [Row.session_id == session_id, Row.user_id == owner, Row.id > session_id]
        if before is not None:
            which.append(Row.id < before)
        if user_id is not None:
            which.append(Row.user_id == user_id)
        which += [*_of(event, actor), *_between(since, until)]
        if not self._db.is_postgres:
            which += _words_of_sqlite(event, actor)
        query = select(Row.__table__).where(*which).order_by(Row.id.desc()).limit(limit)
        async with self._db.look(hot_path=False) as connection:
            return (await connection.execute(query)).mappings().all()

    async def _user_of(self, session_id: UUID) -> UUID | None:
        """The user of a session, by its first event, which outlives the session. None if there is no such event.

        The session's id says when that was: so the walk finds the event behind a few others, or ends after an hour.
        """
        began = _id_at(session_id, _BEGINNING)
        first = (
            select(Row.user_id)
            .where(Row.session_id == session_id, Row.id > session_id, Row.id < began)
            .order_by(Row.id)
            .limit(1)
        )
        async with self._db.look(hot_path=False) as connection:
            found: UUID | None = await connection.scalar(first)
            return found


def _of(event: EventKind | None, actor: Kind | UUID | None) -> Iterator[ColumnElement[bool]]:
    """The filters by kind and actor. Their values stand in the statement, so that Postgres finds the partial index."""
    if event is not None:
        yield Row.event == literal(event, literal_execute=True)
    if actor is not None:
        yield Row.actor == literal("administrator" if isinstance(actor, UUID) else actor, literal_execute=True)
    if isinstance(actor, UUID):
        yield Row.actor_id == str(actor)


def _words_of_sqlite(event: EventKind | None, actor: Kind | UUID | None) -> Iterator[TextClause]:
    """The conditions of the partial indexes that these filters imply.

    SQLite uses such an index only if the query repeats its words. To Postgres the words would look like a further
    filter: it would expect one row, and sort.
    """
    if event is not None and event not in FREQUENT:
        yield text(RARE)
    if actor is not None and actor != "user":
        yield text(NOT_BY_USERS)


def _between(since: datetime | None, until: datetime | None) -> Iterator[ColumnElement[bool]]:
    """The filters by moment, each with the range of ids that it can be in."""
    if since is not None:
        yield Row.at >= since
        yield Row.id >= _id_at(since, -_CLOCKS)
    if until is not None:
        yield Row.at < until
        yield Row.id <= _id_at(until, _CLOCKS)


def _id_at(near: datetime | UUID, shift: timedelta) -> UUID:
    """The lowest id that a process makes at a moment, or at that of another id, moved by `shift`."""
    of_id = near.int >> 80 if isinstance(near, UUID) else microseconds(near) // 1000
    return UUID(int=min(max(of_id + microseconds(shift) // 1000, 0), _LAST_TICK) << 80)
