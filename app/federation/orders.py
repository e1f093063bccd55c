"""Orders: upstream sessions that are to be revoked, each until that is done or given up.

An order is a row of `upstream_sessions` with `due_at`. Several instances share the orders: a claim moves `due_at` past
the end of the attempt, so no other instance takes the order meanwhile. If the process dies, the order is due again by
itself. So each upstream session is revoked at least once. A repeated revocation does no harm.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import SERVICE
from ..events.audit import Event, EventKind, record
from ..storage.database import Database
from ..storage.tables import Session, UpstreamSession
from ..storage.tasks import own_task
from .scalekit import Outcome

LEASE = timedelta(seconds=30)
"""How long an order belongs to the process that claimed it. An attempt takes less: see `Revoking`."""

MOST_ATTEMPTS = 50
LIFE = timedelta(days=1)
"""An order is given up after so many attempts, or when it is so old, whichever is first."""

_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(hours=1)
_MOST_WORDS = 64  # characters of a failure: the most that the column takes


@dataclass(frozen=True, slots=True)
class Order:
    """An order that this process has claimed."""

    session_id: UUID
    upstream_id: str
    attempts: int
    """How many attempts there were, with the one that the claim allows."""


class Orders:
    """The orders in the database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def due(self) -> set[str]:
        """The names of the issuers that have orders which are due, as one look at an index that has orders alone.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.look(hot_path=False) as connection:
            names = select(UpstreamSession.issuer_name).where(UpstreamSession.due_at <= self._db.now()).distinct()
            return set((await connection.scalars(names)).all())

    @own_task
    async def claim(self, issuer: str, most: int) -> Sequence[Order]:
        """Claims orders of an issuer that are due, the oldest first. Orders that are too old are left to `give_up`.

        Raises:
            TemporarilyUnavailable: the database is away. Orders that it claimed are due again after the lease.
        """
        now = self._db.now()
        # A common table expression with FOR UPDATE runs once. Postgres may run a subquery several times, and then claim
        # more than `most`.
        due = (
            select(UpstreamSession.session_id)
            .where(
                UpstreamSession.due_at <= now,
                UpstreamSession.issuer_name == issuer,
                UpstreamSession.ordered_at > self._db.after(now, -LIFE),
            )
            .order_by(UpstreamSession.due_at)
            .limit(most)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        claimed = (
            update(UpstreamSession)
            .where(UpstreamSession.session_id.in_(select(due.c.session_id)))
            .values(due_at=self._db.after(now, LEASE), attempts=UpstreamSession.attempts + 1)
            .returning(UpstreamSession.session_id, UpstreamSession.upstream_id, UpstreamSession.attempts)
        )
        async with self._db.begin() as tx:
            return [Order(row.session_id, row.upstream_id, row.attempts) for row in await tx.execute(claimed)]

    @own_task
    async def done(self, order: Order, outcome: Outcome) -> None:
        """Writes that an order was carried out. It counts also where another process has claimed the order meanwhile.

        Raises:
            TemporarilyUnavailable: the database is away. The order is due again after the lease.
        """
        async with self._db.begin() as tx:
            await self._settle(tx, [order.session_id], outcome)

    @own_task
    async def failed(self, order: Order, why: str) -> bool:
        """Writes that an attempt failed: the order is due again later, or given up. Returns whether it is given up.

        If another process has claimed the order meanwhile, because this attempt took longer than the lease, it is that
        process's, and nothing is written.

        Args:
            order: the order.
            why: the reason, in words without secrets.

        Raises:
            TemporarilyUnavailable: as `done`.
        """
        mine, failure = UpstreamSession.attempts == order.attempts, why[:_MOST_WORDS]
        async with self._db.begin() as tx:
            if order.attempts >= MOST_ATTEMPTS:
                return bool(await self._settle(tx, [order.session_id], "given_up", mine, failure=failure))
            due_at = self._db.after(self._db.now(), pause_after(order.attempts))
            await tx.execute(
                update(UpstreamSession)
                .where(UpstreamSession.session_id == order.session_id, UpstreamSession.due_at.is_not(None), mine)
                .values(due_at=due_at, failure=failure)
            )
            return False

    @own_task
    async def give_up_old(self, most: int = 500) -> Sequence[UUID]:
        """Gives up orders that are due and older than `LIFE`, also those of issuers that are no longer configured.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        now = self._db.now()
        old = and_(UpstreamSession.due_at <= now, UpstreamSession.ordered_at <= self._db.after(now, -LIFE))
        async with self._db.look(hot_path=False) as connection:
            ids = (await connection.scalars(select(UpstreamSession.session_id).where(old).limit(most))).all()
        if not ids:
            return []
        async with self._db.begin() as tx:
            return await self._settle(tx, ids, "given_up", old)

    async def _settle(
        self,
        tx: AsyncConnection,
        ids: Sequence[UUID],
        outcome: Outcome | Literal["given_up"],
        *which: ColumnElement[bool],
        **more: str,
    ) -> Sequence[UUID]:
        """Settles those of these orders that are open, each with its event. Returns their sessions."""
        sessions = await locked_sessions(tx, ids)
        now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
        settled = (
            update(UpstreamSession)
            .where(UpstreamSession.session_id.in_(ids), UpstreamSession.due_at.is_not(None), *which)
            .values(settled_at=now, due_at=None, outcome=outcome, **more)
            .returning(UpstreamSession.session_id, UpstreamSession.issuer_name)
        )
        rows = (await tx.execute(settled)).all()
        what: EventKind = "upstream_given_up" if outcome == "given_up" else "upstream_revoked"
        await record(tx, now, SERVICE, [event_about(what, row, sessions) for row in rows])
        return [row.session_id for row in rows]


async def locked_sessions(tx: AsyncConnection, ids: Collection[UUID]) -> Mapping[UUID, Any]:
    """The users and clients of these sessions, whose rows are locked until the transaction ends.

    An event about them then names no user who is erased meanwhile: `Erasing` locks the same rows before it rewrites
    the events. So this comes before any other lock. Refreshes and logouts don't wait for it.
    """
    columns = select(Session.id, Session.user_id, Session.client_id).where(Session.id.in_(ids)).order_by(Session.id)
    return {row.id: row for row in await tx.execute(columns.with_for_update(read=True, key_share=True))}


def event_about(what: EventKind, order: Any, sessions: Mapping[UUID, Any]) -> Event:
    """The event about an order. `gc` may have deleted its session: then the event names no user."""
    its = sessions.get(order.session_id)
    user_id, client_id = (None, None) if its is None else (its.user_id, its.client_id)
    return Event(what, user_id, order.session_id, client_id, detail=order.issuer_name)


def pause_after(attempts: int) -> timedelta:
    """How long after a failed attempt the next one is due: twice as long each time, with jitter.

    Orders that failed together, because Scalekit was away, do not come back together.
    """
    longest: timedelta = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 20), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1)  # noqa: S311  # jitter
