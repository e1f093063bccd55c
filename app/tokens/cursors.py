"""Cursors: where the next page of a list begins. Pure: no I/O, no clock."""

from __future__ import annotations

import hmac
from uuid import UUID

from ..errors import InvalidRequest
from .primitives import derive, from_base64url, prepared_hmac, to_base64url

_TAG_BYTES = 8


class Cursors:
    """Makes and opens cursors. Each belongs to one list: that of another user, or with another filter, refuses it."""

    def __init__(self, master: bytes) -> None:
        """`master` is the master secret, so that all processes make the same cursors."""
        self._hmac = prepared_hmac(derive(master, b"keyturn cursor v1"))

    def make(self, listing: str, last: UUID) -> str:
        """The cursor behind the item `last` of a list. `listing` names the list with its filters."""
        return to_base64url(last.bytes + self._tag(listing, last.bytes)).decode()

    def open(self, listing: str, cursor: str) -> UUID:
        """The item that the page of a cursor begins after.

        Raises:
            InvalidRequest: Keyturn did not make the cursor for this list.
        """
        try:
            raw = from_base64url(cursor)
        except ValueError:
            raw = b""
        last, tag = raw[:16], raw[16:]
        if len(raw) != 16 + _TAG_BYTES or not hmac.compare_digest(tag, self._tag(listing, last)):
            raise InvalidRequest("cursor", description="cursor: is none of this list's.")
        return UUID(bytes=last)

    def _tag(self, listing: str, last: bytes) -> bytes:
        return self._hmac(last + listing.encode())[:_TAG_BYTES]
