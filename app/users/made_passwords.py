"""Passwords that Keyturn makes: for the first administrator, for a new user, and in the place of a lost one.

Such a password is good for `LIFETIME` or until its user changes it, and never longer (ASVS 5.0 6.4.1). For it
has been on a screen, and in the hands of the person who asked for it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

LIFETIME = timedelta(hours=24)
"""How long a password that Keyturn made is good, unless its user changes it before."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The outcome of a reset. Keyturn keeps only the hash, so the password is shown this once."""

    password: str = field(repr=False)
    ended: int
    """How many sessions of the user the reset ended."""


def make() -> str:
    """A new random password of 120 bits: 20 characters."""
    return secrets.token_urlsafe(15)


def has_run_out(expires_at: datetime | None, now: datetime) -> bool:
    """Whether a password has run out. `expires_at` is None if a person chose the password, which never runs out."""
    return expires_at is not None and expires_at <= now
