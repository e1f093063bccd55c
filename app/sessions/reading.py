"""Reading sessions: for the check of an access token, and for operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, and_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import InvalidToken, NotFound, Refusal
from ..policies import Policies, Policy
from ..revocation.revocations import Revocations
from ..settings import LEEWAY
from ..storage.database import Database
from ..storage.tables import Key, Session
from ..storage.tasks import own_task
from ..tokens.access_tokens import AccessToken, AccessTokens
from . import walk
from .filters import Filter, has_key, of_its_key
from .lookup import Lookup
from .rows import SessionRow
from .walk import BEGINNING

_LOOK = 50_000
"""How many sessions a page looks at, at most, if they are not those of one user."""


class Page(NamedTuple):
    """A page of a list of sessions."""

    sessions: list[SessionRow]
    last: UUID | None
    """The session after which the next page begins. None: there is none."""


_LEEWAY = LEEWAY.total_seconds()
_BY_TIME = 7  # the version of the UUIDs that begin with a moment


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
            TemporarilyUnavailable: neither Redis nor the database can say whether the token was revoked, or no policy
                is in force.
        """
        now = self._db.clock()
        token = self._access_tokens.verify(access_token, now)
        if self._policies.in_force is not self._policies.first:
            self._check_policy(token, now.timestamp())
        try:
            await self._revocations.check(token.session, token.claims["iat"])
        except Refusal as refusal:
            raise refusal.about(token.session_id, token.user_id, token.client_id) from None
        return token

    def _check_policy(self, token: AccessToken, now: float) -> None:
        """Refuses a token that is older than the policy in force lets it become. No I/O.

        A policy that became shorter holds for tokens that were issued before. The session's id tells when it began
        (RFC 9562 section 5.7), by the clock of the process that signed it in. A difference of clocks moves the end of
        a session's last access token by as much, and opens no session: each refresh goes by the row.

        The settings alone have no part in this, so that instances with other settings accept each other's tokens.

        Raises:
            InvalidToken: the token is over under the policy in force. Its client may refresh, and learns more there.
        """
        policy, first = self._policies.in_force, self._policies.first
        ends = []
        if policy.access_lifetime < first.access_lifetime:
            ends.append(token.claims["iat"] + policy.access_lifetime.total_seconds())
        if policy.absolute_lifetime < first.absolute_lifetime and token.session_id.version == _BY_TIME:
            milliseconds = token.session_id.int >> 80
            ends.append(milliseconds / 1000 + policy.absolute_lifetime.total_seconds())
        if ends and min(ends) <= now - _LEEWAY:
            refusal = InvalidToken("over under the policy in force", reason="token_expired")
            raise refusal.about(token.session_id, token.user_id, token.client_id)

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
            raise refusal.about(token.session_id, token.user_id, token.client_id) from None
        if row is None or str(row.user_id) != token.subject:
            refused = InvalidToken("no such session of this subject", outcome="unknown")
            raise refused.about(token.session_id, token.user_id, token.client_id)
        if over := row.over():
            raise InvalidToken("session is over", reason=over).about(row.id, row.user_id, row.client_id)
        return row

    async def find(self, session_id: UUID, *, user_id: UUID | None = None) -> SessionRow:
        """A session, live or over; of this user, if one is given.

        Raises:
            NotFound: there is no such session. A session of another user gives the same answer.
            TemporarilyUnavailable: the database is away.
        """
        found = await self._one(session_id, user_id)
        if found is None:
            raise NotFound("no such session")
        return found

    @own_task
    async def living(self, session_ids: Collection[UUID]) -> set[UUID]:
        """Those of these sessions that live.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.look(hot_path=False) as connection:
            conditions = Filter(status="live").conditions(await self._now(connection), self._policies.in_force)
            which = select(Session.id).where(Session.id.in_(session_ids), *conditions)
            return set((await connection.scalars(which)).all())

    @own_task
    async def list(self, filtered: Filter, *, limit: int, before: UUID | None = None) -> Page:
        """The sessions that a filter lets through, the newest first: one statement reads them, so each is there once.

        A page ends at `limit` sessions. One of all users also ends where it has looked at `_LOOK` of them, however few
        fit: so no page takes longer, the larger the table grows.

        Args:
            filtered: the filter.
            limit: how many sessions the page has, at most.
            before: the session after which the page before this one ended.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.look(hot_path=False) as connection:
            now, policy = await self._now(connection), self._policies.in_force
            newest = Session.id.desc()
            here = [Session.id < before] if before is not None else []
            end = None
            if filtered.user_id is None:
                end = await connection.scalar(
                    select(Session.id).where(*here).order_by(newest).offset(_LOOK - 1).limit(1)
                )
                here += [Session.id >= end] if end is not None else []
            query = _rows(now)
            query = query.where(*here, *filtered.conditions(now, policy)).order_by(newest).limit(limit + 1)
            rows = [_row(each, now, policy) for each in (await connection.execute(query)).mappings()]
        if len(rows) > limit:
            return Page(rows[:limit], rows[limit - 1].id)
        return Page(rows, end)

    async def count(self, filtered: Filter, *, after: UUID = BEGINNING, ranges: int) -> tuple[int, UUID | None]:
        """How many sessions a filter lets through, and where the next call goes on: None at the end.

        Args:
            filtered: the filter.
            after: where the call before ended.
            ranges: how many ranges of the walk one call takes, at most.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        counted, last = 0, after
        for _ in range(ranges):
            found, end = await self._count_range(filtered, last)
            counted += found
            if end is None:
                return counted, None
            last = end
        return counted, last

    @own_task
    async def _count_range(self, filtered: Filter, after: UUID) -> tuple[int, UUID | None]:
        async with self._db.look(hot_path=False) as connection:
            now = await self._now(connection)
            which = and_(*filtered.conditions(now, self._policies.in_force), true())
            return await walk.count(connection, after, which, of_user=filtered.user_id)

    @own_task
    async def _one(self, session_id: UUID, user_id: UUID | None) -> SessionRow | None:
        async with self._db.look(hot_path=False) as connection:
            now = await self._now(connection)
            query = _rows(now).where(Session.id == session_id)
            if user_id is not None:
                query = query.where(Session.user_id == user_id)
            found = (await connection.execute(query)).mappings().one_or_none()
            return None if found is None else _row(found, now, self._policies.in_force)

    async def _now(self, connection: AsyncConnection) -> datetime:
        now: datetime | None = await connection.scalar(select(self._db.now()))
        assert now is not None
        return now


def _rows(now: datetime) -> Select[Any]:
    return select(
        Session.__table__,
        has_key(now).label("has_key"),
        of_its_key(Key.retired_for).label("key_retired_for"),
        of_its_key(Key.retired_at).label("key_retired_at"),
    )


def _row(found: Any, now: datetime, policy: Policy) -> SessionRow:
    row = SessionRow.of(found, now, policy)
    of_key = {name: found[name] for name in ("key_retired_for", "key_retired_at")}
    return replace(row, has_key=bool(found["has_key"]), **of_key)
