"""Orders: upstream sessions that are to be revoked, each until that is done or given up.

An order is a row of `upstream_sessions` with `due_at`. Several instances share the orders: a claim moves `due_at` past
the end of the attempt, so no other instance takes the order meanwhile. If the process dies, the order is due again by
itself. So each upstream session is revoked at least once. A repeated revocation does no harm.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import SERVICE, Actor
from ..events.audit import Event, EventKind, record
from ..storage.database import Database
from ..storage.tables import Session, UpstreamSession
from ..storage.tasks import own_task

LEASE = timedelta(seconds=30)
"""How long an order belongs to the process that claimed it. An attempt takes less: see `Revoking`."""

MOST_ATTEMPTS = 50
LIFE = timedelta(days=1)
"""An order is given up after so many attempts, or when it is so old, whichever is first."""

_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(hours=1)
_MOST_WORDS = 64  # characters of a failure: the most that the column takes

Outcome = Literal["revoked", "gone"]
"""The outcome of an order that was carried out: revoked now, or over before."""


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
            return [Order(*row) for row in await tx.execute(claimed)]

    @own_task
    async def settle(
        self, issuer: str, done: Iterable[tuple[Order, Outcome]], failed: Iterable[tuple[Order, str]]
    ) -> Sequence[UUID]:
        """Writes what became of claimed orders. Returns the sessions of those that are given up.

        An order that another process has claimed meanwhile, because this attempt took longer than the lease, is that
        process's. But what is done is done.

        Args:
            issuer: the name of the issuer.
            done: orders that were carried out.
            failed: orders whose attempt failed, each with the reason, in words without secrets.

        Raises:
            TemporarilyUnavailable: the database is away. The orders are due again after the lease.
        """
        given_up: list[UUID] = []
        async with self._db.begin() as tx:
            now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
            revoked = [
                order.session_id
                for order, outcome in sorted(done, key=lambda each: each[0].session_id)
                if await self._settled(tx, now, outcome, UpstreamSession.session_id == order.session_id)
            ]
            for order, why in sorted(failed, key=lambda each: each[0].session_id):
                mine = and_(UpstreamSession.session_id == order.session_id, UpstreamSession.attempts == order.attempts)
                if order.attempts >= MOST_ATTEMPTS:
                    given_up += await self._settled(tx, now, "given_up", mine, failure=why)
                else:
                    await tx.execute(
                        update(UpstreamSession)
                        .where(mine, UpstreamSession.due_at.is_not(None))
                        .values(due_at=now + pause_after(order.attempts), failure=why[:_MOST_WORDS])
                    )
            await record_about(tx, now, "upstream_revoked", revoked, issuer, by=SERVICE)
            await record_about(tx, now, "upstream_given_up", given_up, issuer, by=SERVICE)
        return given_up

    @own_task
    async def give_up_old(self, most: int = 500) -> Sequence[UUID]:
        """Gives up orders that are due and older than `LIFE`, also those of issuers that are no longer configured.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        now = self._db.now()
        old = and_(UpstreamSession.due_at <= now, UpstreamSession.ordered_at <= self._db.after(now, -LIFE))
        async with self._db.look(hot_path=False) as connection:
            found = (
                await connection.execute(
                    select(UpstreamSession.session_id, UpstreamSession.issuer_name).where(old).limit(most)
                )
            ).all()
        given_up: list[UUID] = []
        for name in sorted({row.issuer_name for row in found}):
            ids = [row.session_id for row in found if row.issuer_name == name]
            async with self._db.begin() as tx:
                at: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
                these = await self._settled(tx, at, "given_up", and_(UpstreamSession.session_id.in_(ids), old))
                await record_about(tx, at, "upstream_given_up", these, name, by=SERVICE)
            given_up += these
        return given_up

    async def _settled(
        self, tx: AsyncConnection, now: datetime, outcome: str, *which: ColumnElement[bool], failure: str | None = None
    ) -> Sequence[UUID]:
        """Settles those of these orders that are open. Returns their sessions."""
        values = {} if failure is None else {"failure": failure[:_MOST_WORDS]}
        settled = (
            update(UpstreamSession)
            .where(*which, UpstreamSession.due_at.is_not(None))
            .values(settled_at=now, due_at=None, outcome=outcome, **values)
            .returning(UpstreamSession.session_id)
        )
        return (await tx.scalars(settled)).all()


async def record_about(
    tx: AsyncConnection, now: datetime, what: EventKind, ids: Collection[UUID], issuer: str, *, by: Actor
) -> None:
    """Writes an event about each of these sessions. `gc` may have deleted some: then the event names no user."""
    if not ids:
        return
    found = await tx.execute(select(Session.id, Session.user_id, Session.client_id).where(Session.id.in_(ids)))
    known = {row.id: (row.user_id, row.client_id) for row in found}
    nobody = None, None
    events = [
        Event(what, user, each, client, detail=issuer) for each in ids for user, client in [known.get(each, nobody)]
    ]
    await record(tx, now, by, events)


def pause_after(attempts: int) -> timedelta:
    """How long after a failed attempt the next one is due: twice as long each time, with jitter.

    Orders that failed together, because Scalekit was away, do not come back together.
    """
    longest = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 20), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1)  # noqa: S311  # jitter
