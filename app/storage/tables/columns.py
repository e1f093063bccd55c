"""Types of columns, names of constraints and identifiers, which all tables share."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, Dialect, Integer, LargeBinary, MetaData, TypeDecorator
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond: timestamptz in Postgres, whole microseconds since 1970 in SQLite.

    SQLite has no type for moments. Its drivers drop the offset of an aware one, so comparisons would be silently wrong.
    Integers compare and add correctly. A naive moment is refused.
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


class Duration(TypeDecorator[timedelta]):
    """A duration in whole seconds."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: timedelta | None, dialect: Dialect) -> Any:  # noqa: ARG002, D102  # as above
        return None if value is None else value // timedelta(seconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> timedelta | None:  # noqa: ARG002, D102  # as above
        return timedelta(seconds=value) if isinstance(value, int) else value


def microseconds(value: datetime | timedelta) -> int:
    """Whole microseconds of a duration, or since 1970 of an aware moment."""
    return (value if isinstance(value, timedelta) else value - _EPOCH) // timedelta(microseconds=1)


def moment(since_1970: int) -> datetime:
    """The inverse of `microseconds`: an aware moment."""
    return _EPOCH + timedelta(microseconds=since_1970)


_last_tick = 0


def uuid7() -> UUID:
    """A UUID of version 7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, a counter of 12 bits, 62 random bits.

    Identifiers of one process rise, also within a millisecond and when the clock goes back (RFC 9562 section 6.2,
    method 1). So the events of one transaction keep their order. The order by time keeps the primary key's index dense,
    and lets `gc` walk it by age.
    """
    global _last_tick  # noqa: PLW0603  # the counter of the process
    random = int.from_bytes(os.urandom(9))
    _last_tick = max(_last_tick + 1, time.time_ns() // 1_000_000 << 12 | random >> 62 & 0x3FF)
    return UUID(
        int=_last_tick >> 12 << 80 | 7 << 76 | (_last_tick & 0xFFF) << 64 | 2 << 62 | (random & ((1 << 62) - 1)),
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
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: Moment, timedelta: Duration, bytes: LargeBinary}
