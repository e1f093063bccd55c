"""Proofs that a device has signed in to an account before. Pure: no I/O, no clock.

A proof is ``ktd_`` and base64url (RFC 4648 section 5) of

    day of the sign-in since 1970 (2) ‖ random (8) ‖ mark (8) ‖ tag (18)

The tag is HMAC-SHA256 (RFC 2104) of the bytes before it and of the account's e-mail address. The mark is one of day,
random bytes and the stored hash of the password. Their keys come from the master secret. So nobody makes a proof but
Keyturn, after the right password. A proof of one account is none of another, and the next password makes it void.
A device id that a client chooses may be known to others, so such an id proves nothing.

A proof opens nothing. It only gives its holder a budget of wrong passwords that no storm from elsewhere exhausts.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from datetime import date
from secrets import token_bytes
from typing import NamedTuple, Self

from .primitives import derive, from_base64url, prepared_hmac, to_base64url

PATTERN = "ktd_[A-Za-z0-9_-]{48}"
"""The form of a proof. It has no spare bits, so each proof has one spelling."""

GOOD_FOR = 400
"""Days for which a proof counts: as long as browsers keep a cookie."""

_RENEWED_AFTER = 30  # days
_FORM = re.compile(PATTERN)
_START, _MARKED = 10, 18  # bytes: day and random bytes; these and the mark
_EPOCH = date(1970, 1, 1)


class Known(NamedTuple):
    """A device that has proved itself, if the account's password is still the one of then (`KnownDevices.counts`)."""

    proof: str
    start: bytes
    mark: bytes
    is_fresh: bool
    """Whether the device may keep this proof. Otherwise it should get a new one at its next sign-in."""

    @property
    def id(self) -> bytes:
        """The device, for its budget."""
        return self.start + self.mark

    def __repr__(self) -> str:
        return "Known()"


class _Keys(NamedTuple):
    """The two keys of one master secret, each as its HMAC."""

    tag: Callable[[bytes], bytes]
    mark: Callable[[bytes], bytes]

    @classmethod
    def of(cls, master: bytes) -> Self:
        return cls(*(prepared_hmac(derive(master, b"keyturn known device " + label)) for label in (b"v1", b"mark v1")))

    def mark_of(self, start: bytes, password_hash: str) -> bytes:
        return self.mark(start + password_hash.encode())[: _MARKED - _START]

    def tag_of(self, marked: bytes, address: str) -> bytes:
        return self.tag(marked + address.encode())[:_MARKED]


class KnownDevices:
    """Makes and checks proofs. All instances make the same of the same master secret."""

    def __init__(self, master: bytes, previous: bytes | None) -> None:
        """Proofs under the previous master secret count as well, while there is one."""
        self._keys, *self._former = [_Keys.of(secret) for secret in (master, previous) if secret]

    def prove(self, address: str, password_hash: str, today: date) -> str:
        """A new proof, for a device that has just signed in to the account of this address.

        Args:
            address: the account's e-mail address, in its one spelling.
            password_hash: the stored hash of the password that was right.
            today: the day.
        """
        start = (today - _EPOCH).days.to_bytes(2) + token_bytes(_START - 2)
        marked = start + self._keys.mark_of(start, password_hash)
        return "ktd_" + to_base64url(marked + self._keys.tag_of(marked, address)).decode()

    def find(self, proofs: Iterable[str], address: str, today: date) -> Known | None:
        """The device that one of these proofs shows, for the account of this address. None if none of them does."""
        for proof in proofs:
            if _FORM.fullmatch(proof) is None:
                continue
            raw = from_base64url(proof[4:])
            marked, tag = raw[:_MARKED], raw[_MARKED:]
            for keys in (self._keys, *self._former):
                if hmac.compare_digest(tag, keys.tag_of(marked, address)):
                    age = (today - _EPOCH).days - int.from_bytes(marked[:2])
                    if age <= GOOD_FOR:
                        is_fresh = age < _RENEWED_AFTER and keys is self._keys
                        return Known(proof, marked[:_START], marked[_START:], is_fresh)
        return None

    def counts(self, known: Known, password_hash: str) -> bool:
        """Whether the device signed in with the password that has this stored hash.

        Otherwise whoever knew an earlier password could have made any number of proofs, each with a budget of its own.
        """
        return any(
            hmac.compare_digest(known.mark, keys.mark_of(known.start, password_hash))
            for keys in (self._keys, *self._former)
        )
