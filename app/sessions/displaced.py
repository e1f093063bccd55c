"""Displaced sessions: those that a new sign-in of their user ends.

1. A session of the same device and client is *replaced*. Otherwise each sign-in on a device that lost its tokens would
   leave a session behind that nobody uses.
2. If more sessions would live than the policy allows, the oldest end. The new one is never among them.

Only live sessions count and end. One that is past a deadline, or under a retired key, keeps the reason that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy import and_, case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..policies import Policy
from ..storage.database import Database
from ..storage.tables import Session
from ..tokens.keys import Keys
from .marking import ends, locked, mark
from .rows import SessionRow


@dataclass(frozen=True, slots=True)
class Displaced:
    """The sessions that a sign-in ends, by reason."""

    replaced: frozenset[UUID]
    beyond_limit: frozenset[UUID]

    @property
    def ids(self) -> frozenset[UUID]:
        """All of them."""
        return self.replaced | self.beyond_limit


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A sign-in that may end other sessions of its user."""

    user_id: UUID
    client_id: str
    device_id: str | None

    def displaces(self, live: Sequence[SessionRow], limit: int | None) -> Displaced:
        """Which of the user's live sessions, in the order of their age, this sign-in ends. Pure."""
        own = self.client_id, self.device_id
        same = [row for row in live if self.device_id is not None and (row.client_id, row.device_id) == own]
        replaced = frozenset(row.id for row in same)
        rest = [row.id for row in live if row.id not in replaced]
        surplus = 0 if limit is None else max(0, len(rest) + 1 - limit)
        return Displaced(replaced, frozenset(rest[:surplus]))

    async def looks(self, connection: AsyncConnection, db: Database, keys: Keys, policy: Policy) -> Displaced:
        """Which sessions this sign-in would end now."""
        which = Session.user_id == self.user_id
        if policy.session_limit is None:
            which = and_(which, Session.client_id == self.client_id, Session.device_id == self.device_id)
        query = select(Session.__table__, db.now().label("now")).where(which, Session.ended_at.is_(None))
        live = []
        for each in (await connection.execute(query.order_by(Session.id))).mappings():
            row = SessionRow.of(each, each["now"], policy)
            row = replace(row, has_key=not keys.retired(row.key_number))
            if row.over() is None:
                live.append(row)
        return self.displaces(live, policy.session_limit)


async def end_displaced(
    tx: AsyncConnection, db: Database, policy: Policy, displaced: Displaced, *, by: Actor
) -> frozenset[UUID]:
    """Ends the displaced sessions, by one statement, so that the rows are locked in the order of their ids.

    Returns:
        Those that ended. Some may have ended by another act in the meantime.
    """
    reason = case((Session.id.in_(displaced.replaced), "replaced"), else_="session_limit")
    statement = ends(db, policy, reason, locked(db.among(Session.id)))
    rows = await mark(tx, statement, lambda _: by, {"ids": list(displaced.ids)})
    return frozenset(row.id for row in rows)
