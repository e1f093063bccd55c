"""Sessions: the state machine of sign-in, refresh, retry, reuse and end. The heart of Keyturn.

A session is one row for its whole life (guarantee 5). Its refresh tokens form a chain of generations in which each
is derived from the one before, so the row keeps only the newest one's digest.

Presented token against the row:

    newest, session live            rotate: one conditional UPDATE, the answer is derived, not stored
    one older, within the window,   retry: the same answer again
      its successor unused
    older otherwise                 reuse: the session ends
    session over                    refused with the reason
    anything else                   refused; nothing changes (another branch, or a database from a backup)

The window is anchored at the rotation and closes by itself when the successor is used, because then the row holds
another digest. Generations are compared, never moments.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import cache
from itertools import chain
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, case, delete, exists, insert, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from ..actors import SERVICE, Actor
from ..errors import InvalidGrant, InvalidToken, NotFound, NoToken, Reason, Refusal, TemporarilyUnavailable
from ..log import get_logger
from ..revocation.lifetimes import LOOK_BACK
from ..revocation.revocations import Ending, Revocations, settled
from ..settings import Settings
from ..storage.batches import Batch
from ..storage.database import Database, own_task
from ..storage.tables import Key, Session, User, microseconds, moment, uuid7
from ..tokens.access_tokens import AccessToken, AccessTokens
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import LAST_GENERATION, RefreshKey, RefreshToken, issue
from ..users.passwords import Authenticated

Scope = Literal["this", "others", "all"]
"""Which sessions a logout ends."""

KEPT_FOR = timedelta(days=30)
"""How long a session that is over stays, with its reason, before `gc` may delete it."""

_log = get_logger()

_WAITS = tuple(timedelta(milliseconds=ms) for ms in (20, 100, 400))
"""Whoever holds the row has a few round trips and a commit to go."""

assert KEPT_FOR > LOOK_BACK, "a rebuild must find every session whose tokens could live"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The answer to a login or refresh. Moments are turned into seconds by whoever answers."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    session_id: UUID
    now: datetime
    access_expires_at: datetime
    refresh_expires_at: datetime
    session_expires_at: datetime

    def body(self) -> dict[str, str | int]:
        """RFC 6749 section 5.1, with the session's own deadlines beside it; durations in whole seconds."""
        return {
            "access_token": self.access_token,
            "token_type": "Bearer",
            "expires_in": _seconds(self.access_expires_at - self.now),
            "refresh_token": self.refresh_token,
            "refresh_expires_in": _seconds(self.refresh_expires_at - self.now),
            "session_id": str(self.session_id),
            "session_expires_in": _seconds(self.session_expires_at - self.now),
        }


