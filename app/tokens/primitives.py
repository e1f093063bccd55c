"""The cryptographic primitives for tokens and keys: only this file imports `cryptography`. No I/O, no clock."""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

RsaBits = Literal[2048, 3072]
"""Bits of an RS256 key. RFC 7518 section 3.3 asks for 2048 at least. 3072 are as strong as ES256, and slower."""

KEY_BYTES = 32
"""Bytes of each symmetric key: as many as SHA-256 and AES-256 can use."""

_NONCE = 12  # bytes: RFC 5116 sections 5.1 and 5.2
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/!!!")  # "+", "/" and "=" become "!", which the decoder refuses
_PADDING = (b"", b"===", b"==", b"=")
_LAST = {
    1: "",
    2: "AQgw",
    3: "AEIMQUYcgkosw048",
}  # by the characters in the last group: last characters whose 4 or 2 spare bits are zero


def prepared_hmac(key: bytes) -> Callable[[bytes], bytes]:
    """HMAC-SHA256 (RFC 2104) with a key that is set up once, at a third of the cost of a set-up for each message."""
    prepared = HMAC(key, SHA256())

    def digest(message: bytes) -> bytes:
        mac = prepared.copy()
        mac.update(message)
        return mac.finalize()

    return digest


def prepared_hkdf(secret: bytes) -> Callable[[bytes], bytes]:
    """HKDF-SHA256 (RFC 5869) without a salt, from a label to a key of `KEY_BYTES`: `derive` at a fraction of its cost.

    The step "extract" is done once (RFC 5869 section 2.2). The step "expand" is one HMAC, because a key is as long as
    the hash (RFC 5869 section 2.3).
    """
    expand = prepared_hmac(prepared_hmac(bytes(KEY_BYTES))(secret))

    def key(label: bytes) -> bytes:
        return expand(label + b"\x01")

    return key


def derive(secret: bytes, label: bytes) -> bytes:
    """A key of `KEY_BYTES` by HKDF-SHA256 (RFC 5869). Keys with different labels tell nothing of each other."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=label).derive(secret)


class Sealing:
    """AES-256-GCM (RFC 5116) under one key, with random nonces.

    Random nonces are safe for 2**32 sealed texts of a key (NIST SP 800-38D section 8.3). Each key here seals fewer: the
    rows of a table, or the cookies of one session.
    """

    def __init__(self, key: bytes) -> None:
        """`key` has `KEY_BYTES`."""
        self._cipher = AESGCM(key)

    def seal(self, plain: bytes, associated: bytes) -> bytes:
        """The nonce, followed by the sealed bytes. They open only with the same associated data."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, associated)

    def open(self, sealed: bytes, associated: bytes) -> bytes | None:
        """The plain bytes. None if another key sealed them, or if a bit of either argument was changed."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], associated)
        except (InvalidTag, ValueError):  # ValueError: too short to be sealed at all
            return None


def to_base64url(raw: bytes) -> bytes:
    """Base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(raw, newline=False).translate(_TO_URL, b"=")


def from_base64url(text: str) -> bytes:
    """The bytes that a text spells in base64url without padding. No other text spells them.

    Raises:
        ValueError: the text has another alphabet or padding, or its spare bits are not zero (RFC 4648 section 3.5).
    """
    spare = len(text) % 4
    if spare and text[-1] not in _LAST[spare]:
        raise ValueError("not base64url, or another spelling")
    return a2b_base64(text.encode().translate(_FROM_URL) + _PADDING[spare], strict_mode=True)


def new_private_key(algorithm: Literal["ES256", "RS256", "EdDSA"], bits: RsaBits) -> bytes:
    """A new private key as PKCS #8. `bits` are for RS256. The search for its primes may take seconds."""
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    match algorithm:
        case "ES256":
            key = ec.generate_private_key(ec.SECP256R1())
        case "RS256":
            key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        case "EdDSA":
            key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key(pkcs8: bytes) -> Any:
    """The private key that `new_private_key` wrote. The caller makes sure that nobody has changed it.

    So the numbers of an RSA key are not checked. The check would hold up all requests of the process at each reading of
    the key set: for 65 ms (2048 bits) or 200 ms (3072 bits).
    """
    return serialization.load_der_private_key(pkcs8, None, unsafe_skip_rsa_key_validation=True)
