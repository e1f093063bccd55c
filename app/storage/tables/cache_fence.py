"""The table of the fence."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base


class CacheFence(Base):
    """One row: the Redis server that may be believed, and the epoch under which (see `revocations`)."""

    __tablename__ = "cache_fence"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    epoch: Mapped[str] = mapped_column(String(32))
    server: Mapped[str | None] = mapped_column(String(96))
    changed_at: Mapped[datetime]
    vouches_from: Mapped[datetime]
    incarnation: Mapped[str] = mapped_column(String(64))

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
