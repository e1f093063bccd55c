"""The table of sessions.

A refresh changes no indexed column (guarantee 5), so that Postgres can make each refresh a heap-only tuple update. So
no index may ever name token_digest, key_number, generation, rotated_at or idle_expires_at.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, SmallInteger, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base, uuid7


class Session(Base):
    """One sign-in and its chain of refresh tokens. Only the newest token's digest is kept."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    # No foreign key: when a user is erased, a pseudonym takes the id's place. A sign-in locks the user's row.
    user_id: Mapped[UUID]
    # The row has every value of the user that access tokens need, so that a refresh reads no other table.
    role: Mapped[str] = mapped_column(String(32))
    client_id: Mapped[str] = mapped_column(String(64))
    token_digest: Mapped[bytes]
    key_number: Mapped[int] = mapped_column(SmallInteger)
    generation: Mapped[int]
    created_at: Mapped[datetime]
    rotated_at: Mapped[datetime]
    idle_expires_at: Mapped[datetime]
    absolute_expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None] = mapped_column(String(32))

    # The policy under which the session began. The policy in force may shorten it and never lengthens it.
    idle_lifetime: Mapped[timedelta] = mapped_column(server_default=text("604800"))
    absolute_lifetime: Mapped[timedelta] = mapped_column(server_default=text("2592000"))
    retry_window: Mapped[timedelta] = mapped_column(server_default=text("60"))
    access_lifetime: Mapped[timedelta] = mapped_column(server_default=text("900"))

    # Facts about the sign-in. Access tokens repeat some of them.
    scope: Mapped[str | None] = mapped_column(String(1024))
    auth_time: Mapped[datetime | None]
    amr: Mapped[str | None] = mapped_column(String(64))
    claims: Mapped[str | None] = mapped_column(Text)
    cnf_jkt: Mapped[str | None] = mapped_column(String(43))

    device_id: Mapped[str | None] = mapped_column(String(64))
    device_name: Mapped[str | None] = mapped_column(String(100))
    address: Mapped[str | None] = mapped_column(String(64))
    user_agent: Mapped[str | None] = mapped_column(String(256))
    # When a refresh from another address or user agent was last written to these two. None: they are the sign-in's.
    moved_at: Mapped[datetime | None]

    # SHA-256 of the Idempotency-Key of the last rotation.
    retry_key_digest: Mapped[bytes | None]

    __table_args__ = (
        CheckConstraint("length(token_digest) = 32", name="token_digest_is_sha256"),
        CheckConstraint("generation >= 0", name="generation_not_negative"),
        CheckConstraint("key_number BETWEEN 1 AND 254", name="key_number_in_range"),
        CheckConstraint("idle_expires_at <= absolute_expires_at", name="idle_within_absolute"),
        CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="ended_with_a_reason"),
        # The pages of a user's sessions come from these in their order, without a sort. A statement that names sessions
        # by their ids asks for `end_reason IS NULL`: by the constraint above, `ended_at IS NULL` says the same. But it
        # offers the index of live sessions to Postgres, which without statistics may read all of it for an id.
        Index(None, "user_id", "id"),
        Index(
            "ix_sessions_live",
            "user_id",
            "id",
            postgresql_where=text("ended_at IS NULL"),
            sqlite_where=text("ended_at IS NULL"),
        ),
        Index(
            "ix_sessions_ended_at",
            "ended_at",
            "id",
            postgresql_where=text("ended_at IS NOT NULL"),
            sqlite_where=text("ended_at IS NOT NULL"),
        ),
        # Each page keeps room for the next versions of its rows, so that a refresh stays on its page (heap-only).
        {"postgresql_with": {"fillfactor": "85"}},
    )

    def __repr__(self) -> str:
        return f"Session({self.id})"
