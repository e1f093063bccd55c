"""How many tokens that are none of Keyturn's one network may present. No I/O.

A token is checked first, and counts only if it is junk. So nobody with a genuine token is ever refused for the junk of
others behind the same address. The refusal of one that is over still tells the reason.

Cookies do not count. A refusal of a cookie deletes it, so a browser does not send it again. And a page whose cookies
are junk has to learn that its user must sign in.
"""

from __future__ import annotations

from typing import Literal

from ..errors import InvalidGrant, InvalidToken, Refusal
from ..settings import Settings
from .budgets import Budget, Quota
from .cells import Cells
from .networks import network_of
from .storms import Storms

_MOST = 16_384
"""The most networks that one process remembers: about 3 MB."""


class Junk:
    """Counts junk for each network."""

    def __init__(self, settings: Settings) -> None:
        self._quota = Quota.of("junk", settings.limit_junk)
        self._prefixes = settings.network_ipv4, settings.network_ipv6
        self._cells = Cells(most=_MOST)
        self._storms = Storms()

    def refused(self, refusal: Refusal, client: str | None, surface: Literal["refresh", "verify"]) -> None:
        """Counts the token that was refused, if it is junk. The caller raises the refusal after this.

        Args:
            refusal: the refusal, which names the session if the token is genuine.
            client: the client's address. None: unknown, so nothing is counted.
            surface: what the token was presented for, in a word for metrics and the log.

        Raises:
            SlowDown: the network of the client presented too much junk.
        """
        if self._quota is None or client is None or not _is_junk(refusal):
            return
        network = network_of(client, *self._prefixes)
        key = network.encode()
        exhausted = self._cells.take((Budget(self._quota, key),))
        if exhausted is not None:
            raise self._storms.refusal(key, self._quota, exhausted.wait, surface, network=network)


def _is_junk(refusal: Refusal) -> bool:
    """Whether the refusal is that of a token that Keyturn did not issue, as far as its keys can tell."""
    is_of_a_token = isinstance(refusal, InvalidGrant | InvalidToken)
    return is_of_a_token and refusal.session_id is None and refusal.reason is None
