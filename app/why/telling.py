"""A telling: the sentences about one user or session, with the moments and ids that stand behind them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID

Noun: TypeAlias = Literal["user", "session"]

OF_ROWS = ("refreshed", "deadline", "key_retired")
"""The kinds of lines that a row alone tells, because they leave no event of the session."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened, in a sentence."""

    at: datetime
    event: str
    """The kind of the event, or one of `OF_ROWS`."""
    says: str
    id: UUID | None = None
    """The event. None if a row tells it."""
    session_id: UUID | None = None
    actor: str | None = None
    actor_id: str | None = None
    address: str | None = None
    request_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer that a request would get now."""

    of: Literal["verify", "refresh", "sign_in"]
    status: int
    reason: str | None
    says: str


@dataclass(frozen=True, slots=True)
class Telling:
    """All that is known of a user or a session."""

    about: Noun
    id: UUID
    now: datetime
    """The database's clock."""
    user_id: UUID | None = None
    email: str | None = field(default=None, repr=False)
    """Only where the noun is the user."""
    status: str = "unknown"
    """`enabled`, `disabled` or `erased`; `live`, the reason of the end, or `deleted`."""
    facts: Sequence[str] = ()
    verdicts: Sequence[Verdict] = ()
    lines: Sequence[Line] = ()
    """The newest last."""
    before: UUID | None = None
    """The event before which the next, older page ends. None: there is none."""

    def members(self) -> dict[str, Any]:
        """The telling as JSON has it. A member of a line that has no value is left out."""
        lines = [asdict(line) for line in self.lines]
        return {
            "about": self.about,
            "id": self.id,
            "now": self.now,
            "user_id": self.user_id,
            **({"email": self.email} if self.about == "user" else {}),
            "status": self.status,
            "facts": list(self.facts),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "lines": [{name: value for name, value in line.items() if value is not None} for line in lines],
            "before": self.before,
        }


def in_order(told: Iterable[Line], by_rows: Iterable[Line], *, complete: bool) -> list[Line]:
    """The lines of events and those of rows, the newest last.

    Args:
        told: the lines of a page of events.
        by_rows: the lines that rows alone tell.
        complete: whether the page reaches back to the first event. Otherwise a row's line that is older than the page
            is left out: it belongs to an older page.
    """
    events = sorted(told, key=lambda line: line.at)
    oldest = None if complete or not events else events[0].at
    kept = [line for line in by_rows if oldest is None or line.at >= oldest]
    return sorted([*events, *kept], key=lambda line: line.at)


def shown(moment: datetime) -> str:
    """A moment in a sentence: UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def in_words(duration: timedelta) -> str:
    """A duration in the largest unit of which it is a whole number: 7 days, 90 minutes."""
    seconds = max(0, duration // timedelta(seconds=1))
    for unit, length in _UNITS:
        if seconds and seconds % length == 0:
            return count(seconds // length, unit)
    return count(seconds, "second")


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}{'s' * (number != 1)}"
