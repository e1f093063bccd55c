"""The tables, with their constraints and indexes.

The rule that shapes `Session`: a refresh changes no indexed column (guarantee 5), so that Postgres can make each
one a heap-only tuple update. No index may ever name token_digest, key_id, generation, rotated_at or
idle_expires_at.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond: timestamptz in Postgres, whole microseconds since 1970 in SQLite.

    SQLite has no type for moments and its drivers drop the offset of an aware one, so that comparisons go wrong
    silently; integers compare and add as they should. A naive moment is refused.
    """

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:  # noqa: D102  # SQLAlchemy's
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: D102  # SQLAlchemy's
        if value is None or dialect.name == "postgresql":
            return value
        return microseconds(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002, D102  # as above
        return moment(value) if isinstance(value, int) else value


def microseconds(value: datetime | timedelta) -> int:
    """Whole microseconds of a duration, or since 1970 of an aware moment."""
    return (value if isinstance(value, timedelta) else value - _EPOCH) // timedelta(microseconds=1)


def moment(since_1970: int) -> datetime:
    """The inverse of `microseconds`: an aware moment."""
    return _EPOCH + timedelta(microseconds=since_1970)


def uuid7() -> UUID:
    """A UUID of version 7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, 74 random bits.

    The time order keeps the primary key's index dense and lets `gc` walk it by age.
    """
    random = int.from_bytes(os.urandom(10)) & ((1 << 74) - 1)
    milliseconds = time.time_ns() // 1_000_000
    return UUID(
        int=milliseconds << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | (random & ((1 << 62) - 1)),
    )


class Base(DeclarativeBase):
    """Names every constraint, because SQLite can only alter what has a name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: Moment, bytes: LargeBinary}


class User(Base):
    """Someone who signs in with e-mail and password. `role` is copied to the live sessions when it changes."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    password_is_initial: Mapped[bool] = mapped_column(server_default=text("false"))
    role: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]

    def __repr__(self) -> str:
        return f"User({self.id})"


class Session(Base):
    """One sign-in and its chain of refresh tokens, of which only the newest one's digest is kept."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    # What the access token needs stands here, so that a refresh reads no other table.
    role: Mapped[str] = mapped_column(String(32))
    client_id: Mapped[str] = mapped_column(String(64))
    token_digest: Mapped[bytes]
    key_id: Mapped[int] = mapped_column(SmallInteger)
    generation: Mapped[int]
    created_at: Mapped[datetime]
    rotated_at: Mapped[datetime]
    idle_expires_at: Mapped[datetime]
    absolute_expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None] = mapped_column(String(32))

    __table_args__ = (
        CheckConstraint("length(token_digest) = 32", name="token_digest_is_sha256"),
        CheckConstraint("generation >= 0", name="generation_not_negative"),
        CheckConstraint("key_id BETWEEN 1 AND 254", name="key_id_in_range"),
        CheckConstraint("idle_expires_at <= absolute_expires_at", name="idle_within_absolute"),
        CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="ended_with_a_reason"),
        Index(None, "user_id"),
        Index(
            "ix_sessions_ended_at",
            "ended_at",
            "id",
            postgresql_where=text("ended_at IS NOT NULL"),
            sqlite_where=text("ended_at IS NOT NULL"),
        ),
        # Room on each page for the next version of its rows: a refresh stays on the page (HOT).
        {"postgresql_with": {"fillfactor": "85"}},
    )

    def __repr__(self) -> str:
        return f"Session({self.id})"


class Key(Base):
    """A working key, sealed under the master secret. `number` is the one byte by which refresh tokens name theirs."""

    __tablename__ = "keys"

    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    use: Mapped[str] = mapped_column(String(16))
    algorithm: Mapped[str] = mapped_column(String(16))
    number: Mapped[int | None] = mapped_column(SmallInteger, unique=True)
    sealed: Mapped[bytes]
    created_at: Mapped[datetime]
    signs_from: Mapped[datetime]
    retired_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("use IN ('access', 'refresh')", name="use_is_known"),
        CheckConstraint("(use = 'refresh') = (number IS NOT NULL)", name="refresh_keys_are_numbered"),
        CheckConstraint("number BETWEEN 1 AND 254", name="number_in_range"),
    )

    def __repr__(self) -> str:
        return f"Key({self.kid})"


class CacheFence(Base):
    """One row: which Redis server's silence may be believed, under which epoch (see `revocations`)."""

    __tablename__ = "cache_fence"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    epoch: Mapped[str] = mapped_column(String(32))
    server: Mapped[str | None] = mapped_column(String(96))
    changed_at: Mapped[datetime]
    vouches_from: Mapped[datetime]
    incarnation: Mapped[str] = mapped_column(String(64))

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
