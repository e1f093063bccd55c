"""Items that arrive together go in one run, in order, and each gets its own answer (app/storage/batches.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest

from app.errors import Contention, TemporarilyUnavailable
from app.storage import batches
from app.storage.batches import Batch


class Runs:
    """Runs that answer a number with its tenfold and an exception with itself. A run waits while the gate is closed."""

    def __init__(self) -> None:
        self.items: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Exception | None = None
        self.under_way = self.most_under_way = 0

    async def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        self.items.append(list(items))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if self.fails is not None and "bad" in items:
            raise self.fails
        return [item if isinstance(item, Exception) else item * 10 for item in items]


@pytest.fixture
async def runs() -> Runs:
    return Runs()


async def tick() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def begin(batch: Batch[Any, Any], *items: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(batch(item)) for item in items]
    await tick()
    return tasks


async def outcome(*tasks: asyncio.Task[Any]) -> list[Any]:
    async with asyncio.timeout(5):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_arrives_while_a_run_is_under_way_goes_together_in_the_next(runs: Runs) -> None:
    batch = Batch(runs, name="lookup")
    assert await batch(1) == 10
    runs.gate.clear()
    tasks = await begin(batch, 2) + await begin(batch, 3, 4) + await begin(batch, 5)
    assert runs.items == [[1], [2]]
    runs.gate.set()
    assert await outcome(*tasks) == [20, 30, 40, 50]
    assert runs.items == [[1], [2], [3, 4, 5]]
    assert await batch(6) == 60
    assert runs.items[3:] == [[6]]
    assert runs.most_under_way == 1


async def test_no_more_than_256_go_together_unless_it_is_said_otherwise(runs: Runs) -> None:
    for most, sizes in ((None, [1, 256, 43]), (2, [1, 2, 2, 2, 2])):
        batch = Batch(runs, name="lookup") if most is None else Batch(runs, name="lookup", most=most)
        runs.items.clear()
        runs.gate.clear()
        count = sum(sizes)
        tasks = await begin(batch, 0) + await begin(batch, *range(1, count))
        runs.gate.set()
        assert await outcome(*tasks) == [10 * n for n in range(count)]
        assert [len(items) for items in runs.items] == sizes
        assert list(chain(*runs.items)) == list(range(count))


async def test_as_many_runs_are_under_way_as_it_is_said_and_never_more(runs: Runs) -> None:
    batch = Batch(runs, name="lookup", in_flight=2, most=1)
    for _ in range(3):
        runs.gate.clear()
        tasks = await begin(batch, 1, 2, 3, 4, 5)
        assert runs.under_way == 2
        runs.gate.set()
        assert await outcome(*tasks) == [10, 20, 30, 40, 50]
    assert runs.most_under_way == 2


async def test_an_answer_that_is_an_exception_is_for_its_item_alone(runs: Runs) -> None:
    batch, refusal = Batch(runs, name="lookup"), LookupError("of this item")
    runs.gate.clear()
    tasks = await begin(batch, 0, 1, refusal, 3)
    runs.gate.set()
    assert await outcome(*tasks) == [0, 10, refusal, 30]


async def test_where_a_run_fails_each_item_is_run_again_by_itself(runs: Runs) -> None:
    for others in ((), (1,), (1, 2)):
        batch, runs.fails = Batch(runs, name="lookup"), LookupError("of the run")
        runs.gate.clear()
        tasks = await begin(batch, 0) + await begin(batch, "bad", *others)
        runs.gate.set()
        assert await outcome(*tasks) == [0, runs.fails, *(10 * n for n in others)]
        again = [["bad"], *([n] for n in others)] if others else []
        assert runs.items == [[0], ["bad", *others], *again]
        assert await batch(7) == 70
        runs.items.clear()


async def test_where_another_transaction_was_in_the_way_each_is_run_again_by_itself(runs: Runs) -> None:
    batch, runs.fails = Batch(runs, name="lookup"), Contention("database: 40001")
    runs.gate.clear()
    tasks = await begin(batch, 0) + await begin(batch, "bad", 1, 2)
    runs.gate.set()
    assert await outcome(*tasks) == [0, runs.fails, 10, 20]
    assert runs.items == [[0], ["bad", 1, 2], ["bad"], [1], [2]]


async def test_an_outage_is_everybodys_and_nothing_is_repeated(runs: Runs) -> None:
    batch, runs.fails = Batch(runs, name="lookup"), TemporarilyUnavailable("away")
    runs.gate.clear()
    tasks = await begin(batch, 0) + await begin(batch, "bad", 1, 2)
    runs.gate.set()
    assert await outcome(*tasks) == [0, *[runs.fails] * 3]
    assert runs.items == [[0], ["bad", 1, 2]]


async def test_an_item_that_waited_too_long_in_the_queue_is_refused_and_is_not_run(runs: Runs) -> None:
    batch = Batch(runs, name="lookup", queue_limit=timedelta(milliseconds=40))
    runs.gate.clear()
    early = await begin(batch, 0) + await begin(batch, 1, 2)
    await asyncio.sleep(0.05)
    late = await begin(batch, 3)
    runs.gate.set()
    first, *waited = await outcome(*early)
    assert first == 0  # the run of this item had begun
    assert [type(w) for w in waited] == [TemporarilyUnavailable] * 2
    assert await outcome(*late) == [30]
    assert runs.items == [[0], [3]]


async def test_who_goes_away_takes_nobody_with_him(runs: Runs) -> None:
    batch = Batch(runs, name="lookup")
    runs.gate.clear()
    tasks = await begin(batch, 0) + await begin(batch, 1, 2)
    tasks[0].cancel()
    tasks[1].cancel()
    runs.gate.set()
    assert await outcome(tasks[2]) == [20]
    assert runs.items == [[0], [2]]  # the item of a cancelled task is left out of the next run
    runs.gate.clear()
    tasks = await begin(batch, 4, 5, 6)
    assert runs.items[2:] == [[4, 5, 6]]
    tasks[1].cancel()  # the run of this item is under way
    await tick()
    runs.gate.set()
    assert await outcome(tasks[0], tasks[2]) == [40, 60]


async def test_nobody_waits_longer_than_the_time_limit_counted_from_his_own_coming(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 0.1
    monkeypatch.setattr(batches, "TIME_LIMIT", timedelta(seconds=limit))
    batch, loop = Batch(runs, name="lookup"), asyncio.get_running_loop()

    async def waits(item: int) -> float:
        began = loop.time()
        with pytest.raises(TemporarilyUnavailable):
            await batch(item)
        return loop.time() - began

    for _ in range(2):
        assert await batch(0) == 0  # starts the timer, and ends before the time limit
        await asyncio.sleep(0.04)
        runs.gate.clear()
        tasks = [asyncio.create_task(waits(1))]
        await asyncio.sleep(0.04)
        tasks += [asyncio.create_task(waits(2)), asyncio.create_task(waits(3))]
        waited = await outcome(*tasks)
        assert all(w >= limit - 0.001 for w in waited), waited
        assert batch._timer is None
        # The run goes on, and no task waits for its late answer. A new item must get its own answer, not that one.
        late = await begin(batch, 4)
        runs.gate.set()
        assert await outcome(*late) == [40]
    assert not batch._unanswered
    await asyncio.sleep(limit + 0.02)
    assert batch._timer is None
