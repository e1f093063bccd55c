"""Users: who may sign in, with which role. What changes a user changes the user's sessions in the same transaction."""

from __future__ import annotations

import builtins
import re
import string
from collections.abc import Collection
from typing import Any
from uuid import UUID

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, InvalidGrant, InvalidRequest, NotFound, TemporarilyUnavailable
from ..log import get_logger
from ..revocation.revocations import Revocations
from ..sessions.rotation import ending_of, live_of
from ..storage.database import Database
from ..storage.tables import Session, User, uuid7
from ..storage.tasks import own_task
from .passwords import LONGEST, Authenticated, Passwords, acceptable

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
# The library's documented way to allow domains that the Internet doesn't know, such as corp.local: a self-hosted
# service has users there.
SPECIAL_USE_DOMAIN_NAMES.clear()
_PAGE = 5_000
"""Users whose hashes are read at once."""

_log = get_logger()


def normalised(email: str) -> str:
    """The one spelling of an e-mail address: lower case, NFC, domain in its ASCII-compatible reading.

    ASCII white space around it is left out: telephones' keyboards add a blank, which the user does not see.

    Raises:
        InvalidRequest: it is no address that mail could reach (quotes, comments, an IP domain, over 254 characters).
    """
    email = email.strip(string.whitespace)
    try:
        address = validate_email(
            email, check_deliverability=False, globally_deliverable=False, allow_quoted_local=False
        ).normalized.lower()
    except (EmailNotValidError, ValueError):
        raise InvalidRequest("email", description="email: is not an e-mail address.") from None
    if address.rpartition("@")[2].rpartition(".")[2].isdigit():  # no top-level domain: an IP address, however written
        raise InvalidRequest("email", description="email: is not an e-mail address.")
    if len(address) > 254:  # noqa: PLR2004  # RFC 5321 section 4.5.3.1.3, less the brackets
        raise InvalidRequest("email", description="email: is not an e-mail address.")
    return address


def _role(role: str) -> str:
    if not _ROLE.fullmatch(role):
        raise InvalidRequest("role", description="role: is up to 32 of a-z, 0-9, _ and -, and begins with a letter.")
    return role


