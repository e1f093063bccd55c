"""Natural batching: what arrives while one run is under way goes together in the next.

There is no timer. An idle service runs each item at once and alone; load makes the batches grow by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from app.db import QUEUE_LIMIT, keep, patiently
from app.errors import TemporarilyUnavailable

K = TypeVar("K")
V = TypeVar("V")


class Batch(Generic[K, V]):
    """Calls `run` with the items that came together; it gives one answer for each, in their order.

    An answer that is an exception is raised for that item alone. Where `run` itself fails and there were several
    items, each is run again by itself, so that one bad item never fails the others; `run` must therefore be safe to
    repeat. The runs are tasks of their own: whoever waits may be cancelled, the statement under way may not.
    """

    def __init__(
        self,
        run: Callable[[Sequence[K]], Awaitable[Sequence[V | Exception]]],
        *,
        most: int = 256,
        in_flight: int = 1,
        queue_limit: timedelta = QUEUE_LIMIT,
    ) -> None:
        self._run = run
        self._most = most
        self._in_flight = in_flight
        self._queue_limit = queue_limit.total_seconds()
        self._running = 0
        self._waiting: deque[tuple[K, asyncio.Future[V], float]] = deque()

    async def __call__(self, item: K) -> V:
        """The answer for one item.

        Raises:
            TemporarilyUnavailable: it waited too long before its run began, or its run takes too long.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V] = loop.create_future()
        keep(future)
        self._waiting.append((item, future, loop.time()))
        if self._running < self._in_flight:
            self._running += 1
            keep(asyncio.create_task(self._work()))
        return await patiently(future)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                oldest = loop.time() - self._queue_limit
                items: list[K] = []
                futures: list[asyncio.Future[V]] = []
                while self._waiting and len(items) < self._most:
                    item, future, since = self._waiting.popleft()
                    if future.done():
                        continue
                    if since < oldest:
                        future.set_exception(TemporarilyUnavailable("waited too long in the queue"))
                        continue
                    items.append(item)
                    futures.append(future)
                if items:
                    await self._answer(items, futures)
        finally:
            self._running -= 1

    async def _answer(self, items: list[K], futures: list[asyncio.Future[V]]) -> None:
        try:
            answers: Sequence[V | Exception] = await self._run(items)
        except Exception as e:  # noqa: BLE001  # whatever it is, it belongs to those who wait
            if len(items) > 1 and not isinstance(e, TemporarilyUnavailable):
                for item, future in zip(items, futures, strict=True):
                    await self._answer([item], [future])
                return
            answers = [e] * len(items)
        for future, answer in zip(futures, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
