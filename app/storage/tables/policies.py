"""The table of policies."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base


class Policy(Base):
    """The policy of one scope: `global`, or a client. None in a column means the value of the settings."""

    __tablename__ = "policies"

    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    access_lifetime: Mapped[timedelta | None]
    access_jitter: Mapped[timedelta | None]
    idle_lifetime: Mapped[timedelta | None]
    absolute_lifetime: Mapped[timedelta | None]
    retry_window: Mapped[timedelta | None]
    session_limit: Mapped[int | None]
    password_length: Mapped[int | None]
    reauthentication_age: Mapped[timedelta | None]
    mode: Mapped[str | None] = mapped_column(String(8))
    remember: Mapped[bool | None]
    scopes: Mapped[str | None] = mapped_column(String(1024))
    changed_at: Mapped[datetime]

    def __repr__(self) -> str:
        return f"Policy({self.scope})"
