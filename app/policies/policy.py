"""A policy: how long sessions and their tokens live, and the bounds of a sign-in. Pure: no I/O, no clock.

The settings give the first values and the ceiling. A row of the table `policies` may set stricter ones while Keyturn
runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Literal, Self
from uuid import UUID

from ..settings import Settings

Mode = Literal["bearer", "cookie", "split"]
"""Where the tokens of a session travel: see `tokens.cookies`."""

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Policy:
    """The durations and bounds that a session begins with, and that hold for it while it lives."""

    idle_lifetime: timedelta
    """How long a session lives without a refresh."""
    absolute_lifetime: timedelta
    """How long a session lives in any case."""
    retry_window: timedelta
    """How long after a rotation the refresh token that was replaced still gets the same answer."""
    access_lifetime: timedelta
    """How long an access token lives."""
    access_jitter: timedelta = timedelta(0)
    """By how much an access token may live shorter, so that clients do not refresh at the same time."""
    session_limit: int | None = None
    """How many live sessions a user may have. None: any number."""
    password_length: int = 15
    """How many characters a new password must have."""
    reauthentication_age: timedelta = timedelta(minutes=15)
    """How long ago a user may have proved the password, for an act that needs a fresh sign-in."""
    mode: Mode = "bearer"
    """Where the tokens of a sign-in travel that names no mode."""
    remember: bool = True
    """Whether cookies outlive the browser session, for a sign-in that does not say."""
    scopes: frozenset[str] = frozenset()
    """The scopes that a sign-in may ask for. One that asks for none gets all."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The policy of the settings, which holds where the table has no value."""
        return cls(
            idle_lifetime=settings.refresh_token_lifetime,
            absolute_lifetime=settings.session_lifetime,
            retry_window=settings.retry_window,
            access_lifetime=settings.access_token_lifetime,
            access_jitter=settings.access_token_jitter,
            session_limit=settings.session_limit,
            password_length=settings.password_length,
            reauthentication_age=settings.reauthentication_age,
            mode=settings.login_mode,
            remember=settings.remember,
            scopes=frozenset(settings.scopes.split()),
        )


def jittered(lifetime: timedelta, jitter: timedelta, session_id: UUID, generation: int) -> timedelta:
    """The lifetime of one access token: shorter than `lifetime` by 0 to `jitter`, and never longer.

    Session and generation decide, by a hash and not by chance. So a retry gets the same token again (guarantee 1), and
    the tokens of one session differ from each other. Nobody gains by knowing the lifetime, as the token says it.

    Args:
        lifetime: the lifetime of the session's access tokens under the policy in force.
        jitter: by how much it may be shorter; a third of it at most. The lifetime may be that of an older, shorter row.
        session_id: the session.
        generation: the generation of its refresh token.
    """
    most = min(jitter // _SECOND, lifetime // _SECOND // 3)
    if most <= 0:
        return lifetime
    digest = sha256(b"keyturn jitter v1" + session_id.bytes + generation.to_bytes(8)).digest()
    return lifetime - int.from_bytes(digest[:8]) % (most + 1) * _SECOND
