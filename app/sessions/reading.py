"""Reading sessions: for the check of an access token, and for operators."""

from __future__ import annotations

import builtins
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, exists, select

from ..errors import InvalidToken, NotFound, Refusal
from ..policies import Policies
from ..revocation.revocations import Revocations
from ..storage.database import Database
from ..storage.tables import Key, Session
from ..storage.tasks import own_task
from ..tokens.access_tokens import AccessToken, AccessTokens
from ..tokens.key_rows import in_force
from .lookup import Lookup
from .rows import SessionRow

_ITS_KEY = (Key.use == "refresh") & (Key.number == Session.key_number)
_KEY_RETIRED_FOR = select(Key.retired_for).where(_ITS_KEY).scalar_subquery()


def _has_key(now: datetime) -> ColumnElement[bool]:
    # The number alone is not enough. If an operator has deleted all keys, the numbers begin anew. Then a session under
    # the deleted key is older than the new key of the same number.
    return exists().where(_ITS_KEY, in_force(now), Key.created_at <= Session.rotated_at)


class Reading:
    """Verifies access tokens, and reads sessions."""

    def __init__(
        self, db: Database, access_tokens: AccessTokens, revocations: Revocations, lookup: Lookup, policies: Policies
    ) -> None:
        """Under the policy in force, a session counts as live or over."""
        self._db = db
        self._access_tokens = access_tokens
        self._revocations = revocations
        self._lookup = lookup
        self._policies = policies

    async def verify(self, access_token: str) -> AccessToken:
        """The claims of an access token that is ours, unexpired and not revoked.

        Raises:
            InvalidToken: the token is not good. If it is genuine, the refusal has a reason.
            TemporarilyUnavailable: neither Redis nor the database can say whether the token was revoked.
        """
        token = self._access_tokens.verify(access_token, self._db.clock())
        try:
            await self._revocations.check(token.session_id, token.claims["iat"])
        except Refusal as refusal:
            raise refusal.about(token.session_id, token.user_id) from None
        return token

    def verify_new(self, access_token: str) -> AccessToken:
        """The claims of a token that this request's refresh gave. The refresh showed that its session lives.

        So revocation is not asked.

        Raises:
            InvalidToken, TemporarilyUnavailable: its key was retired in the meantime.
        """
        return self._access_tokens.verify(access_token, self._db.clock())

    async def authorise(self, access_token: str) -> SessionRow:
        """The live session of an access token, read from the database.

        This check is for Keyturn's own endpoints. Any holder of the HS256 key can sign any claim, so role and deadlines
        come from the row. A disabled user has no live session.

        Raises:
            InvalidToken: as `verify`.
            TemporarilyUnavailable: the database is away.
        """
        token = self._access_tokens.verify(access_token, self._db.clock())
        try:
            row = await self._lookup.row(token.session_id)
        except Refusal as refusal:
            raise refusal.about(token.session_id, token.user_id) from None
        if row is None or str(row.user_id) != token.subject:
            raise InvalidToken("no such session of this subject", session_id=token.session_id, user_id=token.user_id)
        if over := row.over():
            raise InvalidToken("session is over", reason=over, session_id=row.id, user_id=row.user_id)
        return row

    async def find(self, session_id: UUID) -> SessionRow:
        """A session, live or over.

        Raises:
            NotFound: there is no such session.
            TemporarilyUnavailable: the database is away.
        """
        found = await self._list(Session.id == session_id, limit=1)
        if not found:
            raise NotFound("no such session")
        return found[0]

    async def living(self, session_ids: Collection[UUID]) -> set[UUID]:
        """Those of these sessions that live.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        which = Session.id.in_(session_ids)
        return {row.id for row in await self._list(which, limit=len(session_ids), live=True)}

    async def list(
        self, *, user_id: UUID | None, limit: int, before: UUID | None = None, live: bool
    ) -> list[SessionRow]:
        """Sessions, the newest first: `limit` at most, and only those older than the session `before`.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        which = [Session.user_id == user_id] if user_id is not None else []
        if before is not None:
            which.append(Session.id < before)
        return await self._list(*which, limit=limit, live=live)

    @own_task
    async def _list(self, *which: ColumnElement[bool], limit: int, live: bool = False) -> builtins.list[SessionRow]:
        async with self._db.look(hot_path=False) as connection:
            now = await connection.scalar(select(self._db.now()))
            assert now is not None
            has_key, retired_for = _has_key(now), _KEY_RETIRED_FOR.label("key_retired_for")
            query = select(Session.__table__, has_key.label("has_key"), retired_for).where(*which)
            if live:
                # This condition is the rule of `SessionRow.over`, under the policy in force.
                query = query.where(
                    Session.ended_at.is_(None),
                    Session.idle_expires_at > now,
                    Session.rotated_at > now - self._policies.in_force.idle_lifetime,
                    Session.created_at > now - self._policies.in_force.absolute_lifetime,
                    has_key,
                )
            rows = (await connection.execute(query.order_by(Session.id.desc()).limit(limit))).mappings()
            policy = self._policies.in_force
            return [
                replace(
                    SessionRow.of(row, now, policy),
                    has_key=bool(row["has_key"]),
                    key_retired_for=row["key_retired_for"],
                )
                for row in rows
            ]
