"""Flights: callers who want the same thing at the same time share one call for it.

A flight goes on if its callers leave, so that its outcome serves whoever asks next.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from ..storage.tasks import keep

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """The calls under way, at most one for each key."""

    def __init__(self) -> None:
        self._under_way: dict[K, asyncio.Task[V]] = {}

    async def __call__(self, key: K, call: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The outcome of the call under way for this key. If there is none, this function begins one.

        Raises:
            Exception: whatever the call raises. Every caller gets the same exception.
        """
        task = self._under_way.get(key)
        if task is None:
            # In a context of its own: it serves several callers, and logs about none of them.
            task = asyncio.create_task(call(), context=contextvars.Context())
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
            keep(task)
        return await asyncio.shield(task)
