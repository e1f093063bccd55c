"""Sign-in: checks e-mail address and password, and renews the stored hash if its parameters are old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select, update

from ..command_name import called
from ..errors import InvalidGrant, InvalidRequest, SlowDown, TemporarilyUnavailable, WrongPassword
from ..limits.limits import DeviceForgotten
from ..log import get_logger
from ..sessions.start import Authenticated
from ..storage.database import Database
from ..storage.tables import User
from ..storage.tasks import own_task
from .emails import normalised
from .hashing import ITSELF, Asker
from .made_passwords import has_run_out
from .passwords import LONGEST, Passwords

_PAGE = 5_000
"""The number of users whose hashes one statement reads."""

_log = get_logger()


class SignIn:
    """Checks e-mail addresses and passwords."""

    def __init__(self, db: Database, passwords: Passwords) -> None:
        self._db = db
        self._passwords = passwords
        self._know_the_oldest = False

    async def authenticate(
        self, email: str, password: str, asker: Asker = ITSELF, device_counts: Callable[[str], bool] | None = None
    ) -> Authenticated:
        """Proof that the e-mail address and the password are an enabled user's.

        Unknown user, disabled user, user without password, wrong password and one that has run out get the same answer
        after the same work.

        Args:
            email: the e-mail address.
            password: the password.
            asker: who asks for the hash.
            device_counts: whether the asker's device counts as known to the user of this stored hash. None: no device
                is claimed to be known.

        Raises:
            DeviceForgotten: the password has changed since the device signed in. Nothing was computed.
            InvalidRequest: the address or the password is malformed.
            InvalidGrant: they are not an enabled user's.
            SlowDown: other sign-ins of the same network wait in the queue, and it has its share.
            TemporarilyUnavailable: the database is away, or the hash can't be computed now.
        """
        address = normalised(email)
        self._passwords.hashing.admit(asker)
        raw = password.encode()
        if len(raw) > LONGEST or 0 in raw:
            raise InvalidRequest("password length", description=f"password: at most {LONGEST} bytes and no NUL.")
        if not self._know_the_oldest:
            await self._learn_the_oldest()
        found = await self._stored(User.email == address)
        if device_counts is not None and (found is None or not device_counts(found.password_hash or "")):
            raise DeviceForgotten
        row = None if found is None or found.disabled_at is not None else found
        if not await self._is_right(row, raw, asker) or row is None:
            # Only the log tells the causes apart. Log and answer don't have the address: users type passwords there.
            cause = _cause(found)
            raise InvalidGrant(cause, description="E-mail or password is wrong.", user_id=found.id if found else None)
        hashed, made = row.password_hash, row.password_expires_at is not None
        if self._passwords.outdated(hashed):
            try:
                fresh = await self._passwords.hash(raw, asker._replace(known=True))
            except (SlowDown, TemporarilyUnavailable) as e:
                # The password is right all the same. A later sign-in renews its hash.
                _log.warning("hash_not_renewed", user_id=str(row.id), cause=e.cause)
                return Authenticated(row.id, hashed, password_change_required=made)
            if not await self._replace(row.id, hashed, fresh):
                # The hash changed meanwhile: another sign-in renewed it, or the password is another one now. The device
                # counted a moment ago, so this attempt stays its own.
                return await self.authenticate(email, password, asker)
            hashed = fresh
        return Authenticated(row.id, hashed, password_change_required=made)

    async def prove(self, user_id: UUID, password: str, asker: Asker = ITSELF) -> Authenticated:
        """Proof that the password is this user's.

        Raises:
            WrongPassword: it is not, or the user was disabled or deleted.
            SlowDown: as `authenticate`.
            TemporarilyUnavailable: the database is away, or the hash can't be computed now.
        """
        self._passwords.hashing.admit(asker)
        found = await self._stored(User.id == user_id)
        row = None if found is None or found.disabled_at is not None else found
        raw = password.encode()
        if len(raw) > LONGEST or 0 in raw or not await self._is_right(row, raw, asker) or row is None:
            raise WrongPassword(_cause(found), user_id=user_id)
        return Authenticated(row.id, row.password_hash, password_change_required=row.password_expires_at is not None)

    async def _is_right(self, user: Any, password: bytes, asker: Asker = ITSELF) -> bool:
        """Whether it is the user's password, and has not run out: for None, False after the same work.

        Logs a hash that is not computed, and what to type for the user of a password that has run out.
        """
        hashed = user.password_hash if user is not None else None
        if hashed is not None and (obstacle := self._passwords.obstacle(hashed)):
            _log.error("stored_hash_not_computed", user_id=str(user.id), cause=obstacle)
        try:
            right = await self._passwords.verify(hashed, password, asker)
        except (SlowDown, TemporarilyUnavailable) as e:
            raise e.about(None, user.id if user is not None else None) from None
        if right and has_run_out(user.password_expires_at, self._db.clock()):
            advice = f"the password that Keyturn made has run out: {called()} users reset-password {user.id}"
            _log.warning("made_password_ran_out", user_id=str(user.id), detail=advice)
            return False
        return right

    async def not_computed(self) -> tuple[int, UUID | None]:
        """How many users have a stored hash that is not computed, and the oldest of these users. Reads every user."""
        count, oldest, last = 0, None, UUID(int=0)
        while page := await self._hashes_after(last):
            found = [user_id for user_id, hashed in page if self._passwords.obstacle(hashed)]
            count += len(found)
            oldest = oldest or next(iter(found), None)
            last = page[-1][0]
        return count, oldest

    @own_task
    async def _hashes_after(self, user_id: UUID) -> list[Any]:
        async with self._db.look(hot_path=False) as connection:
            query = select(User.id, User.password_hash).where(User.id > user_id, User.password_hash.is_not(None))
            return [*(await connection.execute(query.order_by(User.id).limit(_PAGE)))]

    @own_task
    async def _learn_the_oldest(self) -> None:
        # The first wrong password in a process must take as long as any later one. The oldest users' hashes have the
        # costs of earlier ARGON2_* settings, and ids are in the order of age.
        async with self._db.look(hot_path=False) as connection:
            hashes = select(User.password_hash).where(User.password_hash.is_not(None))
            for hashed in await connection.scalars(hashes.order_by(User.id).limit(100)):
                self._passwords.learn(hashed)
        self._know_the_oldest = True

    @own_task
    async def _stored(self, which: ColumnElement[bool]) -> Any:
        async with self._db.look(hot_path=False) as connection:
            columns = select(User.id, User.password_hash, User.password_expires_at, User.disabled_at)
            return (await connection.execute(columns.where(which))).one_or_none()

    @own_task
    async def _replace(self, user_id: UUID, old: str, new: str) -> bool:
        """Replaces an old hash by today's of the same password, unless the stored hash has changed meanwhile."""
        async with self._db.begin() as tx:
            replaced = await tx.scalar(
                update(User)
                .where(User.id == user_id, User.password_hash == old)
                .values(password_hash=new)
                .returning(User.id)
            )
        return replaced is not None


def _cause(user: Any) -> str:
    """Why a password is refused, in words for the log."""
    if user is None:
        return "unknown user"
    if user.disabled_at is not None:
        return "user is disabled"
    return "wrong password" if user.password_hash is not None else "user has no password"