class Users:
    """The users in the database."""

    def __init__(self, db: Database, passwords: Passwords, revocations: Revocations) -> None:
        """Needs the revocations because to disable a user is to end sessions."""
        self._db = db
        self._passwords = passwords
        self._revocations = revocations
        self._know_the_oldest = False

    @own_task
    async def emails(self, user_ids: Collection[UUID]) -> dict[UUID, str]:
        """The addresses of these users."""
        async with self._db.look(hot_path=False) as connection:
            found = await connection.execute(select(User.id, User.email).where(User.id.in_(user_ids)))
            return {row.id: row.email for row in found}

    async def create(self, email: str, password: str, role: str = "user", *, initial: bool = False, by: Actor) -> User:
        """Makes a user.

        Raises:
            InvalidRequest: address, password or role is malformed.
            Conflict: there is a user of this address.
        """
        address, name = normalised(email), _role(role)
        # Hashed before anything is looked up: an address that exists takes the same time.
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
                    "password_is_initial": initial,
                    "role": role,
                    "created_at": now,
                    "disabled_at": None,
                }
                await tx.execute(insert(User).values(user))
        except IntegrityError as e:
            if "email" not in str(e.orig):
                raise
            raise Conflict("email exists", description="There is a user of this address.") from None
        return User(**user)

    async def authenticate(self, email: str, password: str) -> Authenticated:
        """Proof that these are a user's e-mail and password.

        Unknown, disabled and wrong password say the same, after the same work.

        Raises:
            InvalidGrant: they are not.
            TemporarilyUnavailable: the database is away or too many hashes wait.
        """
        address = normalised(email)
        self._passwords.admit()
        raw = password.encode()
        if len(raw) > LONGEST or 0 in raw:
            raise InvalidRequest("password length", description=f"password: at most {LONGEST} bytes and no NUL.")
        if not self._know_the_oldest:
            await self._learn_the_oldest()
        found = await self._stored(address)
        row = None if found is None or found.disabled_at is not None else found
        if not await self._is_right(row, raw) or row is None:
            # The log tells them apart, the answer does not. The address is in neither: people type passwords there.
            cause = "wrong password" if row else "user is disabled" if found else "unknown user"
            raise InvalidGrant(cause, description="E-mail or password is wrong.", user_id=found.id if found else None)
        hashed = row.password_hash
        if self._passwords.outdated(hashed):
            try:
                fresh = await self._passwords.hash(raw)
            except TemporarilyUnavailable as e:
                # The password is right all the same. A later sign-in renews its hash.
                _log.warning("hash_not_renewed", user_id=str(row.id), cause=e.cause)
                return Authenticated(row.id, hashed)
            if not await self._replace(row.id, hashed, fresh):
                # Changed meanwhile: by another sign-in that did the same, or really.
                return await self.authenticate(email, password)
            hashed = fresh
        return Authenticated(row.id, hashed)

    async def _is_right(self, user: Any, password: bytes) -> bool:
        """Whether it is the user's password; False after the same work for None. Logs a hash that is not computed."""
        hashed = user.password_hash if user is not None else None
        if hashed is not None and (obstacle := self._passwords.obstacle(hashed)):
            _log.error("stored_hash_not_computed", user_id=str(user.id), cause=obstacle)
        return await self._passwords.verify(hashed, password)

    async def not_computed(self) -> tuple[int, UUID | None]:
        """How many users have a stored hash that is not computed, and the oldest of them. Reads all of them."""
        count, oldest, last = 0, None, UUID(int=0)
        while page := await self._hashes_after(last):
            found = [user_id for user_id, hashed in page if self._passwords.obstacle(hashed)]
            count += len(found)
            oldest = oldest or next(iter(found), None)
            last = page[-1][0]
        return count, oldest

    @own_task
    async def _hashes_after(self, user_id: UUID) -> builtins.list[Any]:
        async with self._db.look(hot_path=False) as connection:
            query = select(User.id, User.password_hash).where(User.id > user_id).order_by(User.id).limit(_PAGE)
            return [*(await connection.execute(query))]

    @own_task
    async def _learn_the_oldest(self) -> None:
        # What a wrong password costs is to be right from a process's first one on. Whose hashes are the oldest still
        # have them of whatever ARGON2_* was before; ids are in the order of age.
        async with self._db.look(hot_path=False) as connection:
            for hashed in await connection.scalars(select(User.password_hash).order_by(User.id).limit(100)):
                self._passwords.learn(hashed)
        self._know_the_oldest = True

    @own_task
    async def _stored(self, email: str) -> Any:
        async with self._db.look(hot_path=False) as connection:
            found = await connection.execute(
                select(User.id, User.password_hash, User.disabled_at).where(User.email == email)
            )
            return found.one_or_none()

    @own_task
    async def _replace(self, user_id: UUID, old: str, new: str) -> bool:
        """Puts today's hash of the same password in the place of an old one, unless someone else was faster."""
        async with self._db.begin() as tx:
            replaced = await tx.scalar(
                update(User)
                .where(User.id == user_id, User.password_hash == old)
                .values(password_hash=new)
                .returning(User.id)
            )
        return replaced is not None

    async def find(self, user: str | UUID) -> User:
        """The user of this id or e-mail.

        Raises:
            NotFound: there is none.
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
        """Users by age, `limit` at most, those after an id."""
        query = select(User.__table__).order_by(User.id).limit(limit)
        return await self._read(query.where(User.id > after) if after else query)

    @own_task
    async def _read(self, query: Select[Any]) -> builtins.list[User]:
        async with self._db.look(hot_path=False) as connection:
            return [User(**row) for row in (await connection.execute(query)).mappings()]

    @own_task
    async def set_role(self, user_id: UUID, role: str, *, by: Actor) -> None:
        """Changes the role, of the user and of the live sessions at once: the next refresh has it.

        Raises:
            NotFound: there is no such user.
            Conflict: it would leave no administrator.
        """
        name = _role(role)
        async with self._db.begin() as tx:
            await self._not_the_last_administrator(tx, user_id, unless=name == "admin")
            await self._change(tx, user_id, role=name)
            await tx.execute(
                update(Session).where(Session.id.in_(live_of(user_id).with_for_update())).values(role=name)
            )

    @own_task
    async def disable(self, user_id: UUID, *, by: Actor) -> int:
        """Disables a user and ends all sessions; how many.

        Raises:
            NotFound: there is no such user.
            Conflict: it is the last administrator.
        """
        async with ending_of(self._db, self._revocations, user_id, "user_disabled") as ending:
            await self._not_the_last_administrator(ending.tx, user_id, unless=False)
            await self._change(ending.tx, user_id, disabled_at=func.coalesce(User.disabled_at, self._db.now()))
        return ending.lived

    @own_task
    async def enable(self, user_id: UUID, *, by: Actor) -> None:
        """Lets a user sign in again.

        Raises:
            NotFound: there is no such user.
        """
        async with self._db.begin() as tx:
            await self._change(tx, user_id, disabled_at=None)

    async def set_password(self, user_id: UUID, password: str, *, by: Actor) -> int:
        """Sets a password, as an administrator; ends all sessions; how many.

        Raises:
            NotFound: there is no such user.
            InvalidRequest: the password is too short, too long or has a NUL.
        """
        hashed = await self._passwords.hash(acceptable(password))
        return await self._set_password(user_id, hashed, by=by)

    @own_task
    async def _set_password(self, user_id: UUID, hashed: str, *, by: Actor) -> int:
        async with ending_of(self._db, self._revocations, user_id, "password_changed") as ending:
            await self._change(ending.tx, user_id, password_hash=hashed, password_is_initial=False)
        return ending.lived

    async def change_password(self, session_id: UUID, user_id: UUID, current: str, new: str, *, by: Actor) -> None:
        """Changes one's own password; every other session of the user ends.

        Raises:
            InvalidGrant: the current password is wrong, or it or this session ended meanwhile.
            InvalidRequest: the new password is too short, too long or has a NUL.
        """
        fresh = acceptable(new)
        if new == current:
            raise InvalidRequest("unchanged password", description="The new password is the current one.")
        user = await self.find(user_id)
        if not await self._is_right(user, current.encode()):
            raise InvalidGrant(
                "wrong current password",
                description="The current password is wrong.",
                session_id=session_id,
                user_id=user_id,
            )
        await self._change_password(session_id, user, await self._passwords.hash(fresh), by=by)

    @own_task
    async def _change_password(self, session_id: UUID, user: User, hashed: str, *, by: Actor) -> None:
        async with ending_of(
            self._db, self._revocations, user.id, "password_changed", but=frozenset({session_id})
        ) as ending:
            # What was checked outside is checked again inside: the password as verified, the user enabled ...
            changed = await ending.tx.scalar(
                update(User)
                .where(User.id == user.id, User.password_hash == user.password_hash, User.disabled_at.is_(None))
                .values(password_hash=hashed, password_is_initial=False)
                .returning(User.id)
            )
            # ... and this session live: an ended one must not change a password. All are locked, by id as everywhere.
            live = (await ending.tx.scalars(live_of(user.id).with_for_update())).all()
            if changed is None or session_id not in live:
                raise InvalidGrant(
                    "user or session changed meanwhile",
                    description="Sign in again.",
                    session_id=session_id,
                    user_id=user.id,
                )

    async def _change(self, tx: AsyncConnection, user_id: UUID, **values: Any) -> None:
        changed = await tx.scalar(update(User).where(User.id == user_id).values(**values).returning(User.id))
        if changed is None:
            raise NotFound("no such user")

    async def _not_the_last_administrator(self, tx: AsyncConnection, user_id: UUID, *, unless: bool) -> None:
        # Locks every enabled administrator, so that two who demote each other at once can't both succeed.
        admins = (
            await tx.scalars(
                select(User.id)
                .where(User.role == "admin", User.disabled_at.is_(None))
                .order_by(User.id)
                .with_for_update()
            )
        ).all()
        if not unless and list(admins) == [user_id]:
            raise Conflict("last administrator", description="It is the last enabled administrator.")
