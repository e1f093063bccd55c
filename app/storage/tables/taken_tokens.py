"""The table of external tokens and messages that are taken once."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base


class TakenToken(Base):
    """One external token, logout token or webhook that was taken, or an upstream session that was logged out.

    The digest is SHA-256 over the use, the issuer and the id, so that the uses never meet (app/federation/taking.py).
    """

    __tablename__ = "taken_tokens"

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    session_id: Mapped[UUID | None]  # the session that the exchange began
    taken_at: Mapped[datetime]
    expires_at: Mapped[datetime]  # no token of this digest is good any more from then on

    __table_args__ = (CheckConstraint("length(digest) = 32", name="digest_is_sha256"), Index(None, "expires_at"))

    def __repr__(self) -> str:
        return "TakenToken()"
