"""Moves: a session that is refreshed from another address or user agent than before, noted behind the answer.

The list of sessions tells a user where each was used last, and its history tells when that changed. A note never delays
a refresh. If a busy process leaves one out, the next refresh from there makes it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import or_, select, update

from ..actors import Actor
from ..events.audit import Event, record_each
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import keep
from .answers import Tokens

ONCE_IN = timedelta(days=1)
"""How often a session's move is noted at most, so that one between two networks does not fill the history."""

_ASKED_AGAIN_AFTER = timedelta(hours=1)
_REMEMBERED = 10_000  # sessions
_WAITING = 1_000  # moves; more are left to the next refresh


class _Move(NamedTuple):
    session_id: UUID
    by: Actor
    user_agent: str | None
    changed: str
    """The detail of the event: `address`, `user agent`, or both."""


class Moves:
    """Notes the moves of sessions."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._notes = Batch(self._note, name="move", in_flight=1)
        self._waiting = 0
        self._asked: OrderedDict[UUID, float] = OrderedDict()  # when this process last asked the database about a move

    def seen(self, tokens: Tokens, *, by: Actor, user_agent: str | None) -> None:
        """Takes a refresh. Returns at once: if the session has moved, a task notes it."""
        if tokens.address is None or (tokens.address == by.address and tokens.user_agent == user_agent):
            return  # a session whose sign-in left no address has none to move from
        now = monotonic()
        asked = self._asked.get(tokens.session_id)
        if self._waiting >= _WAITING or (asked is not None and now - asked < _ASKED_AGAIN_AFTER.total_seconds()):
            return
        self._asked[tokens.session_id] = now
        self._asked.move_to_end(tokens.session_id)
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        self._waiting += 1
        pairs = (("address", tokens.address, by.address), ("user agent", tokens.user_agent, user_agent))
        changed = ", ".join(name for name, before, after in pairs if before != after)
        task = asyncio.create_task(self._noted(_Move(tokens.session_id, by, user_agent, changed)))
        task.add_done_callback(self._no_longer_waits)
        keep(task)

    async def _noted(self, move: _Move) -> None:
        await self._notes(move)

    def _no_longer_waits(self, task: asyncio.Task[None]) -> None:
        self._waiting -= 1
        if not task.cancelled():
            task.exception()  # an outage: the next refresh from there notes the move

    async def _note(self, moves: Sequence[_Move]) -> Sequence[None]:
        """Writes moves that come together, in one transaction. A row that another transaction holds is left out."""
        last = {move.session_id: move for move in moves}
        async with self._db.begin() as tx:
            now = await tx.scalar(select(self._db.now()))
            assert now is not None
            free = await tx.scalars(
                select(Session.id)
                .where(
                    Session.id.in_(last),
                    Session.end_reason.is_(None),
                    or_(Session.moved_at.is_(None), Session.moved_at <= now - ONCE_IN),
                )
                .order_by(Session.id)
                .with_for_update(skip_locked=True)
            )
            acts = []
            for session_id in free.all():
                _, by, user_agent, changed = last[session_id]
                row = (
                    await tx.execute(
                        update(Session)
                        .where(Session.id == session_id)
                        .values(address=by.address, user_agent=user_agent, moved_at=now)
                        .returning(Session.user_id, Session.client_id)
                    )
                ).one()
                moved = Event("session_moved", row.user_id, session_id, row.client_id, detail=changed)
                acts.append((by._replace(kind="user"), moved))
            await record_each(tx, now, acts)
        return [None] * len(moves)
