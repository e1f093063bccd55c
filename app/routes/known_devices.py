"""Known devices: the proof that a device has signed in to an account before, as requests and answers carry it.

A browser keeps its proofs in a cookie, which only requests below `/auth` carry. A client of mode "bearer" that names
its device gets the proof in the answer, and sends it with the next sign-in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..http.answers import Fields
from ..http.request import Request
from ..keyturn import Keyturn
from ..tokens.cookies import Mode
from ..tokens.known_devices import PATTERN

_MOST = 4  # accounts that one browser is known to: the newest
_FORM = re.compile(PATTERN)


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """The device of a sign-in, as far as it has proved itself to the account."""

    id: bytes | None
    """None: the device is new to this account."""
    proof: str = field(repr=False)
    """The proof that the device shall keep: its own, or a new one. It counts only after the right password."""
    others: tuple[str, ...] = field(repr=False)
    """The browser's proofs for other accounts, or junk of the same form."""
    is_new: bool
    """Whether the device has to learn the proof."""

    @classmethod
    def of(cls, keyturn: Keyturn, request: Request, mode: Mode, own: str | None, address: str) -> KnownDevice:
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
        others = tuple(each for each in given if known is None or each != known.proof)
        if known is not None and known.is_fresh:
            return cls(known.id, known.proof, others, is_new=False)
        return cls(known and known.id, keyturn.known_devices.prove(address, today), others, is_new=True)

    def fields_to_set(self, keyturn: Keyturn, *, remembered: bool) -> Fields:
        """The Set-Cookie field that gives a browser a new proof beside those that it has. None where it has it."""
        if not self.is_new:
            return ()
        value = ".".join([self.proof, *self.others][:_MOST])
        return ((b"set-cookie", keyturn.cookies.set_known(value, remembered=remembered)),)
