"""The administrators, as an operator looks at them: whether there are any, and whether one has the first password."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, select

from ..storage.database import Database
from ..storage.tables import User


class Administrators(NamedTuple):
    """What `keyturn doctor` says of the administrators. A disabled one does not count."""

    enabled: int
    """How many there are."""
    with_initial_password: str | None
    """The address of a user whose password is still the one that a first start has made and printed."""


async def administrators(db: Database) -> Administrators:
    """Counts the administrators.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    enabled = User.disabled_at.is_(None)
    async with db.look() as connection:
        initial = await connection.scalar(select(User.email).where(User.password_is_initial, enabled).limit(1))
        number = await connection.scalar(select(func.count()).where(User.role == "admin", enabled))
    return Administrators(number or 0, initial)
