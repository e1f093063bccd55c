"""The policy of sessions: how long they and their tokens live."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from .settings import Settings


@dataclass(frozen=True, slots=True)
class Policy:
    """The four durations that a session begins with."""

    idle_lifetime: timedelta
    """How long a session lives without a refresh."""
    absolute_lifetime: timedelta
    """How long a session lives in any case."""
    retry_window: timedelta
    """How long after a rotation the refresh token that was replaced still gets the same answer."""
    access_lifetime: timedelta
    """How long an access token lives."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The policy of the settings, which holds for every client."""
        return cls(
            idle_lifetime=settings.refresh_token_lifetime,
            absolute_lifetime=settings.session_lifetime,
            retry_window=settings.retry_window,
            access_lifetime=settings.access_token_lifetime,
        )
