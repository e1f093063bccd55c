"""Users, who may sign in, and their roles. A transaction that changes a user changes the user's sessions too."""

from __future__ import annotations

import builtins
import re
from collections.abc import Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, InvalidGrant, InvalidRequest, NotFound
from ..events.audit import Event, record
from ..sessions.ending import Ending
from ..sessions.marking import live_of
from ..storage.database import Database
from ..storage.tables import Session, User, uuid7
from ..storage.tasks import own_task
from .emails import normalised
from .passwords import Passwords, acceptable
from .sign_in import SignIn

MADE_PASSWORD_LIFETIME = timedelta(hours=24)
"""How long a password that Keyturn made is good, unless the user changes it before (ASVS 5.0 6.4.1)."""

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)


def _role(role: str) -> str:
    if not _ROLE.fullmatch(role):
        raise InvalidRequest("role", description="role: is up to 32 of a-z, 0-9, _ and -, and begins with a letter.")
    return role


class Users:
    """The users in the database."""

    def __init__(self, db: Database, passwords: Passwords, sign_in: SignIn, ending: Ending) -> None:
        """Needs `ending`, because a user who is disabled, or gets a new password, loses sessions."""
        self._db = db
        self._passwords = passwords
        self._sign_in = sign_in
        self._ending = ending

    @own_task
    async def emails(self, user_ids: Collection[UUID]) -> dict[UUID, str]:
        """The e-mail addresses of these users, by id. An id that no user has is left out."""
        async with self._db.look(hot_path=False) as connection:
            found = await connection.execute(select(User.id, User.email).where(User.id.in_(user_ids)))
            return {row.id: row.email for row in found}

    async def create(self, email: str, password: str, role: str = "user", *, initial: bool = False, by: Actor) -> User:
        """Makes a user.

        Raises:
            InvalidRequest: address, password or role is malformed.
            Conflict: there is a user of this address.
            TemporarilyUnavailable: the database is away, or the hash can't be computed now.
        """
        address, name = normalised(email), _role(role)
        # Hash before any look-up, so that an address that exists takes as long as a new one.
        hashed = await self._passwords.hash(acceptable(password))
        return await self._insert(address, hashed, name, initial, by=by)

    @own_task
    async def _insert(self, email: str, password_hash: str, role: str, initial: bool, *, by: Actor) -> User:  # noqa: FBT001
        try:
            async with self._db.begin() as tx:
                now = await tx.scalar(select(self._db.now()))
                assert now is not None
                user = {
                    "id": uuid7(),
                    "email": email,
                    "password_hash": password_hash,
                    "password_expires_at": now + MADE_PASSWORD_LIFETIME if initial else None,
                    "role": role,
                    "created_at": now,
                    "disabled_at": None,
                }
                await tx.execute(insert(User).values(user))
                await record(tx, now, by, [Event("user_created", user["id"])])
        except IntegrityError as e:
            if "email" not in str(e.orig):
                raise
            raise Conflict("email exists", description="There is a user of this address.") from None
        return User(**user)

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

    async def list(self, *, limit: int, after: UUID | None = None) -> builtins.list[User]:
        """Users in the order of age: `limit` at most, those after the id `after`."""
        query = select(User.__table__).order_by(User.id).limit(limit)
        return await self._read(query.where(User.id > after) if after else query)

    @own_task
    async def _read(self, query: Select[Any]) -> builtins.list[User]:
        async with self._db.look(hot_path=False) as connection:
            return [User(**row) for row in (await connection.execute(query)).mappings()]

    @own_task
    async def set_role(self, user_id: UUID, role: str, *, by: Actor) -> None:
        """Changes the role of a user and of the user's live sessions, so that their next refresh has the new role.

        Raises:
            InvalidRequest: the role is malformed.
            NotFound: there is no such user.
            Conflict: no enabled administrator would be left.
        """
        name = _role(role)
        async with self._db.begin() as tx:
            if name != "admin":
                await self._not_the_last_administrator(tx, user_id)
            before = await self._locked(tx, user_id)
            if before.role == name:
                return
            await tx.execute(update(User).where(User.id == user_id).values(role=name))
            await record(tx, before.now, by, [Event("role_changed", user_id, detail=name)])
            await tx.execute(
                update(Session).where(Session.id.in_(live_of(user_id).with_for_update())).values(role=name)
            )

    async def disable(self, user_id: UUID, *, by: Actor) -> int:
        """Disables a user and ends all the user's sessions. Returns how many.

        Raises:
            NotFound: there is no such user.
            Conflict: the user is the last enabled administrator.
        """

        async def change(tx: AsyncConnection) -> None:
            await self._not_the_last_administrator(tx, user_id)
            before = await self._locked(tx, user_id)
            if before.disabled_at is None:
                await tx.execute(update(User).where(User.id == user_id).values(disabled_at=before.now))
                await record(tx, before.now, by, [Event("user_disabled", user_id)])

        return await self._ending.end_of_user(user_id, "user_disabled", by=by, also=change)

    @own_task
    async def enable(self, user_id: UUID, *, by: Actor) -> None:
        """Lets a user sign in again.

        Raises:
            NotFound: there is no such user.
        """
        async with self._db.begin() as tx:
            before = await self._locked(tx, user_id)
            if before.disabled_at is not None:
                await tx.execute(update(User).where(User.id == user_id).values(disabled_at=None))
                await record(tx, before.now, by, [Event("user_enabled", user_id)])

    async def set_password(self, user_id: UUID, password: str, *, by: Actor) -> int:
        """Sets a user's password and ends all the user's sessions. Returns how many.

        Raises:
            NotFound: there is no such user.
            InvalidRequest: the password is too short, too long or has a NUL.
        """
        hashed = await self._passwords.hash(acceptable(password))

        async def change(tx: AsyncConnection) -> None:
            before = await self._locked(tx, user_id)
            renewed = update(User).where(User.id == user_id).values(password_hash=hashed, password_expires_at=None)
            await tx.execute(renewed)
            await record(tx, before.now, by, [Event("password_changed", user_id)])

        return await self._ending.end_of_user(user_id, "password_changed", by=by, also=change)

    async def change_password(self, session_id: UUID, user_id: UUID, current: str, new: str, *, by: Actor) -> None:
        """Changes the password of the user of a session, and ends every other session of the user.

        Raises:
            InvalidGrant: the current password is wrong; or meanwhile it changed, the session ended or the user was
                disabled.
            InvalidRequest: the new password is the current one, is too short, too long or has a NUL.
        """
        fresh = acceptable(new)
        if new == current:
            raise InvalidRequest("unchanged password", description="The new password is the current one.")
        user = await self.find(user_id)
        if not await self._sign_in.is_right(user, current.encode()):
            raise InvalidGrant(
                "wrong current password",
                description="The current password is wrong.",
                session_id=session_id,
                user_id=user_id,
            )
        hashed = await self._passwords.hash(fresh)

        async def change(tx: AsyncConnection) -> None:
            # Check again, as users change. 1. The user must be enabled and still have the hash that was verified.
            changed = await tx.scalar(
                update(User)
                .where(User.id == user.id, User.password_hash == user.password_hash, User.disabled_at.is_(None))
                .values(password_hash=hashed, password_expires_at=None)
                .returning(self._db.now())
            )
            # 2. The session must be live. All live ones are locked, in the order of ids as everywhere (no deadlock).
            live = (await tx.scalars(live_of(user.id).with_for_update())).all()
            if changed is None or session_id not in live:
                raise InvalidGrant(
                    "user or session changed meanwhile",
                    description="Sign in again.",
                    session_id=session_id,
                    user_id=user.id,
                )
            await record(tx, changed, by, [Event("password_changed", user.id, session_id)])

        await self._ending.end_of_user(user.id, "password_changed", by=by, but=frozenset({session_id}), also=change)

    async def _locked(self, tx: AsyncConnection, user_id: UUID) -> Any:
        """The user's row, locked until the transaction ends. A sign-in waits for the lock (see `Starting.start`).

        Raises:
            NotFound: there is no such user.
        """
        columns = select(User.role, User.disabled_at, self._db.now().label("now"))
        row = (await tx.execute(columns.where(User.id == user_id).with_for_update())).one_or_none()
        if row is None:
            raise NotFound("no such user")
        return row

    async def _not_the_last_administrator(self, tx: AsyncConnection, user_id: UUID) -> None:
        # Lock every enabled administrator, so that two who demote each other at the same time can't both succeed.
        admins = (
            await tx.scalars(
                select(User.id)
                .where(User.role == "admin", User.disabled_at.is_(None))
                .order_by(User.id)
                .with_for_update()
            )
        ).all()
        if list(admins) == [user_id]:
            raise Conflict("last administrator", description="It is the last enabled administrator.")