def _seconds(duration: timedelta) -> int:
    return max(0, duration // timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class State:
    """A session's row, as one statement read it at the database's `now`, under the deadlines in force."""

    id: UUID
    user_id: UUID
    role: str
    client_id: str
    token_digest: bytes = field(repr=False)
    key_id: int
    generation: int
    created_at: datetime
    rotated_at: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    ended_at: datetime | None
    end_reason: Reason | None
    now: datetime
    has_key: bool = True
    """Whether a key that is not retired could have made its refresh token. Read only where an operator looks."""

    def over(self) -> Reason | None:
        """Why the session is over, or None while it lives."""
        if self.ended_at is not None:
            return self.end_reason
        if self.absolute_expires_at <= self.idle_expires_at and self.absolute_expires_at <= self.now:
            return "absolute_timeout"
        if self.idle_expires_at <= self.now:
            return "idle_timeout"
        return None if self.has_key else "revoked_by_admin"  # its key was retired or deleted: that ended it


class Verdict(Enum):
    """What a presented token that was not the newest of a live session means."""

    RETRY = auto()
    REUSE = auto()
    REFUSED = auto()
    AGAIN = auto()


def judge(state: State, presented: RefreshToken, key: RefreshKey | None, window: timedelta) -> Verdict | Reason:
    """The state machine for a token that did not rotate. Pure.

    Args:
        state: the row, read after the rotation failed.
        presented: the token, whose tag was verified.
        key: the key that the row's token was derived under, or None if this process does not have it.
        window: the retry window.

    Returns:
        RETRY: the row's token is this one's successor, unused and within the window: the same answer again.
        REUSE: an older generation otherwise: the session must end.
        AGAIN: it is the newest after all, and was only locked.
        REFUSED: another digest at this generation, or a generation that the row never saw: nothing changes.
        A reason: the session is over.
    """
    over = state.over()
    if over is not None:
        return over
    if presented.generation > state.generation:
        return Verdict.REFUSED
    if presented.generation == state.generation:
        same = presented.digest == state.token_digest and state.generation < LAST_GENERATION
        return Verdict.AGAIN if same else Verdict.REFUSED
    if presented.generation < state.generation - 1:
        return Verdict.REUSE
    if key is None or presented.successor(key).digest != state.token_digest:
        return Verdict.REFUSED
    # An age below zero is a clock that stepped, and no reason to end a session.
    return Verdict.RETRY if state.now - state.rotated_at < window else Verdict.REUSE


class Sessions:
    """The sessions in the database."""

    def __init__(
        self, db: Database, keys: Keys, access_tokens: AccessTokens, revocations: Revocations, settings: Settings
    ) -> None:
        """Lifetimes and window come from the settings."""
        self._db = db
        self._keys = keys
        self._access_tokens = access_tokens
        self._revocations = revocations
        self._window = settings.retry_window
        self._idle = settings.refresh_token_lifetime
        self._absolute = settings.session_lifetime
        self._client_id = settings.client_id
        # Two on their way: one stuck connection must not stop every refresh. SQLite has one writer at a time.
        self._rotations = Batch(self._rotate, in_flight=2 if db.is_postgres else 1)
        self._logouts = Batch(self._log_out, in_flight=2 if db.is_postgres else 1)
        self._reads = Batch(self._read, in_flight=2)
        # Built once: to put it together anew costs as much as to send it.
        held = select(Session.id).where(db.among(Session.id)).order_by(Session.id).with_for_update(skip_locked=True)
        self._log_these_out = _ends(db.now(), "logout", Session.id.in_(held))
        self._these = select(Session.__table__, db.now().label("now")).where(db.among(Session.id))

    # -- start

    @own_task
    async def start(self, proof: Authenticated, *, by: Actor) -> Tokens:
        """Starts a session for a user whose password was right.

        Raises:
            InvalidGrant: the user was changed or disabled since.
            TemporarilyUnavailable: the database is away.
        """
        key = self._keys.signing_refresh
        first = issue(key, uuid7())
        async with self._db.begin() as tx:
            # FOR SHARE excludes whoever changes or disables the user until this commits: either the session is
            # there to be ended by that transaction, or this one sees its outcome.
            user = (
                await tx.execute(
                    select(User.id, User.role, User.password_hash, User.disabled_at, self._db.now().label("now"))
                    .where(User.id == proof.user_id)
                    .with_for_update(read=True)
                )
            ).one_or_none()
            if user is None or user.disabled_at is not None or user.password_hash != proof.password_hash:
                raise InvalidGrant(
                    "user changed meanwhile", description="E-mail or password is wrong.", user_id=proof.user_id
                )
            session = {
                "id": first.session_id,
                "user_id": user.id,
                "role": user.role,
                "client_id": self._client_id,
                "token_digest": first.digest,
                "key_id": key.number,
                "generation": 0,
                "created_at": user.now,
                "rotated_at": user.now,
                "idle_expires_at": user.now + min(self._idle, self._absolute),
                "absolute_expires_at": user.now + self._absolute,
                "ended_at": None,
                "end_reason": None,
            }
            await tx.execute(insert(Session).values(session))
        return self._tokens(self._state(session, user.now), first)

    # -- refresh

    async def refresh(self, text: str, *, by: Actor) -> Tokens:
        """The successor of a refresh token, and an access token (RFC 6749 section 6).

        Idempotent within the retry window: the same token gives the same answer, from any number of clients and
        instances at once.

        Raises:
            InvalidGrant: the token is junk (no I/O), of a session that is over (with its reason), or reuse (and the
                session has ended).
            TemporarilyUnavailable: the database is away, or the session was locked by others four times.
        """
        presented = self._keys.verify_refresh_token(text)
        try:
            if not self._keys.retired(presented.key.number):
                rotated = await self._rotations(presented)
                if rotated is not None:
                    return self._tokens(*rotated)
            return await self._not_rotated(presented, by)
        except Refusal as refusal:
            raise refusal.about(presented.session_id) from None

    async def _not_rotated(self, presented: RefreshToken, by: Actor) -> Tokens:
        """The answer to a token that was not the newest of a live session, or whose session was locked."""
        if self._keys.retired(presented.key.number):
            over = await self._over_under_retired_key(presented.session_id)
            raise InvalidGrant("retired refresh key", reason=over.over(), user_id=over.user_id)
        for wait in (*_WAITS, None):
            # A later statement of its own: the first one's snapshot may show the row as it was before someone
            # else's rotation.
            state = await self._reads(presented.session_id)
            if state is None:
                raise InvalidGrant("no such session")
            key = self._keys.refresh(state.key_id)
            match judge(state, presented, key, self._window):
                case Verdict.AGAIN:
                    if wait is not None:
                        await asyncio.sleep(wait.total_seconds())
                        rotated = await self._rotations(presented)
                        if rotated is not None:
                            return self._tokens(*rotated)
                case Verdict.RETRY:
                    assert key is not None
                    return self._tokens(state, presented.successor(key))
                case Verdict.REUSE:
                    reason = await self._end_for_reuse(state.id, presented.generation, by)
                    raise InvalidGrant("reuse", reason=reason, user_id=state.user_id)
                case Verdict.REFUSED:
                    raise InvalidGrant("not a token of this session's chain", user_id=state.user_id)
                case reason:
                    raise InvalidGrant("session is over", reason=reason, user_id=state.user_id)
        raise TemporarilyUnavailable("the session was locked four times")

    async def _rotate(self, batch: Sequence[RefreshToken]) -> Sequence[tuple[State, RefreshToken] | None]:
        """Rotates each session whose newest token was presented: one statement, one commit for all of them."""
        key = self._keys.signing_refresh
        presented = [token.digest for token in batch]
        successors = {digest: token.successor(key) for digest, token in zip(presented, batch, strict=True)}
        derived = {digest: successor.digest for digest, successor in successors.items()}
        ids = [successor.session_id for successor in successors.values()]
        rows: Sequence[Any]
        if self._db.is_postgres:
            rows = await self._db.fetch(
                _ROTATE_POSTGRES,
                *(ids, list(derived), list(derived.values()), key.number, LAST_GENERATION, self._idle, self._absolute),
            )
        else:
            now, idle, absolute = (microseconds(each) for each in (self._db.clock(), self._idle, self._absolute))
            members = zip((session_id.hex for session_id in ids), derived, derived.values(), strict=True)
            statement = _rotate_sqlite(len(ids))
            found = await self._db.fetch(statement, key.number, LAST_GENERATION, now, idle, absolute, *chain(*members))
            rows = [_of_sqlite(row) for row in found]
        rotated = {row["token_digest"]: self._state(row, None) for row in rows}
        return [
            (rotated[derived[digest]], successors[digest]) if derived[digest] in rotated else None
            for digest in presented
        ]

    async def _read(self, ids: Sequence[UUID]) -> Sequence[State | None]:
        async with self._db.look() as connection:
            rows = await connection.execute(self._these, {"ids": list(set(ids))})
            states = {row["id"]: self._state(row, row["now"]) for row in rows.mappings()}
        return [states.get(i) for i in ids]

    def _state(self, row: Any, now: datetime | None) -> State:
        """A row under the policy in force: a shorter one holds at once, a longer one changes nothing promised."""
        absolute = min(row["absolute_expires_at"], row["created_at"] + self._absolute)
        return State(
            id=row["id"],
            user_id=row["user_id"],
            role=row["role"],
            client_id=row["client_id"],
            token_digest=row["token_digest"],
            key_id=row["key_id"],
            generation=row["generation"],
            created_at=row["created_at"],
            rotated_at=row["rotated_at"],
            idle_expires_at=min(row["idle_expires_at"], row["rotated_at"] + self._idle, absolute),
            absolute_expires_at=absolute,
            ended_at=row["ended_at"],
            end_reason=row["end_reason"],
            now=now or row["rotated_at"],
        )

    def _tokens(self, state: State, refresh_token: RefreshToken) -> Tokens:
        access_token, access_expires_at = self._access_tokens.sign(
            subject=state.user_id,
            session_id=state.id,
            generation=state.generation,
            role=state.role,
            client_id=state.client_id,
            issued_at=state.rotated_at,
            session_expires_at=state.absolute_expires_at,
        )
        return Tokens(
            access_token,
            refresh_token.text,
            state.id,
            max(state.now, state.rotated_at),
            access_expires_at,
            state.idle_expires_at,
            state.absolute_expires_at,
        )

    # -- end

    @own_task
    async def _end_for_reuse(self, session_id: UUID, generation: int, by: Actor) -> Reason:
        """Ends a session of which an old generation was presented; the reason that it ended for, maybe earlier."""
        async with self._revocations.ending([session_id]) as ending:
            older = Session.generation > generation
            await _end(ending, _ends(self._db.now(), "reuse_detected", Session.id == session_id, older))
            found = await ending.tx.execute(
                select(
                    Session.end_reason, Session.user_id, Session.generation, Session.rotated_at, Session.ended_at
                ).where(Session.id == session_id)
            )
            row = found.one_or_none()
        if row is None or row.ended_at is None:
            return "reuse_detected"
        # Only the one statement that ended the session makes the line: later presentations find the session ended.
        if ending.lived:
            _log.warning(
                "reuse_detected",
                session_id=str(session_id),
                user_id=str(row.user_id),
                presented_generation=generation,
                current_generation=row.generation,
                rotated_seconds_ago=_seconds(row.ended_at - row.rotated_at),
            )
        reason: Reason = row.end_reason
        return reason

    @own_task
    async def end(self, session_ids: set[UUID], reason: Reason, *, by: Actor) -> int:
        """Ends these sessions; how many were live. Done again, it changes nothing and publishes again."""
        async with self._revocations.ending(session_ids) as ending:
            # By id, as everywhere: two transactions that end several must not wait for each other.
            which = select(Session.id).where(Session.id.in_(session_ids)).order_by(Session.id).with_for_update()
            await _end(ending, _ends(self._db.now(), reason, Session.id.in_(which)))
        return ending.lived

    async def end_under(self, key_number: int, *, by: Actor, most: int = 1000) -> int:
        """Ends the live sessions under a refresh key that was retired, `most` in a transaction; how many.

        It walks the primary key as `gc` does. Broken off, it can be called again. Instances that have yet to read
        that the key is retired may sign in under it meanwhile: call it once more when `READ_BY_ALL` has passed.
        """
        return await self._end_each(Session.key_id == key_number, most, by)

    async def end_all_but_under(self, key_number: int, *, by: Actor, most: int = 1000) -> int:
        """Ends the live sessions under all refresh keys but one, as `end_under`; how many."""
        return await self._end_each(Session.key_id != key_number, most, by)

    async def _end_each(self, which: ColumnElement[bool], most: int, by: Actor) -> int:
        ended, after = 0, UUID(int=0)
        while True:
            last, count = await self._end_range(after, which, most, by)
            ended += count
            if last is None:
                return ended
            after = last

    @own_task
    async def _end_range(
        self, after: UUID, which: ColumnElement[bool], most: int, by: Actor
    ) -> tuple[UUID | None, int]:
        async with self._db.look() as connection:
            columns = select(Session.id, and_(which, Session.ended_at.is_(None)).label("doomed"))
            rows = (await connection.execute(columns.where(Session.id > after).order_by(Session.id).limit(most))).all()
        if not rows:
            return None, 0
        ids = {row.id for row in rows if row.doomed}
        if not ids:
            return rows[-1].id, 0
        await self._revocations.fence.read()  # the walk may take longer than a command's one reading is good for
        async with self._revocations.ending(ids) as ending:
            held = select(Session.id).where(Session.id.in_(ids), which).order_by(Session.id).with_for_update()
            await _end(ending, _ends(self._db.now(), "revoked_by_admin", Session.id.in_(held), which))
        return rows[-1].id, ending.lived

    async def _over_under_retired_key(self, session_id: UUID) -> State:
        """The session of a token whose key is retired. It is over.

        Whoever has that key could have made the token: it ends nothing but what retiring the key ends.

        Raises:
            InvalidGrant: the session goes on under another key, or there is none.
        """
        state = await self._reads(session_id)
        if state is not None and not state.over() and self._keys.retired(state.key_id):
            await self.end({session_id}, "revoked_by_admin", by=SERVICE)  # `end_under` has yet to come here
            state = await self._reads(session_id)
        if state is None or not state.over():
            raise InvalidGrant("retired refresh key", session_id=session_id, user_id=state.user_id if state else None)
        return state

    async def logout(
        self, access_token: str | None, refresh_token: str | None, scope: Scope, *, by: Actor
    ) -> set[UUID]:
        """Ends the session of each token, or the user's others, or all; the sessions that were presented.

        For "this" any token of ours will do, also an expired or rotated one, and a session that is over already is
        fine. To end other sessions takes a token that still opens its own: an old one that leaked must not sign its
        user out everywhere.

        Raises:
            InvalidToken, InvalidGrant: none of the tokens is ours, or it can't end other sessions.
            TemporarilyUnavailable: the database is away; nothing was ended.
        """
        presented = await self._presented(access_token, refresh_token)
        if scope == "this":
            for session_id in presented:
                try:
                    settles_at = await self._logouts(session_id)
                    if settles_at is None:
                        await self.end({session_id}, "logout", by=by)
                    else:
                        await settled(settles_at)
                except Refusal as refusal:
                    raise refusal.about(session_id) from None
            return set(presented)
        # All are checked before any is ended: a refused request changes nothing.
        states = [await self._opened_by(i, token, access_token, scope) for i, token in presented.items()]
        for user_id in {state.user_id for state in states if not state.over()}:
            await self.end_of_user(user_id, "logout_all", by=by, but=frozenset(presented if scope == "others" else ()))
        # A logout of all that is repeated ends nothing more: what was started since has nothing to do with it.
        if over := {state.id for state in states if state.over()}:
            await self.end(over, "logout_all", by=by)
        return set(presented)

    async def _log_out(self, ids: Sequence[UUID]) -> Sequence[float | None]:
        """Ends those that live, in one transaction: when each has settled.

        None for one that was over, or that someone holds: it must not keep the others waiting, and `end` sees to it.
        """
        async with self._revocations.committing(ids) as ending:
            await _end(ending, self._log_these_out, {"ids": list(set(ids))})
        return [ending.settles_at if i in ending.ended else None for i in ids]

    async def _opened_by(
        self, session_id: UUID, token: RefreshToken | None, access_token: str | None, scope: Scope
    ) -> State:
        """The session of a token that may end others.

        Raises:
            InvalidToken, InvalidGrant: it may not.
        """
        try:
            state = await self._reads(session_id)
        except Refusal as refusal:
            raise refusal.about(session_id) from None
        if state is None:
            raise InvalidGrant("no such session", session_id=session_id)
        over = state.over()
        if over and not (scope == "all" and over == "logout_all"):
            raise InvalidGrant("session is over", reason=over, session_id=state.id, user_id=state.user_id)
        if token is None:
            assert access_token is not None
            verified = self._access_tokens.verify(access_token, self._db.clock())
            if verified.subject != str(state.user_id):  # whoever shares the HS256 key can mint any claim
                raise InvalidToken("no such session of this subject", session_id=session_id, user_id=verified.user_id)
        elif not over and token.digest != state.token_digest:
            # Then only one that a refresh would still be answered for.
            verdict = judge(state, token, self._keys.refresh(state.key_id), self._window)
            if verdict is not Verdict.RETRY:
                raise InvalidGrant("an old token can't end other sessions", session_id=state.id, user_id=state.user_id)
        return state

    async def _presented(self, access_token: str | None, refresh_token: str | None) -> dict[UUID, RefreshToken | None]:
        """The sessions of the tokens, with the refresh token where one was presented."""
        sessions: dict[UUID, RefreshToken | None] = {}
        refusal: InvalidToken | InvalidGrant = NoToken("no token")
        if access_token is not None:
            try:
                token = self._access_tokens.verify(access_token, self._db.clock(), expired_too=True)
                sessions[token.session_id] = None
            except InvalidToken as e:
                refusal = e
        if refresh_token is not None:
            try:
                presented = self._keys.verify_refresh_token(refresh_token)
                if self._keys.retired(presented.key.number):
                    await self._over_under_retired_key(presented.session_id)
                sessions[presented.session_id] = presented
            except InvalidGrant as e:
                refusal = e
        if not sessions:
            raise refusal
        return sessions

    @own_task
    async def end_of_user(self, user_id: UUID, reason: Reason, *, by: Actor, but: frozenset[UUID] = frozenset()) -> int:
        """Ends the sessions of a user but some; how many were live."""
        async with ending_of(self._db, self._revocations, user_id, reason, but=but) as ending:
            pass  # nothing else changes
        return ending.lived

    # -- look

    async def verify(self, access_token: str) -> AccessToken:
        """The claims of an access token that is ours, unexpired and not revoked.

        Raises:
            InvalidToken: it is not (with a reason, if it is genuine).
            TemporarilyUnavailable: nothing can say whether it was revoked.
        """
        token = self._access_tokens.verify(access_token, self._db.clock())
        try:
            await self._revocations.check(token.session_id, token.claims["iat"])
        except Refusal as refusal:
            raise refusal.about(token.session_id, token.user_id) from None
        return token

    async def authorise(self, access_token: str) -> State:
        """The live session of an access token, read from the database.

        For Keyturn's own endpoints: whoever shares the HS256 key can mint any claim, so role and state are the
        row's. A user who is disabled has no live session.

        Raises:
            InvalidToken: as `verify`.
            TemporarilyUnavailable: the database is away.
        """
        token = self._access_tokens.verify(access_token, self._db.clock())
        try:
            state = await self._reads(token.session_id)
        except Refusal as refusal:
            raise refusal.about(token.session_id, token.user_id) from None
        if state is None or str(state.user_id) != token.subject:
            raise InvalidToken("no such session of this subject", session_id=token.session_id, user_id=token.user_id)
        if over := state.over():
            raise InvalidToken("session is over", reason=over, session_id=state.id, user_id=state.user_id)
        return state

    async def find(self, session_id: UUID) -> State:
        """A session, live or over.

        Raises:
            NotFound: there is none.
        """
        found = await self._list(Session.id == session_id, limit=1)
        if not found:
            raise NotFound("no such session")
        return found[0]

    async def list(self, *, user_id: UUID | None, limit: int, before: UUID | None = None, live: bool) -> list[State]:
        """Sessions, the newest first, `limit` at most, those before an id."""
        which = [Session.user_id == user_id] if user_id is not None else []
        if before is not None:
            which.append(Session.id < before)
        return await self._list(*which, limit=limit, live=live)

    @own_task
    async def _list(self, *which: ColumnElement[bool], limit: int, live: bool = False) -> builtins.list[State]:
        async with self._db.look() as connection:
            now = await connection.scalar(select(self._db.now()))
            assert now is not None
            query = select(Session.__table__, _HAS_KEY.label("has_key")).where(*which)
            if live:
                # As `State.over` has it, under the deadlines in force.
                query = query.where(
                    Session.ended_at.is_(None),
                    Session.idle_expires_at > now,
                    Session.rotated_at > now - self._idle,
                    Session.created_at > now - self._absolute,
                    _HAS_KEY,
                )
            rows = await connection.execute(query.order_by(Session.id.desc()).limit(limit))
            return [replace(self._state(row, now), has_key=bool(row["has_key"])) for row in rows.mappings()]

    # -- gc

    async def gc(self, *, by: Actor, kept_for: timedelta = KEPT_FOR, most: int = 1000) -> int:
        """Deletes sessions that have been over for `kept_for`, `most` in a transaction; how many in all.

        It walks the primary key, which is ordered by age, because the deadlines can't be indexed (guarantee 5).
        """
        deleted, after = 0, UUID(int=0)
        while True:
            last, count = await self._gc_range(after, kept_for, most, by)
            deleted += count
            if last is None:
                return deleted
            after = last

    @own_task
    async def _gc_range(self, after: UUID, kept_for: timedelta, most: int, by: Actor) -> tuple[UUID | None, int]:
        async with self._db.begin() as tx:
            now = await tx.scalar(select(self._db.now()))
            assert now is not None
            long_ago = now - max(kept_for, LOOK_BACK)
            ids = (
                await tx.scalars(select(Session.id).where(Session.id > after).order_by(Session.id).limit(most))
            ).all()
            if not ids:
                return None, 0
            over = select(Session.id).where(
                Session.id > after,
                Session.id <= ids[-1],
                or_(Session.ended_at < long_ago, Session.idle_expires_at < long_ago),
            )
            # A row that someone holds is being refreshed or ended right now: it is not for us.
            doomed = over.order_by(Session.id).with_for_update(skip_locked=True)
            gone = await tx.scalars(delete(Session).where(Session.id.in_(doomed)).returning(Session.id))
            return ids[-1], len(gone.all())


# The number alone does not say: where an operator has deleted all keys, numbers begin anew. A token that an earlier key
# made is older than the key that has its number now.
_HAS_KEY = exists().where(
    Key.use == "refresh",
    Key.number == Session.key_id,
    Key.retired_at.is_(None),
    Key.created_at <= Session.rotated_at,
)

# Named, so that a column that a later release adds changes no prepared statement of this one.
_COLUMNS = tuple(Session.__table__.columns)

# SKIP LOCKED: a row that another transaction holds is left out instead of waited for, so no two
# statements can wait for each other; the caller reads it and decides. Deadlines hold under today's policy too.
_ROTATE_POSTGRES = f"""
WITH batch AS (
  SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS b(id, old, new)
), hit AS MATERIALIZED (
  SELECT s.id, b.new FROM batch b JOIN sessions s ON s.id = b.id
  WHERE s.token_digest = b.old AND s.ended_at IS NULL AND s.generation < $5
    AND s.idle_expires_at > statement_timestamp() AND s.absolute_expires_at > statement_timestamp()
    AND s.rotated_at + $6::interval > statement_timestamp()
    AND s.created_at + $7::interval > statement_timestamp()
  ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE sessions s
SET token_digest = hit.new, key_id = $4, generation = s.generation + 1, rotated_at = statement_timestamp(),
  idle_expires_at = least(
    statement_timestamp() + $6::interval, s.absolute_expires_at, s.created_at + $7::interval)
FROM hit WHERE s.id = hit.id
RETURNING {", ".join(f"s.{column.name}" for column in _COLUMNS)}
"""  # noqa: S608  # only names of columns are put in


@cache
def _rotate_sqlite(count: int) -> str:
    values = ", ".join(f"(?{i}, ?{i + 1}, ?{i + 2})" for i in range(6, 6 + 3 * count, 3))
    return f"""
WITH batch(id, old, new) AS (VALUES {values})
UPDATE sessions
SET token_digest = batch.new, key_id = ?1, generation = generation + 1, rotated_at = ?3,
  idle_expires_at = min(?3 + ?4, absolute_expires_at, created_at + ?5)
FROM batch
WHERE sessions.id = batch.id AND sessions.token_digest = batch.old AND sessions.ended_at IS NULL
  AND sessions.generation < ?2
  AND sessions.idle_expires_at > ?3 AND sessions.absolute_expires_at > ?3
  AND sessions.rotated_at + ?4 > ?3 AND sessions.created_at + ?5 > ?3
RETURNING {", ".join(column.name for column in _COLUMNS)}
"""  # noqa: S608  # only the numbers of parameters and names of columns are put in


def _of_sqlite(values: Sequence[Any]) -> dict[str, Any]:
    """A row as Postgres would give it."""
    row = dict(zip((column.name for column in _COLUMNS), values, strict=True))
    for name in ("id", "user_id"):
        row[name] = UUID(hex=row[name])
    for name in ("created_at", "rotated_at", "idle_expires_at", "absolute_expires_at"):
        row[name] = moment(row[name])
    return row


def live_of(user_id: UUID) -> Select[UUID]:
    """The live sessions of a user. By id, so that transactions that end several lock them in the same order."""
    return select(Session.id).where(Session.user_id == user_id, Session.ended_at.is_(None)).order_by(Session.id)


@asynccontextmanager
async def ending_of(
    db: Database, revocations: Revocations, user_id: UUID, reason: Reason, *, but: frozenset[UUID] = frozenset()
) -> AsyncIterator[Ending]:
    """A transaction that ends a user's live sessions, but some, after the block.

    The block changes the user's row, where it has to change: that is the lock that sign-ins wait for.
    """
    async with db.look() as connection:
        live = set((await connection.scalars(live_of(user_id))).all())
    async with revocations.ending(live - but) as ending:
        yield ending
        which = live_of(user_id).where(Session.id.not_in(but)) if but else live_of(user_id)
        await _end(ending, _ends(db.now(), reason, Session.id.in_(which.with_for_update())))


def _ends(now: Any, reason: Reason, *which: Any) -> ReturningUpdate[UUID, str]:
    """The statement that ends some sessions, to be given to `_end`.

    The first reason stays: to end what has ended changes nothing, and a deadline that has passed was first. (The row is
    marked all the same: until their leeway is over, its access tokens would be good.)
    """
    late = Session.idle_expires_at <= now
    idle = Session.idle_expires_at < Session.absolute_expires_at
    return (
        update(Session)
        .where(*which, Session.ended_at.is_(None))
        .values(
            ended_at=case((late, Session.idle_expires_at), else_=now),
            end_reason=case((and_(late, idle), "idle_timeout"), (late, "absolute_timeout"), else_=reason),
        )
        .returning(Session.id, Session.end_reason)
    )


async def _end(
    ending: Ending, ends: ReturningUpdate[UUID, str], parameters: Mapping[str, Sequence[UUID]] | None = None
) -> None:
    for row in await ending.tx.execute(ends, parameters):
        ending.ended.add(row.id)
        ending.lived += row.end_reason not in {"idle_timeout", "absolute_timeout"}
