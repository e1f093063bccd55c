"""Exchange: a token of an issuer becomes a local session (RFC 8693), once.

Guarantee 1 holds for an exchange too. The first refresh token is derived from the external token and its caller, and
the session's row names the key. So as long as that refresh token is unused, the same caller gets the same answer again
within the retry window, and nothing has to be stored for it. This holds also where the external token runs out within
the window. Anybody else, and anybody later, is refused: a copy of the external token in a log or a browser's history
opens nothing.

Guarantee 6 holds as well. A row names the token by a digest of its content. The derivation takes a digest of its whole
text, with the signature, which no row has. So rows and refresh key together do not give the refresh token.

The row of `taken_tokens` is written in the transaction that inserts the session. So of two exchanges of one token, on
whichever instances, one rolls back with its session, and answers as a retry. `upstream_sessions` says why a logout at
the issuer misses no session that begins here.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Refusal, TemporarilyUnavailable, UnacceptableToken
from ..sessions.answers import Answers, Tokens
from ..sessions.ending import Ending
from ..sessions.lookup import Lookup
from ..sessions.start import Starting, Vouched
from ..sessions.turns import Turns
from ..settings_sessions import LONGEST_RETRY_WINDOW
from ..storage.database import Database
from ..storage.tasks import own_task
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import issue
from . import upstream_sessions
from .accounts import Accounts, Known
from .external_token import ExternalToken
from .external_tokens import ExternalTokens
from .identities import Identities, Linked
from .issuer import Kind
from .taking import TakenError, name_of_token, remember, take, taken

AbsoluteEnd = Callable[[ExternalToken], Awaitable[datetime | None]]
"""When the upstream session of a token ends in any case; None where the issuer does not say."""


class Sessions(NamedTuple):
    """The parts that start, read and end local sessions."""

    starting: Starting
    lookup: Lookup
    ending: Ending
    answers: Answers
    keys: Keys


class _Seen(NamedTuple):
    """The state of an external token in the database."""

    row: Any | None
    """The row of the token, if it was taken."""
    is_logged_out: bool
    """Whether its upstream session was logged out."""


def caller_of(client_id: str, retry_key: str | None, device_id: str | None, user_agent: str | None) -> bytes:
    """The digest of all that a caller says about itself: it tells a retry from somebody else with a copy of the token.

    Args:
        client_id: the client.
        retry_key: the `Idempotency-Key` of the request: a secret of the caller.
        device_id: the client's id of its device.
        user_agent: the client's name for itself.
    """
    return sha256(json.dumps([client_id, retry_key, device_id, user_agent]).encode()).digest()


class Exchange:
    """Exchanges external tokens for local ones, and links their identities."""

    def __init__(
        self,
        db: Database,
        external_tokens: ExternalTokens,
        identities: Identities,
        sessions: Sessions,
        absolute_end: AbsoluteEnd,
    ) -> None:
        """Makes the parts work together. `absolute_end` keeps a local session from outliving the upstream one."""
        self._db = db
        self._external_tokens = external_tokens
        self._accounts = Accounts(db)
        self._identities = identities
        self._sessions = sessions
        self._absolute_end = absolute_end
        self._turns = Turns()

    async def exchange(
        self,
        subject_token: str,
        kind: Kind | None,
        *,
        caller: bytes,
        by: Actor,
        user_agent: str | None = None,
        device_id: str | None = None,
        device_name: str | None = None,
        scope: frozenset[str] | None = None,
        id_token: str | None = None,
    ) -> Tokens:
        """The tokens of a new session for the user of an external token, or of the session that it began just before.

        Args:
            subject_token: the external token.
            kind: the kind that the caller says it is. None: any that the issuer's configuration allows.
            caller: what the caller says about itself, by `caller_of`.
            by: the actor. The session keeps its address.
            user_agent: the client's own name for itself, as for `Starting.start`.
            device_id: the client's name for its device, likewise.
            device_name: the name of the device, for people, likewise.
            scope: the scopes that the client asks for, likewise.
            id_token: the ID token of the same sign-in at the issuer. It adds what the token does not say: the address,
                when and how the user signed in. It is used up too, so the caller may keep it for a logout.

        Raises:
            UnacceptableToken: the token is not good, was taken, or its user or upstream session is shut out. Or the ID
                token is of another sign-in.
            InvalidGrant, InvalidScope: as `Starting.start`.
            TemporarilyUnavailable: the database or the issuer's keys are away, or too many wait with this token.
                This says nothing about the token.
        """
        try:
            token, kept = await self._verified(subject_token, kind, id_token)
        except UnacceptableToken as refusal:
            if refusal.cause not in {"expired", "too_old"}:
                raise
            # The token may have run out after its exchange. Then a retry is answered, and no session begins.
            token, _ = await self._verified(subject_token, kind, id_token, LONGEST_RETRY_WINDOW)
            if (again := await self._again(token, caller, by)) is None:
                raise
            return again
        async with self._turns.of(name_of_token(token)):
            if (again := await self._again(token, caller, by)) is not None:
                return again
            if kept is not None and (await self._look(kept)).row is None:  # a used one may have stood in a URL
                token = token.completed_by(kept)
            ends = await self._ends(token)
            known = await self._accounts.user_of(token, by=by)
            proof = self._proof(token, kept, caller, known, ends)
            try:
                tokens = await self._sessions.starting.start(
                    proof,
                    by=by._replace(kind="user", id=str(known.user_id)),
                    user_agent=user_agent,
                    device_id=device_id,
                    device_name=device_name,
                    scope=scope,
                )
            except TakenError:
                if (again := await self._again(token, caller, by)) is None:
                    raise TemporarilyUnavailable("the token was taken and forgotten") from None
                return again
            except Refusal as refusal:
                raise refusal.about(None, known.user_id) from None
        if (await self._look(token)).is_logged_out:
            await self._end(tokens.session_id, token, by)
            raise _logged_out(tokens.session_id, known.user_id)
        return tokens

    async def link(self, subject_token: str, kind: Kind | None, user_id: UUID, *, by: Actor) -> Linked:
        """Links the identity of an external token to a user who is signed in.

        Raises:
            UnacceptableToken: as `exchange`, except that this starts no session.
            NotFound, Conflict, TemporarilyUnavailable: as `Identities.link`.
        """
        token = await self._external_tokens.verify(subject_token, kind=kind)
        if (await self._look(token)).is_logged_out:
            raise _logged_out(None, user_id)
        await self._ends(token)
        return await self._identities.link(user_id, token, by=by)

    async def _verified(
        self, subject_token: str, kind: Kind | None, id_token: str | None, grace: timedelta = timedelta(0)
    ) -> tuple[ExternalToken, ExternalToken | None]:
        """The token, and the ID token, which is of the same issuer, subject and upstream session.

        Raises:
            UnacceptableToken: one of them is not good, or they are of two sign-ins.
            TemporarilyUnavailable: as `exchange`.
        """
        token = await self._external_tokens.verify(subject_token, kind=kind, grace=grace)
        if id_token is None:
            return token, None
        kept = await self._external_tokens.verify(id_token, kind="id_token", grace=grace)
        one, two = ((each.by.name, each.subject, each.upstream_id) for each in (token, kept))
        if one != two:
            raise UnacceptableToken("id_token_of_another")
        return token, kept

    async def _ends(self, token: ExternalToken) -> datetime | None:
        """When the upstream session of a token ends in any case, before anything is done with the token.

        Raises:
            UnacceptableToken: the upstream session is over: it must neither make a user nor give one a role.
        """
        ends = await self._absolute_end(token)
        if ends is not None and ends <= self._db.clock():
            raise UnacceptableToken("session_over", reason="absolute_timeout")
        return ends

    def _proof(
        self, token: ExternalToken, kept: ExternalToken | None, caller: bytes, known: Known, ends: datetime | None
    ) -> Vouched:
        """The proof for the new session. An ID token that is kept is used up: at a logout it stands in a URL."""

        async def note(tx: AsyncConnection, session_id: UUID, now: datetime) -> None:
            await take(tx, name_of_token(token), now, token.good_until, session_id=session_id)
            if kept is not None:
                # If it was exchanged before, its own row stays as it is: `issued_at` prolongs no retry window.
                await remember(tx, name_of_token(kept), kept.issued_at, kept.good_until)
            await self._accounts.used(tx, known, token, now)
            await upstream_sessions.note(tx, session_id, token, known.identity_id, now)

        return Vouched(
            known.user_id,
            token.text_digest + caller,
            note,
            auth_time=token.auth_time,
            amr=token.amr,
            absolute_expires_at=ends,
        )

    async def _again(self, token: ExternalToken, caller: bytes, by: Actor) -> Tokens | None:
        """The answer once more, if the token was taken by the same caller within the retry window. None: it was not.

        Raises:
            UnacceptableToken: somebody else took it, or it was long ago, or its session is used, over or logged out.
        """
        row, is_logged_out = await self._look(token)
        if is_logged_out:
            if row is not None and row.session_id is not None:
                # The process that started the session may have died before it looked.
                await self._end(row.session_id, token, by)
            raise _logged_out(row.session_id if row is not None else None)
        if row is None:
            return None
        refusal = UnacceptableToken("taken", session_id=row.session_id)
        session = None if row.session_id is None else await self._sessions.lookup.row(row.session_id)
        if session is None:
            raise refusal
        refusal = refusal.about(session.id, session.user_id, session.client_id)
        # The clock is the database's. If it stepped back, the age is below zero, and nobody must be refused for that.
        if session.now - row.taken_at >= session.retry_window:
            raise refusal
        over, key = session.over(), self._sessions.keys.refresh(session.key_number)
        if key is None and over is None:
            unknown = TemporarilyUnavailable("the refresh key of the session is not known here yet")
            raise unknown.about(session.id, session.user_id, session.client_id)
        if key is None or session.generation != 0:
            raise refusal
        # Another caller derives another token, and so does another signature of the same content.
        first = issue(key, session.id, token.text_digest + caller)
        if not hmac.compare_digest(first.digest, session.token_digest):
            raise refusal
        if over is not None:
            refusal.reason = over
            raise refusal
        return self._sessions.answers.tokens(session, first, session.now)

    @own_task
    async def _look(self, token: ExternalToken) -> _Seen:
        async with self._db.look(hot_path=False) as connection:
            row = await taken(connection, name_of_token(token))
            return _Seen(row, await upstream_sessions.logged_out(connection, token))

    async def _end(self, session_id: UUID, token: ExternalToken, by: Actor) -> None:
        upstream = by._replace(kind="upstream", id=token.by.name)
        await self._sessions.ending.end({session_id}, "upstream_logout", by=upstream)


def _logged_out(session_id: UUID | None, user_id: UUID | None = None) -> UnacceptableToken:
    return UnacceptableToken("logged_out", reason="upstream_logout", session_id=session_id, user_id=user_id)
