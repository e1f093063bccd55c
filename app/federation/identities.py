"""Identities: who a user is at issuers; linked and unlinked by hand.

An identity is an issuer and a subject, and nothing else (OpenID Connect Core section 5.7). The issuer is the first
`iss` of its configuration, so that another name here, or a further `iss`, changes nobody's account. An e-mail address
is an attribute: only `Issuer.link_by_email` lets it lead to an account, and then it must be proved on both sides.
Otherwise whoever registers a stranger's address first, here or there, would own the stranger's account.

The table's constraint decides between two transactions that make the same identity: the second one rolls back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, NotFound, TemporarilyUnavailable, UnacceptableToken
from ..events.audit import Event, record
from ..storage.database import Database
from ..storage.tables import Identity, User, uuid7
from ..storage.tasks import own_task
from ..users.administrators import check_still
from .external_token import ExternalToken
from .issuers import Issuers
from .taking import TakenError, name_of_token, take, taken

MOST = 20
"""How many identities a user may link."""

_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Linked:
    """An identity of a user."""

    id: UUID
    issuer: str
    subject: str
    email: str | None = field(repr=False)
    created_at: datetime
    last_used_at: datetime

    @classmethod
    def of(cls, row: Any) -> Linked:
        """The identity of a row of the table."""
        return cls(row.id, row.issuer, row.subject, row.email, row.created_at, row.last_used_at)


class Identities:
    """The identities of users, and their changes by the users themselves and by operators."""

    def __init__(self, db: Database, issuers: Issuers) -> None:
        """Needs the issuers, because an identity of one that is no longer configured lets nobody in."""
        self._db = db
        self._issuers = issuers

    @own_task
    async def of_user(self, user_id: UUID) -> Sequence[Linked]:
        """The identities of a user, the oldest first."""
        async with self._db.look(hot_path=False) as connection:
            query = select(Identity.__table__).where(Identity.user_id == user_id).order_by(Identity.id)
            return [Linked.of(row) for row in await connection.execute(query)]

    async def link(self, user_id: UUID, token: ExternalToken, *, by: Actor) -> Linked:
        """Links the identity of a token to a user who is signed in. The token is taken: it can't be exchanged later.

        A repeated call for the same user changes nothing, so that a lost answer can be asked for again.

        Raises:
            NotFound: there is no such user.
            Conflict: the identity is another user's, or the user has `MOST`.
            UnacceptableToken: the token was taken before, or the user is disabled.
            TemporarilyUnavailable: the database is away.
        """
        for _ in range(_ATTEMPTS):
            try:
                return await self._link(user_id, token, by)
            except TakenError:
                raise UnacceptableToken("taken", user_id=user_id) from None
            except IntegrityError:
                continue
        raise TemporarilyUnavailable("others link the same identity")

    @own_task
    async def _link(self, user_id: UUID, token: ExternalToken, by: Actor) -> Linked:
        async with self._db.begin() as tx:
            user = await locked(self._db, tx, User.id == user_id)
            if user is None:
                raise NotFound("no such user")
            if user.disabled_at is not None:
                raise UnacceptableToken("user_disabled", reason="user_disabled", user_id=user_id)
            found = (await tx.execute(identity_of(token))).one_or_none()
            if found is not None and found.user_id != user_id:
                raise Conflict("another user's identity", description="This identity is another user's.")
            # A repeated call finds the identity, and its token taken.
            if found is None or await taken(tx, name_of_token(token)) is None:
                await take(tx, name_of_token(token), user.now, token.good_until)
            if found is not None:
                return Linked.of(found)
            counted = select(func.count()).select_from(Identity).where(Identity.user_id == user_id)
            if (await tx.scalar(counted) or 0) >= MOST:
                raise Conflict("too many identities", description=f"A user links {MOST} identities at most.")
            await insert_identity(tx, token, user_id, user.now, by)
            return Linked.of((await tx.execute(identity_of(token))).one())

    @own_task
    async def unlink(self, user_id: UUID, identity_id: UUID, *, by: Actor) -> None:
        """Takes an identity away from a user. Sessions that it began go on.

        Raises:
            NotFound: there is no such user, or the identity is none of the user's.
            Conflict: it is the user's last way in.
            TemporarilyUnavailable: the database is away, or the issuers are not known.
        """
        configured = {each.issuer.issuer: each.name for each in self._issuers.in_force.values()}
        async with self._db.begin() as tx:
            await check_still(tx, by)
            user = await locked(self._db, tx, User.id == user_id)
            if user is None:
                raise NotFound("no such user")
            its = (await tx.execute(select(Identity.id, Identity.issuer).where(Identity.user_id == user_id))).all()
            if identity_id not in {row.id for row in its}:
                raise NotFound("no such identity")
            others = [row for row in its if row.id != identity_id and row.issuer in configured]
            if not others and (user.email is None or user.password_hash is None):
                raise Conflict("last way in", description="It is the last way in: the user has no password.")
            await tx.execute(delete(Identity).where(Identity.id == identity_id))
            issuer = next(row.issuer for row in its if row.id == identity_id)
            detail = configured.get(issuer, issuer)[:64]
            await record(tx, user.now, by, [Event("identity_unlinked", user_id, detail=detail)])


async def locked(db: Database, tx: AsyncConnection, which: ColumnElement[bool]) -> Any:
    """The row of a user, locked until the transaction ends, or None."""
    what = User.id, User.role, User.claims, User.disabled_at, User.email, User.email_verified_at, User.password_hash
    query = select(*what, db.now().label("now")).where(which).with_for_update()
    return (await tx.execute(query)).one_or_none()


async def insert_identity(tx: AsyncConnection, token: ExternalToken, user_id: UUID, now: datetime, by: Actor) -> UUID:
    """Makes the identity of a token a user's, whose row the transaction has locked or made."""
    identity_id = uuid7()
    identity = {
        "id": identity_id,
        "user_id": user_id,
        "issuer": token.by.issuer.issuer,
        "subject": token.subject,
        "email": token.email,
        "created_at": now,
        "last_used_at": now,
    }
    await tx.execute(insert(Identity).values(identity))
    await record(tx, now, by, [Event("identity_linked", user_id, detail=token.by.name)])
    return identity_id


def identity_of(token: ExternalToken) -> Select[Any]:
    """The statement that reads the identity of a token."""
    return select(Identity.__table__).where(is_of(token))


def is_of(token: ExternalToken) -> ColumnElement[bool]:
    """The condition that an identity is that of a token: the issuer's first `iss`, and the subject."""
    return and_(Identity.issuer == token.by.issuer.issuer, Identity.subject == token.subject)
