"""The outcome of a refused request in one word, for metrics."""

from __future__ import annotations

from typing import Literal

Outcome = Literal[
    "malformed",
    "missing",
    "junk",
    "unknown",
    "expired",
    "ended",
    "reuse",
    "refused",
    "denied",
    "not_found",
    "conflict",
    "limited",
    "unavailable",
    "failed",
]
"""`missing`: no credential. `junk`: a token that needed no I/O. `unknown`: a genuine token that the database does not
know. `refused`: any other credential that is not good. `denied`: a good one that does not allow this."""

OUTCOMES: dict[str, Outcome] = {
    "invalid_request": "malformed",
    "invalid_grant": "refused",
    "invalid_scope": "denied",
    "invalid_token": "junk",
    "insufficient_user_authentication": "denied",
    "access_denied": "denied",
    "cross_site": "denied",
    "insufficient_scope": "denied",
    "not_found": "not_found",
    "conflict": "conflict",
    "slow_down": "limited",
    "temporarily_unavailable": "unavailable",
    "server_error": "failed",
}
"""The outcome by the error code of the refusal, if neither its reason nor the place that raises it says another."""

EXPIRED = frozenset({"idle_timeout", "absolute_timeout", "token_expired"})
"""The reasons of sessions and tokens whose time was over. Any other reason is that of an end."""
