"""The seal of the rows of working keys, under the master secret. Pure: no I/O, no clock.

Each row is sealed with AES-256-GCM under a key that HKDF (RFC 5869) derives from the master secret. The row's id, use,
algorithm and number are associated data. So nobody can put a sealed key in the place of another: if a bit was changed,
the service does not start.

While the master secret is changed, rows may be sealed under the one before. Such a row opens too, and none is sealed
under that secret any more.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from ..errors import ConfigurationError
from .primitives import Sealing, derive

Secret = Literal["current", "previous"]
"""A master secret: the one of the setting SECRET, or the one of SECRET_PREVIOUS."""

_LABEL = b"keyturn sealed working key v1"


class KeySeal:
    """Seals and opens rows."""

    def __init__(self, master: bytes, previous: bytes | None = None) -> None:
        """`master` seals and opens. `previous` is the master secret before it, which only opens."""
        self._sealings: dict[Secret, Sealing] = {"current": Sealing(derive(master, _LABEL))}
        if previous is not None:
            self._sealings["previous"] = Sealing(derive(previous, _LABEL))

    def seal(self, secret: bytes, kid: str, use: str, algorithm: str, number: int | None) -> bytes:
        """A working key's secret as its row keeps it."""
        return self._sealings["current"].seal(secret, _associated(kid, use, algorithm, number))

    def open(self, row: Any) -> bytes:
        """The secret of a row.

        Raises:
            ConfigurationError: neither master secret opens the row, or the row was changed.
        """
        return self._opened(row)[1]

    def sealed_under(self, row: Any) -> Secret | None:
        """The master secret under which a row is sealed. None if this process has not got it."""
        try:
            return self._opened(row)[0]
        except ConfigurationError:
            return None

    def _opened(self, row: Any) -> tuple[Secret, bytes]:
        associated = _associated(row.kid, row.use, row.algorithm, row.number)
        for name, sealing in self._sealings.items():
            if (secret := sealing.open(row.sealed, associated)) is not None:
                return name, secret
        raise ConfigurationError(
            f"key {row.kid} can't be unsealed: KEYTURN_SECRET is not the one it was sealed under, "
            "or the row was changed; where that secret is lost: keyturn keys replace --sign-everyone-out"
        )


def _associated(kid: str, use: str, algorithm: str, number: int | None) -> bytes:
    return json.dumps([kid, use, algorithm, number]).encode()
