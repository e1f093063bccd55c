"""Owed revocations, for operators: those that wait, and those that were given up and may be tried again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, text, update

from ..actors import Actor
from ..errors import NotFound
from ..events.audit import record
from ..storage.database import Database
from ..storage.tables import UpstreamSession
from ..storage.tables.upstream_sessions import OPEN
from ..storage.tasks import own_task
from .orders import event_about, locked_sessions

State = Literal["waiting", "given_up"]

_MOST_COUNTED = 100_000


class Owed:
    """The orders in the database that are not carried out."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def list(
        self, state: State | None = None, *, limit: int = 100, after: UUID | None = None
    ) -> Sequence[dict[str, Any]]:
        """Orders that wait and those that were given up, by the ids of their sessions, the newest first.

        Args:
            state: only these.
            limit: how many, at most.
            after: only those that come after this session in the list.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        which: list[ColumnElement[bool]] = []
        if state == "waiting":
            which.append(UpstreamSession.due_at.is_not(None))
        if state == "given_up":
            which.append(UpstreamSession.outcome == "given_up")
        if after is not None:
            which.append(UpstreamSession.session_id < after)
        columns = (
            UpstreamSession.session_id,
            UpstreamSession.issuer_name.label("issuer"),
            UpstreamSession.upstream_id.label("upstream_session"),
            UpstreamSession.outcome.label("state"),
            UpstreamSession.attempts,
            UpstreamSession.ordered_at,
            UpstreamSession.due_at,
            UpstreamSession.settled_at.label("given_up_at"),
            UpstreamSession.failure,
        )
        query = select(*columns).where(text(OPEN), *which)  # the words of the index, which SQLite needs
        async with self._db.look(hot_path=False) as connection:
            rows = await connection.execute(query.order_by(UpstreamSession.session_id.desc()).limit(limit))
            return [{**row, "state": row["state"] or "waiting"} for row in rows.mappings()]

    @own_task
    async def count(self) -> tuple[int, int]:
        """How many orders wait, and how many were given up: 100,000 together, at most.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        those = select(UpstreamSession.due_at).where(text(OPEN)).limit(_MOST_COUNTED).subquery()
        query = select(func.count(those.c.due_at), func.count()).select_from(those)
        async with self._db.look(hot_path=False) as connection:
            waiting, both = (await connection.execute(query)).one()
        return waiting, both - waiting

    @own_task
    async def renew(self, session_id: UUID, *, by: Actor) -> None:
        """Orders anew what was given up, with as many attempts and as much time as at first.

        Raises:
            NotFound: nothing was given up for this session.
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.begin() as tx:
            sessions = await locked_sessions(tx, [session_id])
            now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
            renewed = (
                update(UpstreamSession)
                .where(UpstreamSession.session_id == session_id, UpstreamSession.outcome == "given_up")
                .values(ordered_at=now, due_at=now, attempts=0, settled_at=None, outcome=None)
                .returning(UpstreamSession.session_id, UpstreamSession.issuer_name)
            )
            row = (await tx.execute(renewed)).one_or_none()
            if row is None:
                raise NotFound("nothing was given up for this session")
            await record(tx, now, by, [event_about("upstream_ordered_anew", row, sessions)])
