"""Storms: refusals by one and the same limit. The log has one line for a storm, and not one for each refusal.

Every refusal of a limit is made here, so all of them are counted, logged and worded alike.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from .. import metrics
from ..errors import RateLimit, SlowDown
from ..log import get_logger
from .budgets import Quota

AGAIN = timedelta(minutes=10)
"""How long after a line about a storm the next one is written, while the storm goes on."""

MOST = 4096
"""The most accounts, networks or sessions that are remembered here: about 1 MB."""

_log = get_logger()


@dataclass(slots=True)
class _Storm:
    said_at: float | None = None
    refused: int = 0
    user_id: UUID | None = None


class Storms:
    """Refuses, and counts refusals for each account, network or session.

    Also remembers whose account it is, if a failed attempt told.
    """

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

    def refusal(
        self,
        key: bytes,
        quota: Quota,
        wait: timedelta,
        surface: metrics.SurfaceWord,
        *,
        network: str | None = None,
        user_id: UUID | None = None,
        session_id: UUID | None = None,
    ) -> SlowDown:
        """The refusal of one attempt. Counts it, and writes the line of its storm if one is due.

        Args:
            key: the account, network or session whose storm it is.
            quota: the quota that allows no more.
            wait: how long the attempt has to wait.
            surface: what was asked for, in a word for metrics and the log.
            network: the network that the line names.
            user_id: the user whom the line names.
            session_id: the session that the line names.
        """
        limit = quota.name
        metrics.LIMITS_HIT.count((limit, surface))
        if refused := self._due(key):
            user, session = user_id and str(user_id), session_id and str(session_id)
            _log.warning(
                "limit_reached",
                limit=limit,
                surface=surface,
                refused=refused,
                network=network,
                user_id=user,
                session_id=session,
            )
        return SlowDown(
            f"limit: {limit}",
            retry_after=wait,
            limit=RateLimit(limit, quota.most, quota.window),
            outcome="junk" if limit == "junk" else None,  # junk counts as junk, whatever the answer
        )

    def _due(self, key: bytes) -> int | None:
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
