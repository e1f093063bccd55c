"""The table of upstream sessions: what a local session remembers of the issuer's sign-in that it came from.

A row also says how far the revocation of the upstream session has come. A local logout writes nothing here: the ended
row in `sessions` is the order, and a background task takes it from there.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, SmallInteger, String, text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base

_DUE = "due_at IS NOT NULL"
OPEN = "(due_at IS NOT NULL OR outcome = 'given_up')"
"""Which revocations a partial index has, in the words that a query has to repeat: those that wait or were given up."""


class UpstreamSession(Base):
    """The upstream side of a local session."""

    __tablename__ = "upstream_sessions"

    # No foreign key: `gc` may delete the local session while the upstream one is still to be revoked.
    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    issuer_name: Mapped[str] = mapped_column(String(32))
    # An erased user's identities go. The subject is read through them, so that nothing personal stays here.
    identity_id: Mapped[UUID | None] = mapped_column(ForeignKey("identities.id", ondelete="SET NULL"))
    upstream_id: Mapped[str | None] = mapped_column(String(255))  # the claim `sid`
    organization: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime]

    ordered_at: Mapped[datetime | None]  # when its revocation was ordered, or ordered anew
    due_at: Mapped[datetime | None]  # when the next attempt to revoke is due; None: there is nothing to do
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    settled_at: Mapped[datetime | None]  # when the revocation was done or given up
    outcome: Mapped[str | None] = mapped_column(String(16))  # revoked, gone, given_up
    failure: Mapped[str | None] = mapped_column(String(64))  # why the last attempt failed, in words without secrets

    __table_args__ = (
        Index(None, "issuer_name", "upstream_id"),
        Index(None, "identity_id"),
        Index("ix_upstream_sessions_due", "due_at", postgresql_where=text(_DUE), sqlite_where=text(_DUE)),
        Index("ix_upstream_sessions_open", "session_id", postgresql_where=text(OPEN), sqlite_where=text(OPEN)),
    )

    def __repr__(self) -> str:
        return f"UpstreamSession({self.session_id})"
