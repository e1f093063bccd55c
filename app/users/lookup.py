"""Reading users: one by id or address, some by their ids, or the pages of a list."""

from __future__ import annotations

import builtins
import unicodedata
from collections.abc import Collection
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Select, select

from ..errors import InvalidRequest, NotFound
from ..storage.database import Database
from ..storage.tables import User
from ..storage.tasks import own_task
from .emails import normalised

Status = Literal["enabled", "disabled"]
"""Whether a user may sign in."""


class UserLookup:
    """Reads users."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def emails(self, user_ids: Collection[UUID]) -> dict[UUID, str]:
        """The e-mail addresses of these users, by id. An id that no user has, or one without address, is left out."""
        which = User.id.in_(user_ids), User.email.is_not(None)
        async with self._db.look(hot_path=False) as connection:
            found = await connection.execute(select(User.id, User.email).where(*which))
            return {row.id: row.email for row in found}

    async def find(self, user: str | UUID) -> User:
        """The user of this id or e-mail address.

        Raises:
            NotFound: there is no such user.
        """
        try:
            condition = User.id == (user if isinstance(user, UUID) else UUID(user))
        except ValueError:
            try:
                condition = User.email == normalised(str(user))
            except InvalidRequest:
                raise NotFound("no such user") from None
        found = await self._read(select(User.__table__).where(condition))
        if not found:
            raise NotFound("no such user")
        return found[0]

    async def list(
        self,
        *,
        limit: int,
        after: UUID | None = None,
        newest_first: bool = False,
        email: str | None = None,
        role: str | None = None,
        status: Status | None = None,
    ) -> builtins.list[User]:
        """Users in the order of age.

        Args:
            limit: how many at most.
            after: only those that stand behind the user of this id.
            newest_first: whether the youngest user comes first.
            email: only the user of this address; or those whose address begins so, if a ``*`` follows.
            role: only those of this role.
            status: only those who may sign in, or may not.

        Raises:
            InvalidRequest: the address is malformed.
            TemporarilyUnavailable: the database is away.
        """
        query = select(User.__table__).order_by(User.id.desc() if newest_first else User.id).limit(limit)
        if after is not None:
            query = query.where(User.id < after if newest_first else User.id > after)
        if email is not None:
            query = query.where(_has_address(email))
        if role is not None:
            query = query.where(User.role == role)
        if status is not None:
            query = query.where(User.disabled_at.is_not(None) if status == "disabled" else User.disabled_at.is_(None))
        return await self._read(query)

    @own_task
    async def _read(self, query: Select[Any]) -> builtins.list[User]:
        async with self._db.look(hot_path=False) as connection:
            return [User(**row) for row in (await connection.execute(query)).mappings()]


def _has_address(email: str) -> ColumnElement[bool]:
    """Whether a user has this address; or one that begins so, if a ``*`` follows. No address ends with a ``*``."""
    if not email.endswith("*"):
        return User.email == normalised(email)
    beginning = unicodedata.normalize("NFC", email[:-1].strip()).lower()
    return User.email.startswith(beginning, autoescape=True)
