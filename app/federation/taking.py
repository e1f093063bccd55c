"""Taking: an external token, logout token or webhook counts once, on whichever instance it arrives first.

One row remembers each for as long as it could be good. Its primary key decides between two transactions: the second
waits for the first, and then finds the row.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..settings_sessions import LONGEST_RETRY_WINDOW
from ..storage.tables import Moment, TakenToken
from .external_token import ExternalToken

Use = Literal["exchange", "logout", "webhook", "session", "subject"]
"""The use of a digest: a token, logout token or webhook that was taken; an upstream session or subject logged out."""

_SLACK = LONGEST_RETRY_WINDOW + timedelta(seconds=60)
"""How much longer each row is kept: for a late retry, and because a process only estimates the database's clock."""


class TakenError(Exception):
    """The token was taken before."""


def name_of(use: Use, issuer: str, which: str) -> bytes:
    """The digest under which something is remembered. No two uses or issuers have one in common.

    Args:
        use: what is remembered.
        issuer: the first `iss` of the issuer, as an identity has it: another name here makes no token count again.
        which: the hexadecimal digest or `jti` of a token, the id of a webhook, or an upstream session or subject.
    """
    return sha256(json.dumps([use, issuer, which]).encode()).digest()


def name_of_token(token: ExternalToken) -> bytes:
    """The digest under which an external token is taken."""
    return name_of("exchange", token.by.issuer.issuer, token.digest.hex())


async def take(
    tx: AsyncConnection,
    digest: bytes,
    now: datetime,
    good_until: datetime,
    *,
    session_id: UUID | None = None,
) -> None:
    """Remembers a token in the transaction of the act for which it is taken.

    Args:
        tx: the transaction.
        digest: the digest of the token, logout token or webhook.
        now: the database's clock.
        good_until: the moment from which it is refused because of its age.
        session_id: the session that began by it, if the same answer may be asked for again.

    Raises:
        TakenError: it was taken before. The transaction can't go on.
    """
    expires_at = good_until + _SLACK
    row = {"digest": digest, "session_id": session_id, "taken_at": now, "expires_at": expires_at}
    try:
        await tx.execute(insert(TakenToken).values(row))
    except IntegrityError as e:
        raise TakenError from e


async def remember(tx: AsyncConnection, digest: bytes, moment: datetime, good_until: datetime) -> None:
    """Remembers an upstream session or subject that was logged out, or an ID token that was used beside another token.

    A repeated call keeps the later moments. No such token is good after `good_until`. While the row is there, an
    exchange refuses the ID token, a token of the session, and one of the subject that was issued at `moment` or before.
    """
    on_postgres = tx.dialect.name == "postgresql"
    expires_at = good_until + _SLACK
    row = {"digest": digest, "session_id": None, "taken_at": moment, "expires_at": expires_at}
    new = (postgresql.insert(TakenToken) if on_postgres else sqlite.insert(TakenToken)).values(row)
    later = func.greatest if on_postgres else func.max
    kept = {
        "taken_at": later(TakenToken.taken_at, new.excluded.taken_at, type_=Moment()),
        "expires_at": later(TakenToken.expires_at, new.excluded.expires_at, type_=Moment()),
    }
    await tx.execute(new.on_conflict_do_update(index_elements=[TakenToken.digest], set_=kept))


async def taken(connection: AsyncConnection, digest: bytes) -> Any | None:
    """The row of a token that was taken: session and moments. None if it was not."""
    found = await connection.execute(select(TakenToken.__table__).where(TakenToken.digest == digest))
    return found.one_or_none()
