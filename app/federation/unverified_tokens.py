"""External tokens that are parsed, and not verified yet. Pure: no I/O, no clock.

Nothing here is believed. The header names a key of the issuer's configuration, and never brings one: `jwk`, `jku`,
`x5c` and `x5u` are not read (RFC 8725 section 3.10). The issuer that a token names is looked up in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ..tokens.primitives import from_base64url
from .strict_json import parsed_object
from .verdicts import refused

MOST_BYTES = 16 * 1024
"""Bytes of a token. A longer one is refused before it is looked at."""

MOST_NAME = 255
"""Characters of a subject, of a `kid` and of every other name in a token (OpenID Connect Core section 2)."""

_PARTS = 3  # RFC 7515 section 7.1
_PARTS_ENCRYPTED = 5  # RFC 7516 section 7.1
_OPAQUE = ("rt_", "ktr_")  # Scalekit's refresh tokens, and those of Keyturn
_REFRESH = frozenset({"refresh", "offline", "refresh+jwt", "rt+jwt"})


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A token of the right form. `header` and `claims` are what anyone may have written."""

    header: Mapping[str, Any] = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)
    kid: str = field(repr=False)
    iss: str = field(repr=False)
    type: str
    """The type in the header without `application/`, in lower case (RFC 7515 section 4.1.9). Empty: it has none."""
    digest: bytes = field(repr=False)
    """SHA-256 over header and payload as they were sent."""
    text_digest: bytes = field(repr=False)
    """SHA-256 of the whole text, with the signature, as it was sent."""


def unverified(text: str) -> UnverifiedToken:
    """The token that a text spells.

    Raises:
        UnacceptableToken: the text is not a signed JWT of the form that Keyturn reads.
    """
    if len(text) > MOST_BYTES:
        raise refused("too_large")
    if text.startswith(_OPAQUE):
        raise refused("refresh_token")
    segments = text.split(".")
    if len(segments) == _PARTS_ENCRYPTED:
        raise refused("nested")
    if len(segments) != _PARTS or not all(segments):
        raise refused("malformed")
    try:
        raw_header, raw_claims, _ = (from_base64url(segment) for segment in segments)
        header = parsed_object(raw_header)
        kind, kid = _checked_header(header)
        claims = parsed_object(raw_claims)
    except ValueError:
        header = None
    if header is None:  # outside of the handler: its error may hold a part of the token
        raise refused("malformed")
    if _REFRESH & {kind, str(claims.get("typ")).lower(), str(claims.get("token_use")).lower()}:
        raise refused("refresh_token")
    iss = claims.get("iss")
    if not isinstance(iss, str):
        raise refused("malformed" if iss is not None else "missing_claim")
    digest, text_digest = (sha256(part.encode()).digest() for part in (text.rpartition(".")[0], text))
    return UnverifiedToken(header, claims, kid, iss, kind, digest, text_digest)


def _checked_header(header: Mapping[str, Any]) -> tuple[str, str]:
    """Type and key id.

    Raises:
        UnacceptableToken: the header demands something, or does not name a key.
        ValueError: a member has another type than the standard's.
    """
    if "crit" in header:  # RFC 7515 section 4.1.11: an extension that is not understood refuses the token
        raise refused("critical_header")
    if "enc" in header or "cty" in header:  # RFC 7519 section 5.2: `cty` only where another token is within
        raise refused("nested")
    kind, kid = header.get("typ", ""), header.get("kid", "")
    if not isinstance(kind, str) or not isinstance(kid, str) or not isinstance(header.get("alg"), str):
        raise ValueError("a member of another type")  # noqa: TRY004  # as `from_base64url` says it
    if not kid:
        raise refused("no_kid")
    if len(kid) > MOST_NAME:
        raise ValueError("kid")
    return kind.lower().removeprefix("application/"), kid
