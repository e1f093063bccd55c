"""Checks of the upstream session before a refresh, for issuers that ask for them. Off by default.

Where no issuer checks, nothing is read and nothing awaited. Where one does, the sessions of others cost a look into
memory: which upstream session a local one came from never changes, so it is read once and remembered.

An upstream session that is over ends the local one with the reason `upstream_logout`. If the issuer can't be asked, its
configuration decides: `open` refreshes all the same, and `closed` answers 503. Such a 503 must never make a client that
obeys it look like a thief:

1. It comes before the rotation. So the client's refresh token stays the newest one, however often it is sent again.
2. Only the newest token of a live session gets it. An older one may be a retry, whose window goes on: the rotation
   decides about it, and gives no new token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import select

from ..actors import Actor
from ..errors import InvalidRequest, NotFound, Refusal, TemporarilyUnavailable, UnacceptableToken
from ..limits.refreshes import Refreshes
from ..log import get_logger
from ..sessions.ending import Ending
from ..sessions.lookup import Lookup
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import UpstreamSession
from ..tokens.keys import Keys
from .external_token import ExternalToken
from .flights import Flights
from .issuer import Configured
from .issuers import Issuers
from .remembered import Remembered
from .scalekit import Scalekit
from .scalekit_session import ScalekitSession

PATIENCE = timedelta(seconds=2)
"""How long a refresh or an exchange waits for the issuer. A later answer still counts for the next one."""

_REMEMBERED = 50_000  # local sessions, and as many upstream sessions

_MOST = 1024
"""Of so many issuers at most, something is kept here: an issuer that was removed is forgotten in the end."""

_FAILURES, _REST = 3, timedelta(seconds=5)
"""After so many failures in a row, an issuer counts as away for a while, without being asked."""

_AT_ONCE = 64
"""Questions to one issuer at a time. While it is so slow that there are more, it counts as away for the others."""

_log = get_logger()


class _Origin(NamedTuple):
    """Where a local session came from."""

    issuer: str
    upstream_id: str


class _Seen(NamedTuple):
    """What the issuer said about a session, and until when that counts (monotonic clock)."""

    session: ScalekitSession | None
    """None: the issuer has none of this id."""
    until: float

    @property
    def over(self) -> bool:
        return self.session is None or self.session.over


@dataclass(slots=True)
class _Health:
    """Whether an issuer answered lately."""

    asking: int = 0
    """How many questions are under way."""
    failures: int = 0
    """How many failed in a row."""
    away_until: float = float("-inf")


class SessionChecks:
    """Asks issuers whether their sessions live."""

    def __init__(
        self,
        db: Database,
        issuers: Issuers,
        scalekit: Scalekit,
        keys: Keys,
        lookup: Lookup,
        ending: Ending,
        refreshes: Refreshes,
    ) -> None:
        self._db = db
        self._issuers = issuers
        self._scalekit = scalekit
        self._keys = keys
        self._lookup = lookup
        self._ending = ending
        self._refreshes = refreshes
        self._origins = Remembered[UUID, _Origin | None](_REMEMBERED)
        self._answers = Remembered[_Origin, _Seen](_REMEMBERED)
        self._reads = Batch(self._read, name="upstream", in_flight=2)
        self._flights = Flights[_Origin, _Seen]()
        self._healths = Remembered[str, _Health](_MOST)  # by the issuer's name
        self._in_force: Mapping[str, Configured] = {}
        self._checking: Mapping[str, Configured] = {}

    async def look(self, text: str, *, by: Actor) -> None:
        """Looks, before a refresh, whether the upstream session of this refresh token is over, and ends the local one.

        The rotation that follows refuses the token then. Junk is left to it, and asks nobody.

        Raises:
            SlowDown: the session refreshes too often. The rotation asks for that too, but this look may cost more.
            TemporarilyUnavailable: the issuer's check is `closed`, and nobody can say whether its session lives.
        """
        if not (checking := self._those_that_check()):
            return
        try:
            token = self._keys.verify_refresh_token(text)
        except Refusal:
            return  # the rotation refuses it likewise
        if token.key.retired:
            return
        self._refreshes.presented(token.raw, token.generation)
        origin = await self._origin_of(token.session_id, checking)
        if origin is None or (of := checking.get(origin.issuer)) is None:
            return
        state = await self._state(of, origin)
        if state == "live" or (state == "away" and of.issuer.check_sessions == "open"):
            return
        row = await self._lookup.row(token.session_id)
        if row is None or row.over():
            return
        if state == "over":
            await self._ending.end({row.id}, "upstream_logout", by=by._replace(kind="upstream", id=of.name))
        elif row.token_digest == token.digest:
            raise TemporarilyUnavailable(f"issuer {of.name}: does its session live?").about(
                row.id, row.user_id, row.client_id
            )

    async def absolute_end(self, token: ExternalToken) -> datetime | None:
        """When the upstream session of an external token ends in any case. None if that is not known.

        Raises:
            UnacceptableToken: the session is over. The token outlives it by minutes, and must start no local session.
        """
        if token.upstream_id is None or not token.by.has_api:
            return None
        origin = _Origin(token.by.name, token.upstream_id)
        try:
            session = (await self._asked(token.by, origin)).session
        except TemporarilyUnavailable as e:
            _log.warning("upstream_session_unknown", issuer=token.by.name, cause=e.cause)
            return None
        if session is None:
            return None
        if session.over:
            raise UnacceptableToken("session_over")
        return session.absolute_expires_at

    # -- what this process knows

    def _those_that_check(self) -> Mapping[str, Configured]:
        """The issuers whose sessions are checked. If their table can't be read, those of the last reading."""
        try:
            in_force = self._issuers.in_force
        except TemporarilyUnavailable:
            return self._checking
        if in_force is not self._in_force:
            self._in_force = in_force
            self._checking = {name: of for name, of in in_force.items() if of.checks}
        return self._checking

    async def _origin_of(self, session_id: UUID, checking: Mapping[str, Configured]) -> _Origin | None:
        """Where a local session came from. None: from no upstream session."""
        if session_id in self._origins:
            return self._origins[session_id]
        try:
            origin = await self._reads(session_id)
        except TemporarilyUnavailable:
            if any(of.issuer.check_sessions == "closed" for of in checking.values()):
                raise
            return None
        self._origins[session_id] = origin
        return origin

    async def _read(self, ids: Sequence[UUID]) -> Sequence[_Origin | None]:
        columns = UpstreamSession.session_id, UpstreamSession.issuer_name, UpstreamSession.upstream_id
        query = select(*columns).where(self._db.among(UpstreamSession.session_id))
        async with self._db.look() as connection:
            rows = await connection.execute(query, {"ids": list(set(ids))})
            found = {row.session_id: _Origin(row.issuer_name, row.upstream_id) for row in rows if row.upstream_id}
        return [found.get(session_id) for session_id in ids]

    # -- what the issuer says

    async def _state(self, of: Configured, origin: _Origin) -> Literal["live", "over", "away"]:
        seen = self._answers.get(origin)
        if seen is None or monotonic() >= seen.until:
            try:
                seen = await self._asked(of, origin)
            except TemporarilyUnavailable:
                return "away"
        return "over" if seen.over else "live"

    async def _asked(self, of: Configured, origin: _Origin) -> _Seen:
        """The issuer's own word. Callers that come together ask once.

        Raises:
            TemporarilyUnavailable: the issuer is away, or does not answer within `PATIENCE`.
        """
        if (health := self._healths.get(of.name)) is None:
            health = self._healths[of.name] = _Health()
        if monotonic() < health.away_until or health.asking >= _AT_ONCE:
            raise TemporarilyUnavailable(f"issuer {of.name}: away a moment ago, or busy")
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                return await self._flights(origin, lambda: self._answer(of, origin, health))
        except TimeoutError:
            raise TemporarilyUnavailable(f"issuer {of.name}: no answer in time") from None

    async def _answer(self, of: Configured, origin: _Origin, health: _Health) -> _Seen:
        """Asks, and remembers the answer, also if nobody waits for it any more."""
        health.asking += 1
        try:
            session = await self._scalekit.get_session(of, origin.upstream_id)
        except NotFound:
            session = None
        except InvalidRequest as e:  # about this session alone
            raise TemporarilyUnavailable(e.cause) from None
        except Refusal as e:
            health.failures += 1
            if health.failures >= _FAILURES:
                health.away_until = monotonic() + _REST.total_seconds()
            raise TemporarilyUnavailable(e.cause) from None
        finally:
            health.asking -= 1
        health.failures = 0
        seen = self._answers[origin] = _Seen(session, monotonic() + of.issuer.check_every)
        return seen
