"""The table of users."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base, uuid7


class User(Base):
    """A user, who signs in with e-mail and password, or by an issuer that vouches for an identity of the user.

    A changed role or claims are copied to the live sessions.
    """

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    # None: an issuer vouched for the user, and is not trusted for e-mail addresses.
    email: Mapped[str | None] = mapped_column(String(254), unique=True)
    # When a trusted issuer or an operator said that the address is the user's. None: nobody has proved it.
    email_verified_at: Mapped[datetime | None]
    # None: the user has no password, and no password is right.
    password_hash: Mapped[str | None] = mapped_column(String(255))
    # When a password that Keyturn made runs out. None for one that a person chose.
    password_expires_at: Mapped[datetime | None]
    role: Mapped[str] = mapped_column(String(32))
    claims: Mapped[str | None] = mapped_column(Text)  # a JSON object; access tokens have its members
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]

    def __repr__(self) -> str:
        return f"User({self.id})"
