"""Refresh: the rotation of a session's refresh token, and the answer to a token that does not rotate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from hashlib import sha256
from itertools import chain
from typing import Any
from uuid import UUID

from ..actors import Actor
from ..errors import InvalidGrant, InvalidScope, Refusal, TemporarilyUnavailable
from ..limits.refreshes import Refreshes
from ..policies import Policies
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import microseconds, moment
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import LAST_GENERATION, RefreshToken
from .answers import Answers, Tokens
from .ending import Ending
from .lookup import Lookup
from .outcomes import Outcomes
from .rows import Granted, SessionRow, Verdict, judge, same_retry_key

_WAITS = tuple(timedelta(milliseconds=ms) for ms in (20, 100, 400))
"""Pauses before another try, while another transaction holds the row for a few round trips and a commit."""


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class Presented:
    """A refresh token that a client presented, and SHA-256 of the retry key beside it."""

    token: RefreshToken
    retry_key_digest: bytes | None = field(default=None, repr=False)
    rotated: bool = False
    """Whether this very presentation rotated the token, and not another one of the same batch."""


class Rotation:
    """Rotates refresh tokens."""

    def __init__(
        self,
        db: Database,
        keys: Keys,
        answers: Answers,
        ending: Ending,
        lookup: Lookup,
        policies: Policies,
        refreshes: Refreshes,
    ) -> None:
        """The policy in force shortens the durations of sessions that began under a longer one."""
        self._db = db
        self._keys = keys
        self._answers = answers
        self._ending = ending
        self._lookup = lookup
        self._policies = policies
        self._refreshes = refreshes
        self.outcomes = Outcomes()
        # Two batches at once, so that a stuck connection does not stop every refresh. SQLite has one writer at a time.
        self._rotations = Batch(self._rotate, name="rotation", in_flight=2 if db.is_postgres else 1)

    async def refresh(
        self, text: str, *, by: Actor, retry_key: str | None = None, scope: frozenset[str] | None = None
    ) -> Tokens:
        """The successor of a refresh token, and an access token (RFC 6749 section 6).

        Idempotent within the retry window: the same token gives the same answer, from any number of clients and
        instances at once. With the retry key of the rotation, idempotent until the successor is used.

        Args:
            text: the refresh token.
            by: who presents it.
            retry_key: a secret of the client for this refresh alone. The rotation remembers its SHA-256.
            scope: the scopes of the access token, not more than the session was granted. None: all of them.

        Raises:
            InvalidGrant: the token is not one of Keyturn's, which is found without I/O. Or its session is over: the
                refusal has the reason. Or it was reused: the session has ended.
            InvalidScope: the session was not granted these scopes. Nothing has changed.
            SlowDown: the session refreshes too often. Nothing has changed.
            TemporarilyUnavailable: the database is away, or other transactions held the session four times.
        """
        try:
            token = self._keys.verify_refresh_token(text)
            self._refreshes.presented(token.raw, token.generation)
        except Refusal as refusal:
            self.outcomes.refused_with(refusal)
            raise
        presented = Presented(token, None if retry_key is None else sha256(retry_key.encode()).digest())
        try:
            rotated = None
            if scope is None and not token.key.retired:
                rotated = await self._rotations(presented)
            if rotated is not None:
                tokens = self._answers.tokens(*rotated, rotated[0].rotated_at)
            else:
                tokens = await self._decided(presented, scope, by)
        except Refusal as refusal:
            self.outcomes.refused_with(refusal)
            raise refusal.about(token.session_id) from None
        if presented.rotated:
            self.outcomes.count_rotated()
        else:
            self.outcomes.count_retried()
        return tokens

    async def holder(self, text: str, *, by: Actor) -> tuple[RefreshToken, SessionRow]:
        """The token and its session, if a refresh with it would be answered now. Rotates nothing.

        Raises:
            InvalidGrant, SlowDown, TemporarilyUnavailable: as `refresh`, which also ends the session of a reused token.
        """
        presented = self._keys.verify_refresh_token(text)
        self._refreshes.presented(presented.raw, presented.generation)
        row = None if presented.key.retired else await self._lookup.row(presented.session_id)
        if row is not None:
            verdict = judge(row, presented, self._keys.refresh(row.key_number))
            if verdict in {Verdict.AGAIN, Verdict.RETRY}:
                return presented, row
        await self.refresh(text, by=by)
        raise TemporarilyUnavailable("the session changed meanwhile")

    async def _decided(self, asked: Presented, scope: frozenset[str] | None, by: Actor) -> Tokens:
        """The answer to a token that was not the newest of a live session, or whose session was locked.

        With a scope, the row is read before the rotation too: a token that asks for more than was granted must not
        rotate. The comparison stays true until the rotation, because no statement changes the scope of a session.
        """
        presented = asked.token
        if self._keys.retired(presented.key.number):
            over = await self._ending.over_under_retired_key(presented.session_id, by=by)
            raise InvalidGrant("retired refresh key", reason=over.over()).about(over.id, over.user_id, over.client_id)
        for wait in (*_WAITS, None) if scope is None else (timedelta(0), *_WAITS, None):
            # A second statement, because the snapshot of the first one may be older than another process's rotation.
            row = await self._lookup.row(presented.session_id)
            if row is None:
                raise InvalidGrant("no such session", outcome="unknown")
            key = self._keys.refresh(row.key_number)
            match judge(row, presented, key, asked.retry_key_digest):
                case Verdict.AGAIN:
                    _check_granted(row, scope)
                    if wait is not None:
                        await asyncio.sleep(wait.total_seconds())
                        rotated = await self._rotations(asked)
                        if rotated is not None:
                            return self._answers.tokens(*rotated, rotated[0].rotated_at, scope)
                case Verdict.RETRY:
                    _check_granted(row, scope)
                    assert key is not None
                    return self._answers.tokens(row, presented.successor(key), row.now, scope)
                case Verdict.REUSE:
                    reason = await self._ending.end_for_reuse(row.id, presented.generation, by=by)
                    raise InvalidGrant("reuse", reason=reason, outcome="reuse").about(
                        row.id, row.user_id, row.client_id
                    )
                case Verdict.REFUSED:
                    refusal = InvalidGrant("not a token of this session's chain", outcome="unknown")
                    raise refusal.about(row.id, row.user_id, row.client_id)
                case reason:
                    raise InvalidGrant("session is over", reason=reason).about(row.id, row.user_id, row.client_id)
        raise TemporarilyUnavailable("the session was locked four times")

    async def _rotate(self, batch: Sequence[Presented]) -> Sequence[tuple[Granted, RefreshToken] | None]:
        """Rotates each session whose newest token was presented, by one statement and one commit for the batch.

        If a token is in the batch several times, the first one rotates, and its retry key is remembered. The others
        with the same retry key, or like it without one, get the same answer. Those with another one count as presented
        after the rotation: `judge` decides about them.
        """
        key, policy = self._keys.signing_refresh, self._policies.in_force
        presented = [each.token.digest for each in batch]
        # The process may have read since the request came that a key is retired. A session under that key is over, and
        # must not move to the key that signs now.
        first: dict[bytes, Presented] = {}
        for digest, each in zip(presented, batch, strict=True):
            if not self._keys.retired(each.token.key.number):
                first.setdefault(digest, each)
        if not first:
            return [None] * len(batch)
        retry_keys = [each.retry_key_digest for each in first.values()]
        successors = [each.token.successor(key) for each in first.values()]
        derived = [successor.digest for successor in successors]
        ids = [successor.session.hex() for successor in successors]
        idle, absolute, access = policy.idle_lifetime, policy.absolute_lifetime, policy.access_lifetime
        if self._db.is_postgres:
            batch_of = (ids, list(first), derived, key.number, LAST_GENERATION)
            found = await self._db.fetch(_POSTGRES, *batch_of, idle, absolute, access, retry_keys)
            rows = [Granted._make(row) for row in found]
        else:
            durations = (microseconds(each) for each in (self._db.clock(), idle, absolute, access))
            members = zip(ids, first, derived, retry_keys, strict=True)
            statement = _rotate_sqlite(len(ids))
            found = await self._db.fetch(statement, key.number, LAST_GENERATION, *durations, *chain(*members))
            rows = [_of_sqlite(*row) for row in found]
        found_by_digest = {row.token_digest: row for row in rows}
        rotated: dict[bytes, tuple[Granted, RefreshToken]] = {}
        for (digest, each), successor, new in zip(first.items(), successors, derived, strict=True):
            row = found_by_digest.get(new)
            each.rotated = row is not None
            if row is not None:
                rotated[digest] = row, successor
        return [
            rotated[digest]
            if each.rotated
            or (digest in rotated and same_retry_key(each.retry_key_digest, first[digest].retry_key_digest))
            else None
            for digest, each in zip(presented, batch, strict=True)
        ]


def _check_granted(row: SessionRow, scope: frozenset[str] | None) -> None:
    """Checks that the session was granted these scopes (RFC 6749 section 6)."""
    if scope is not None and not scope <= frozenset((row.scope or "").split()):
        raise InvalidScope("more scopes than were granted").about(row.id, row.user_id, row.client_id)


# Both statements name the columns of `Granted` in its order. So a column that a later release adds does not change the
# statements that this release has prepared.
#
# SKIP LOCKED: the statement leaves out a row that another transaction holds. So no two statements can wait for each
# other. `_decided` then reads that row and decides. The policy in force shortens the row's deadlines and lifetimes.
#
# With LATERAL and LIMIT, Postgres looks each id up by the primary key, even if the table has no statistics yet. For a
# plain join, Postgres may compare each live row with each id of the batch: 100 ms a batch with 7500 sessions. The LIMIT
# cuts nothing off. A generic plan does not know its value, and so Postgres expects few rows.
_POSTGRES = """
WITH batch AS (
  SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $9::bytea[]) AS b(id, old, new, retry_key)
  ORDER BY id LIMIT cardinality($1)
), hit AS MATERIALIZED (
  SELECT b.id, b.new, b.retry_key FROM batch b CROSS JOIN LATERAL (
    SELECT FROM sessions s
    WHERE s.id = b.id AND s.token_digest = b.old AND s.end_reason IS NULL AND s.generation < $5
      AND s.idle_expires_at > statement_timestamp() AND s.absolute_expires_at > statement_timestamp()
      AND s.rotated_at + $6::interval > statement_timestamp()
      AND s.created_at + $7::interval > statement_timestamp()
    FOR NO KEY UPDATE SKIP LOCKED
  ) newest
)
UPDATE sessions s
SET token_digest = hit.new, key_number = $4, generation = s.generation + 1, rotated_at = statement_timestamp(),
  retry_key_digest = hit.retry_key,
  idle_expires_at = least(
    statement_timestamp() + least(s.idle_lifetime * interval '1 second', $6::interval),
    s.absolute_expires_at, s.created_at + $7::interval)
