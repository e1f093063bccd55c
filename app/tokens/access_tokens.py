"""Access tokens: JWTs after RFC 9068, signed here and verified here. No I/O; revocation is asked afterwards.

Verification leaves nothing to defaults (RFC 8725): form, size and one spelling first, then the header, whose ``kid``
names the key, which alone says the algorithm; then the signature; then every claim by type and value. Only the
signature is PyJWT's: its `decode` would look at all the rest a second time, at more than the cost of all else that a
verification does. A test holds that it accepts nothing that PyJWT refuses.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any
from uuid import UUID

from ..errors import InvalidToken
from ..settings import LEEWAY, LONGEST_ACCESS_TOKEN, Algorithm, Settings
from .keys import Keys
from .primitives import from_base64url, to_base64url

MEDIA_TYPE = "at+jwt"

LONGEST = 8192
"""Characters of a token at most; beyond, nothing is parsed."""

_FORM = re.compile(r"([A-Za-z0-9_-]{2,1024})\.([A-Za-z0-9_-]{2,7168})\.([A-Za-z0-9_-]{2,1024})", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_HEADER = frozenset({"alg", "typ", "kid"})
_STRINGS = ("iss", "sub", "jti", "sid", "client_id", "role")
_END_OF_TIME = 2**53  # whole seconds that a float still holds exactly
_LEEWAY, _LONGEST = LEEWAY.total_seconds(), LONGEST_ACCESS_TOKEN.total_seconds()
_CLOCK_STEP = timedelta(hours=1).total_seconds()  # a clock that was stepped back must not refuse what it signed before


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of a token that was verified."""

    subject: str
    session_id: UUID
    role: str
    client_id: str
    expired: bool
    claims: dict[str, Any]

    @property
    def user_id(self) -> UUID | None:
        """The subject as the id of a user, for the log. None where a holder of the HS256 key wrote another thing."""
        return UUID(self.subject) if _UUID.fullmatch(self.subject) else None


