"""A service that knows breached passwords, asked without telling it the password (k-anonymity).

The service gets the first 20 of the 160 bits of the SHA-1, and answers with all the rest that it knows under them:
hundreds. The answer is padded on request, so that an observer of the line learns nothing from its size. SHA-1 is the
form of this API (haveibeenpwned.com, API v3), and protects nothing here.

A service that is away, slow or odd is no reason to refuse a password: the list has been asked already.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha1
from time import monotonic

from ..errors import TemporarilyUnavailable
from ..log import get_logger
from ..outgoing.sending import Peer, Sending
from ..settings import Settings

LIMIT = timedelta(seconds=2)
"""How long the service may take."""

COOL_DOWN = timedelta(seconds=30)
"""How long the service is not asked after it failed. So nobody waits for one that is away but once in a while."""

MOST = 8
"""How many may be asked for at the same time. For more, the service counts as away: nobody waits for a turn."""

_OK = 200
_PREFIX = 5
_LINE = re.compile(rb"([0-9A-Fa-f]{35}):([0-9]{1,12})")

_log = get_logger()


class BreachedPasswords:
    """Asks the service of the settings. If they name none, no password counts as breached."""

    def __init__(self, settings: Settings, sending: Sending, *, clock: Callable[[], float] = monotonic) -> None:
        """Sends nothing yet."""
        self._url = settings.password_range_url and settings.password_range_url.rstrip("/")
        ca_file = settings.password_range_ca_file
        self._peer = Peer(
            "the range API of breached passwords",
            settings.password_range_private,
            None if ca_file is None else str(ca_file),
        )
        self._sending = sending
        self._clock = clock
        self._under_way = 0
        self._again_at = float("-inf")

    @property
    def are_asked_for(self) -> bool:
        """Whether the settings name a service."""
        return self._url is not None

    async def has(self, password: str) -> bool:
        """Whether the service knows the password. False if it can't be asked now."""
        if self._url is None or self._under_way >= MOST or self._clock() < self._again_at:
            return False
        digest = sha1(password.encode(), usedforsecurity=False).hexdigest().upper()
        self._under_way += 1
        try:
            return digest[_PREFIX:].encode() in await self._known_under(digest[:_PREFIX])
        except TemporarilyUnavailable as e:
            self._again_at = self._clock() + COOL_DOWN.total_seconds()
            _log.warning("breached_passwords_not_asked", cause=e.cause)
            return False
        finally:
            self._under_way -= 1

    async def check(self) -> None:
        """Asks once, for an operator, about a password that everyone knows.

        Raises:
            TemporarilyUnavailable: the service is away, slow or odd.
        """
        if self._url is not None:
            await self._known_under("5BAA6")

    async def _known_under(self, prefix: str) -> frozenset[bytes]:
        """The rest of each digest that the service knows under a prefix. A count of 0 marks padding.

        Raises:
            TemporarilyUnavailable: the service is away, slow or odd.
        """
        headers = {"Add-Padding": "true", "Accept": "text/plain"}
        status, raw = await self._sending.send("GET", f"{self._url}/{prefix}", headers, to=self._peer, within=LIMIT)
        lines = [_LINE.fullmatch(line) for line in raw.split()]
        if status != _OK or not all(lines):
            raise TemporarilyUnavailable(f"{self._peer.called}: its answer is none of a range ({status})")
        return frozenset(line[1].upper() for line in lines if line and int(line[2]))
