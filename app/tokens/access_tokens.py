"""Access tokens: JWTs after RFC 9068, signed and verified without I/O. The caller checks revocation afterwards.

Verification leaves nothing to defaults (RFC 8725):

1. Form and size are checked, and that each segment has its only spelling.
2. ``kid`` in the header names the key. The key alone decides the algorithm.
3. The signature is checked.
4. Every claim is checked by type and value.

PyJWT checks only the signature. Its `decode` would repeat all other checks, and takes longer than all of them together.
A test shows that Keyturn accepts no token that PyJWT refuses.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any
from uuid import UUID

from ..errors import InvalidToken
from ..settings import LEEWAY, Algorithm, Settings
from ..settings_sessions import LONGEST_ACCESS_TOKEN
from ..settings_values import MOST_SCOPES
from .keys import Keys
from .primitives import from_base64url, to_base64url

MEDIA_TYPE = "at+jwt"

LONGEST = 8192
"""Characters. A longer token is refused before it is parsed."""

_FORM = re.compile(r"([A-Za-z0-9_-]{2,1024})\.([A-Za-z0-9_-]{2,7168})\.([A-Za-z0-9_-]{2,1024})", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_HEADER = frozenset({"alg", "typ", "kid"})
_NEEDED = itemgetter("sub", "sid", "role", "client_id", "jti", "exp", "iat")
_END_OF_TIME = 2**53  # seconds; up to this, a float is exact
_LEEWAY, _LONGEST = LEEWAY.total_seconds(), LONGEST_ACCESS_TOKEN.total_seconds()
_CLOCK_STEP = timedelta(
    hours=1
).total_seconds()  # seconds; after a step back of its clock, a process must accept what it signed before


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class AccessToken:
    """A verified token and its claims."""

    subject: str
    session: str
    """The id of the session as the token spells it: a UUID in canonical form."""
    role: str
    client_id: str
    expired: bool
    claims: dict[str, Any]

    @property
    def session_id(self) -> UUID:
        """The id of the session as a UUID. To make one takes a microsecond, and most requests need only the text."""
        return UUID(self.session)

    @property
    def user_id(self) -> UUID | None:
        """The subject as the id of a user, for the log. None if a holder of the HS256 key wrote another subject."""
        return UUID(self.subject) if _UUID.fullmatch(self.subject) else None


class AccessTokens:
    """Signs and verifies with the key set that the process has now."""

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
        auth_time: datetime | None = None,
        scope: str | None = None,
        claims: str | None = None,
        lifetime: timedelta | None = None,
    ) -> tuple[str, datetime]:
        """The token of one generation of a session, and the moment when the token expires.

        The token follows from the arguments and the signing key: ``iat`` is the moment of the rotation, and ``jti``
        comes from session and generation. So a retry gets the identical token if the algorithm is deterministic (HS256,
        RS256 and EdDSA; ES256 is not). The token expires no later than the session, so verifiers need no deadlines.

        Args:
            subject: the id of the user.
            session_id: the id of the session.
            generation: the generation of the session's refresh token.
            role: the role of the user.
            client_id: the client of the session.
            issued_at: the moment of the rotation.
            session_expires_at: the session's absolute deadline.
            auth_time: when the user last proved to be the user (RFC 9068 section 2.2.1).
            scope: the scopes of this token, separated by blanks (RFC 9068 section 2.2.3).
            claims: a JSON object whose members become claims. None has a registered name (app/users/claims.py).
            lifetime: the session's own lifetime of access tokens. None: the one of the settings.

        Raises:
            TemporarilyUnavailable: the process has not read the keys yet.
        """
        key = self._keys.signing_access
        expires_at = min(issued_at + (self._lifetime if lifetime is None else lifetime), session_expires_at)
        # In whole seconds. If the session expires in the second of the rotation, `iat` is one second earlier, because a
        # token must expire after it was issued.
        exp = int(expires_at.timestamp())
        iat = min(int(issued_at.timestamp()), exp - 1)
        sid = str(session_id)
        more = f',"auth_time":{int(auth_time.timestamp())}' if auth_time is not None else ""
        if scope:
            more += f',"scope":{_quote(scope)}'
        if claims and claims != "{}":
            more += "," + claims[1:-1]
        # Written out by hand, because each refresh waits for it. A test compares it with the JSON that PyJWT writes.
        members = (
            f'{{"iss":{self._iss_json},"sub":"{subject}","aud":{self._aud_json},"exp":{exp},'
            f'"iat":{iat},"jti":"{sid}.{generation}","sid":"{sid}",'
            f'"client_id":{_quote(client_id)},"role":{_quote(role)}{more}}}'
        )
        signed = _header(key.kid, key.algorithm) + to_base64url(members.encode())
        return (signed + b"." + to_base64url(key.sign(signed))).decode(), expires_at

    def verify(self, text: str, now: datetime, *, expired_too: bool = False) -> AccessToken:
        """The verified token. The caller checks whether it was revoked.

        Args:
            text: the token as the client sent it.
            now: the database's clock.
            expired_too: whether an expired token is accepted, as for a logout. All other checks stay.

        Raises:
            InvalidToken: the token is not one of Keyturn's, has another audience, or has expired. Only for an expired
                token the refusal has a reason.
            TemporarilyUnavailable: its key is unknown, and the key set may be out of date.
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
            # RFC 7519 section 4.1.3 allows a list. Keyturn's answers have only its own audience, because clients made
            # from the OpenAPI document expect one string.
            aud = claims["aud"] = self._aud
        return claims.get("iss") == self._iss and aud == self._aud

    @staticmethod
    def _judge(claims: dict[str, Any], now: datetime, *, expired_too: bool) -> AccessToken:
        try:
            subject, session, role, client_id, jti, exp, iat = _NEEDED(claims)
        except KeyError:
            raise InvalidToken("a claim is missing or of another type") from None
        if not type(subject) is type(session) is type(role) is type(client_id) is type(jti) is str:
            raise InvalidToken("a claim is missing or of another type")
        for moment in (exp, iat, claims["nbf"]) if "nbf" in claims else (exp, iat):
            if type(moment) is not int or not 0 <= moment < _END_OF_TIME:
                raise InvalidToken("a moment is not a whole number, or absurd")
        seconds = now.timestamp()
        if "nbf" in claims and claims["nbf"] > min(seconds + _LEEWAY, exp - 1):
            raise InvalidToken("not valid yet, or never")
        if not _UUID.fullmatch(session):
            raise InvalidToken("sid is no UUID in canonical form")
        # Redis forgets a revocation after the longest lifetime. So a token that lives longer would be good again after
        # its revocation. No token of Keyturn's expires before it is issued.
        if not 0 < exp - iat <= _LONGEST:
            raise InvalidToken("lives longer than any token of ours, or not at all")
        if exp - seconds > _LONGEST + _CLOCK_STEP:
            raise InvalidToken("expires later than any token of ours could")
        expired = exp <= seconds - _LEEWAY
        token = AccessToken(subject, session, role, client_id, expired, claims)
        if expired and not expired_too:
            refusal = InvalidToken("expired", reason="token_expired")
            raise refusal.about(token.session_id, token.user_id, token.client_id)
        return token


