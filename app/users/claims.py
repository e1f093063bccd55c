"""Claims of an administrator's, which the access tokens of a user carry. Pure: no I/O, no clock.

Claims travel with each request, in header fields and in cookies of 4096 bytes. So their size is bounded. The names that
a standard has defined are reserved: a verifier may decide by them, and Keyturn alone answers for their values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InvalidRequest
from ..tokens.access_tokens import MOST_CLAIMS

MOST_MEMBERS = 32
"""Members of the object. `MOST_CLAIMS` bounds those of the objects within."""

MAX_DEPTH = 3
"""Levels of objects and arrays. The object of all claims is the first level."""

_LARGEST = 2**53 - 1  # beyond, readers that keep numbers as doubles see another number (RFC 8259 section 6)

_NAME = re.compile(r"[A-Za-z0-9_:./-]{1,64}", re.ASCII)

RESERVED = frozenset(
    name
    for names in (
        "iss sub aud exp nbf iat jti",  # RFC 7519 section 4.1
        "client_id scope auth_time acr amr roles groups entitlements",  # RFC 9068 section 2.2
        "cnf ath htm htu nonce",  # RFC 7800 section 3.1, RFC 9449 section 4.2
        "act may_act",  # RFC 8693 section 4
        "azp at_hash c_hash s_hash sid sub_jwk events",  # OpenID Connect Core and Back-Channel Logout
        "name given_name family_name middle_name nickname preferred_username profile picture website email",
        "email_verified gender birthdate zoneinfo locale phone_number phone_number_verified address updated_at",
        "_claim_names _claim_sources",  # OpenID Connect Core, aggregated and distributed claims
        "active username token_type token_introspection",  # RFC 7662 section 2.2, RFC 9701
        "role",  # Keyturn's own
    )
    for name in names.split()
)
"""Names that no administrator may set, in lower case."""


def checked(claims: Mapping[str, Any]) -> str | None:
    """The claims as compact JSON, for the rows of the user and of the user's sessions. None where there are none.

    Raises:
        InvalidRequest: they are too large or too deep, a name is reserved or malformed, or a value is not JSON. The
            refusal repeats nothing of them.
    """
    if len(claims) > MOST_MEMBERS:
        raise _refused(f"at most {MOST_MEMBERS} members")
    for value, depth in _values(claims, 1):
        if isinstance(value, dict | list) and depth > MAX_DEPTH:
            raise _refused(f"at most {MAX_DEPTH} levels")
        if not _is_plain(value):
            raise _refused("a number is too large for JSON, or a string has a lone surrogate")
        if isinstance(value, dict) and not all(isinstance(name, str) and _NAME.fullmatch(name) for name in value):
            raise _refused("a name has 1 to 64 of A-Z, a-z, 0-9, _, :, ., / and -")
    # Some parsers take no notice of case, as that of Go does. To them, "Role" would be a second "role".
    if reserved := sorted({name.lower() for name in claims} & RESERVED):
        named = ", ".join(reserved[:3])  # as our list spells them: nothing of what was given is repeated
        raise _refused(f"a name is reserved: {named}. Choose another one, as acme_{reserved[0]}")
    text = json.dumps(claims, separators=(",", ":"))
    if len(text) > MOST_CLAIMS:
        raise _refused(f"at most {MOST_CLAIMS} bytes as compact JSON")
    return text if claims else None


def read(text: str) -> Mapping[str, Any]:
    """The claims in a JSON text.

    Raises:
        InvalidRequest: the text is no JSON object, or a name stands twice in an object (RFC 8259 section 4).
    """
    try:
        claims = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):  # the error holds the text, so it must not become the context of the refusal
        claims = None
    if not isinstance(claims, dict):
        raise _refused("must be a JSON object without duplicate names")
    return claims


def stored(text: str | None) -> dict[str, Any]:
    """The claims of a row."""
    claims: dict[str, Any] = json.loads(text) if text else {}
    return claims


def _values(value: Any, depth: int) -> Iterator[tuple[Any, int]]:
    """A value and all values within it, each with its level. A level beyond the last one is not entered."""
    yield value, depth
    if isinstance(value, dict | list) and depth <= MAX_DEPTH:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner, depth + 1)


def _is_plain(value: Any) -> bool:
    match value:
        case None | bool() | dict() | list():
            return True
        case int():
            return abs(value) <= _LARGEST
        case float():
            return math.isfinite(value)
        case str():
            return not any("\ud800" <= character <= "\udfff" for character in value)
        case _:
            return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


def _refused(rule: str) -> InvalidRequest:
    return InvalidRequest("claims", description=f"claims: {rule}.")
