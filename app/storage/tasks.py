"""Tasks that outlive their callers, and how long a caller waits for one."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import TemporarilyUnavailable

TIME_LIMIT = timedelta(seconds=5)
"""How long a request waits for its transaction before it is answered 503. The transaction goes on."""

QUEUE_LIMIT = timedelta(seconds=2)
"""How long a caller waits until its SQL is sent. On the hot path: half for its batch, half for a connection."""

_P = ParamSpec("_P")
_Self = TypeVar("_Self")
_Result = TypeVar("_Result")

under_way: set[asyncio.Task[Any]] = set()
"""The tasks for which `finish` waits. The event loop alone would not hold them."""


def own_task(
    function: Callable[Concatenate[_Self, _P], Awaitable[_Result]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _Result]]:
    """Runs a function that holds a transaction in a task of its own, which no cancellation reaches.

    If a call of the driver is cancelled half-way, it leaves an open lock (SQLite) or an unknown commit (Postgres). So
    the caller may be cancelled, or give up after `TIME_LIMIT`, and the transaction still comes to its end.

    Raises:
        TemporarilyUnavailable: the function took longer than `TIME_LIMIT`.
    """

    @functools.wraps(function)
    async def wrapper(self: _Self, *args: _P.args, **kwargs: _P.kwargs) -> _Result:
        task = asyncio.ensure_future(function(self, *args, **kwargs))
        keep(task)
        return await wait_in_time(task)

    return wrapper  # type: ignore[return-value]  # wraps() forgets that the first parameter is the object


def keep(task: asyncio.Future[Any]) -> None:
    """Keeps a reference to a task until it is done, as the event loop does not, and lets `finish` wait for it."""
    if isinstance(task, asyncio.Task):
        under_way.add(task)
    task.add_done_callback(_done)


def _done(task: asyncio.Future[Any]) -> None:
    under_way.discard(task)
    if not task.cancelled():
        task.exception()  # else asyncio warns of an unread error, if the caller has left


async def wait_in_time(task: asyncio.Future[_Result]) -> _Result:
    """Awaits a task, which goes on even if its caller gives up or is cancelled.

    Raises:
        TemporarilyUnavailable: the task took longer than `TIME_LIMIT`.
    """
    try:
        async with asyncio.timeout(TIME_LIMIT.total_seconds()):
            return await asyncio.shield(task)
    except TimeoutError:
        raise TemporarilyUnavailable("no answer in time") from None


async def finish() -> None:
    """Waits until all tasks that are kept have ended, `TIME_LIMIT` at most."""
    if under_way:
        await asyncio.wait(under_way, timeout=TIME_LIMIT.total_seconds())
