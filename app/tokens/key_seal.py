"""The seals of rows under the master secret: working keys, and the secrets of issuers. Pure: no I/O, no clock.

Each row is sealed with AES-256-GCM under a key that HKDF (RFC 5869) derives from the master secret, with a label for
each kind of row. So no row of one kind opens as a row of another. The rest of a row is associated data. So nobody can
put a sealed key in the place of another, or let a sealed secret go to another issuer: if a bit was changed, the row
does not open.

While the master secret is changed, rows may be sealed under the one before. Such a row opens too, and none is sealed
under that secret any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ConfigurationError
from .primitives import Sealing, derive

Secret = Literal["current", "previous"]
"""A master secret: the one of the setting SECRET, or the one of SECRET_PREVIOUS."""

_OF_KEYS = b"keyturn sealed working key v1"
_OF_ISSUERS = b"keyturn sealed secrets of an issuer v1"


class KeySeal:
    """Seals and opens rows."""

    def __init__(self, master: bytes, previous: bytes | None = None) -> None:
        """`master` seals and opens. `previous` is the master secret before it, which only opens."""
        masters: dict[Secret, bytes] = {"current": master}
        if previous is not None:
            masters["previous"] = previous
        self._of_keys = {name: Sealing(derive(secret, _OF_KEYS)) for name, secret in masters.items()}
        self._of_issuers = {name: Sealing(derive(secret, _OF_ISSUERS)) for name, secret in masters.items()}

    # -- working keys

    def seal(self, secret: bytes, kid: str, use: str, algorithm: str, number: int | None) -> bytes:
        """A working key's secret as its row keeps it."""
        return self._of_keys["current"].seal(secret, _key_beside(kid, use, algorithm, number))

    def open(self, row: Any) -> bytes:
        """The secret of a row.

        Raises:
            ConfigurationError: neither master secret opens the row, or the row was changed.
        """
        opened = self._opened(row)
        if opened is None:
            raise ConfigurationError(
                f"key {row.kid} can't be unsealed: KEYTURN_SECRET is not the one it was sealed under, "
                "or the row was changed; where that secret is lost: keyturn keys replace --sign-everyone-out"
            )
        return opened[1]

    def sealed_under(self, row: Any) -> Secret | None:
        """The master secret under which a row is sealed. None if this process has not got it."""
        opened = self._opened(row)
        return None if opened is None else opened[0]

    def _opened(self, row: Any) -> tuple[Secret, bytes] | None:
        return _opened(self._of_keys, row.sealed, _key_beside(row.kid, row.use, row.algorithm, row.number))

    # -- secrets of issuers

    def seal_secrets(self, secrets: bytes, name: str, configuration: str) -> bytes:
        """The secrets of an issuer as its row keeps them. They open only beside this name and configuration.

        The configuration says to which host the client secret goes. So whoever can write to the table, but has not got
        the master secret, can't have it sent elsewhere.
        """
        return self._of_issuers["current"].seal(secrets, _issuer_beside(name, configuration))

    def open_secrets(self, row: Any) -> tuple[Secret, bytes] | None:
        """The secrets of an issuer's row, and the master secret under which it is sealed. None: neither opens it."""
        return _opened(self._of_issuers, row.sealed, _issuer_beside(row.name, row.configuration))


def _opened(sealings: Mapping[Secret, Sealing], sealed: bytes, associated: bytes) -> tuple[Secret, bytes] | None:
    for name, sealing in sealings.items():
        if (secret := sealing.open(sealed, associated)) is not None:
            return name, secret
    return None


def _key_beside(kid: str, use: str, algorithm: str, number: int | None) -> bytes:
    return json.dumps([kid, use, algorithm, number]).encode()


def _issuer_beside(name: str, configuration: str) -> bytes:
    return json.dumps([name, configuration]).encode()
