"""The administrators, for an operator: how many there are, and whether one still has the initial password."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, select

from ..storage.database import Database
from ..storage.tables import User


class Administrators(NamedTuple):
    """The administrators that are enabled, as `keyturn doctor` needs them."""

    enabled: int
    """The number of enabled administrators."""
    with_initial_password: str | None
    """The e-mail address of an enabled user who still has the password that a first start printed; else None."""


async def administrators(db: Database) -> Administrators:
    """Counts the administrators.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    enabled = User.disabled_at.is_(None)
    async with db.look() as connection:
        made = User.password_expires_at.is_not(None)
        initial = await connection.scalar(select(User.email).where(made, enabled).limit(1))
        number = await connection.scalar(select(func.count()).where(User.role == "admin", enabled))
    return Administrators(number or 0, initial)
