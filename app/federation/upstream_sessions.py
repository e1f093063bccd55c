"""Upstream sessions: which sign-in at an issuer each local session came from, and whether that one was logged out.

A logout of an upstream session or subject may arrive before, while or after one of its tokens is exchanged. No lock
stands between the two, and no session slips through:

1. The logout commits its row (`name_of("session", …)` or `name_of("subject", …)`), and then looks for sessions.
2. The exchange commits its session, and then looks for such a row (`logged_out`).
3. If the exchange does not see the row, the row was committed after that look, and so after the session. Then the
   logout, which looks later still, sees the session and ends it.

If a process dies between the two steps of the exchange, nobody has the tokens of its session. A client that exchanges
the token again gets them only after another look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..storage.database import Database
from ..storage.tables import Identity, Session, TakenToken, UpstreamSession
from ..storage.tasks import own_task
from .external_token import ExternalToken
from .issuer import Configured
from .taking import name_of


class UpstreamSessions:
    """Reads the upstream side of sessions, for answers to their users and to administrators."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @own_task
    async def of(self, session_ids: Collection[UUID]) -> Mapping[UUID, Any]:
        """The rows of these sessions, by their ids. A session that began by a password has none.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        query = select(UpstreamSession.__table__).where(self._db.among(UpstreamSession.session_id))
        async with self._db.look(hot_path=False) as connection:
            rows = await connection.execute(query, {"ids": list(session_ids)})
            return {row.session_id: row for row in rows}


async def note(tx: AsyncConnection, session_id: UUID, token: ExternalToken, identity_id: UUID, now: datetime) -> None:
    """Remembers where a session came from, in the transaction that inserts it."""
    row = {
        "session_id": session_id,
        "issuer_name": token.by.name,
        "identity_id": identity_id,
        "upstream_id": token.upstream_id,
        "organization": token.organization,
        "created_at": now,
    }
    await tx.execute(insert(UpstreamSession).values(row))


def live_of(of: Configured, *, upstream_id: str | None = None, subject: str | None = None) -> Select[UUID]:
    """The statement that reads the sessions of one upstream session, or else of one subject, that no one has ended.

    Some may be over by a deadline. The transaction that ends them marks these with it. However many there are, no
    statement has to name them one by one.

    Args:
        of: the issuer.
        upstream_id: the issuer's own session (`sid`). Where it is given, the subject has no part in this.
        subject: the subject. Its sessions are found through its identity.
    """
    found = select(Session.id).join(UpstreamSession, UpstreamSession.session_id == Session.id)
    if upstream_id is not None:
        found = found.where(UpstreamSession.issuer_name == of.name, UpstreamSession.upstream_id == upstream_id)
    else:
        found = found.join(Identity, Identity.id == UpstreamSession.identity_id)
        found = found.where(Identity.issuer == of.issuer.issuer, Identity.subject == subject)
    return found.where(Session.end_reason.is_(None)).order_by(Session.id)


async def logged_out(connection: AsyncConnection, token: ExternalToken) -> bool:
    """Whether the upstream session of a token was logged out, or its subject after the token was issued.

    A subject may sign in again after a logout, and a session may not. So a token of a later moment counts again.
    """
    subject = name_of("subject", token.by.issuer.issuer, token.subject)
    names = [subject]
    if token.upstream_id is not None:
        names.append(name_of("session", token.by.issuer.issuer, token.upstream_id))
    rows = await connection.execute(select(TakenToken.digest, TakenToken.taken_at).where(TakenToken.digest.in_(names)))
    return any(row.digest != subject or token.issued_at <= row.taken_at for row in rows)
