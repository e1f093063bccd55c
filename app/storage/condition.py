"""The condition of the database, for an operator who asks. No request needs to know it."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select

from .database import Database


async def schema_in_use(db: Database) -> str:
    """The schema of Postgres in which Keyturn's tables are looked for first.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    async with db.look() as connection:
        return str(await connection.scalar(select(func.current_schema())))


async def enforces_foreign_keys(db: Database) -> bool:
    """Whether this connection's Postgres runs the triggers that hold foreign keys.

    A superuser can switch them off for a role or a database (session_replication_role), which no migration sees.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    async with db.look() as connection:
        return await connection.scalar(select(func.current_setting("session_replication_role"))) == "origin"


async def clock_skew(db: Database) -> timedelta:
    """How far this machine's clock is from the database's, forward or back.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    async with db.look() as connection:
        theirs = await connection.scalar(select(db.now()))
    return abs(datetime.now(theirs.tzinfo) - theirs) if theirs else timedelta(0)
