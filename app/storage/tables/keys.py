"""The table of working keys."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, SmallInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base


class Key(Base):
    """A working key, sealed under the master secret. A refresh token names its key by `number`, in one byte."""

    __tablename__ = "keys"

    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    use: Mapped[str] = mapped_column(String(16))
    algorithm: Mapped[str] = mapped_column(String(16))
    number: Mapped[int | None] = mapped_column(SmallInteger, unique=True)
    sealed: Mapped[bytes]
    created_at: Mapped[datetime]
    signs_from: Mapped[datetime]
    # The moment may lie ahead: a rotation sets it for the old key, when its last token will be over.
    retired_at: Mapped[datetime | None]
    retired_for: Mapped[str | None] = mapped_column(String(32))  # the reason of the sessions that ended with it

    __table_args__ = (
        CheckConstraint("use IN ('access', 'refresh', 'cookie')", name="use_is_known"),
        CheckConstraint("(use = 'refresh') = (number IS NOT NULL)", name="refresh_keys_are_numbered"),
        CheckConstraint("number BETWEEN 1 AND 254", name="number_in_range"),
    )

    def __repr__(self) -> str:
        return f"Key({self.kid})"
