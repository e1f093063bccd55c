"""Connections to Redis. Limits are short and nothing is retried, because each caller has another way in an outage.

Revocations and limits have a pool each, so that no storm on the limits slows a revocation down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from redis import asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

CONNECTS_WITHIN = timedelta(seconds=1)


def pool(
    url: str,
    *,
    most: int,
    waits_for: timedelta,
    greet: Callable[[AbstractConnection], Awaitable[None]] | None = None,
) -> redis_asyncio.ConnectionPool:
    """A pool of connections. Opens nothing yet.

    Args:
        url: the URL of Redis, whose options the settings have checked.
        most: connections at the same time.
        waits_for: how long a caller waits for one of them.
        greet: what is done on a new connection, in the place of the driver's own greeting.
    """
    return redis_asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=most,
        timeout=waits_for.total_seconds(),
        socket_timeout=None,  # each round trip has one limit for everything that it sends and reads
        socket_connect_timeout=CONNECTS_WITHIN.total_seconds(),
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        redis_connect_func=greet,
    )
