"""How often one session may refresh. No I/O: a client in a loop costs microseconds, and no statement.

The limit belongs to the session, and to no address: whole offices share one. A session has three budgets in each
process, all as in `Quota`:

1. Of rotations: presentations of a token that is newer than any before. A refused one changes nothing, so the client
   comes back with the same token after `Retry-After`, which is one interval at most.
2. Of repetitions: presentations of the newest token that was let through. The retry of a lost answer is one, so it
   does not need the first budget. This one is `_REPETITIONS` times as large, for a browser whose tabs all refresh at
   once.
3. Of older tokens, as large as the second. So a thief who presents the newest token without pause can't keep the reuse
   of an older one from being seen (guarantee 2).

Memory is fixed: a table of slots. A session takes its slot by the random bits of its id, which no client chooses. If
two sessions want one slot, the one with less left of its budget has it, and the other one is not limited meanwhile. So
a session in a loop keeps its slot, and no session is ever refused for another one's refreshes.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from .. import metrics
from ..errors import RateLimit, SlowDown
from ..log import get_logger
from .budgets import Quota
from .storms import Storms

_REPETITIONS = 20
_SLOTS = 2**15
"""Slots of one process. Their memory is one MiB."""

_log = get_logger()


class Refreshes:
    """Counts the refreshes of each session in one process."""

    def __init__(self, rate: str, clock: Callable[[], float] = time.monotonic, slots: int = _SLOTS) -> None:
        """`rate` is the setting: rotations in so many seconds, or ``off``. `slots` is a power of two."""
        self._quota = Quota.of("session", rate)
        self._clock = clock
        self._mask = slots - 1
        self._window = self._quota.window.total_seconds() if self._quota else 0.0
        self._rotates_in = self._window / self._quota.most if self._quota else 0.0
        self._repeats_in = self._rotates_in / _REPETITIONS
        # Arrays of numbers: the garbage collector has nothing to visit, and no session makes an object.
        count = slots if self._quota else 0
        self._sessions = array("Q", bytes(8 * count))
        self._generations = array("I", bytes(4 * count))
        self._rotates_whole_at = array("d", bytes(8 * count))
        self._repeats_whole_at = array("d", bytes(8 * count))
        self._older_whole_at = array("d", bytes(8 * count))
        self._storms = Storms()

    def presented(self, token: bytes, generation: int, session_id: UUID) -> None:
        """Counts the presentation of a genuine refresh token.

        Args:
            token: its bytes. Those from the tenth on are random bits of the session's id (RFC 9562 section 5.7).
            generation: its generation.
            session_id: its session.

        Raises:
            SlowDown: the session refreshes too often.
        """
        if self._quota is None:
            return
        now = self._clock()
        session = int.from_bytes(token[9:17])
        slot = session & self._mask
        if self._sessions[slot] != session:
            later = now + self._rotates_in
            if max(self._rotates_whole_at[slot], self._repeats_whole_at[slot], self._older_whole_at[slot]) <= later:
                self._sessions[slot], self._generations[slot] = session, generation
                self._rotates_whole_at[slot] = later
                self._repeats_whole_at[slot] = self._older_whole_at[slot] = now
            return
        newest = self._generations[slot]
        if generation > newest:
            whole_at = max(self._rotates_whole_at[slot], now) + self._rotates_in
            if whole_at <= now + self._window:
                self._rotates_whole_at[slot], self._generations[slot] = whole_at, generation
                return
        else:
            budgets = self._repeats_whole_at if generation == newest else self._older_whole_at
            whole_at = max(budgets[slot], now) + self._repeats_in
            if whole_at <= now + self._window:
                budgets[slot] = whole_at
                return
        raise self._refusal(self._quota, session_id, whole_at - now - self._window)

    def _refusal(self, quota: Quota, session_id: UUID, wait: float) -> SlowDown:
        metrics.LIMITS_HIT.count((quota.name, "refresh"))
        if refused := self._storms.refused(session_id.bytes):
            _log.warning(
                "limit_reached", limit=quota.name, surface="refresh", refused=refused, session_id=str(session_id)
            )
        limit = RateLimit(quota.name, quota.most, quota.window, 0)
        return SlowDown(f"limit: {quota.name}", retry_after=timedelta(seconds=wait), limit=limit).about(session_id)
