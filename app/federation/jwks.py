"""The key set of an issuer (RFC 7517), read. Pure: no I/O, no clock.

A set that no careful issuer publishes is refused as a whole. A key that is sound and not for signatures is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from ..tokens.primitives import from_base64url
from .issuer import Algorithm
from .unverified_tokens import MOST_NAME

MOST_KEYS = 100

_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1
_FEWEST_BITS, _MOST_BITS = 2048, 8192  # RFC 7518 section 3.3; a larger key makes each verification slow
_MOST_EXPONENT = 2**32  # as above
_MOST_CHARACTERS = 2048  # of a number in base64url, before it is decoded: more than 8192 bits have
_ALGORITHMS: Mapping[tuple[str, str | None], Algorithm] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
_NUMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


@dataclass(frozen=True, slots=True)
class ExternalKey:
    """A public key of an issuer's. The key alone decides the algorithm that it verifies."""

    kid: str
    kty: str
    bits: int
    algorithm: Algorithm
    verifying: PyJWK = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwkSet:
    """The keys of one reading."""

    keys: Mapping[str, ExternalKey]
    weak: frozenset[str]
    """The ids of keys that are too weak or too large."""
    left_out: tuple[tuple[str, str], ...] = ()
    """The id of each key that is not used, and why not."""

    def __contains__(self, kid: str) -> bool:
        """Whether the issuer publishes a key of this id for signatures, be it too weak."""
        return kid in self.keys or kid in self.weak


def jwk_set_of(document: Any) -> JwkSet:
    """The keys of a document.

    Raises:
        ValueError: the document is no key set that may be used, with the reason in plain words.
    """
    keys: dict[str, ExternalKey] = {}
    weak, left_out = set(), []
    for member in _members(document):
        kid = member.get("kid")
        named = kid if isinstance(kid, str) and kid.isprintable() else ""
        try:
            keys[named] = _key(member, named)
        except ValueError as e:
            left_out.append((named, str(e)))
            if isinstance(e, _WeakError):
                weak.add(named)
    if not keys:
        raise ValueError("none of its keys can be used")
    return JwkSet(keys, frozenset(weak), tuple(left_out))


def _members(document: Any) -> list[Mapping[str, Any]]:
    """The keys as they stand in a document, if a careful issuer could have published it.

    Raises:
        ValueError: as `jwk_set_of`.
    """
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError("it is no key set")
    if not members:
        raise ValueError("it is empty")
    if len(members) > MOST_KEYS:
        raise ValueError(f"it has more than {MOST_KEYS} keys")
    if any(_PRIVATE & member.keys() or member.get("kty") == "oct" for member in members):
        raise ValueError("it has private or symmetric keys")
    kids = Counter(str(member["kid"]) for member in members if member.get("kid") is not None)
    if any(count > 1 for count in kids.values()):
        raise ValueError("two of its keys have the same id")
    return members


class _WeakError(ValueError):
    """An RSA key has too few bits, or too many."""


def _key(member: Mapping[str, Any], kid: str) -> ExternalKey:
    """One key.

    Raises:
        ValueError: the key is not used, with the reason in plain words.
    """
    if not 0 < len(kid) <= MOST_NAME:
        raise ValueError("it has no id, or an absurd one")
    if member.get("use", "sig") != "sig" or "verify" not in _operations(member):
        raise ValueError("it is not for signatures")
    kty, crv = member.get("kty"), member.get("crv")
    algorithm = _ALGORITHMS.get((kty, crv)) if isinstance(kty, str) and isinstance(crv, str | None) else None
    if kty is None or algorithm is None or member.get("alg", algorithm) != algorithm:
        raise ValueError("its type, curve or algorithm is not supported")
    numbers = {name: member.get(name) for name in _NUMBERS[kty]}
    if not all(isinstance(number, str) and len(number) <= _MOST_CHARACTERS for number in numbers.values()):
        raise ValueError("it is malformed")
    bits = 256
    if algorithm == "RS256":
        bits = _checked_bits(str(numbers["n"]), str(numbers["e"]))
    try:
        # The numbers alone: no other member of a document from outside reaches PyJWT.
        verifying = PyJWK({"kty": kty, **numbers}, algorithm=algorithm)
    except (PyJWTError, ValueError):
        verifying = None
    if verifying is None:
        raise ValueError("it is malformed")
    return ExternalKey(kid, kty, bits, algorithm, verifying)


def _operations(member: Mapping[str, Any]) -> list[Any]:
    """The operations for which a key may be used (RFC 7517 section 4.3)."""
    operations = member.get("key_ops", ["verify"])
    return operations if isinstance(operations, list) else []


def _checked_bits(modulus: str, exponent: str) -> int:
    """The bits of an RSA key.

    Raises:
        ValueError: they are too few or too many, or the exponent makes verifications slow or signatures forgeable.
    """
    try:
        n, e = (int.from_bytes(from_base64url(number), "big") for number in (modulus, exponent))
    except ValueError:
        n = e = 0
    if n == 0:
        raise ValueError("it is malformed")
    if not _FEWEST_BITS <= n.bit_length() <= _MOST_BITS:
        raise _WeakError(f"it has {n.bit_length()} bits, and not {_FEWEST_BITS} to {_MOST_BITS}")
    if not (1 < e < _MOST_EXPONENT and e % 2):
        raise _WeakError("its exponent is not odd, or too large")
    return n.bit_length()
