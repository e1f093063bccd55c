"""The administrators: one always stays enabled, and an operator learns whose password is to be changed."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import AccessDenied, Conflict
from ..storage.database import Database
from ..storage.tables import User


class Administrators(NamedTuple):
    """The administrators that are enabled, and the passwords that Keyturn made, as an operator needs them."""

    enabled: int
    """The number of enabled administrators."""
    first: str | None
    """The e-mail address of the one that is longest there; None if none has an address."""
    with_initial_password: str | None
    """The e-mail address of an enabled administrator whose password Keyturn made; None if all have changed theirs."""
    run_out: int
    """The number of enabled users whose password Keyturn made and has run out. None of them can sign in."""
    first_run_out: str | None
    """The e-mail address of one of these, an administrator if there is one."""


async def administrators(db: Database) -> Administrators:
    """Counts the administrators, and the passwords that have run out.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    enabled, admin = User.disabled_at.is_(None), User.role == "admin"
    run_out = select(User.email).where(User.password_expires_at <= db.now(), enabled)
    first = select(User.email).where(admin, enabled, User.email.is_not(None)).order_by(User.id)
    async with db.look() as connection:
        made = select(User.email).where(User.password_expires_at > db.now(), admin, enabled)
        return Administrators(
            enabled=await connection.scalar(select(func.count()).where(admin, enabled)) or 0,
            first=await connection.scalar(first.limit(1)),
            with_initial_password=await connection.scalar(made.limit(1)),
            run_out=await connection.scalar(select(func.count()).select_from(run_out.subquery())) or 0,
            first_run_out=await connection.scalar(run_out.order_by(admin.desc(), User.id).limit(1)),
        )


async def keep_one(tx: AsyncConnection, user_id: UUID) -> None:
    """Lets a transaction demote, disable or erase this user only if another administrator stays enabled.

    The transaction locks every enabled administrator, in the order of their ids. So two who demote each other at the
    same time can't both succeed.

    Raises:
        Conflict: the user is the last enabled administrator.
    """
    administrators = select(User.id).where(User.role == "admin", User.disabled_at.is_(None))
    if (await tx.scalars(administrators.order_by(User.id).with_for_update())).all() == [user_id]:
        raise Conflict("last administrator", description="It is the last enabled administrator.")


async def check_still(tx: AsyncConnection, by: Actor) -> None:
    """Checks within a transaction that an administrator who sent the request still is one, before anything changes.

    The guard of /admin looked before the transaction, and a hash may take seconds in between. Without this look, a
    thief of an administrator's session could make another administrator after that one was disabled. The look locks
    nothing: a dismissal that commits later than this statement comes after the act.

    Raises:
        AccessDenied: the administrator was demoted, disabled or erased meanwhile.
    """
    if by.kind != "administrator" or by.id is None:
        return
    still = select(User.id).where(User.id == UUID(by.id), User.role == "admin", User.disabled_at.is_(None))
    if await tx.scalar(still) is None:
        raise AccessDenied("no administrator any more")
