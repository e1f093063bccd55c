"""Storms: refusals by one and the same limit. The log has one line for a storm, and not one for each refusal."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

AGAIN = timedelta(minutes=10)
"""How long after a line about a storm the next one is written, while the storm goes on."""

MOST = 4096
"""The most accounts and networks that are remembered here: about 1 MB."""


@dataclass(slots=True)
class _Storm:
    said_at: float | None = None
    refused: int = 0
    user_id: UUID | None = None


class Storms:
    """Counts refusals for each account or network, and remembers whose account it is if a failed attempt told."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._storms: OrderedDict[bytes, _Storm] = OrderedDict()

    def note_user(self, key: bytes, user_id: UUID) -> None:
        """Remembers whose account the key means."""
        self._of(key).user_id = user_id

    def user_of(self, key: bytes) -> UUID | None:
        """The user whose account the key means, if a failed attempt in this process has told it."""
        storm = self._storms.get(key)
        return None if storm is None else storm.user_id

    def refused(self, key: bytes) -> int | None:
        """Counts one refusal. Returns how many there were since the last line, if a line is due now."""
        storm, now = self._of(key), self._clock()
        storm.refused += 1
        if storm.said_at is not None and now - storm.said_at < AGAIN.total_seconds():
            return None
        count, storm.said_at, storm.refused = storm.refused, now, 0
        return count

    def _of(self, key: bytes) -> _Storm:
        storm = self._storms.pop(key, None) or _Storm()
        self._storms[key] = storm
        if len(self._storms) > MOST:
            self._storms.popitem(last=False)
        return storm
