"""Accounts: the user whom an issuer's token signs in, found by the identity, linked by a proved address, or made.

The table of identities has a constraint, which decides between two transactions that make the same identity. The second
one rolls back with its new user, and finds the identity of the first.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import TemporarilyUnavailable, UnacceptableToken
from ..events.audit import Event, record
from ..storage.database import Database
from ..storage.tables import Identity, User, uuid7
from ..storage.tasks import own_task
from .external_token import ExternalToken
from .granting import Granted, grant
from .identities import identity_of, insert_identity, is_of, locked

_ATTEMPTS = 4


class Known(NamedTuple):
    """The user of an external token, and the identity that led to the user."""

    user_id: UUID
    identity_id: UUID


class Accounts:
    """The users of external tokens."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def user_of(self, token: ExternalToken, *, by: Actor) -> Known:
        """The user of a token: found by the identity, linked by e-mail address or made, as the issuer is configured.

        Role and claims are mapped anew. The caller still has to check that the user is enabled, and the identity the
        user's, in the transaction that starts a session (`used`).

        Raises:
            UnacceptableToken: the user is disabled, or there is none and the issuer may not make one.
            TemporarilyUnavailable: the database is away.
        """
        upstream = by._replace(kind="upstream", id=token.by.name)
        mapped = Granted.of(token)
        for _ in range(_ATTEMPTS):
            try:
                known = await self._find(token, mapped, upstream) or await self._make(token, mapped, upstream)
            except IntegrityError:
                continue  # another transaction made the identity, or a user of the same address: look again
            if known is not None:
                return known
        raise TemporarilyUnavailable("others make the same identity")

    async def used(self, tx: AsyncConnection, known: Known, token: ExternalToken, now: datetime) -> None:
        """Notes within a transaction that an identity was used, if it is still the user's. Locks its row.

        Raises:
            UnacceptableToken: it was unlinked meanwhile.
        """
        updated = await tx.scalar(
            update(Identity)
            .where(Identity.id == known.identity_id, Identity.user_id == known.user_id)
            .values({"last_used_at": now} | ({} if token.email is None else {"email": token.email}))
            .returning(Identity.id)
        )
        if updated is None:
            raise UnacceptableToken("unlinked", user_id=known.user_id)

    @own_task
    async def _find(self, token: ExternalToken, mapped: Granted, by: Actor) -> Known | None:
        """The user of a known identity, with role and claims mapped anew."""
        async with self._db.look(hot_path=False) as connection:
            columns = User.id, User.role, User.claims, User.disabled_at, Identity.id.label("identity_id")
            user = (
                await connection.execute(
                    select(*columns).join(Identity, Identity.user_id == User.id).where(is_of(token))
                )
            ).one_or_none()
        if user is None:
            return None
        if user.disabled_at is not None:
            raise _disabled(user.id)
        await grant(self._db, user, mapped, by)
        return Known(user.id, user.identity_id)

    @own_task
    async def _make(self, token: ExternalToken, mapped: Granted, by: Actor) -> Known | None:
        """The user of a new identity: the one of the same proved address, or a new one. None: it is known after all.

        Raises:
            UnacceptableToken: as `user_of`.
            IntegrityError: another transaction was faster.
        """
        async with self._db.begin() as tx:
            if (await tx.execute(identity_of(token))).one_or_none() is not None:
                return None
            its = None if token.email is None else await locked(self._db, tx, User.email == token.email)
            if its is not None and its.disabled_at is not None:
                # A new account would let in whom an operator has shut out under this very address.
                raise _disabled(its.id)
            if its is not None and _may_link(token, its):
                user_id, now = its.id, its.now
            elif token.by.issuer.create_users:
                now = (await tx.execute(select(self._db.now()))).scalar_one()
                user_id = await _new_user(tx, token, token.email if its is None else None, mapped, now, by)
                its = None
            else:
                raise UnacceptableToken("unknown_user")
            identity_id = await insert_identity(tx, token, user_id, now, by)
        if its is not None:
            await grant(self._db, its, mapped, by)
        return Known(user_id, identity_id)


async def _new_user(
    tx: AsyncConnection, token: ExternalToken, email: str | None, mapped: Granted, now: datetime, by: Actor
) -> UUID:
    """Makes a user without a password. An address counts as proved, because only a trusted issuer's comes here."""
    user_id = uuid7()
    user = {
        "id": user_id,
        "email": email,
        "email_verified_at": None if email is None else now,
        "password_hash": None,
        "password_expires_at": None,
        "role": mapped.role or token.by.issuer.default_role,
        "claims": mapped.claims_after(None),
        "created_at": now,
        "disabled_at": None,
    }
    await tx.execute(insert(User).values(user))
    await record(tx, now, by, [Event("user_created", user_id)])
    return user_id


def _may_link(token: ExternalToken, user: Any) -> bool:
    """Whether the token's address, which is proved, may lead to an enabled user who has the same one.

    The user's own must be proved too. Otherwise a stranger could register the address first, and share the account. An
    administrator links by hand: whoever runs the issuer must not become one by writing an address there.
    """
    return token.by.issuer.link_by_email and user.email_verified_at is not None and user.role != "admin"


def _disabled(user_id: UUID) -> UnacceptableToken:
    return UnacceptableToken("user_disabled", reason="user_disabled", user_id=user_id)