class AccessTokens:
    """Signs and verifies under the key set of the moment."""

    def __init__(self, keys: Keys, settings: Settings) -> None:
        """Issuer, audience and lifetime come from the settings."""
        self._keys = keys
        self._iss, self._aud = settings.iss, settings.aud
        self._iss_json, self._aud_json = _quote(settings.iss), _quote(settings.aud)
        self._lifetime = settings.access_token_lifetime

    def sign(
        self,
        *,
        subject: UUID,
        session_id: UUID,
        generation: int,
        role: str,
        client_id: str,
        issued_at: datetime,
        session_expires_at: datetime,
        lifetime: timedelta | None = None,
    ) -> tuple[str, datetime]:
        """The token of one generation of a session, and when it expires.

        It depends on its arguments and the signing key alone: ``iat`` is the rotation, ``jti`` follows from session
        and generation. So a retry gets the identical token where the algorithm is deterministic (HS256, RS256 and
        EdDSA; ES256 is not). It never outlives the session, so a live token needs no look at deadlines.

        `lifetime` is the session's own; without it, the settings' counts.
        """
        key = self._keys.signing_access
        expires_at = min(issued_at + (self._lifetime if lifetime is None else lifetime), session_expires_at)
        # Whole seconds. Where the session ends within the second of the rotation, `iat` is the second before, because
        # no token expires when it was issued.
        exp = int(expires_at.timestamp())
        iat = min(int(issued_at.timestamp()), exp - 1)
        sid = str(session_id)
        # Written out, because every refresh waits for it; a test holds it equal to what PyJWT makes of the same claims.
        claims = (
            f'{{"iss":{self._iss_json},"sub":"{subject}","aud":{self._aud_json},"exp":{exp},'
            f'"iat":{iat},"jti":"{sid}.{generation}","sid":"{sid}",'
            f'"client_id":{_quote(client_id)},"role":{_quote(role)}}}'
        )
        signed = _header(key.kid, key.algorithm) + urlsafe_b64encode(claims.encode()).rstrip(b"=")
        return (signed + b"." + urlsafe_b64encode(key.sign(signed)).rstrip(b"=")).decode(), expires_at

    def verify(self, text: str, now: datetime, *, expired_too: bool = False) -> AccessToken:
        """The verified token; revocation is not looked at.

        Args:
            text: as it came.
            now: the database's clock.
            expired_too: whether an expired token, rightly signed, is returned too (logout takes one).

        Raises:
            InvalidToken: it is not ours, not for this audience, or expired (only then with a reason).
        """
        form = _FORM.fullmatch(text) if len(text) <= LONGEST else None
        if form is None:
            raise InvalidToken("not of a JWT's form")
        header, claims, signature = form.groups()
        kid, algorithm = _parsed_header(header)
        key = self._keys.access(kid)
        if key is None:
            raise InvalidToken("unknown or retired key")
        if algorithm != key.algorithm:
            raise InvalidToken("algorithm is not the key's")
        try:
            payload, signature_bytes = from_base64url(claims), from_base64url(signature)
        except ValueError:
            raise InvalidToken("a segment is not base64url, or has another spelling") from None
        if not key.verify(text[: form.end(2)].encode(), signature_bytes):
            raise InvalidToken("signature does not match")
        members = _members(payload)
        if not self._is_for_us(members):
            raise InvalidToken("another issuer or audience")
        return self._judge(members, now, expired_too=expired_too)

    def _is_for_us(self, claims: dict[str, Any]) -> bool:
        aud = claims.get("aud")
        if isinstance(aud, list) and self._aud in aud and all(isinstance(one, str) for one in aud):
            # RFC 7519 section 4.1.3 allows a list. What Keyturn tells of it is the audience that was asked for: clients
            # that are made from the contract read one string.
            aud = claims["aud"] = self._aud
        return claims.get("iss") == self._iss and aud == self._aud

    @staticmethod
    def _judge(claims: dict[str, Any], now: datetime, *, expired_too: bool) -> AccessToken:
        for name in _STRINGS:
            if not isinstance(claims.get(name), str):
                raise InvalidToken("a claim is missing or of another type")
        exp: Any = claims.get("exp")
        iat: Any = claims.get("iat")
        nbf = claims.get("nbf", iat)
        for moment in (exp, iat, nbf):
            if type(moment) is not int or not 0 <= moment < _END_OF_TIME:
                raise InvalidToken("a moment is not a whole number, or absurd")
        seconds = now.timestamp()
        if "nbf" in claims and nbf > min(seconds + _LEEWAY, exp - 1):
            raise InvalidToken("not valid yet, or never")
        if not _UUID.fullmatch(claims["sid"]):
            raise InvalidToken("sid is no UUID in canonical form")
        # Longer than revocations are remembered: a revoked one would come back to life. None of ours expires before it
        # is issued.
        if not 0 < exp - iat <= _LONGEST:
            raise InvalidToken("lives longer than any token of ours, or not at all")
        if exp - seconds > _LONGEST + _CLOCK_STEP:
            raise InvalidToken("expires later than any token of ours could")
        expired = exp <= seconds - _LEEWAY
        token = AccessToken(claims["sub"], UUID(claims["sid"]), claims["role"], claims["client_id"], expired, claims)
        if expired and not expired_too:
            raise InvalidToken("expired", reason="token_expired", session_id=token.session_id, user_id=token.user_id)
        return token


_quote = json.encoder.encode_basestring_ascii


@cache
def _header(kid: str, algorithm: Algorithm) -> bytes:
    """The first segment and its full stop, as PyJWT writes them."""
    return (
        to_base64url(json.dumps({"alg": algorithm, "kid": kid, "typ": MEDIA_TYPE}, separators=(",", ":")).encode())
        + b"."
    )


@lru_cache(maxsize=64)  # a handful of keys; junk may push them out, and they are parsed again
def _parsed_header(segment: str) -> tuple[str, str]:
    """The key id and algorithm that a header names.

    Raises:
        InvalidToken: it is none of ours. RFC 8725 sections 3.10 and 3.11: our type, and no member that names a key, a
            place to fetch one, or an extension. We write three members, so nothing else can be ours.
    """
    try:
        head = _members(from_base64url(segment))
    except ValueError:
        raise InvalidToken("a segment is not base64url, or has another spelling") from None
    if head.keys() != _HEADER or head["typ"] != MEDIA_TYPE or not isinstance(head["kid"], str):
        raise InvalidToken("header is not ours")
    return head["kid"], str(head["alg"])


def _members(raw: bytes) -> dict[str, Any]:
    """The members of a JSON object in which no name stands twice (RFC 7515 section 4)."""
    try:
        members = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError):
        raise InvalidToken("a segment is not a JSON object") from None
    if not isinstance(members, dict):
        raise InvalidToken("a segment is not a JSON object")
    return members


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
