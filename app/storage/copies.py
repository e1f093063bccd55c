"""Copies: what a process keeps in memory of a table, and how it follows the table by the version in the pulse.

Each transaction that changes such a table writes another version. Every process reads the pulse twice a second with the
fence. A version that differs from the copy's says that the table has to be read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Literal

from ..errors import TemporarilyUnavailable
from ..log import get_logger
from .tasks import keep

READ_BY_ALL = timedelta(seconds=2)
"""How long after a change of the table each process that reaches the database has the changed copy.

A process begins a reading of the pulse each half second. If none returns within 0.4 seconds, the database counts as
away. So the process learns of a commit within 0.9 seconds. The rest is for reading the table: some 300 rows at most.
"""

_RELOAD_EVERY = timedelta(minutes=5)
"""The table is read again after this time, also where the version stays the same: a second line of defence."""

_log = get_logger()


class Copy:
    """The age of one copy, and the task that reads it again. The owner holds what was read."""

    def __init__(self, load: Callable[[], Coroutine[Any, Any, None]], not_read: str) -> None:
        """Nothing was read yet.

        Args:
            load: reads the table, and calls `was_read`.
            not_read: the event in the log where that fails.
        """
        self._load = load
        self._not_read = not_read
        self.version: int | None = None
        self._loaded_at = float("-inf")
        self._behind_since: float | None = None  # when the first reading began that found another version than this one
        self._loading: asyncio.Task[None] | None = None
        self._failure: tuple[int, str] | None = None  # the version that can't be loaded, and why

    def was_read(self, version: int, began: float) -> None:
        """Notes that the table was read, with its version and when that began (monotonic clock)."""
        self.version, self._loaded_at, self._behind_since = version, began, None

    def follow(self, version: int, began: float) -> Literal["current", "behind", "too old"]:
        """Takes a reading of the pulse, and begins to read the table again if the version has changed.

        One load is under way at a time. One that failed is tried again at the next reading.

        Args:
            version: the version in the pulse.
            began: when the reading began, in seconds of the monotonic clock.

        Returns:
            "too old" where the process has known for longer than `READ_BY_ALL` that its copy is behind.
        """
        current = version == self.version
        if current:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = began
        if (not current or began - self._loaded_at > _RELOAD_EVERY.total_seconds()) and (
            self._loading is None or self._loading.done()
        ):
            self._loading = asyncio.create_task(self._reload(version))
            keep(self._loading)
        if current or self._behind_since is None:
            return "current"
        return "too old" if began - self._behind_since > READ_BY_ALL.total_seconds() else "behind"

    async def _reload(self, version: int) -> None:
        try:
            await self._load()
        except Exception as e:  # noqa: BLE001  # whatever it was, the next reading tries again
            failure = version, e.cause if isinstance(e, TemporarilyUnavailable) else f"{type(e).__name__}: {e}"
            if failure != self._failure:  # one line, and not two in each second
                _log.warning(self._not_read, cause=failure[1])
            self._failure = failure
        else:
            self._failure = None
