"""The demands of a caller of /auth/verify: what the access token must have beside being valid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..errors import InsufficientScope, InsufficientUserAuthentication, InvalidRequest, Refusal
from ..tokens.access_tokens import AccessToken

_CLAIM = "claim."
_OTHERS = {"role", "scope", "max_age", "refresh"}
_LONGEST_AGE = timedelta(days=366)


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class Demands:
    """The demands. Each value of each parameter must hold, so that a second one never allows more than the first."""

    refresh: bool = False
    """Whether the caller asks for a refresh on the way."""
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    max_age: timedelta | None = None
    """How long ago the user may have proved to be the user (RFC 9470 section 3)."""
    claims: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, tuple[str, ...]]) -> Demands:
        """The demands in the query.

        Raises:
            InvalidRequest: a value is malformed, or a name is none of a demand. An operator who mistypes one learns it
                from the first request, and a mistyped demand lets no one through.
        """
        if not parameters:
            return _NONE
        if not all(name in _OTHERS or name.startswith(_CLAIM) for name in parameters):
            description = "The query may have role, scope, claim.NAME, max_age and refresh."
            raise InvalidRequest("an unknown demand in the query", description=description)
        refresh = set(parameters.get("refresh", ()))
        if not refresh <= {"true", "false"}:
            raise InvalidRequest("refresh is neither true nor false", description="refresh: must be true or false.")
        ages = parameters.get("max_age", ())
        if not all(age.isascii() and age.isdigit() and len(age) <= 8 for age in ages):  # noqa: PLR2004  # digits
            raise InvalidRequest("max_age is no number", description="max_age: must be whole seconds.")
        claims = [(name, value) for name, values in parameters.items() for value in values if name.startswith(_CLAIM)]
        return cls(
            refresh == {"true"},
            frozenset(parameters.get("role", ())),
            frozenset(" ".join(parameters.get("scope", ())).split()),
            min(timedelta(seconds=min(map(int, ages))), _LONGEST_AGE) if ages else None,
            tuple((name.removeprefix(_CLAIM), value) for name, value in claims),
        )

    def unmet(self, token: AccessToken, granted: list[str], clock: Callable[[], datetime]) -> Refusal | None:
        """The refusal of a valid token that does not meet a demand, or None.

        Args:
            token: the verified token.
            granted: its scopes.
            clock: the database's clock.
        """
        if self is _NONE:
            return None
        if any(wanted != token.role for wanted in self.roles):
            return InsufficientScope("another role")
        if not self.scopes.issubset(granted):
            return InsufficientScope("scope not granted")
        if not all(name in token.claims and _has(token.claims[name], value) for name, value in self.claims):
            return InsufficientScope("another claim")
        if self.max_age is not None:
            auth_time = token.claims.get("auth_time")
            if type(auth_time) is not int or clock().timestamp() - auth_time > self.max_age.total_seconds():
                return InsufficientUserAuthentication("signed in too long ago", self.max_age)
        return None


_NONE = Demands()


def _has(claim: Any, value: str) -> bool:
    """Whether a claim has this value: a string as it stands, another scalar in JSON, or an array with one of them."""
    if isinstance(claim, str):
        return claim == value
    if isinstance(claim, list):
        return any(_has(element, value) for element in claim if not isinstance(element, list))
    return not isinstance(claim, dict) and json.dumps(claim) == value
