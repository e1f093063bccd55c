"""Pools: how many connections to the database a process has, and how many of them are in use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

from sqlalchemy import Pool, QueuePool

from ..metrics import PoolWord


class Connections(NamedTuple):
    """The connections of one pool, or of some that serve the same requests."""

    pool: PoolWord
    used: int
    idle: int


def connections(name: PoolWord, pools: Iterable[Pool], *, idle: int = 0) -> Connections:
    """Counts the connections of some pools. `idle` of them are out of their pool, and wait there for a statement."""
    queues = [cast("QueuePool", pool) for pool in pools]
    return Connections(
        name,
        sum(queue.checkedout() for queue in queues) - idle,
        sum(queue.checkedin() for queue in queues) + idle,
    )
