"""The settings about sessions: lifetimes, the first values and ceilings of policies, and registration."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field

from .settings_values import Seconds, checked_scopes
from .settings_web import WebSettings

LONGEST_ACCESS_TOKEN = timedelta(hours=1)
"""No setting allows a longer access token, and no verifier accepts one. Revocations are kept for this long, whatever
the setting. So during a rolling change, no instance forgets a revocation while another one's tokens are still valid."""

LONGEST_RETRY_WINDOW = timedelta(seconds=300)
"""No setting allows a longer retry window."""


class SessionSettings(WebSettings):
    """The settings about sessions. A policy may be stricter than the settings, and never laxer (docs/policies.md)."""

    access_token_lifetime: Annotated[
        Seconds,
        Field(ge=timedelta(seconds=2), le=LONGEST_ACCESS_TOKEN, description="Seconds an access token lives."),
    ] = timedelta(seconds=900)
    access_token_jitter: Annotated[
        Seconds,
        Field(
            ge=timedelta(0),
            le=timedelta(seconds=1200),
            description="Seconds by which an access token may live shorter, so that clients do not refresh together. "
            "At most a third of ACCESS_TOKEN_LIFETIME; 0: off.",
        ),
    ] = timedelta(0)
    refresh_token_lifetime: Annotated[
        Seconds,
        Field(ge=timedelta(seconds=60), le=timedelta(days=366), description="Seconds a session may lie idle."),
    ] = timedelta(days=7)
    session_lifetime: Annotated[
        Seconds,
        Field(ge=timedelta(seconds=60), le=timedelta(days=3660), description="Seconds a session lives at most."),
    ] = timedelta(days=30)
    retry_window: Annotated[
        Seconds,
        Field(
            ge=timedelta(0),
            le=LONGEST_RETRY_WINDOW,
            description="Seconds after a rotation in which the same refresh token gets the same answer again, until "
            "its successor is used. At most a third of ACCESS_TOKEN_LIFETIME; 0: strict single use.",
        ),
    ] = timedelta(seconds=60)
    session_limit: Annotated[
        int | None,
        Field(ge=1, le=1000, description="Live sessions of a user: the oldest ends for a new one. Unset: any number."),
    ] = None
    reauthentication_age: Annotated[
        Seconds,
        Field(
            ge=timedelta(seconds=60),
            le=timedelta(days=1),
            description="Seconds after which administration asks for the password again.",
        ),
    ] = timedelta(seconds=900)
    scopes: Annotated[
        str,
        BeforeValidator(checked_scopes),
        Field(description="Scopes, separated by blanks, that a sign-in may ask for (RFC 6749 section 3.3)."),
    ] = ""
    registration: Annotated[bool, Field(description="Whether anyone may register.")] = False
    registration_tells: Annotated[
        bool,
        Field(description="Whether a registration says that the address is taken (409). false: 202 in both cases."),
    ] = True

    def session_rules(self) -> Iterator[tuple[bool, str]]:
        """For each rule on these settings: whether it is broken, and its message."""
        yield (
            self.retry_window * 3 > self.access_token_lifetime,
            "KEYTURN_RETRY_WINDOW must be at most a third of KEYTURN_ACCESS_TOKEN_LIFETIME",
        )
        yield (
            self.access_token_jitter * 3 > self.access_token_lifetime,
            "KEYTURN_ACCESS_TOKEN_JITTER must be at most a third of KEYTURN_ACCESS_TOKEN_LIFETIME",
        )
        yield (
            self.refresh_token_lifetime < self.access_token_lifetime,
            "KEYTURN_REFRESH_TOKEN_LIFETIME must not be below KEYTURN_ACCESS_TOKEN_LIFETIME",
        )
        yield (
            self.session_lifetime < self.refresh_token_lifetime,
            "KEYTURN_SESSION_LIFETIME must not be below KEYTURN_REFRESH_TOKEN_LIFETIME",
        )
