"""Upstream logout: what an issuer says has ended there ends here too, before the issuer is answered.

Two messages say so: a logout token (OpenID Connect Back-Channel Logout 1.0), and Scalekit's webhook. Both take three
steps, each committed before the next begins:

1. Remember that the upstream session or subject was logged out.
2. Look for the local sessions that came from it.
3. End them, and take the message, in one transaction.

No exchange slips through. It commits its session, and looks afterwards whether the upstream session is remembered as
logged out. If that look came before step 1, the session was there before step 2 and is found. If it came after step 1,
the exchange finds the row, and ends its session itself.

A message counts once. If the process dies before step 3 is committed, the message was not taken: the same message again
finds the sessions and ends them. If step 3 was committed, it finds its id taken, and changes nothing: a stolen logout
token of a subject must not end the sessions of a later sign-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import InvalidRequest, NotFound, UnacceptableToken
from ..sessions.ending import Ending
from ..settings import LEEWAY
from ..storage.database import Database
from ..storage.tables import Session
from ..storage.tasks import own_task
from .external_tokens import ExternalTokens
from .issuer import Configured
from .issuers import Issuers
from .taking import TakenError, name_of, remember, take, taken
from .upstream_sessions import live_of
from .webhook_signatures import WINDOW, verified_id

Effect = Literal["ended", "repeated", "ignored"]
"""The effect of a webhook. "ended" also where no session was left to end."""

_LOGOUT = "user.logout"  # the only event of Scalekit's about the end of a session
_LONGEST = 255  # characters of an id: the most that the columns take


class UpstreamLogout:
    """Ends local sessions because their issuer says so. The reason is `upstream_logout`, the actor the issuer."""

    def __init__(self, db: Database, issuers: Issuers, external_tokens: ExternalTokens, ending: Ending) -> None:
        self._db = db
        self._issuers = issuers
        self._external_tokens = external_tokens
        self._ending = ending

    async def by_logout_token(self, name: str, text: str, *, by: Actor) -> int:
        """Ends the sessions that a logout token names. Returns how many ended.

        Args:
            name: the name of the issuer's configuration.
            text: the logout token.
            by: the request. The actor of the events is the issuer.

        Raises:
            NotFound: there is no issuer of this name.
            InvalidRequest: the token is not acceptable, or was taken before. Nothing has changed.
            TemporarilyUnavailable: its keys or the database are away. The issuer may send the token again.
        """
        of = self._issuers.named(name)
        try:
            token = await self._external_tokens.verify_logout_token(text, of)
        except UnacceptableToken as e:
            cause = f"upstream logout: {e.cause}"  # the log would redact a value after the word "token"
            raise InvalidRequest(cause, description="The logout token is not acceptable.") from None
        taking = name_of("logout", of.issuer.issuer, token.jti), token.good_until
        try:
            return await self._log_out(
                of, taking, upstream_id=token.upstream_id, subject=token.subject, moment=token.issued_at, by=by
            )
        except TakenError:
            raise InvalidRequest(
                "upstream logout: taken",
                description="The logout token came before, and its sessions have ended.",
            ) from None

    async def by_webhook(
        self, name: str, fields: Mapping[str, str], raw: bytes, content: object, *, by: Actor
    ) -> tuple[Effect, int]:
        """Acts on a webhook. Returns its effect, and how many sessions ended.

        A repeated webhook is a success: its sender repeats whatever was not answered in time, and would otherwise
        report a logout as failed that has happened. An unknown event is a success too, so that the sender may add some.

        Args:
            name: the name of the issuer's configuration.
            fields: the header fields by their names in lower case.
            raw: the body as it came, which is signed.
            content: the JSON value in it.
            by: the request. The actor of the events is the issuer.

        Raises:
            NotFound: there is no issuer of this name, or it has no secret for webhooks.
            InvalidRequest: signature, moment or id is not acceptable, or the event lacks a member.
            TemporarilyUnavailable: the database is away. The sender may send the webhook again.
        """
        of = self._issuers.named(name)
        secret = of.secrets.webhook_secret
        if secret is None:
            raise NotFound("no webhook secret")
        webhook_id = verified_id(secret.get_secret_value(), fields, raw, self._db.clock())
        if not isinstance(content, dict) or not isinstance(content.get("type"), str):
            raise InvalidRequest("webhook: no event", description="type: is missing.")
        if content["type"] != _LOGOUT or not _counts(content, of):
            return "ignored", 0
        # Its moment may lie up to `WINDOW` ahead of now, and is good for as long again.
        taking = name_of("webhook", of.issuer.issuer, webhook_id), self._db.clock() + 2 * WINDOW
        try:
            # The type counts, and not the status in it: Scalekit's own example still has an active one.
            return "ended", await self._log_out(of, taking, upstream_id=_upstream_id(content), by=by)
        except TakenError:
            return "repeated", 0

    @own_task
    async def _log_out(
        self,
        of: Configured,
        taking: tuple[bytes, datetime],
        *,
        upstream_id: str | None,
        subject: str | None = None,
        moment: datetime | None = None,
        by: Actor,
    ) -> int:
        """The three steps. Returns how many sessions ended.

        Args:
            of: the issuer.
            taking: the name of the message, and the moment from which it is refused because of its age.
            upstream_id: the issuer's session. It goes before the subject: the issuer means that one session
                (Back-Channel Logout section 2.4).
            subject: the user, all of whose sessions are meant where no session is named.
            moment: the moment of the logout by the issuer's clock, by which exchanges judge a subject's tokens.
            by: the request.

        Raises:
            TakenError: the message was taken before.
        """
        digest, until = taking
        name = name_of("subject", of.issuer.issuer, subject or "")
        if upstream_id is not None:
            name = name_of("session", of.issuer.issuer, upstream_id)
        async with self._db.begin() as tx:
            now = await self._now(tx)
            if await taken(tx, digest) is not None:
                raise TakenError
            # No token of the session or subject that exists now is good any longer. Leeway for its `iat` and its `exp`.
            await remember(tx, name, moment or now, now + of.issuer.longest + 2 * LEEWAY)
        live = live_of(of, upstream_id=upstream_id, subject=subject)
        async with self._db.look(hot_path=False) as connection:
            ids = set((await connection.scalars(live)).all())

        async def taking_it(tx: AsyncConnection) -> None:
            await take(tx, digest, await self._now(tx), until)

        if not ids:
            async with self._db.begin() as tx:
                await taking_it(tx)
            return 0
        which = Session.id.in_(live.with_for_update(of=Session))
        upstream = by._replace(kind="upstream", id=of.name)
        return len(await self._ending.end_where(ids, "upstream_logout", which, by=upstream, also=taking_it))

    async def _now(self, tx: AsyncConnection) -> datetime:
        now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
        return now


def _counts(event: Mapping[str, Any], of: Configured) -> bool:
    """Whether an event of this organization counts. One without an organization does."""
    organization = event.get("organization_id")
    allowed = of.issuer.organizations
    return of.issuer.webhook_organizations or not allowed or organization is None or organization in allowed


def _upstream_id(event: Mapping[str, Any]) -> str:
    """The session that a logout is about, of characters that both databases can hold."""
    data = event.get("data")
    session = data.get("user_session") if isinstance(data, dict) else None
    upstream_id = session.get("session_id") if isinstance(session, dict) else None
    if not isinstance(upstream_id, str) or not upstream_id.isprintable() or not 1 <= len(upstream_id) <= _LONGEST:
        raise InvalidRequest("webhook: no session", description="data.user_session.session_id: is not valid.")
    return upstream_id
