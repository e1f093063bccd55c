"""The mapping of an issuer's claims: the role and the claims that they give a user here. Pure: no I/O, no clock.

The issuer's configuration names each of them. A role or permission of the issuer's that has the name of one of ours,
such as `admin`, means nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest
from ..users.claims import checked
from .external_token import ExternalToken

_SOURCES = ("roles", "permissions")


def role_of(token: ExternalToken) -> str:
    """The role here: that of the first line of the issuer's table which a role or permission of the token meets."""
    held: set[str] = set()
    for name in _SOURCES:
        values = token.claims.get(name)
        held.update(value for value in (values if isinstance(values, list) else [values]) if isinstance(value, str))
    issuer = token.by.issuer
    return next((role for theirs, role in issuer.roles.items() if theirs in held), issuer.default_role)


def claims_of(token: ExternalToken) -> Mapping[str, Any]:
    """The claims here: those of the issuer's table that the token has.

    A claim that the rules of `app/users/claims.py` refuse is left out, with those before it in place: no value of the
    issuer's may keep its user from signing in.
    """
    mapped: dict[str, Any] = {}
    for theirs, ours in token.by.issuer.claims.items():
        if token.claims.get(theirs) is None:
            continue
        more = {**mapped, ours: token.claims[theirs]}
        try:
            checked(more)
        except InvalidRequest:
            continue
        mapped = more
    return mapped
