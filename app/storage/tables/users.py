"""The table of users."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base, uuid7


class User(Base):
    """A user, who signs in with e-mail and password. A changed role or claims are copied to the live sessions."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    # When a password that Keyturn made runs out. None for one that a person chose.
    password_expires_at: Mapped[datetime | None]
    role: Mapped[str] = mapped_column(String(32))
    claims: Mapped[str | None] = mapped_column(Text)  # a JSON object; access tokens have its members
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]

    def __repr__(self) -> str:
        return f"User({self.id})"
