"""Displaced sessions: those that a new sign-in of their user ends.

1. A session of the same device and client is *replaced*. Otherwise each sign-in on a device that lost its tokens would
   leave a session behind that nobody uses.
2. If more sessions would live than the policy allows, the oldest end. The new one is never among them.

Only live sessions count and end. One that is past a deadline, or under a retired key, keeps the reason that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Reason
from ..policies import Policy
from ..storage.database import Database
from ..storage.tables import Session
from .filters import Filter
from .marking import ends, locked, mark


class Live(NamedTuple):
    """A live session of the user."""

    id: UUID
    client_id: str
    device_id: str | None
    device_name: str | None = None


@dataclass(frozen=True, slots=True)
class Displaced:
    """The sessions that a sign-in ends, by reason."""

    replaced: frozenset[UUID]
    beyond_limit: frozenset[UUID]
    device_name: str | None = None
    """The name of the replaced session's device: a name that a user gave stays with the device."""

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

    def displaces(self, live: Sequence[Live], limit: int | None) -> Displaced:
        """Which of the user's live sessions, in the order of their age, this sign-in ends. Pure."""
        own = self.client_id, self.device_id
        same = [row for row in live if self.device_id is not None and (row.client_id, row.device_id) == own]
        replaced = frozenset(row.id for row in same)
        rest = [row.id for row in live if row.id not in replaced]
        surplus = 0 if limit is None else max(0, len(rest) + 1 - limit)
        return Displaced(replaced, frozenset(rest[:surplus]), same[-1].device_name if same else None)

    async def looks(self, connection: AsyncConnection, db: Database, policy: Policy) -> Displaced:
        """Which sessions this sign-in would end now."""
        now = await connection.scalar(select(db.now()))
        assert now is not None
        same = Filter(self.user_id, self.client_id, device_id=self.device_id)
        which = same if policy.session_limit is None else Filter(self.user_id)
        columns = select(Session.id, Session.client_id, Session.device_id, Session.device_name)
        live = await connection.execute(columns.where(*which.conditions(now, policy)).order_by(Session.id))
        return self.displaces([Live(*row) for row in live], policy.session_limit)


async def end_displaced(
    tx: AsyncConnection, db: Database, policy: Policy, displaced: Displaced, *, by: Actor
) -> Mapping[UUID, Reason]:
    """Ends the displaced sessions, by one statement, so that the rows are locked in the order of their ids.

    Returns:
        Those that ended, and why. Some may have ended by another act in the meantime.
    """
    reason = case((Session.id.in_(displaced.replaced), "replaced"), else_="session_limit")
    statement = ends(db, policy, reason, locked(db.among(Session.id)))
    rows = await mark(tx, statement, lambda _: by, {"ids": list(displaced.ids)})
    return {row.id: row.end_reason for row in rows}
