"""The table of events."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base, uuid7

FREQUENT = ("session_started", "session_ended")
"""The kinds of events that each sign-in and logout writes. They are in no index but their user's."""
RARE = f"event NOT IN ({', '.join(map(repr, FREQUENT))})"
NOT_BY_USERS = "actor <> 'user'"
"""Which events the two partial indexes have, in the words that a query has to repeat.

A logout adds to neither: its event is frequent, and its actor a user.
"""


class Event(Base):
    """One event: its kind, actor, moment and reason, and the user or session that it is about. Rows are only added.

    The table has no foreign keys, because an event outlives its session and user. A refresh writes no event.
    """

    __tablename__ = "events"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    at: Mapped[datetime]
    event: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(16))
    actor_id: Mapped[str | None] = mapped_column(String(64))
    user_id: Mapped[UUID | None]
    session_id: Mapped[UUID | None]
    client_id: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_events_user_id", "user_id", "id"),
        Index("ix_events_rare", "event", "id", postgresql_where=text(RARE), sqlite_where=text(RARE)),
        Index("ix_events_actor", "actor", "id", postgresql_where=text(NOT_BY_USERS), sqlite_where=text(NOT_BY_USERS)),
    )

    def __repr__(self) -> str:
        return f"Event({self.id})"