_LONGEST_ROLE = 32  # bytes: as many characters of ASCII (app/users/users.py)
_LONGEST_CLIENT_ID = 2 * 64  # bytes: 64 characters of ASCII (the setting), each with a backslash at most
_LONGEST_SIGNATURE = 384  # bytes: RS256 with 3072 bits
_LONGEST_REST = 512  # bytes: the names of all members, three UUIDs, the generation, three moments
MOST_CLAIMS = 512
"""Bytes of the claims of an administrator's in one token, as compact JSON of ASCII."""


def longest_token(settings: Settings) -> int:
    """An upper bound for the length of an access token under these settings, in bytes."""
    named = sum(len(_quote(text)) for text in (settings.iss, settings.aud))
    claims = named + _LONGEST_ROLE + _LONGEST_CLIENT_ID + MOST_SCOPES + MOST_CLAIMS + _LONGEST_REST
    header = len(_header("k" * 64, "HS256"))
    return header + -(-(claims + _LONGEST_SIGNATURE) * 4 // 3) + len("..")


_quote = json.encoder.encode_basestring_ascii


@cache
def _header(kid: str, algorithm: Algorithm) -> bytes:
    """The first segment and the full stop after it, as PyJWT writes them."""
    return (
        to_base64url(json.dumps({"alg": algorithm, "kid": kid, "typ": MEDIA_TYPE}, separators=(",", ":")).encode())
        + b"."
    )


@lru_cache(maxsize=64)  # there are few keys; if junk pushes a header out, it is parsed again
def _parsed_header(segment: str) -> tuple[str, str]:
    """The key id and algorithm that a header names.

    Raises:
        InvalidToken: Keyturn does not write such a header. Its own have three members: type, algorithm and key id. So
            the type is right (RFC 8725 section 3.11), and no member brings a key or its URL (RFC 8725 section 3.10).
    """
    try:
        head = _members(from_base64url(segment))
    except ValueError:
        raise InvalidToken("a segment is not base64url, or has another spelling") from None
    if head.keys() != _HEADER or head["typ"] != MEDIA_TYPE or not isinstance(head["kid"], str):
        raise InvalidToken("header is not ours")
    return head["kid"], str(head["alg"])


def _members(raw: bytes) -> dict[str, Any]:
    """The members of a JSON object in which no name stands twice (RFC 7515 section 4).

    Raises:
        InvalidToken: the bytes are no such object.
    """
    try:
        text = raw.decode().strip(_WHITE_SPACE)
        members, end = _DECODER.raw_decode(text)  # `decode` looks for white space by patterns, and takes a third longer
    except (ValueError, RecursionError):
        raise InvalidToken("a segment is not a JSON object") from None
    if not isinstance(members, dict) or end != len(text):
        raise InvalidToken("a segment is not a JSON object")
    return members


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_WHITE_SPACE = " \t\n\r"  # RFC 8259 section 2
