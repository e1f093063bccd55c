"""The table of identities: who a user is at an issuer."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base, uuid7


class Identity(Base):
    """A user's identity at an issuer (OpenID Connect Core section 5.7: issuer and subject, and nothing else)."""

    __tablename__ = "identities"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    issuer: Mapped[str] = mapped_column(String(255))  # the first `iss` value of the issuer, and not its name here
    subject: Mapped[str] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(254))  # as the issuer said it last, if it is trusted for it
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("issuer", "subject"), Index(None, "user_id"))

    def __repr__(self) -> str:
        return f"Identity({self.id})"
