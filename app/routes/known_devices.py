"""Known devices: the proof that a device has signed in to an account before, as requests and answers carry it.

A browser keeps its proofs in a cookie, which only requests below `/auth` carry. A client of mode "bearer" that names
its device gets the proof in the answer, and sends it with the next sign-in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Self

from ..http.answers import Fields
from ..http.request import Request
from ..keyturn import Keyturn
from ..tokens.cookies import Mode
from ..tokens.known_devices import PATTERN, Known, KnownDevices

_MOST = 4  # accounts that one browser is known to: the newest
_FORM = re.compile(PATTERN)


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """The device of a sign-in, as far as it has proved itself to the account."""

    devices: KnownDevices
    address: str
    today: date
    known: Known | None
    """None: the device is new to this account."""
    given: tuple[str, ...] = field(repr=False)
    """The proofs that came with the request, for this account and others, or junk of the same form."""

    @classmethod
    def of(cls, keyturn: Keyturn, request: Request, mode: Mode, own: str | None, address: str) -> Self:
        """The device of a request.

        Args:
            keyturn: the parts of the process.
            request: the request.
            mode: the mode of the sign-in. In "bearer" no cookie counts.
            own: the proof in the body.
            address: the account's e-mail address, in its one spelling.
        """
        given = [] if own is None else [own]
        if mode != "bearer":
            for value in request.cookies().get(keyturn.cookies.known, ()):
                given += [each for each in value.split(".")[:_MOST] if _FORM.fullmatch(each)]
        today = keyturn.db.clock().date()
        known = keyturn.known_devices.find(given, address, today)
        return cls(keyturn.known_devices, address, today, known, tuple(given))

    @property
    def id(self) -> bytes | None:
        """The id of a device that is known, for its budget."""
        return None if self.known is None else self.known.id

    def counts(self, password_hash: str) -> bool:
        """Whether a device that is known signed in with the password that has this stored hash."""
        return self.known is not None and self.devices.counts(self.known, password_hash)

    def as_stranger(self) -> Self:
        """The device as if it were new to the account."""
        if self.known is None:
            return self
        others = tuple(each for each in self.given if each != self.known.proof)
        return replace(self, known=None, given=others)

    def kept(self, password_hash: str) -> str:
        """The proof that the device shall keep after a sign-in: its own or a new one. The hash is the stored one."""
        if self.known is not None and self.known.is_fresh and self.counts(password_hash):
            return self.known.proof
        return self.devices.prove(self.address, password_hash, self.today)

    def fields_to_set(self, keyturn: Keyturn, proof: str, *, remembered: bool) -> Fields:
        """The Set-Cookie field that gives a browser this proof beside those that it has. None where it has it."""
        if proof in self.given:
            return ()
        value = ".".join([proof, *self.as_stranger().given][:_MOST])
        return ((b"set-cookie", keyturn.cookies.set_known(value, remembered=remembered)),)
