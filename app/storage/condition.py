"""The condition of the database, for an operator. No request reads it."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select

from .database import Database


async def schema_in_use(db: Database) -> str:
    """The schema in which Postgres looks for Keyturn's tables first.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    async with db.look() as connection:
        return str(await connection.scalar(select(func.current_schema())))


async def enforces_foreign_keys(db: Database) -> bool:
    """Whether Postgres runs the triggers that enforce foreign keys.

    A superuser can switch them off for a role or a database (session_replication_role). A migration does not notice.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    async with db.look() as connection:
        return await connection.scalar(select(func.current_setting("session_replication_role"))) == "origin"


async def clock_skew(db: Database) -> timedelta:
    """The difference between this machine's clock and the database's, never negative.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    async with db.look() as connection:
        theirs = await connection.scalar(select(db.now()))
    return abs(datetime.now(theirs.tzinfo) - theirs) if theirs else timedelta(0)
