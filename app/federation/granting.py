"""Granting: role and claims that an issuer's configuration maps from a token, for its user here.

Each exchange maps anew. An issuer without a table of roles says nothing about roles, and one without a table of claims
nothing about claims: then all stays as an operator set it. With a table of claims, the issuer decides about the names
in that table, and about no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import select

from ..actors import Actor
from ..errors import Conflict, InvalidRequest, UnacceptableToken
from ..log import get_logger
from ..storage.database import Database
from ..storage.tables import User
from ..users.administrators import keep_one
from ..users.claims import checked, stored
from ..users.grants import acceptable_role, change_claims, change_role
from .external_token import ExternalToken
from .mapping import claims_of, role_of

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Granted:
    """The role and the claims that a token's issuer gives its user here."""

    role: str | None
    """None: the issuer has no table of roles."""
    names: frozenset[str]
    """The names of the claims about which the issuer decides."""
    claims: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, token: ExternalToken) -> Self:
        """What the configuration of its issuer maps from a token.

        Raises:
            UnacceptableToken: the configuration maps to something that is no role.
        """
        issuer = token.by.issuer
        try:
            role = acceptable_role(role_of(token)) if issuer.roles else None
        except InvalidRequest:
            raise UnacceptableToken("role") from None
        return cls(role, frozenset(issuer.claims.values()), claims_of(token) if issuer.claims else {})

    def changes(self, claims: str | None) -> bool:
        """Whether a user's row with these claims has to change.

        Raises:
            UnacceptableToken: as `claims_after`.
        """
        return stored(self.claims_after(claims)) != stored(claims)

    def claims_after(self, before: str | None) -> str | None:
        """The claims of a user's row after the exchange, in the form of the row.

        Raises:
            UnacceptableToken: all claims together are too large, or a name or value is none that tokens may have. Old
                claims must not stay in the place of new ones, because somebody may have lost a right.
        """
        others = {name: value for name, value in stored(before).items() if name not in self.names}
        try:
            return checked({**others, **self.claims})
        except InvalidRequest:
            raise UnacceptableToken("claims") from None


async def grant(db: Database, user: Any, granted: Granted, by: Actor) -> None:
    """Gives a user the role and the claims, in one transaction with the user's live sessions.

    The last enabled administrator stays one, whatever the token says: otherwise nobody could correct a wrong table.

    Args:
        db: the database.
        user: the user's row, as it was read a moment ago. If it has all of it, no transaction begins.
        granted: the role and the claims.
        by: the issuer.

    Raises:
        UnacceptableToken: the user was erased meanwhile, or as `Granted.claims_after`.
        TemporarilyUnavailable: the database is away.
    """
    # Most exchanges change no role. Then no administrator's row is locked, and an operator's change meanwhile stays.
    role = None if granted.role == user.role else granted.role
    if role is None and not granted.changes(user.claims):
        return
    async with db.begin() as tx:
        if role is not None and role != "admin":
            try:
                await keep_one(tx, user.id)
            except Conflict:
                _log.warning("last_administrator_kept", user_id=str(user.id), issuer=by.id)
                role = None
        columns = select(User.role, User.claims, db.now().label("now"))
        row = (await tx.execute(columns.where(User.id == user.id).with_for_update())).one_or_none()
        if row is None:
            raise UnacceptableToken("erased")
        if role is not None and row.role != role:
            await change_role(tx, user.id, role, row.now, by)
        if granted.changes(row.claims):
            await change_claims(tx, user.id, granted.claims_after(row.claims), row.now, by)
