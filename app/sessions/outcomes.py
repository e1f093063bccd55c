"""Outcomes: how many refreshes of this process came to which end, since its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..errors import Refusal, SlowDown, TemporarilyUnavailable


@dataclass(slots=True)
class Outcomes:
    """The refreshes of one process, by outcome. Plain numbers: one thread counts, and no await stands between."""

    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the counting began, by the clock of this machine."""
    rotated: int = 0
    retried: int = 0
    reuse_detected: int = 0
    """Presentations that were a reuse, not the later ones that hear of it."""
    unavailable: int = 0
    denied: int = 0
    """All refusals for good, those of a reuse included."""

    @property
    def refused(self) -> int:
        """The refusals for good that were no reuse."""
        return self.denied - self.reuse_detected

    def count(self, refusal: Refusal) -> None:
        """Counts a refusal: one for good, or an outage. A session that only refreshes too often counts as neither."""
        if isinstance(refusal, TemporarilyUnavailable):
            self.unavailable += 1
        elif not isinstance(refusal, SlowDown):
            self.denied += 1
