"""The policy of sessions: how long they and their tokens live, and the bounds of a sign-in.

The settings give the first values and the ceiling. A row of the table `policies` may set stricter ones while Keyturn
runs. Each process keeps the policy in force in memory, and learns of a change by the pulse.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self

from .settings import Settings


@dataclass(frozen=True, slots=True)
class Policy:
    """What a session begins with, and what holds for it while it lives."""

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
    reauthentication_age: timedelta = timedelta(minutes=15)
    """How long ago a user may have proved the password, for an act that needs a fresh sign-in."""
    mode: Literal["bearer", "cookie", "split"] = "bearer"
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
            reauthentication_age=settings.reauthentication_age,
            mode=settings.login_mode,
            remember=settings.remember,
            scopes=frozenset(settings.scopes.split()),
        )


class Policies:
    """The policy in force in this process."""

    def __init__(self, first: Policy) -> None:
        self.in_force = first
