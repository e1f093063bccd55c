"""Sealed cookie values: the session, and a token that only Keyturn can read. No I/O, no clock.

A value is base64url (RFC 4648 section 5) without padding of

    key id (8) ‖ session id (16) ‖ nonce (12) ‖ ciphertext and tag of AES-256-GCM (RFC 5116)

The key is HKDF-SHA256 (RFC 5869) of the cookie key's 32 bytes, without a salt, with a label and the session id as
`info`. So each session has its own key, and random nonces never wear one out. Cookie name, a zero byte and session id
are associated data. A value that is moved to another name or another session therefore opens nothing.

The session id in the clear says nothing that the holder does not know. Only the opened value proves it.
"""

from __future__ import annotations

from uuid import UUID

from .key_set import COOKIE_KID_BYTES
from .keys import Keys
from .primitives import from_base64url, to_base64url

_LABEL = b"keyturn sealed cookie v1"
_IDS = COOKIE_KID_BYTES + 16  # bytes of key id and session id, after which the nonce begins
ADDED = _IDS + 12 + 16
"""Bytes of a value beside the sealed ones: both ids, nonce and tag."""


def of_one_session(value: str, other: str) -> bool:
    """Whether two values name the same key and the same session in the clear. Only opening them proves it."""
    ids = _IDS * 4 // 3  # characters: `_IDS` is a multiple of 3, so no character belongs to the nonce too
    return value[:ids] == other[:ids]


class SealedCookies:
    """Seals under the key that seals now, and opens under every cookie key that is not retired."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def seal(self, name: str, session_id: UUID, plain: bytes) -> str:
        """The value of the cookie `name`. Repeated calls give different values.

        Raises:
            TemporarilyUnavailable: this process has no cookie key in force.
        """
        key, session = self._keys.signing_cookie, session_id.bytes
        sealed = key.sealing(_LABEL + session).seal(plain, _associated(name, session))
        return to_base64url(key.raw_kid + session + sealed).decode()

    def open(self, name: str, text: str) -> tuple[UUID, bytes] | None:
        """The session and the plain bytes of a value of the cookie `name`.

        None if Keyturn did not make the value for this name, or if its key is retired.

        Raises:
            TemporarilyUnavailable: the key is unknown, and may be new: see `Keys.refresh`.
        """
        try:
            raw = from_base64url(text)
        except ValueError:  # each value has one spelling, so `seal` did not make this one
            return None
        if len(raw) < ADDED:
            return None
        session = raw[COOKIE_KID_BYTES:_IDS]
        key = self._keys.cookie(raw[:COOKIE_KID_BYTES])
        if key is None:
            return None
        plain = key.sealing(_LABEL + session).open(raw[_IDS:], _associated(name, session))
        return None if plain is None else (UUID(bytes=session), plain)


def _associated(name: str, session: bytes) -> bytes:
    return name.encode() + b"\0" + session
