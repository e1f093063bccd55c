"""The row of a session, and the verdict on a refresh token that is presented. Pure: no I/O, no clock.

A session is one row for its whole life (guarantee 5). Its refresh tokens form a chain of generations. Each is derived
from the one before, so the row keeps only the digest of the newest one.

If the presented token is the newest one of a live session, one conditional UPDATE rotates it. The answer is derived and
not stored. If that statement changed nothing, `judge` decides. Its cases, in the order in which it decides, with the
token's generation n and the row's generation g:

1. The session is over: refused, with the reason.
2. n > g: REFUSED, and nothing changes. The database came from a backup.
3. n = g and the row's digest: AGAIN. Another transaction held the row, so the caller tries to rotate once more.
4. n = g and another digest, or the last generation of all: REFUSED, and nothing changes.
5. n < g - 1: REUSE. The session ends.
6. n = g - 1, and the row's token is not its successor, as far as this process can derive it: REFUSED. Nothing changes,
   because it is another branch of the chain.
7. n = g - 1, the row's token is its successor, and the window is open, or it is presented with the same retry key,
   whatever the window: RETRY. The same answer again.
8. n = g - 1, the row's token is its successor, the window is over, and there is no retry key or another one: REUSE. The
   session ends.

Generations decide whether a token is older, and never moments. A moment decides only whether the token before the
newest is a retry: the window begins at the rotation. If the successor is used, the window closes by itself, because the
row then has a higher generation. docs/architecture.md has the same cases with the same numbers.

A retry key is a secret of the client, sent with a refresh and remembered by that rotation. It opens case 7 alone, which
the successor's use closes. So a retry key never lets two clients follow one chain, and a token alone proves nothing.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, NamedTuple
from uuid import UUID

from ..errors import Reason
from ..policies import Policy
from ..tokens.refresh_tokens import LAST_GENERATION, RefreshKey, RefreshToken


@dataclass(frozen=True, slots=True)
class SessionRow:
    """The row of a session, as one statement read it at the database's `now`, under the policy in force."""

    id: UUID
    user_id: UUID
    role: str
    client_id: str
    token_digest: bytes = field(repr=False)
    key_number: int
    generation: int
    created_at: datetime
    rotated_at: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    retry_window: timedelta
    access_lifetime: timedelta
    ended_at: datetime | None
    end_reason: Reason | None
    now: datetime
    scope: str | None = None
    claims: str | None = None
    auth_time: datetime | None = None
    amr: str | None = None
    device_id: str | None = None
    device_name: str | None = None
    address: str | None = None
    user_agent: str | None = None
    retry_key_digest: bytes | None = field(default=None, repr=False)
    has_key: bool = True
    """Whether the key of its refresh token is not retired. A batch of look-ups does not read this."""
    key_retired_for: Reason | None = None
    """Why that key was retired, where the reason is the session's too."""
    key_retired_at: datetime | None = None
    """When that key was retired or will be. Read with `has_key`."""

    @classmethod
    def of(cls, row: Any, now: datetime, policy: Policy) -> SessionRow:
        """A row under the policy in force. A shorter policy holds at once, and a longer one lengthens nothing."""
        absolute = min(row["absolute_expires_at"], row["created_at"] + policy.absolute_lifetime)
        return cls(
            id=row["id"],
            user_id=row["user_id"],
            role=row["role"],
            client_id=row["client_id"],
            token_digest=row["token_digest"],
            key_number=row["key_number"],
            generation=row["generation"],
            created_at=row["created_at"],
            rotated_at=row["rotated_at"],
            idle_expires_at=min(row["idle_expires_at"], row["rotated_at"] + policy.idle_lifetime, absolute),
            absolute_expires_at=absolute,
            retry_window=min(row["retry_window"], policy.retry_window),
            access_lifetime=min(row["access_lifetime"], policy.access_lifetime),
            ended_at=row["ended_at"],
            end_reason=row["end_reason"],
            scope=row["scope"],
            claims=row["claims"],
            auth_time=row["auth_time"],
            amr=row["amr"],
            device_id=row["device_id"],
            device_name=row["device_name"],
            address=row["address"],
            user_agent=row["user_agent"],
            retry_key_digest=row["retry_key_digest"],
            now=now,
        )

    def over(self) -> Reason | None:
        """Why the session is over, or None while it lives."""
        if self.ended_at is not None:
            return self.end_reason
        by_key, deadline = (
            self.key_retired_for or "revoked_by_admin",
            min(self.idle_expires_at, self.absolute_expires_at),
        )
        if not self.has_key and self.key_retired_at is not None and self.key_retired_at <= deadline:
            return by_key  # the first of several ends is the reason
        if self.absolute_expires_at <= self.idle_expires_at and self.absolute_expires_at <= self.now:
            return "absolute_timeout"
        if self.idle_expires_at <= self.now:
            return "idle_timeout"
        # The retirement or deletion of its key ended the session.
        return None if self.has_key else by_key

    def over_since(self) -> datetime | None:
        """When the session ended. None while it lives, or if its key was deleted."""
        match self.over():
            case None:
                return None
            case _ if self.ended_at is not None:
                return self.ended_at
            case "absolute_timeout":
                return self.absolute_expires_at
            case "idle_timeout":
                return self.idle_expires_at
            case _:
                return self.key_retired_at


