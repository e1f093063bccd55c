"""The harvest: local sessions that ended lately are looked through for upstream sessions that have to be revoked.

A local logout writes nothing about its upstream session, so federation can neither delay nor fail it. The ended row in
`sessions` is the order, and the harvest takes the order down in `upstream_sessions`. Each process harvests.

Each ending is read three times at most, however many there are:

1. The quick look begins where the one before ended, less `_OVERLAP`: transactions that end sessions at the same time
   become visible in any order.
2. The thorough look comes once to each ending, `_ALL_COMMITTED` after its moment. No transaction that ends sessions is
   under way for so long, so none is missed. Its first look of a process reaches back `_FIRST_LOOK`.

An ending that is seen again changes nothing: only a row without an order gets one.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, and_, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import Reason
from ..storage.database import Database
from ..storage.tables import Moment, Session, UpstreamSession
from ..storage.tasks import own_task

REASONS: Final[tuple[Reason, ...]] = (
    "logout",
    "logout_all",
    "reuse_detected",
    "password_changed",
    "user_disabled",
    "revoked_by_admin",
    "user_erased",
)
"""The reasons whose endings go up: somebody ended the session, or it was stolen.

A deadline, a newer sign-in or a limit ends the local session alone: the user goes on elsewhere. An ending that came
from upstream is known there.
"""

_OVERLAP = timedelta(seconds=1)
_ALL_COMMITTED = timedelta(seconds=60)
"""The longest life of a transaction that ends sessions: five statements (`STATEMENT_LIMIT`), and the pauses between
them (`DRIVER_LIMIT`)."""

_FIRST_LOOK = timedelta(days=1)
"""As long as an order lives. So an ending before that would be given up at once."""

_PAGE = 5_000
_PAGES = 10
"""Endings that one statement reads, and how many such statements one thorough look sends, so that no backlog keeps the
database busy."""

_FIRST, _LAST = UUID(int=0), UUID(int=(1 << 128) - 1)

_Place = tuple[datetime, UUID]
"""A place in the order of endings: the moment, and the id of the session."""


class Harvest:
    """The looks of one process, and how far each has come."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._quick: datetime | None = None
        self._thorough: _Place | None = None
        self.is_through = False
        """Whether the last thorough look has come to its end, so that there is no backlog."""

    async def quick(self, issuers: Collection[str]) -> int:
        """Takes down orders for the sessions of these issuers that ended since the last look. Returns how many.

        Raises:
            TemporarilyUnavailable: the database is away. The next look reads the same endings again.
        """
        now = await self._now()
        # If the database's clock went back, the look goes back with it.
        since = min(self._quick or now - _ALL_COMMITTED, now) - _OVERLAP
        taken, place = 0, (since, _FIRST)
        while place[0] < now:
            place, count = await self._page(issuers, place, now)
            taken += count
        self._quick = now
        return taken

    async def thorough(self, issuers: Collection[str]) -> int:
        """As `quick`, for the endings that no transaction can add to any more. It may stop before it is through.

        Raises:
            TemporarilyUnavailable: as `quick`.
        """
        until = await self._now() - _ALL_COMMITTED
        if self._thorough is None:
            self._thorough = until - _FIRST_LOOK, _FIRST
        elif self._thorough[0] > until:
            self._thorough = until, _FIRST
        taken = 0
        for _ in range(_PAGES):
            self._thorough, count = await self._page(issuers, self._thorough, until)
            taken += count
            self.is_through = self._thorough[0] >= until
            if self.is_through:
                break
        return taken

    async def _now(self) -> datetime:
        async with self._db.look(hot_path=False) as connection:
            now: datetime = (await connection.execute(select(self._db.now()))).scalar_one()
            return now

    @own_task
    async def _page(self, issuers: Collection[str], after: _Place, until: datetime) -> tuple[_Place, int]:
        """Reads some endings after a place. Returns the place of the last one, or `until`, and the new orders."""
        async with self._db.look(hot_path=False) as connection:
            last = await self._last_of_page(connection, after, until)
            owed = await self._owed(connection, issuers, after, last)
        if not owed:
            return last, 0
        async with self._db.begin() as tx:
            # A row that another transaction holds is being taken down there.
            free = (
                select(UpstreamSession.session_id)
                .where(self._db.among(UpstreamSession.session_id), *_WITHOUT_ORDER)
                .order_by(UpstreamSession.session_id)
                .with_for_update(skip_locked=True)
            )
            now = self._db.now()
            ordered = await tx.execute(
                update(UpstreamSession)
                .where(UpstreamSession.session_id.in_(free))
                .values(ordered_at=now, due_at=now, attempts=0, failure=None),
                {"ids": owed},
            )
            return last, ordered.rowcount

    async def _last_of_page(self, connection: AsyncConnection, after: _Place, until: datetime) -> _Place:
        endings = select(Session.ended_at, Session.id).where(_between(after, (until, _LAST)))
        found = await connection.execute(endings.order_by(Session.ended_at, Session.id).offset(_PAGE - 1).limit(1))
        row = found.one_or_none()
        return (until, _LAST) if row is None else (row.ended_at, row.id)

    async def _owed(
        self, connection: AsyncConnection, issuers: Collection[str], after: _Place, last: _Place
    ) -> list[UUID]:
        """The sessions between two places whose upstream session is to be revoked, and has no order yet.

        The subquery stands among the columns, so that Postgres looks each row up by the primary key, whatever its
        statistics say. A join of two large tables could read the whole of one.
        """
        order = select(UpstreamSession.session_id).where(
            UpstreamSession.session_id == Session.id,
            UpstreamSession.issuer_name.in_(sorted(issuers)),
            UpstreamSession.upstream_id.is_not(None),
            *_WITHOUT_ORDER,
        )
        endings = select(order.scalar_subquery().label("owed")).where(
            _between(after, last), Session.end_reason.in_(REASONS)
        )
        rows = await connection.scalars(endings)
        return [session_id for session_id in rows if session_id is not None]


_WITHOUT_ORDER = UpstreamSession.due_at.is_(None), UpstreamSession.settled_at.is_(None)


def _between(after: _Place, last: _Place) -> ColumnElement[bool]:
    """Whether a session ended after a place, and not after another. The plain comparisons offer the partial index."""
    place = tuple_(Session.ended_at, Session.id)
    first, final = (tuple_(literal(at, Moment()), literal(session_id, Uuid())) for at, session_id in (after, last))
    return and_(Session.ended_at >= after[0], Session.ended_at <= last[0], place > first, place <= final)
