"""Access tokens: JWTs after RFC 9068, signed here and verified here. No I/O; revocation is asked afterwards.

Verification leaves nothing to defaults (RFC 8725): form, size and one spelling first, then the header, whose ``kid``
names the key, which alone says the algorithm; then the signature; then every claim by type and value.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import jwt

from app.errors import InvalidToken
from app.keys import Keys
from app.settings import LEEWAY, LONGEST_ACCESS_TOKEN, Settings

MEDIA_TYPE = "at+jwt"

LONGEST = 8192
"""Characters of a token at most; beyond, nothing is parsed."""

_FORM = re.compile(r"([A-Za-z0-9_-]{2,1024})\.([A-Za-z0-9_-]{2,7168})\.([A-Za-z0-9_-]{2,1024})", re.ASCII)
_HEADER = frozenset({"alg", "typ", "kid"})
_STRINGS = ("iss", "sub", "jti", "sid", "client_id", "role")
_NUMBERS = ("exp", "iat")
_END_OF_TIME = 2**53  # whole seconds that a float still holds exactly
_CLOCK_STEP = timedelta(hours=1)  # a clock that was stepped back must not refuse what it signed before


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of a token that was verified."""

    subject: str
    session_id: UUID
    role: str
    client_id: str
    expired: bool
    claims: dict[str, Any]


class AccessTokens:
    """Signs and verifies under the key set of the moment."""

    def __init__(self, keys: Keys, settings: Settings) -> None:
        """Issuer, audience and lifetime come from the settings."""
        self._keys = keys
        self._iss, self._aud = settings.iss, settings.aud
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
    ) -> tuple[str, datetime]:
        """The token of one generation of a session, and when it expires.

        It depends on its arguments and the signing key alone: ``iat`` is the rotation, ``jti`` follows from session
        and generation. So a retry gets the identical token where the algorithm is deterministic (HS256 and EdDSA;
        ES256 is not). It never outlives the session, so a live token needs no look at deadlines.
        """
        key = self._keys.signing_access
        expires_at = min(issued_at + self._lifetime, session_expires_at)
        claims = {
            "iss": self._iss,
            "sub": str(subject),
            "aud": self._aud,
            "exp": int(expires_at.timestamp()),
            "iat": int(issued_at.timestamp()),
            "jti": f"{session_id}.{generation}",
            "sid": str(session_id),
            "client_id": client_id,
            "role": role,
        }
        headers = {"typ": MEDIA_TYPE, "kid": key.kid}
        return jwt.encode(claims, key.signing, algorithm=key.algorithm, headers=headers), expires_at

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
        header, claims, _ = (_decode(segment) for segment in form.groups())
        head = _members(header)
        # RFC 8725 section 3.10 and 3.11: our type, and no member that names a key, a place to fetch one, or an
        # extension. We write these three members, so nothing else can be ours.
        if head.keys() != _HEADER or head["typ"] != MEDIA_TYPE or not isinstance(head["kid"], str):
            raise InvalidToken("header is not ours")
        key = self._keys.access(head["kid"])
        if key is None:
            raise InvalidToken("unknown or retired key")
        if head["alg"] != key.algorithm:
            raise InvalidToken("algorithm is not the key's")
        try:
            verified: dict[str, Any] = jwt.decode(
                text,
                key.verifying,
                algorithms=[key.algorithm],
                audience=self._aud,
                issuer=self._iss,
                leeway=LEEWAY,
                options={
                    "require": ["iss", "aud", "sub", "exp", "iat", "jti"],
                    # The moments are compared below: with the database's clock, and a future `iat` is no reason.
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.InvalidTokenError, ValueError) as e:
            raise InvalidToken(f"refused by the JWT library: {type(e).__name__}") from None
        _members(claims)
        return self._judge(verified, now, expired_too=expired_too)

    @staticmethod
    def _judge(claims: dict[str, Any], now: datetime, *, expired_too: bool) -> AccessToken:
        if any(not isinstance(claims.get(name), str) for name in _STRINGS):
            raise InvalidToken("a claim is missing or of another type")
        if any(type(claims[name]) is not int or not 0 <= claims[name] < _END_OF_TIME for name in _NUMBERS):
            raise InvalidToken("a moment is not a whole number, or absurd")
        nbf = claims.get("nbf", claims["iat"])
        if type(nbf) is not int or ("nbf" in claims and nbf > now.timestamp() + LEEWAY.total_seconds()):
            raise InvalidToken("not valid yet")
        try:
            session_id = UUID(claims["sid"])
        except ValueError:
            raise InvalidToken("sid is no UUID") from None
        if str(session_id) != claims["sid"]:
            raise InvalidToken("sid is not in canonical form")
        # Longer than revocations are remembered: a revoked one would come back to life.
        if claims["exp"] - claims["iat"] > LONGEST_ACCESS_TOKEN // timedelta(seconds=1):
            raise InvalidToken("lives longer than any token of ours")
        if claims["exp"] - now.timestamp() > (LONGEST_ACCESS_TOKEN + _CLOCK_STEP).total_seconds():
            raise InvalidToken("expires later than any token of ours could")
        expired = claims["exp"] <= now.timestamp() - LEEWAY.total_seconds()
        if expired and not expired_too:
            raise InvalidToken("expired", reason="token_expired")
        return AccessToken(claims["sub"], session_id, claims["role"], claims["client_id"], expired, claims)


def _decode(segment: str) -> bytes:
    """The bytes that a segment spells, if this is their one spelling (RFC 4648 section 3.5)."""
    try:
        raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        raise InvalidToken("a segment is not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != segment:
        raise InvalidToken("a segment has another spelling")
    return raw


def _members(raw: bytes) -> dict[str, Any]:
    """The members of a JSON object in which no name stands twice (RFC 7515 section 4)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("duplicate name")
        return members

    try:
        members = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise InvalidToken("a segment is not a JSON object") from None
    if not isinstance(members, dict):
        raise InvalidToken("a segment is not a JSON object")
    return members
