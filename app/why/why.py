"""Reads all that is known of a user or a session, a page of events at a time, and tells it in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from ..errors import InvalidToken, NotFound
from ..events.reading import Events
from ..federation.identities import Identities
from ..federation.issuers import Issuers
from ..federation.upstream_sessions import UpstreamSessions
from ..policies import Policies
from ..revocation.revocations import Revocations
from ..sessions import devices
from ..sessions.filters import Filter
from ..sessions.promises import Promised, Promises
from ..sessions.reading import Reading
from ..sessions.rows import SessionRow
from ..storage.tables import User
from ..tokens.keys import Keys
from ..users.lookup import UserLookup
from . import of_sessions, of_users
from .of_sessions import Known
from .of_users import Account
from .sentences import line_of
from .telling import Line, Noun, Telling, Verdict, in_order

_MOST_LIVE, _MOST_ENDED = 20, 10
"""How many sessions of a user are named one by one. The list of sessions has the others."""

_TICK = timedelta(microseconds=1)  # of the clocks of both databases
_GLOBAL = "global"


class Why:
    """Tells of users and sessions. Changes nothing, and writes no event."""

    def __init__(
        self,
        users: UserLookup,
        reading: Reading,
        promises: Promises,
        events: Events,
        policies: Policies,
        keys: Keys,
        revocations: Revocations,
        federation: tuple[Issuers, Identities, UpstreamSessions],
        clock: Callable[[], datetime],
    ) -> None:
        """Reads through the parts that have the rows, so that each rule stays where it is."""
        self._users = users
        self._reading = reading
        self._promises = promises
        self._events = events
        self._policies = policies
        self._keys = keys
        self._revocations = revocations
        self._issuers, self._identities, self._upstream = federation
        self._clock = clock

    async def session(self, session_id: UUID, *, limit: int, before: UUID | None = None) -> Telling:
        """All that is known of a session. If its row was deleted, its events still tell of it.

        Args:
            session_id: the session.
            limit: how many events, at most.
            before: only those before the event of this id.

        Raises:
            NotFound: neither a row nor an event has this id.
            TemporarilyUnavailable: the database is away.
        """
        events = await self._events.list(limit=limit + 1, before=before, session_id=session_id)
        row: SessionRow | None = None
        promised: Promised | None = None
        with suppress(NotFound):
            row = await self._reading.find(session_id)
            promised = await self._promises.of(session_id)
        if row is None or promised is None:  # `gc` may come between the two
            return self._deleted("session", session_id, events, limit)
        known = Known(
            row=row,
            promised=promised,
            policy=await self._policies.find(_GLOBAL),
            device=(await devices.described_each({row.user_agent}))[row.user_agent],
            upstream=(await self._upstream.of([session_id])).get(session_id),
            key=await self._key(row),
        )
        page, older = _page("session", events, limit)
        by_row = list(of_sessions.lines(row, await self._everyone(row))) if before is None else []
        return Telling(
            about="session",
            id=session_id,
            now=row.now,
            user_id=row.user_id,
            status=row.over() or "live",
            facts=list(of_sessions.facts(known)),
            verdicts=[
                of_sessions.verdict_of_verify(known, await self._refusal(row)),
                of_sessions.verdict_of_refresh(known),
            ],
            lines=in_order(page, by_row, complete=older is None),
            before=older,
        )

    async def user(self, user_id: UUID, *, limit: int, before: UUID | None = None) -> Telling:
        """All that is known of a user, by the id. An erased user is known by the pseudonym alone.

        Args:
            user_id: the user.
            limit: how many events, at most.
            before: only those before the event of this id.

        Raises:
            NotFound: neither a row nor an event has this id.
            TemporarilyUnavailable: the database is away.
        """
        events = await self._events.list(limit=limit + 1, before=before, user_id=user_id)
        try:
            user = await self._users.find(user_id)
        except NotFound:
            return self._deleted("user", user_id, events, limit)
        live = await self._reading.list(Filter(user_id=user_id), limit=_MOST_LIVE)
        ended = await self._reading.list(Filter(user_id=user_id, status="ended"), limit=_MOST_ENDED)
        account = await self._account(user, live.sessions, ended.sessions, more_live=live.last is not None)
        page, older = _page("user", events, limit)
        rows = [*account.live, *account.ended] if before is None else []
        by_rows = [_named(line) for row in rows for line in of_sessions.lines(row, await self._everyone(row))]
        return Telling(
            about="user",
            id=user_id,
            now=account.now,
            user_id=user_id,
            email=user.email,
            status="disabled" if user.disabled_at else "enabled",
            facts=list(of_users.facts(account)),
            verdicts=[of_users.verdict_of_sign_in(account)],
            lines=in_order(page, _once(by_rows), complete=older is None),
            before=older,
        )

    async def find(self, named: str, *, limit: int, before: UUID | None = None) -> Telling:
        """All that is known of the user of an e-mail address or id, or of the session of an id.

        Raises:
            NotFound: there is none.
            TemporarilyUnavailable: the database is away.
        """
        try:
            its_id = UUID(named)
        except ValueError:
            its_id = (await self._users.find(named)).id
            return await self.user(its_id, limit=limit, before=before)
        try:
            return await self.session(its_id, limit=limit, before=before)
        except NotFound:
            return await self.user(its_id, limit=limit, before=before)

    # -- reading

    async def _account(
        self, user: User, live: Sequence[SessionRow], ended: Sequence[SessionRow], *, more_live: bool
    ) -> Account:
        return Account(
            user=user,
            now=self._clock(),
            identities=await self._identities.of_user(user.id),
            configured={each.issuer.issuer for each in self._issuers.in_force.values()},
            live=live,
            ended=ended,
            more_live=more_live,
            policy=self._policies.in_force,
        )

    async def _key(self, row: SessionRow) -> Any:
        keys = await self._keys.list()
        of_number = (key for key in keys if key["use"] == "refresh" and key["number"] == row.key_number)
        return next((key for key in of_number if key["created_at"] <= row.rotated_at), None)

    async def _refusal(self, row: SessionRow) -> InvalidToken | None:
        """How a verification refuses the session now. Asks as each verification does: Redis, or the database."""
        try:
            await self._revocations.check(str(row.id), int(row.rotated_at.timestamp()))
        except InvalidToken as refusal:
            return refusal
        return None

    async def _everyone(self, row: SessionRow) -> Sequence[Line]:
        """The event that signed everyone out, if it ended the session."""
        at = row.over_since()
        if at is None or row.ended_at is not None or row.over() != "signed_out_everywhere":
            return []
        found = await self._events.list(limit=1, event="signed_out_everywhere", since=at, until=at + _TICK)
        return [line_of(event, "session") for event in found]

    def _deleted(self, about: Noun, its_id: UUID, events: Sequence[Any], limit: int) -> Telling:
        """The telling of an id that no row has any more.

        Raises:
            NotFound: no event has it either.
        """
        if not events:
            raise NotFound("no such user or session", description="There is no such user or session.")
        page, older = _page(about, events, limit)
        gone = "there is no such session"
        return Telling(
            about=about,
            id=its_id,
            now=self._clock(),
            user_id=events[0]["user_id"],
            status="deleted" if about == "session" else "erased",
            facts=[_GONE if about == "session" else _ERASED],
            verdicts=[
                Verdict("verify", 401, None, f"Verify refuses the access tokens of the session: {gone}."),
                Verdict("refresh", 401, None, f"A refresh is refused: {gone}."),
            ][: 2 if about == "session" else 0],
            lines=in_order(page, [], complete=True),
            before=older,
        )


_GONE = "The row of this session was deleted: `keyturn gc` does so 30 days after the end. Its events stay."
_ERASED = "No account has this id: the user was erased, and the id is the pseudonym that stands in the events."


def _page(about: Noun, events: Sequence[Any], limit: int) -> tuple[list[Line], UUID | None]:
    """The lines of a page of events, the newest last, and the event before which the older page ends, or None."""
    older = events[limit - 1]["id"] if len(events) > limit else None
    return [line_of(event, about) for event in reversed(events[:limit])], older


def _named(line: Line) -> Line:
    """The line of a session within the telling of its user, with the session's id in the sentence."""
    if line.session_id is None or str(line.session_id) in line.says:
        return line
    return replace(line, says=f"{line.says.removesuffix('.')} (session {line.session_id}).")


def _once(lines: Sequence[Line]) -> list[Line]:
    """Each line once: the event that signed everyone out ended several sessions."""
    return list({(line.id or line.session_id, line.event): line for line in lines}.values())
