"""Users, who may sign in, and their roles. A transaction that changes a user changes the user's sessions too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, InvalidGrant, InvalidRequest, NotFound
from ..events.audit import Event, record
from ..sessions.ending import Ending
from ..sessions.marking import unended_of
from ..storage.database import Database
from ..storage.tables import User, uuid7
from ..storage.tasks import own_task
from .administrators import check_still, keep_one
from .claims import checked
from .emails import normalised
from .grants import acceptable_role, change_claims, change_role
from .hashing import Asker
from .lookup import UserLookup
from .made_passwords import LIFETIME, Reset, make
from .password_rules import PasswordRules
from .passwords import Passwords
from .sign_in import SignIn


class Users(UserLookup):
    """The users in the database: read as `UserLookup` does, and changed here."""

    def __init__(
        self, db: Database, passwords: Passwords, rules: PasswordRules, sign_in: SignIn, ending: Ending
    ) -> None:
        """Needs `ending`, because a user who is disabled, or gets a new password, loses sessions."""
        super().__init__(db)
        self._passwords = passwords
        self._rules = rules
        self._sign_in = sign_in
        self._ending = ending

    async def create(self, email: str, password: str, role: str = "user", *, initial: bool = False, by: Actor) -> User:
        """Makes a user.

        Args:
            email: the address.
            password: the password.
            role: the role.
            initial: whether Keyturn made the password, so that it is good for a day, and no rule is asked.
            by: the actor. An administrator is looked up again (`check_still`), as in every change here.

        Raises:
            InvalidRequest: address or role is malformed, or a rule refuses the password.
            Conflict: there is a user of this address.
            TemporarilyUnavailable: the database is away, or the hash can't be computed now.
        """
        address, name = normalised(email), acceptable_role(role)
        raw = password.encode() if initial else await self._rules.accepted(password, address)
        # Hash before any look-up, so that an address that exists takes as long as a new one.
        hashed = await self._passwords.hash(raw, Asker.of(by))
        return await self._insert(address, hashed, name, initial, by=by)

    @own_task
    async def _insert(self, email: str, password_hash: str, role: str, initial: bool, *, by: Actor) -> User:  # noqa: FBT001
        try:
            async with self._db.begin() as tx:
                await check_still(tx, by)
                now = (await tx.execute(select(self._db.now()))).scalar_one()
                user: dict[str, Any] = {
                    "id": uuid7(),
                    "email": email,
                    "email_verified_at": None,
                    "password_hash": password_hash,
                    "password_expires_at": now + LIFETIME if initial else None,
                    "role": role,
                    "claims": None,
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

    @own_task
    async def set_role(self, user_id: UUID, role: str, *, by: Actor) -> None:
        """Changes the role of a user and of the user's live sessions, so that their next refresh has the new role.

        Raises:
            InvalidRequest: the role is malformed.
            NotFound: there is no such user.
            Conflict: no enabled administrator would be left.
        """
        name = acceptable_role(role)
        async with self._db.begin() as tx:
            if name != "admin":
                await keep_one(tx, user_id)
            before = await self._locked(tx, user_id, by)
            if before.role != name:
                await change_role(tx, user_id, name, before.now, by)

    @own_task
    async def set_claims(self, user_id: UUID, claims: Mapping[str, Any] | None, *, by: Actor) -> None:
        """Changes the claims of a user and of the user's live sessions, so that their next refresh has the new ones.

        The event has no values: an administrator may look up the ones that hold, and none of the former ones.

        Raises:
            InvalidRequest: the claims are malformed, too large, or have a reserved name.
            NotFound: there is no such user.
        """
        text = checked(claims or {})
        async with self._db.begin() as tx:
            before = await self._locked(tx, user_id, by)
            if before.claims != text:
                await change_claims(tx, user_id, text, before.now, by)

    async def disable(self, user_id: UUID, *, by: Actor) -> int:
        """Disables a user and ends all the user's sessions. Returns how many.

        Raises:
            NotFound: there is no such user.
            Conflict: the user is the last enabled administrator.
        """

        async def change(tx: AsyncConnection) -> None:
            await keep_one(tx, user_id)
            before = await self._locked(tx, user_id, by)
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
            before = await self._locked(tx, user_id, by)
            if before.disabled_at is not None:
                await tx.execute(update(User).where(User.id == user_id).values(disabled_at=None))
                await record(tx, before.now, by, [Event("user_enabled", user_id)])

    @own_task
    async def set_email_verified(self, user_id: UUID, *, verified: bool, by: Actor) -> None:
        """Notes an operator's word that the address is the user's, or takes it back.

        Only an address that is proved may link the user to an identity (`Issuer.link_by_email`).

        Raises:
            NotFound: there is no such user.
            Conflict: the user has no address.
        """
        async with self._db.begin() as tx:
            before = await self._locked(tx, user_id, by)
            if before.email is None:
                raise Conflict("no address", description="The user has no e-mail address.")
            if (before.email_verified_at is not None) == verified:
                return
            moment = before.now if verified else None
            await tx.execute(update(User).where(User.id == user_id).values(email_verified_at=moment))
            detail = None if verified else "withdrawn"
            await record(tx, before.now, by, [Event("email_verified", user_id, detail=detail)])

    async def set_password(self, user_id: UUID, password: str, *, by: Actor) -> int:
        """Sets a user's password and ends all the user's sessions. Returns how many.

        Raises:
            NotFound, Conflict: as `reset_password`.
            InvalidRequest: a rule refuses the password.
        """
        user = await self.find(user_id)
        raw = await self._rules.accepted(password, user.email)
        return await self._renew_password(user_id, raw, "password_changed", by=by)

    async def reset_password(self, user_id: UUID, *, by: Actor) -> Reset:
        """Makes a password for a user, good for a day, and ends all the user's sessions.

        Raises:
            NotFound: there is no such user.
            Conflict: the user has no address, so no password would let the user in.
        """
        password = make()
        ended = await self._renew_password(user_id, password.encode(), "password_reset", by=by)
        return Reset(password, ended)

    async def _renew_password(
        self, user_id: UUID, password: bytes, kind: Literal["password_changed", "password_reset"], *, by: Actor
    ) -> int:
        hashed = await self._passwords.hash(password, Asker.of(by))

        async def change(tx: AsyncConnection) -> None:
            before = await self._locked(tx, user_id, by)
            if before.email is None:
                raise Conflict("no address", description="The user has no e-mail address to sign in with.")
            runs_out = before.now + LIFETIME if kind == "password_reset" else None
            renewed = update(User).where(User.id == user_id).values(password_hash=hashed, password_expires_at=runs_out)
            await tx.execute(renewed)
            await record(tx, before.now, by, [Event(kind, user_id)])

        return await self._ending.end_of_user(user_id, "password_changed", by=by, also=change)

    async def change_password(self, session_id: UUID, user_id: UUID, current: str, new: str, *, by: Actor) -> None:
        """Changes the password of the user of a session, and ends every other session of the user.

        Raises:
            WrongPassword: the current password is wrong.
            InvalidGrant: meanwhile the password changed, the session ended or the user was disabled.
            InvalidRequest: the new password is the current one, or a rule refuses it.
            SlowDown, TemporarilyUnavailable: as `SignIn.prove`.
        """
        user = await self.find(user_id)
        fresh = await self._rules.acceptable(new, user.email, "new_password")
        if new == current:
            raise InvalidRequest("unchanged password", description="The new password is the current one.")
        proof = await self._sign_in.prove(user_id, current, Asker.of(by))
        await self._rules.refuse_breached(new, "new_password")  # only now: nobody else's session makes Keyturn ask
        hashed = await self._passwords.hash(fresh, Asker.of(by))

        async def change(tx: AsyncConnection) -> None:
            # Check again, as users change. 1. The user must be enabled and still have the hash that was verified.
            changed = await tx.scalar(
                update(User)
                .where(User.id == user.id, User.password_hash == proof.password_hash, User.disabled_at.is_(None))
                .values(password_hash=hashed, password_expires_at=None)
                .returning(self._db.now())
            )
            # 2. The session must be live. All live ones are locked, in the order of ids as everywhere (no deadlock).
            live = (await tx.scalars(unended_of(user.id).with_for_update())).all()
            if changed is None or session_id not in live:
                raise InvalidGrant(
                    "user or session changed meanwhile",
                    description="Sign in again.",
                    session_id=session_id,
                    user_id=user.id,
                )
            await record(tx, changed, by, [Event("password_changed", user.id, session_id)])

        await self._ending.end_of_user(user.id, "password_changed", by=by, but=frozenset({session_id}), also=change)

    async def _locked(self, tx: AsyncConnection, user_id: UUID, by: Actor) -> Any:
        """The user's row, locked until the transaction ends. A sign-in waits for the lock (see `Starting.start`).

        Raises:
            NotFound, AccessDenied: there is no such user; or the actor is no administrator any more.
        """
        await check_still(tx, by)
        what = User.role, User.claims, User.disabled_at, User.email, User.email_verified_at
        columns = select(*what, self._db.now().label("now"))
        row = (await tx.execute(columns.where(User.id == user_id).with_for_update())).one_or_none()
        if row is None:
            raise NotFound("no such user")
        return row
