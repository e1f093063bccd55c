"""How many connections a process keeps open."""

from __future__ import annotations

import math
from datetime import timedelta
from heapq import nsmallest
from typing import TYPE_CHECKING, cast

from .. import log
from ..errors import TemporarilyUnavailable
from . import open_files

if TYPE_CHECKING:
    from .protocol import KeyturnHttpProtocol

_WARNS_EVERY = timedelta(minutes=1)
_warned_at = -math.inf  # seconds on the event loop's clock


def make_room(newcomer: KeyturnHttpProtocol, most: int) -> None:
    """Keeps the connections below the limit of open files. At that limit, the kernel would reset each new connection.

    1. If connections wait for a request, a sixteenth of them is closed. First are those that would time out soonest.
    2. If no connection waits for a request, the new connection is refused.
    3. If too many connections are being refused, the new connection is aborted.

    Args:
        newcomer: the new connection.
        most: how many connections the process may keep open.
    """
    others = [
        cast("KeyturnHttpProtocol", each)
        for each in newcomer.connections
        if each is not newcomer and not each.transport.is_closing()
    ]
    if len(others) < most:
        return
    _warn(newcomer.loop.time(), most)
    waiting = [each for each in others if each.waits_until < math.inf]
    for each in nsmallest(max(1, len(waiting) // 16), waiting, key=lambda each: each.waits_until):
        each.transport.close()
    if len(newcomer.connections) > most + open_files.RESERVE // 4:
        newcomer.transport.abort()
    elif not waiting:
        newcomer.refuse(TemporarilyUnavailable("too many connections"))


def _warn(now: float, most: int) -> None:
    global _warned_at  # noqa: PLW0603  # one warning for one process
    if now - _warned_at > _WARNS_EVERY.total_seconds():
        _warned_at = now
        log.get_logger().warning("connections_full", limit=most, advice="raise the limit of open files (ulimit -n)")