class Granted(NamedTuple):
    """The columns that a rotation returns for the answer, in this order and under the policy in force."""

    token_digest: bytes
    id: UUID
    user_id: UUID
    role: str
    client_id: str
    generation: int
    rotated_at: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    access_lifetime: timedelta
    scope: str | None
    claims: str | None
    auth_time: datetime | None
    address: str | None
    user_agent: str | None


class Verdict(Enum):
    """The meaning of a presented token that was not the newest of a live session."""

    RETRY = auto()
    REUSE = auto()
    REFUSED = auto()
    AGAIN = auto()


def same_retry_key(one: bytes | None, other: bytes | None) -> bool:
    """Whether two digests are of one retry key, or both of none. Takes the same time wherever they differ."""
    return hmac.compare_digest(one or b"", other or b"")


def judge(
    row: SessionRow, presented: RefreshToken, key: RefreshKey | None, retry_key_digest: bytes | None = None
) -> Verdict | Reason:
    """The state machine for a token that did not rotate. Pure.

    Args:
        row: the row, read after the rotation failed.
        presented: the token, whose tag was verified.
        key: the key that the row's token was derived under, or None if this process does not have it.
        retry_key_digest: SHA-256 of the retry key that the token was presented with, or None without one.

    Returns:
        A reason (case 1 of this file's docstring): the session is over.
        AGAIN (case 3): the token is the newest after all, and another transaction had locked the row.
        RETRY (case 7): the row's token is this one's successor, unused, and within the window or with the same retry
            key: the same answer again.
        REUSE (cases 5 and 8): an older generation that is no retry: the session must end.
        REFUSED (cases 2, 4 and 6): not of this chain, or not derivable: nothing changes.
    """
    over = row.over()
    if over is not None:
        return over
    if presented.generation > row.generation:
        return Verdict.REFUSED
    if presented.generation == row.generation:
        same = presented.digest == row.token_digest and row.generation < LAST_GENERATION
        return Verdict.AGAIN if same else Verdict.REFUSED
    if presented.generation < row.generation - 1:
        return Verdict.REUSE
    if key is None or presented.successor(key).digest != row.token_digest:
        return Verdict.REFUSED
    proven = retry_key_digest is not None and same_retry_key(retry_key_digest, row.retry_key_digest)
    # If a clock stepped, the age is below zero. A session must not end for that.
    return Verdict.RETRY if proven or row.now - row.rotated_at < row.retry_window else Verdict.REUSE
