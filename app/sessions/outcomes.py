"""Outcomes: how many refreshes came to which end, in this process since its start and in the metrics of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..errors import Refusal, SlowDown, TemporarilyUnavailable
from ..metrics import REFRESHES

_ROTATED, _RETRIED = REFRESHES.at("rotated"), REFRESHES.at("retried")


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

    def answered(self, *, rotated: bool) -> None:
        """Counts a refresh that gave tokens: by a rotation, or as the answer to a retry."""
        if rotated:
            self.rotated += 1
            _ROTATED.count()
        else:
            self.retried += 1
            _RETRIED.count()

    def refused_with(self, refusal: Refusal) -> None:
        """Counts a refusal: one for good, or an outage. A session that only refreshes too often counts as neither."""
        REFRESHES.refused(refusal)
        if isinstance(refusal, TemporarilyUnavailable):
            self.unavailable += 1
        elif not isinstance(refusal, SlowDown):
            self.denied += 1
            self.reuse_detected += refusal.outcome == "reuse"
