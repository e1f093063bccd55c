"""The working keys in the memory of a process, and which of them sign. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, Self, TypeVar

from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms

from ..errors import Reason
from ..settings import Algorithm
from .primitives import (
    KEY_BYTES,
    RsaBits,
    Sealing,
    new_private_key,
    prepared_hkdf,
    prepared_hmac,
    private_key,
    to_base64url,
)
from .refresh_tokens import RefreshKey

Use = Literal["access", "refresh", "cookie"]
"""The tokens that a key is for, or the cookies in which they travel."""

COOKIE_KID_BYTES = 8
"""Bytes of the id of a cookie key, with which each sealed cookie begins."""

_N = TypeVar("_N")

_ALGORITHMS = get_default_algorithms()
_TO_JWK: dict[Algorithm, Callable[..., Any]] = {
    "ES256": ECAlgorithm.to_jwk,
    "RS256": RSAAlgorithm.to_jwk,
    "EdDSA": OKPAlgorithm.to_jwk,
}


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key for access tokens. `signing` is a secret, and for HS256 `verifying` is the same secret."""

    kid: str
    algorithm: Algorithm
    signing: Any = field(repr=False)
    verifying: Any = field(repr=False)
    sign: Callable[[bytes], bytes] = field(init=False, repr=False, compare=False)
    """Makes a signature (RFC 7515 section 5.1): by PyJWT, or for HS256 by `prepared_hmac` in a tenth of the time."""

    def __post_init__(self) -> None:
        sign = prepared_hmac(self.signing) if self.algorithm == "HS256" else self._signature
        object.__setattr__(self, "sign", sign)

    @classmethod
    def of(cls, kid: str, algorithm: Algorithm, secret: bytes) -> AccessKey:
        """The key from the bytes that `new_secret` made."""
        if algorithm == "HS256":
            return cls(kid, algorithm, secret, secret)
        private = private_key(secret)
        return cls(kid, algorithm, private, private.public_key())

    def _signature(self, message: bytes) -> bytes:
        return _ALGORITHMS[self.algorithm].sign(message, self.signing)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's (RFC 7515 section 5.2)."""
        if self.algorithm == "HS256":
            return hmac.compare_digest(self.sign(message), signature)
        return _ALGORITHMS[self.algorithm].verify(message, self.verifying, signature)

    def jwk(self) -> dict[str, Any] | None:
        """The public key as a JSON Web Key (RFC 7517). None for a symmetric key, which is never published."""
        if self.algorithm == "HS256":
            return None
        jwk: dict[str, Any] = _TO_JWK[self.algorithm](self.verifying, as_dict=True)
        return jwk | {"kid": self.kid, "use": "sig", "alg": self.algorithm, "key_ops": ["verify"]}


_SEALINGS_KEPT = 1024  # sessions' own keys, a kilobyte each


@dataclass(frozen=True, slots=True)
class CookieKey:
    """A key for sealed cookies. Each session has a sealing key of its own, which HKDF (RFC 5869) derives from it."""

    kid: str
    secret: bytes = field(repr=False)
    raw_kid: bytes = field(init=False, repr=False, compare=False)
    """The `COOKIE_KID_BYTES` that `kid` spells in hexadecimal digits."""
    sealing: Callable[[bytes], Sealing] = field(init=False, repr=False, compare=False)
    """The sealing under the key for a label. The last ones are kept: a refresh opens and seals several cookies."""

    def __post_init__(self) -> None:
        derive = prepared_hkdf(self.secret)
        object.__setattr__(self, "raw_kid", bytes.fromhex(self.kid))
        object.__setattr__(self, "sealing", lru_cache(maxsize=_SEALINGS_KEPT)(lambda label: Sealing(derive(label))))


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys from one reading of the table. Moments are of the database's clock."""

    access: Mapping[str, AccessKey]
    refresh: Mapping[int, RefreshKey]
    retired: Mapping[int, RefreshKey]
    """Retired refresh keys. A holder of a token under one of them only learns why the session is over."""
    cookie: Mapping[bytes, CookieKey]
    """The cookie keys by the bytes of their ids."""
    signs_from: Mapping[str | int | bytes, datetime]
    """When each key begins to sign, or a cookie key to seal."""
    retires_at: Mapping[str | int | bytes, datetime] = field(default_factory=dict)
    """When each key retires whose retirement is planned."""
    retired_for: Mapping[int, Reason] = field(default_factory=dict)
    """Why the sessions under a retired refresh key are over, where that is not `revoked_by_admin`."""
    unpublished: Mapping[int, datetime] = field(default_factory=dict)
    """When those refresh keys were made that took the place of others and signed at once."""

    def as_of(self, now: datetime) -> Self:
        """The keys that are in force at a moment. Planned retirements until then are done."""
        over = {name for name, moment in self.retires_at.items() if moment <= now}
        if not over:
            return self
        return replace(
            self,
            access={kid: key for kid, key in self.access.items() if kid not in over},
            refresh={number: key for number, key in self.refresh.items() if number not in over},
            retired={
                **self.retired,
                **{number: replace(key, retired=True) for number, key in self.refresh.items() if number in over},
            },
            cookie={kid: key for kid, key in self.cookie.items() if kid not in over},
            retires_at={name: moment for name, moment in self.retires_at.items() if name not in over},
        )

    def signing(self, now: datetime) -> tuple[AccessKey, RefreshKey] | None:
        """The access key and the refresh key that sign at a moment. None if there is no key of one use."""
        if not self.access or not self.refresh:
            return None
        return (
            self.access[signing({kid: self.signs_from[kid] for kid in self.access}, now)],
            self.refresh[signing({number: self.signs_from[number] for number in self.refresh}, now)],
        )

    def signing_cookie(self, now: datetime) -> CookieKey | None:
        """The cookie key that seals at a moment. None if there is none.

        Another release may leave the table without one: its `keys replace` knows two uses. Bearer tokens still work.
        """
        if not self.cookie:
            return None
        return self.cookie[signing({kid: self.signs_from[kid] for kid in self.cookie}, now)]


def signing(signs_from: Mapping[_N, datetime], now: datetime) -> _N:
    """Which key of one use signs: the newest that was published long enough. If there is none, the oldest."""
    ready = [name for name, moment in signs_from.items() if moment <= now]
    return max(ready, key=signs_from.__getitem__) if ready else min(signs_from, key=signs_from.__getitem__)


def new_secret(algorithm: Algorithm, bits: RsaBits = 2048) -> bytes:
    """The secret bytes of a new access key: random, and never derived from another key."""
    if algorithm == "HS256":
        return os.urandom(KEY_BYTES)
    secret = new_private_key(algorithm, bits)
    # One id in 64 would begin with "-", and `keyturn keys retire` would take the id for an option.
    return new_secret(algorithm, bits) if kid_of(algorithm, secret).startswith("-") else secret


def kid_of(algorithm: Algorithm, secret: bytes) -> str:
    """The thumbprint of a public key (RFC 7638). Random for HS256: a thumbprint would let others test guesses of it."""
    if algorithm == "HS256":
        return secrets.token_hex(8)
    jwk = AccessKey.of("", algorithm, secret).jwk() or {}
    # The required members of each type of key (RFC 7638 section 3.2, RFC 8037 section 2).
    required = {name: jwk[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in jwk}
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    return to_base64url(hashlib.sha256(canonical).digest()).decode()
