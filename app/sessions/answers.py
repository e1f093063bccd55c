"""The answer to a sign-in or refresh, made from a session's row and its refresh token."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from ..errors import InvalidGrant
from ..policies import Policies, jittered
from ..tokens.access_tokens import AccessTokens
from ..tokens.cookies import Mode
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import RefreshToken
from .rows import Granted, SessionRow


@dataclass(slots=True, unsafe_hash=True)  # not frozen: to make one takes a tenth of the time, and nobody changes one
class Tokens:
    """The answer to a sign-in or refresh, with moments. `body` makes durations of them."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    session_id: UUID
    now: datetime
    access_expires_at: datetime
    refresh_expires_at: datetime
    session_expires_at: datetime
    scope: str | None = None
    """The scopes of the access token (RFC 6749 section 5.1)."""
    address: str | None = None
    """The address and the user agent that the session's row has, for `Moves`."""
    user_agent: str | None = None
    password_change_required: bool = False
    """Whether the password that was proved for this answer is one that Keyturn made."""

    def body(self, mode: Mode = "bearer") -> dict[str, str | int]:
        """The members of the answer (RFC 6749 section 5.1), and its deadlines. Durations are whole seconds.

        A token that travels in a cookie is left out, because a script could read it here.
        """
        body: dict[str, str | int] = {
            "access_token": self.access_token,
            "token_type": "Bearer",
            "expires_in": whole_seconds(self.access_expires_at - self.now),
            "refresh_token": self.refresh_token,
            "refresh_expires_in": whole_seconds(self.refresh_expires_at - self.now),
            "session_id": str(self.session_id),
            "session_expires_in": whole_seconds(self.session_expires_at - self.now),
        }
        if self.scope:
            body["scope"] = self.scope
        if self.password_change_required:
            body["password_change_required"] = True
        if mode != "bearer":
            del body["refresh_token"]
        if mode == "cookie":
            del body["access_token"]
        return body


def whole_seconds(duration: timedelta) -> int:
    """The whole seconds of a duration, never below zero."""
    return 0 if duration.days < 0 else duration.days * 86_400 + duration.seconds


class Answers:
    """Makes the answers. The same row and refresh token always give the same answer (guarantee 1)."""

    def __init__(self, access_tokens: AccessTokens, keys: Keys, policies: Policies) -> None:
        """The policy in force has the jitter; the lifetimes come from the row, which it has cut."""
        self._access_tokens = access_tokens
        self._keys = keys
        self._policies = policies

    def tokens(
        self,
        row: Granted | SessionRow,
        refresh_token: RefreshToken,
        now: datetime,
        scopes: frozenset[str] | None = None,
    ) -> Tokens:
        """The tokens of a session's newest generation.

        The refresh key may have been retired while the database worked. The access key that signs now may be a new one,
        which vouches for no session that is over. So both are judged by one state of the key set.

        Args:
            row: the session.
            refresh_token: its newest one.
            now: a moment of the database's clock. Durations count from it.
            scopes: the scopes of the access token, all granted to the session. None: all that were granted.

        Raises:
            InvalidGrant: the key of the refresh token is retired.
            TemporarilyUnavailable: this process has no key set in force.
        """
        if reason := self._keys.retired(refresh_token.key.number):
            raise InvalidGrant("retired refresh key", reason=reason).about(row.id, row.user_id, row.client_id)
        jitter = self._policies.in_force.access_jitter
        scope = row.scope if scopes is None else " ".join(sorted(scopes))
        access_token, access_expires_at = self._access_tokens.sign(
            subject=row.user_id,
            session_id=row.id,
            generation=row.generation,
            role=row.role,
            client_id=row.client_id,
            issued_at=row.rotated_at,
            session_expires_at=row.absolute_expires_at,
            auth_time=row.auth_time,
            scope=scope,
            claims=row.claims,
            lifetime=jittered(row.access_lifetime, jitter, row.id, row.generation),
        )
        return Tokens(
            access_token,
            refresh_token.text,
            row.id,
            max(now, row.rotated_at),
            access_expires_at,
            row.idle_expires_at,
            row.absolute_expires_at,
            scope,
            row.address,
            row.user_agent,
        )
