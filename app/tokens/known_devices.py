"""Proofs that a device has signed in to an account before. Pure: no I/O, no clock.

A proof is ``ktd_`` and base64url (RFC 4648 section 5) of

    day of the sign-in since 1970 (2) ‖ id of the device (16, random) ‖ tag (18)

The tag is HMAC-SHA256 (RFC 2104) of the bytes before it and of the account's e-mail address. Its key comes from the
master secret. So nobody makes a proof but Keyturn, after the right password, and a proof of one account is none of
another. A device id that a client chooses may be known to others, so such an id proves nothing.

A proof opens nothing. It only gives its holder a budget of wrong passwords that no storm from elsewhere exhausts.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from datetime import date
from secrets import token_bytes
from typing import NamedTuple

from .primitives import derive, from_base64url, prepared_hmac, to_base64url

PATTERN = "ktd_[A-Za-z0-9_-]{48}"
"""The form of a proof. It has no spare bits, so each proof has one spelling."""

GOOD_FOR = 400
"""Days for which a proof counts: as long as browsers keep a cookie."""

_RENEWED_AFTER = 30  # days
_FORM = re.compile(PATTERN)
_BYTES = 18  # of day and id
_EPOCH = date(1970, 1, 1)


class Known(NamedTuple):
    """A device that has proved itself."""

    id: bytes
    proof: str
    is_fresh: bool
    """Whether the device may keep this proof. Otherwise it should get a new one at its next sign-in."""

    def __repr__(self) -> str:
        return "Known()"


class KnownDevices:
    """Makes and checks proofs. All instances make the same of the same master secret."""

    def __init__(self, master: bytes, previous: bytes | None) -> None:
        """Proofs under the previous master secret count as well, while there is one."""
        self._hmac, *self._former = [
            prepared_hmac(derive(secret, b"keyturn known device v1")) for secret in (master, previous) if secret
        ]

    def prove(self, address: str, today: date) -> str:
        """A new proof, for a device that has just signed in to the account of this address."""
        start = (today - _EPOCH).days.to_bytes(2) + token_bytes(16)
        return "ktd_" + to_base64url(start + _tag(self._hmac, start, address)).decode()

    def find(self, proofs: Iterable[str], address: str, today: date) -> Known | None:
        """The device that one of these proofs shows, for the account of this address. None if none of them does."""
        for proof in proofs:
            if _FORM.fullmatch(proof) is None:
                continue
            raw = from_base64url(proof[4:])
            start, tag = raw[:_BYTES], raw[_BYTES:]
            for of in (self._hmac, *self._former):
                if hmac.compare_digest(tag, _tag(of, start, address)):
                    age = (today - _EPOCH).days - int.from_bytes(start[:2])
                    if age <= GOOD_FOR:
                        return Known(start[2:], proof, age < _RENEWED_AFTER and of is self._hmac)
        return None


def _tag(of: Callable[[bytes], bytes], start: bytes, address: str) -> bytes:
    return of(start + address.encode())[:_BYTES]
