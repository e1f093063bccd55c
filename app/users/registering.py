"""Registration of strangers, in the form that does not tell whether an address is taken.

Answer, work and statements are the same in both cases, so nobody learns from them whose address has an account. The
owner of the address learns of it by mail, if the operator sends one for each event `registration_repeated`.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..events.audit import Event, record
from ..storage.database import Database
from ..storage.tables import User, uuid7
from ..storage.tasks import own_task
from .emails import normalised
from .hashing import Asker
from .password_rules import PasswordRules
from .passwords import Passwords


class Registering:
    """Registers users."""

    def __init__(self, db: Database, passwords: Passwords, rules: PasswordRules) -> None:
        self._db = db
        self._passwords = passwords
        self._rules = rules

    async def register(self, email: str, password: str, *, by: Actor) -> None:
        """Makes a user, unless the address has one. Nothing tells the caller which of the two happened.

        Raises:
            InvalidRequest: the address is malformed, or a rule refuses the password.
            SlowDown: other registrations and sign-ins of the same network wait in the queue, and it has its share.
            TemporarilyUnavailable: the database is away, or the hash can't be computed now.
        """
        address = normalised(email)
        raw = await self._rules.accepted(password, address)
        await self._insert(address, await self._passwords.hash(raw, Asker.of(by)), by=by)

    @own_task
    async def _insert(self, email: str, password_hash: str, *, by: Actor) -> None:
        async with self._db.begin() as tx:
            now = await tx.scalar(select(self._db.now()))
            assert now is not None
            made = uuid7()
            user = {
                "id": made,
                "email": email,
                "password_hash": password_hash,
                "password_expires_at": None,
                "role": "user",
                "claims": None,
                "created_at": now,
                "disabled_at": None,
            }
            has = await self._user_of_address(tx, user)
            # The statement has locked the row. So a transaction that erases the user finds this event too.
            await record(tx, now, by, [Event("user_created" if has == made else "registration_repeated", has)])

    async def _user_of_address(self, tx: AsyncConnection, user: dict[str, object]) -> UUID:
        """Inserts the user, or else writes the address of the one who has it once more. The id of the user it is."""
        insert = postgresql.insert(User) if self._db.is_postgres else sqlite.insert(User)
        unless = insert.values(user).on_conflict_do_update(index_elements=[User.email], set_={"email": User.email})
        found: UUID = (await tx.execute(unless.returning(User.id))).scalar_one()
        return found
