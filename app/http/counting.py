"""Counting requests: how long each took, by what was asked for and the class of its answer's status, and refusals."""

from __future__ import annotations

from ..metrics import DURATION, REFUSALS, EndpointWord, StatusWord
from .request import Request

_WORDS: dict[str, EndpointWord] = {
    "/auth/refresh": "refresh",
    "/auth/verify": "verify",
    "/auth/login": "login",
    "/auth/logout": "logout",
    "/auth/exchange": "exchange",
    "/auth/register": "register",
    "/auth/password": "password",
    "/auth/reauthenticate": "reauthenticate",
    "/auth/me": "me",
    "/auth/sessions": "sessions",
    "/auth/identities": "identities",
    "/healthz": "health",
    "/readyz": "health",
    "/metrics": "health",
}
_BELOW: tuple[tuple[str, EndpointWord], ...] = (
    ("/auth/sessions/", "sessions"),
    ("/auth/identities/", "identities"),
    ("/auth/verify/", "verify"),
    ("/auth/verify;", "verify"),
    ("/admin/", "admin"),
    ("/federation/", "federation"),
    ("/.well-known/", "well_known"),
)
_DONE = frozenset({200, 204})
_CLASSES: tuple[StatusWord, ...] = ("none", "none", "2xx", "3xx", "4xx", "5xx")

_GOOD = {path: DURATION.at((word, "2xx")) for path, word in _WORDS.items()}
"""Most requests: their series are found by one look-up."""


def count(request: Request, status: int | None, seconds: float) -> None:
    """Counts a request.

    Args:
        request: the request.
        status: the status of its answer, or None if no answer was sent.
        seconds: its duration.
    """
    if status in _DONE and request.method != "OPTIONS" and (series := _GOOD.get(request.path)) is not None:
        series.observe(seconds)
        return
    word = _word(request.path)
    if request.method == "OPTIONS" and word != "verify":
        word = "other"  # a preflight takes no time, and would hide how long its endpoint takes
    DURATION.observe((word, _CLASSES[(status or 0) // 100]), seconds)
    if request.refusal is not None:
        REFUSALS.count((word, request.refusal.outcome))


def _word(path: str) -> EndpointWord:
    word = _WORDS.get(path)
    if word is None:
        return next((below for beginning, below in _BELOW if path.startswith(beginning)), "other")
    return word