FROM hit WHERE s.id = hit.id
RETURNING s.token_digest, s.id, s.user_id, s.role, s.client_id, s.generation, s.rotated_at, s.idle_expires_at,
  least(s.absolute_expires_at, s.created_at + $7::interval),
  least(s.access_lifetime * interval '1 second', $8::interval), s.scope, s.claims, s.auth_time, s.address, s.user_agent
"""


@cache
def _rotate_sqlite(count: int) -> str:
    values = ", ".join(f"(?{i}, ?{i + 1}, ?{i + 2}, ?{i + 3})" for i in range(7, 7 + 4 * count, 4))
    return f"""
WITH batch(id, old, new, retry_key) AS (VALUES {values})
UPDATE sessions
SET token_digest = batch.new, key_number = ?1, generation = generation + 1, rotated_at = ?3,
  retry_key_digest = batch.retry_key,
  idle_expires_at = min(?3 + min(idle_lifetime * 1000000, ?4), absolute_expires_at, created_at + ?5)
FROM batch
WHERE sessions.id = batch.id AND sessions.token_digest = batch.old AND sessions.ended_at IS NULL
  AND sessions.generation < ?2
  AND sessions.idle_expires_at > ?3 AND sessions.absolute_expires_at > ?3
  AND sessions.rotated_at + ?4 > ?3 AND sessions.created_at + ?5 > ?3
RETURNING token_digest, sessions.id, user_id, role, client_id, generation, rotated_at, idle_expires_at,
  min(absolute_expires_at, created_at + ?5), min(access_lifetime * 1000000, ?6), scope, claims,
  auth_time, address, user_agent
"""  # noqa: S608  # only the numbers of parameters are put in


def _of_sqlite(digest: bytes, session_id: str, user_id: str, *rest: Any) -> Granted:
    """The columns of SQLite's row in the types that Postgres returns."""
    role, client_id, generation, rotated_at, idle, absolute, access, scope, claims, auth_time, address, agent = rest
    moments = moment(rotated_at), moment(idle), moment(absolute)
    ids = UUID(hex=session_id), UUID(hex=user_id)
    signed_in = None if auth_time is None else moment(auth_time)
    lifetime = timedelta(microseconds=access)
    return Granted(
        digest, *ids, role, client_id, generation, *moments, lifetime, scope, claims, signed_in, address, agent
    )
