"""Role and claims of a user, changed within a transaction that has locked the user's row.

The live sessions have copies, because a refresh reads no other table. So each change writes the user, an event and the
sessions, in this order and in one transaction. The sessions are locked in the order of their ids, as everywhere.
"""

from __future__ import annotations

import re
from datetime import datetime
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import InvalidRequest
from ..events.audit import Event, record
from ..sessions.marking import unended_of
from ..storage.tables import Session, User

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)


def acceptable_role(role: str) -> str:
    """The role, if it has the form of one.

    Raises:
        InvalidRequest: it has not.
    """
    if not _ROLE.fullmatch(role):
        raise InvalidRequest("role", description="role: is up to 32 of a-z, 0-9, _ and -, and begins with a letter.")
    return role


async def change_role(tx: AsyncConnection, user_id: UUID, role: str, now: datetime, by: Actor) -> None:
    """Gives a user another role, which access tokens have from the next refresh of their session on."""
    await tx.execute(update(User).where(User.id == user_id).values(role=role))
    await record(tx, now, by, [Event("role_changed", user_id, detail=role)])
    await tx.execute(update(Session).where(Session.id.in_(unended_of(user_id).with_for_update())).values(role=role))


async def change_claims(tx: AsyncConnection, user_id: UUID, claims: str | None, now: datetime, by: Actor) -> None:
    """Gives a user other claims, as `claims.checked` writes them. The event has no values."""
    await tx.execute(update(User).where(User.id == user_id).values(claims=claims))
    await record(tx, now, by, [Event("claims_changed", user_id)])
    await tx.execute(update(Session).where(Session.id.in_(unended_of(user_id).with_for_update())).values(claims=claims))
