"""Natural batching: items that arrive while one run is under way go together in the next.

No item waits for others to arrive. An idle process runs each item at once and alone; under load the batches grow.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from .. import tracing
from ..errors import Contention, TemporarilyUnavailable
from ..metrics import BATCH_SIZE, BATCH_WAIT, BatchWord
from .tasks import QUEUE_LIMIT, TIME_LIMIT, under_way

if TYPE_CHECKING:
    from ..tracing import Span

K = TypeVar("K")
V = TypeVar("V")


class Batch(Generic[K, V]):
    """Calls `run` with the items that came together. `run` returns one answer for each, in their order.

    An answer that is an exception is raised for that item alone. If `run` itself raises a contention or a defect, each
    item is run again alone, so that one bad item never fails the others. So `run` must be safe to repeat. Each run is
    a task of its own: a caller may be cancelled, a statement under way may not.

    Up to `in_flight` runs are under way. With two, a run that is stuck does not stop the items that come after it.
    Metrics and traces know the batch by its `name`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[K]], Awaitable[Sequence[V | Exception]]],
        *,
        name: BatchWord,
        most: int = 256,
        in_flight: int = 1,
        queue_limit: timedelta = QUEUE_LIMIT / 2,
    ) -> None:
        self._run = run
        self._name, self._size, self._wait = name, BATCH_SIZE.at(name), BATCH_WAIT.at(name)
        self._most = most
        self._in_flight = in_flight
        self._queue_limit = queue_limit.total_seconds()
        self._running = 0
        self._waiting: deque[tuple[K, asyncio.Future[V], float, Span | None]] = deque()
        self._unanswered: deque[tuple[K, asyncio.Future[V], float, Span | None]] = deque()  # in the order of arrival
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, item: K) -> V:
        """The answer for one item.

        Raises:
            TemporarilyUnavailable: the item waited too long before its run began, or the run takes too long.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V] = loop.create_future()
        now = loop.time()
        asked = (item, future, now, None if tracing.active is None else tracing.active.above())
        self._waiting.append(asked)
        self._unanswered.append(asked)
        if self._timer is None:
            self._timer = loop.call_later(TIME_LIMIT.total_seconds(), self._give_up)
        if self._running < self._in_flight:
            self._running += 1
            # In a context of its own: a run logs about all items that it serves, and not about the one that started it.
            work = asyncio.create_task(self._work(), context=contextvars.Context())
            under_way.add(work)
            work.add_done_callback(under_way.discard)
        # The future is this caller's alone, so that its cancellation does not reach the run.
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                oldest = loop.time() - self._queue_limit
                items: list[K] = []
                futures: list[asyncio.Future[V]] = []
                askers: list[Span | None] = []
                first = 0.0  # when the first item came
                while self._waiting and len(items) < self._most:
                    item, future, since, asker = self._waiting.popleft()
                    if future.done():
                        continue
                    if since < oldest:
                        future.set_exception(TemporarilyUnavailable("waited too long in the queue"))
                        continue
                    items.append(item)
                    futures.append(future)
                    askers.append(asker)
                    first = first or since
                if items:
                    self._size.observe(len(items))
                    self._wait.observe(loop.time() - first)
                    await self._answer(items, futures, askers)
                while self._unanswered and self._unanswered[0][1].done():
                    self._unanswered.popleft()
        finally:
            self._running -= 1

    async def _answer(self, items: list[K], futures: list[asyncio.Future[V]], askers: list[Span | None]) -> None:
        try:
            if tracing.active is None:
                answers = await self._run(items)
            else:
                with tracing.active.batch(self._name, askers):
                    answers = await self._run(items)
            answered = list(zip(futures, answers, strict=True))
        except Exception as e:  # noqa: BLE001  # the callers get every error
            if len(items) > 1 and (isinstance(e, Contention) or not isinstance(e, TemporarilyUnavailable)):
                for item, future, asker in zip(items, futures, askers, strict=True):
                    await self._answer([item], [future], [asker])
                return
            answered = [(future, e) for future in futures]
        for future, answer in answered:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _give_up(self) -> None:
        """Gives up for callers that have waited for `TIME_LIMIT`. One timer for each caller would cost much more."""
        loop = asyncio.get_running_loop()
        limit = TIME_LIMIT.total_seconds()
        while self._unanswered:
            _, future, since, _ = self._unanswered[0]
            if not future.done() and loop.time() < since + limit:
                break
            self._unanswered.popleft()
            if not future.done():
                future.set_exception(TemporarilyUnavailable("no answer in time"))
        first = self._unanswered[0][2] if self._unanswered else None
        self._timer = None if first is None else loop.call_at(first + limit, self._give_up)
