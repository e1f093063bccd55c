"""Tasks that outlive their callers, and how long a caller waits for one."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import TemporarilyUnavailable

TIME_LIMIT = timedelta(seconds=5)
"""How long a request waits for its transaction before it answers 503. The transaction is left to end."""

QUEUE_LIMIT = timedelta(seconds=2)
"""How long anything waits before any SQL was sent: on the hot path half of it for its batch, half for a connection."""

_P = ParamSpec("_P")
_Self = TypeVar("_Self")
_Result = TypeVar("_Result")

under_way: set[asyncio.Task[Any]] = set()
"""The tasks for which `finish` waits. The event loop alone would not hold them."""


def own_task(
    function: Callable[Concatenate[_Self, _P], Awaitable[_Result]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _Result]]:
    """Runs a function that holds a transaction in a task of its own, which no cancellation reaches.

    A driver call that is cancelled half-way leaves an open lock (SQLite) or a commit that nobody knows of (Postgres).
    So the caller may go away, or give up after `TIME_LIMIT`; the transaction ends either way.

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
    """Holds a task until it is done (the event loop alone would not) and lets `finish` wait for it."""
    if isinstance(task, asyncio.Task):
        under_way.add(task)
    task.add_done_callback(_done)


def _done(task: asyncio.Future[Any]) -> None:
    under_way.discard(task)
    if not task.cancelled():
        task.exception()  # asyncio warns of an error that nobody asked for, and its caller may have gone away


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
