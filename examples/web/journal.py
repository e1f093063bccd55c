"""The journal of the sessions that this process has seen. It is for display only, and forgets."""

from __future__ import annotations

from collections import OrderedDict, deque
from datetime import UTC, datetime

_SESSIONS = 1000
_ENTRIES = 12

Entry = tuple[datetime, str]


class Journal:
    """Some last entries for each session, of the sessions that were seen last."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, deque[Entry]] = OrderedDict()

    def add(self, session: str, text: str) -> None:
        """Write an entry for now."""
        self._entries.setdefault(session, deque(maxlen=_ENTRIES)).append((datetime.now(UTC), text))
        self._entries.move_to_end(session)
        if len(self._entries) > _SESSIONS:
            self._entries.popitem(last=False)

    def of(self, session: str) -> list[Entry]:
        """The entries of a session, the newest first."""
        return list(reversed(self._entries.get(session, ())))
