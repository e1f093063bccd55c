"""Refresh tokens: format, tag and derivation. Pure: no I/O, no clock.

A token is 63 bytes:

    key (1) ‖ session id (16) ‖ generation (4, big-endian) ‖ secret (32) ‖ tag (10)

Its text is ``ktr_`` and 84 characters of base64url (RFC 4648 section 5). 63 is a multiple of 3. So there are no spare
bits, and a token has only one spelling.

The tag is keyed. So a token that Keyturn did not issue is refused before any I/O (guarantee 4). Ten bytes are enough: a
forged tag passes once in 2**80 tries. Even then, the token must match a SHA-256 digest in the database.

The successor is derived from the token that it replaces, under a key that only the server has. So nothing has to be
stored for a retry, and two answers to one token can't differ (guarantee 1). A thief of a digest alone, or of a key
alone, can derive nothing (guarantee 6).
"""

from __future__ import annotations

import hmac
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from uuid import UUID

from ..errors import InvalidGrant
from .primitives import derive, prepared_hmac

PREFIX = "ktr_"
"""The beginning of each token, by which secret scanners find leaked tokens."""

PATTERN = re.compile(r"ktr_[A-Za-z0-9_-]{84}", re.ASCII)

LAST_GENERATION = 2**31 - 2
"""The last generation of a session. With one refresh a second, a session reaches it in 68 years."""

_BODY = 53
_TAG = 10


@dataclass(frozen=True, slots=True)
class RefreshKey:
    """A refresh key as three keys, derived from its secret by HKDF (RFC 5869) with different labels."""

    number: int
    next_key: bytes = field(repr=False)
    tag_key: bytes = field(repr=False)
    first_key: bytes = field(repr=False)
    retired: bool = False
    """Whether the key is retired: its sessions are over or about to end. Its tags still verify, but open nothing."""
    derive_next: Callable[[bytes], bytes] = field(init=False, repr=False, compare=False)
    derive_tag: Callable[[bytes], bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derive_next", prepared_hmac(self.next_key))
        object.__setattr__(self, "derive_tag", prepared_hmac(self.tag_key))

    @classmethod
    def derive(cls, number: int, secret: bytes, *, retired: bool = False) -> RefreshKey:
        """The key with this number (1 to 254) from its 32 secret bytes."""
        labels = b"successor", b"tag", b"first"
        next_key, tag_key, first_key = (derive(secret, b"keyturn refresh token " + label) for label in labels)
        return cls(number, next_key, tag_key, first_key, retired)

    def tagged(self, rest: bytes) -> bytes:
        """The whole token: the key's number, the bytes between number and tag, and the tag."""
        body = self.number.to_bytes() + rest
        return body + self.tag(body)

    def tag(self, body: bytes) -> bytes:
        """The tag, which proves that Keyturn made the other bytes of a token."""
        return self.derive_tag(body)[:_TAG]


@dataclass(slots=True, unsafe_hash=True)  # not frozen: to make one takes a tenth of the time, and nobody changes one
class RefreshToken:
    """A token that Keyturn issued. Only `issue`, `successor` and `verify` make one."""

    key: RefreshKey
    session: bytes
    """The 16 bytes of the session's id."""
    generation: int
    secret: bytes = field(repr=False)
    raw: bytes = field(default=b"", repr=False)
    """The 63 bytes. If they are not given, they are made from the other fields."""

    def __post_init__(self) -> None:
        if not self.raw:
            self.raw = self.key.tagged(self.session + self.generation.to_bytes(4) + self.secret)

    def __bytes__(self) -> bytes:
        return self.raw

    @property
    def session_id(self) -> UUID:
        """The id of the session as a UUID. To make one takes a microsecond, and a rotation needs only the bytes."""
        return UUID(bytes=self.session)

    @property
    def text(self) -> str:
        """The token as clients get and send it."""
        return PREFIX + urlsafe_b64encode(self.raw).decode()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the whole token. The database stores nothing else of a token."""
        return sha256(self.raw).digest()

    def successor(self, key: RefreshKey) -> RefreshToken:
        """The token that replaces this one, derived under `key`. Repeated calls give the same token."""
        generation = self.generation + 1
        place = self.session + generation.to_bytes(4)
        secret = key.derive_next(place + self.secret)
        return RefreshToken(key, self.session, generation, secret, key.tagged(place + secret))


def issue(key: RefreshKey, session_id: UUID, proof: bytes | None = None) -> RefreshToken:
    """The first token of a session.

    Args:
        key: the refresh key that signs now.
        session_id: the session.
        proof: a secret that only a holder of the credential has for which the session is given. The same key, session
            and proof give the same token, so that a lost answer can be given again. None: 256 random bits.
    """
    if proof is None:
        return RefreshToken(key, session_id.bytes, 0, os.urandom(32))
    return RefreshToken(key, session_id.bytes, 0, prepared_hmac(key.first_key)(session_id.bytes + proof))


def verify(text: str, keys: Mapping[int, RefreshKey]) -> RefreshToken:
    """The token that a text spells, verified with the key that the token names.

    Raises:
        InvalidGrant: the text has not the form of a token, or Keyturn did not issue the token.
        KeyError: the token names none of these keys.
    """
    if not PATTERN.fullmatch(text):
        raise InvalidGrant("not of a refresh token's form", outcome="junk")
    raw = urlsafe_b64decode(text[4:])  # 84 characters of this alphabet have no spare bits
    key = keys[raw[0]]
    if not hmac.compare_digest(key.tag(raw[:_BODY]), raw[_BODY:]):
        raise InvalidGrant("tag does not match", outcome="junk")
    return RefreshToken(key, raw[1:17], int.from_bytes(raw[17:21]), raw[21:_BODY], raw)
