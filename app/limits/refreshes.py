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
from struct import Struct
from uuid import UUID

from .budgets import Quota
from .storms import Storms

_REPETITIONS = 20
_SESSION = Struct(">9xQ").unpack_from
"""The random bits of the session's id in the bytes of a token (RFC 9562 section 5.7)."""
_ID = slice(1, 17)
"""The session's id in the bytes of a token."""

# The numbers of a slot: the moments at which the three budgets are whole again, and the newest generation.
_BUDGETS, _NEWEST, _WIDTH = 3, 3, 4
_SLOTS = 2**15
"""Slots of one process. Their memory is 1.25 MiB."""


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
        # Arrays of numbers: the garbage collector has nothing to visit, and no session makes an object. The numbers of
        # a slot lie side by side, so that one read brings all of them from memory.
        count = slots if self._quota else 0
        self._sessions = array("Q", bytes(8 * count))
        self._slots = array("d", bytes(8 * _WIDTH * count))
        self._storms = Storms()

    def presented(self, token: bytes, generation: int) -> None:
        """Counts the presentation of a genuine refresh token.

        Args:
            token: its bytes.
            generation: its generation.

        Raises:
            SlowDown: the session refreshes too often.
        """
        if self._quota is None:
            return
        now, slots = self._clock(), self._slots
        (session,) = _SESSION(token)
        slot = session & self._mask
        rotates = slot * _WIDTH
        if self._sessions[slot] != session:
            # One in a loop owes more than half of an interval, so nobody pushes it out of its slot.
            if max(slots[rotates : rotates + _BUDGETS]) <= now + self._rotates_in / 2:
                self._sessions[slot] = session
                slots[rotates : rotates + _WIDTH] = array("d", (now + self._rotates_in, now, now, generation))
            return
        newest = slots[rotates + _NEWEST]
        if generation > newest:
            budget, interval = rotates, self._rotates_in
        else:
            budget, interval = rotates + (1 if generation == newest else 2), self._repeats_in
        whole_at = slots[budget]
        whole_at = (whole_at if whole_at > now else now) + interval  # noqa: FURB136  # a call of `max` costs 80 ns
        if whole_at > now + self._window:
            wait = timedelta(seconds=whole_at - now - self._window)
            session_id = UUID(bytes=token[_ID])
            refusal = self._storms.refusal(session_id.bytes, self._quota, wait, "refresh", session_id=session_id)
            raise refusal.about(session_id)
        slots[budget] = whole_at
        if generation > newest:
            slots[rotates + _NEWEST] = generation
