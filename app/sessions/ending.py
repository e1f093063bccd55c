"""Ending sessions: one, many, all of a user; and logout. `Sweeping` ends those that only a walk over the table finds.

Each ending is one transaction that reads from top to bottom: see `Ending.end_where`, and
`app/revocation/publishing.py` for the order of its steps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import SERVICE, Actor
from ..errors import InvalidGrant, InvalidToken, NoToken, Reason, Refusal
from ..log import get_logger
from ..policies import Policies
from ..revocation.publishing import Publishing, until
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import own_task
from ..tokens.access_tokens import AccessToken, AccessTokens
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import RefreshToken
from .answers import whole_seconds
from .lookup import Lookup
from .marking import TIMEOUTS, count_ended, ends, lived, locked, mark, mark_logouts_on_postgres, unended_of
from .rows import SessionRow, Verdict, judge

Reach = Literal["this", "others", "all"]
"""Which sessions a logout ends."""

Also = Callable[[AsyncConnection], Awaitable[object]]
"""Another change in the transaction that ends sessions. The transaction makes it before the sessions end."""

_log = get_logger()


class Ending:
    """Ends sessions."""

    def __init__(
        self,
        db: Database,
        keys: Keys,
        access_tokens: AccessTokens,
        publishing: Publishing,
        lookup: Lookup,
        policies: Policies,
    ) -> None:
        self._db = db
        self._keys = keys
        self._access_tokens = access_tokens
        self._publishing = publishing
        self._lookup = lookup
        self._policies = policies
        # Two batches at once, so that one stuck connection does not stop every logout. SQLite has one writer at a time.
        self._logouts = Batch(self._log_out, name="logout", in_flight=2 if db.is_postgres else 1)
        # For SQLite; Postgres has `mark_logouts_on_postgres`. Built once for a policy: to build it costs as much as to
        # send it.
        self._log_these_out = lru_cache(maxsize=1)(lambda policy: ends(db, policy, "logout", db.among(Session.id)))

    async def end(self, session_ids: set[UUID], reason: Reason, *, by: Actor) -> int:
        """Ends these sessions. Returns how many were live. A repeated call changes nothing and publishes again.

        Raises:
            TemporarilyUnavailable: the database is away. The sessions have ended or not: the client has to ask again.
        """
        return lived(await self.end_where(session_ids, reason, locked(Session.id.in_(session_ids)), by=by))

    @own_task
    async def end_of_user(
        self,
        user_id: UUID,
        reason: Reason,
        *,
        by: Actor,
        but: frozenset[UUID] = frozenset(),
        also: Also | None = None,
        renamed: UUID | None = None,
    ) -> int:
        """Ends the live sessions of a user, except those in `but`. Returns how many were live.

        If the user's row has to change too, `also` changes it. A sign-in of the user waits for the lock on that row. If
        `also` gives the sessions another user's id, it is `renamed`.

        Raises:
            TemporarilyUnavailable: as `end`.
        """
        async with self._db.look() as connection:
            live = set((await connection.scalars(unended_of(user_id))).all())
        which = unended_of(renamed or user_id)
        which = which.where(Session.id.not_in(but)) if but else which
        condition = Session.id.in_(which.with_for_update())
        return lived(await self.end_where(live - but, reason, condition, by=by, also=also))

    @own_task
    async def end_for_reuse(self, session_id: UUID, generation: int, *, by: Actor) -> Reason:
        """Ends a session of which an old generation was presented. Returns why it ended, now or earlier."""
        older = and_(Session.id == session_id, Session.generation > generation)
        ended = await self.end_where({session_id}, "reuse_detected", older, by=by)
        # Only the call that ends the session writes the line in the log. Later calls find the session ended.
        for row in ended:
            if row.end_reason not in TIMEOUTS:
                _log.warning(
                    "reuse_detected",
                    session_id=str(session_id),
                    user_id=str(row.user_id),
                    presented_generation=generation,
                    current_generation=row.generation,
                    rotated_seconds_ago=whole_seconds(row.ended_at - row.rotated_at),
                )
            reason: Reason = row.end_reason
            return reason
        row = await self._lookup.row(session_id)
        return "reuse_detected" if row is None or row.end_reason is None else row.end_reason

    @own_task
    async def end_where(
        self,
        ids: Collection[UUID],
        reason: Reason,
        which: ColumnElement[bool],
        *,
        by: Actor,
        also: Also | None = None,
    ) -> Sequence[Any]:
        """Ends sessions in one transaction. Returns the rows of those that ended.

        Args:
            ids: the sessions that are expected to end, as read before the transaction.
            reason: why they end, unless a deadline came first.
            which: the condition of the statement that ends them. Several rows are locked in the order of their ids.
            by: the actor.
            also: another change, made first in the same transaction.

        Raises:
            TemporarilyUnavailable: as `end`.
        """
        published = await self._publishing.publish(ids)
        async with self._db.begin() as tx:
            await self._publishing.hold(tx)
            if also is not None:
                await also(tx)
            ended = await mark(tx, ends(self._db, self._policies.in_force, reason, which), lambda _: by)
            comparison = await self._publishing.compare(tx, published, {row.id for row in ended})
        count_ended(row.end_reason for row in ended)
        await comparison.known_to_all()
        return ended

    # -- under a retired key

    async def over_under_retired_key(self, session_id: UUID, *, by: Actor) -> SessionRow:
        """The session of a token whose key is retired. The returned session is over.

        A thief of the key could have made the token. So the token ends only sessions that the retirement ends anyway.
        After everyone was signed out, no row is written: the key says already why each of its sessions is over.

        Raises:
            InvalidGrant: the session goes on under another key, or there is no such session.
            TemporarilyUnavailable: as `end`.
        """
        row = await self._lookup.row(session_id)
        reason = None if row is None or row.over() else self._keys.retired(row.key_number)
        if row is not None and reason == "signed_out_everywhere":
            return replace(row, has_key=False, key_retired_for=reason)
        if reason is not None:
            # `end_under` has not come to this session yet. Keyturn ends it, in the request that presented the token.
            service = SERVICE._replace(address=by.address, request_id=by.request_id)
            await self.end({session_id}, "revoked_by_admin", by=service)
            row = await self._lookup.row(session_id)
        if row is None or not row.over():
            refusal = InvalidGrant("retired refresh key", session_id=session_id)
            raise refusal if row is None else refusal.about(row.id, row.user_id, row.client_id)
        return row

    # -- logout

    async def logout(
        self, access_tokens: Iterable[str], refresh_tokens: Iterable[str], reach: Reach, *, by: Actor
    ) -> set[UUID]:
        """Ends sessions for their user. Returns the sessions of the tokens that were presented.

        1. "this" ends the session of each token. Any token of ours will do, also an expired or rotated one. A session
           that is over already is no error.
        2. "others" and "all" end the user's other sessions, or all. The token must still open its own session: a leaked
           old token must not sign its user out everywhere. Beside a token that does, others are passed over: a browser
           may hold several, and no left-over one must keep its user from signing out.

        Raises:
            InvalidToken, InvalidGrant: none of the tokens is ours, or none may end other sessions.
            NoToken: there is no token.
            TemporarilyUnavailable: as `end`.
        """
        presented = await self._presented(access_tokens, refresh_tokens, by)
        if reach == "this":
            for session_id, token in presented.items():
                if isinstance(token, RefreshToken) and self._keys.retired(token.key.number) == "signed_out_everywhere":
                    continue  # over already, and its access tokens too: see `ends`
                try:
                    known_to_all_at = await self._logouts((session_id, by))
                    if known_to_all_at is None:
                        await self.end({session_id}, "logout", by=by)
                    else:
                        await until(known_to_all_at)
                except Refusal as refusal:
                    raise refusal.about(session_id) from None
            return set(presented)
        # All tokens are checked before any session ends, because a refused request must change nothing.
        rows = await self._opened(presented, reach)
        rest = presented.keys() - {row.id for row in rows}
        if reach == "all" and rest:
            await self.end(rest, "logout", by=by)  # their tokens end no others, but their own sessions by rule 1
        but = frozenset(presented if reach == "others" else ())
        for row in rows:
            try:
                # A repeated logout of all ends nothing more: sessions that started after the first one stay.
                if row.over():
                    await self.end({row.id}, "logout_all", by=by)
                else:
                    await self.end_of_user(row.user_id, "logout_all", by=by, but=but)
            except Refusal as refusal:
                raise refusal.about(row.id, row.user_id, row.client_id) from None
        return set(presented)

    async def _log_out(self, batch: Sequence[tuple[UUID, Actor]]) -> Sequence[float | None]:
        """Ends those that live, in one transaction; for each, when its answer may go, on the monotonic clock.

        None for one that was over, or whose row another transaction holds. Such a row must not keep the others waiting,
        and `end` sees to it.
        """
        actors: dict[UUID, Actor] = {}
        for session_id, by in batch:
            actors.setdefault(session_id, by)  # the event names the first of several who log out of one session
        published = await self._publishing.publish(actors)
        if self._db.is_postgres:
            row = await mark_logouts_on_postgres(self._db, self._policies.in_force, actors, published)
            ended, reasons = set(row["ended"]), row["reasons"]
            comparison = self._publishing.comparison(row["epoch"], fenced=row["fenced"])
        else:
            async with self._db.begin() as tx:
                statement = self._log_these_out(self._policies.in_force)
                rows = await mark(tx, statement, actors.__getitem__, {"ids": list(actors)})
                ended, reasons = {row.id for row in rows}, [row.end_reason for row in rows]
                comparison = await self._publishing.compare(tx, published, ended)
        count_ended(reasons)
        known_to_all_at = comparison.known_to_all_at()
        return [known_to_all_at if session_id in ended else None for session_id, _ in batch]

    async def _opened(self, presented: Mapping[UUID, RefreshToken | AccessToken], reach: Reach) -> list[SessionRow]:
        """The sessions of those tokens that may end others.

        Raises:
            InvalidToken, InvalidGrant: there are none.
            TemporarilyUnavailable: the database is away.
        """
        rows: list[SessionRow] = []
        refusal: InvalidToken | InvalidGrant | None = None
        for session_id, token in presented.items():
            try:
                rows.append(await self._opened_by(session_id, token, reach))
            except (InvalidToken, InvalidGrant) as e:
                refusal = e
        if refusal is not None and not rows:
            raise refusal
        return rows

    async def _opened_by(self, session_id: UUID, token: RefreshToken | AccessToken, reach: Reach) -> SessionRow:
        """The session of a token that may end others.

        Raises:
            InvalidToken, InvalidGrant: the token may not end other sessions.
            TemporarilyUnavailable: the database is away.
        """
        try:
            row = await self._lookup.row(session_id)
        except Refusal as refusal:
            raise refusal.about(session_id) from None
        if row is None:
            raise InvalidGrant("no such session", session_id=session_id, outcome="unknown")
        over = row.over() or self._keys.retired(row.key_number)
        if over and not (reach == "all" and over == "logout_all"):
            raise InvalidGrant("session is over", reason=over).about(row.id, row.user_id, row.client_id)
        if isinstance(token, AccessToken):
            if token.expired:
                refused = InvalidToken("expired", reason="token_expired")
                raise refused.about(session_id, token.user_id, token.client_id)
            if token.subject != str(row.user_id):  # any holder of the HS256 key can sign any claim
                refused = InvalidToken("no such session of this subject", outcome="unknown")
                raise refused.about(session_id, token.user_id, token.client_id)
        elif not over and token.digest != row.token_digest:
            # A rotated token counts only while a refresh with it would still be answered.
            verdict = judge(row, token, self._keys.refresh(row.key_number))
            if verdict is not Verdict.RETRY:
                old = InvalidGrant("an old token can't end other sessions")
                raise old.about(row.id, row.user_id, row.client_id)
        return row

    async def _presented(
        self, access_tokens: Iterable[str], refresh_tokens: Iterable[str], by: Actor
    ) -> dict[UUID, RefreshToken | AccessToken]:
        """The sessions of the tokens, each with its newest refresh token, or else with its access token.

        Raises:
            InvalidToken, InvalidGrant, NoToken, TemporarilyUnavailable: as `logout`.
        """
        sessions: dict[UUID, RefreshToken | AccessToken] = {}
        refusal: InvalidToken | InvalidGrant | None = None
        for text in access_tokens:
            try:
                token = self._access_tokens.verify(text, self._db.clock(), expired_too=True)
                session_id = token.session_id
                before = sessions.get(session_id)
                if not isinstance(before, AccessToken) or before.expired:
                    sessions[session_id] = token
            except InvalidToken as e:
                refusal = e
        for text in refresh_tokens:
            try:
                presented = self._keys.verify_refresh_token(text)
                if presented.key.retired:
                    await self.over_under_retired_key(presented.session_id, by=by)
                known = sessions.get(presented.session_id)
                if not isinstance(known, RefreshToken) or known.generation < presented.generation:
                    sessions[presented.session_id] = presented
            except InvalidGrant as e:
                refusal = e
        if not sessions:
            raise refusal or NoToken("no token")
        return sessions
