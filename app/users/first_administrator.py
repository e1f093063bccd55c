"""The first administrator of an embedded default."""

from __future__ import annotations

from sqlalchemy import func, select

from ..actors import SERVICE
from ..errors import Conflict
from ..storage.database import Database
from ..storage.tables import User
from .made_passwords import make
from .users import Users

ADMINISTRATOR = "admin@localhost"


async def first_administrator(db: Database, users: Users) -> str | None:
    """Makes the first administrator if there are no users.

    Returns:
        The initial password, of which only the hash is kept. None if there were users.

    Raises:
        TemporarilyUnavailable: the database is away, or no hash can be computed.
    """
    async with db.look() as connection:
        if await connection.scalar(select(func.count()).select_from(User)):
            return None
    password = make()
    try:
        await users.create(ADMINISTRATOR, password, "admin", initial=True, by=SERVICE)
    except Conflict:  # another first start made it at the same moment, and prints the password
        return None
    return password
