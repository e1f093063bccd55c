"""The kinds of metrics: counters, gauges and histograms, each a few numbers in memory.

A metric is made once, with all its series: each word of each label is known beforehand. So no request can make a
series, and the memory is bounded. A word that is not on the list counts in a spare number, which `unlisted` returns: a
mistake in counting must not fail a request.

The numbers are floats in a `memoryview`. `place` moves them into memory that several processes share
(`metric_slots`). One thread of a process counts, that of the event loop: to add is to read and to write.

A count costs one call, one look-up and one addition: `bench/metrics.py` measures it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate, product
from math import isnan, nan
from typing import Generic, Literal, TypeVar

from .errors import Refusal

K = TypeVar("K", bound=Hashable)

Together = Literal["sum", "max", "newest"]
"""How the gauges of several processes make one number. `newest`: each process counts the same thing in the database, so
the number of the one that counted last stands for all."""


class _Index(dict[Hashable, int]):
    """Where a series has its number. A key that is on no list has the spare one, the last."""

    def __missing__(self, key: Hashable) -> int:
        return -1


class Metric:
    """One metric: its name, its help, its labels with their words, and its numbers.

    Args:
        name: the name after Prometheus's conventions, with its unit; a counter's ends with ``_total``.
        text: one sentence for operators.
        labels: the words of each label.
    """

    kind: Literal["counter", "gauge", "histogram"]
    width = 1
    """Numbers of one series."""

    def __init__(self, name: str, text: str, **labels: Sequence[str]) -> None:
        self.name = name
        self.text = text
        self.labels: Mapping[str, Sequence[str]] = labels
        self.series: tuple[tuple[str, ...], ...] = tuple(product(*labels.values()))
        """The words of each series, one for each label."""
        # One label: its word is the key. Several: the tuple of the words.
        keys: list[Hashable] = [words[0] if len(words) == 1 else words for words in self.series]
        self._at = _Index((key, position * self.width) for position, key in enumerate(keys))
        self.cells: memoryview[float] = memoryview(bytearray(8 * self.size)).cast("d")
        self._found: dict[int, Series] = {}

    @property
    def size(self) -> int:
        """How many numbers the metric has, with the spare ones."""
        return len(self.series) * self.width + self.width

    def place(self, cells: memoryview[float]) -> None:
        """Moves the numbers into other memory of `size` floats, where a process that has ended may have counted.

        Counts are added to those that stand there. Gauges told of that process, so they are replaced.
        """
        for position, value in enumerate(self.cells):
            cells[position] = value if self.kind == "gauge" else cells[position] + value
        self.cells = cells
        for series in self._found.values():
            series.place(cells)

    def _find(self, key: Hashable) -> slice:
        """Where the numbers of a key are."""
        start = self._at[key]
        if start < 0:
            start = self.size - self.width
        return slice(start, start + self.width)

    def _series(self, key: Hashable, bounds: Sequence[float] = ()) -> Series:
        where = self._find(key)
        return self._found.setdefault(where.start, Series(self.cells, where, bounds))

    def unlisted(self, cells: memoryview[float]) -> float:
        """How often a key was used that is on no list."""
        return float(sum(cells[-self.width :]))


class Series:
    """One series of a metric with labels, found once for many counts or observations."""

    __slots__ = ("_bounds", "_cells", "_least", "_where")

    def __init__(self, cells: memoryview[float], where: slice, bounds: Sequence[float]) -> None:
        self._where = where
        self._bounds = bounds
        self._least = bounds[0] if bounds else 0.0
        self.place(cells)

    def place(self, cells: memoryview[float]) -> None:
        """Takes the numbers of this series out of those of the metric."""
        self._cells = cells[self._where]

    def count(self) -> None:
        """Adds one to a counter."""
        self._cells[0] += 1.0

    def observe(self, value: float) -> None:
        """Counts an observation of a histogram."""
        cells = self._cells
        # Mostly a batch has one item, and did not wait.
        cells[0 if value <= self._least else bisect_left(self._bounds, value)] += 1.0
        cells[-1] += value


class Counter(Metric):
    """A counter without labels."""

    kind = "counter"

    def count(self, by: float = 1.0) -> None:
        """Adds one, or more."""
        self.cells[0] += by


class CounterBy(Metric, Generic[K]):
    """A counter with labels. Its key is the label's word, or the words of several labels as a tuple."""

    kind = "counter"

    def count(self, key: K, by: float = 1.0) -> None:
        """Adds one, or more."""
        self.cells[self._at[key]] += by

    def at(self, key: K) -> Series:
        """The series of a key."""
        return self._series(key)

    def refused(self, refusal: Refusal) -> None:
        """Adds one under the outcome of a refusal."""
        self.cells[self._at[refusal.outcome]] += 1.0

    def outcome(self, good: K) -> AbstractContextManager[None]:
        """Adds one under the outcome of the refusal that leaves the block, or under `good`. A defect counts nowhere."""
        return _Outcome(self, good)


class _Outcome(AbstractContextManager[None], Generic[K]):
    """The block of `CounterBy.outcome`. A generator would cost a logout a microsecond more."""

    __slots__ = ("_counter", "_good")

    def __init__(self, counter: CounterBy[K], good: K) -> None:
        self._counter = counter
        self._good = good

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            self._counter.count(self._good)
        elif isinstance(error, Refusal):
            self._counter.refused(error)


class Gauges(Metric):
    """One gauge, or one for each word. `together` says which processes count in it.

    A gauge that was never set is not a number, and has no sample.
    """

    kind = "gauge"

    def __init__(self, name: str, text: str, *, together: Together = "sum", **labels: Sequence[str]) -> None:
        super().__init__(name, text, **labels)
        self.together = together
        for position in range(self.size):
            self.cells[position] = nan

    def unlisted(self, cells: memoryview[float]) -> float:
        """Whether a key was used that is on no list."""
        return float(not isnan(cells[-1]))


class Gauge(Gauges):
    """A gauge without labels."""

    def set(self, value: float) -> None:
        """Sets the number of this process."""
        self.cells[0] = value


class GaugeBy(Gauges, Generic[K]):
    """A gauge with labels."""

    def set(self, key: K, value: float) -> None:
        """Sets the number of this process."""
        self.cells[self._at[key]] = value

    def only(self, key: K) -> None:
        """Sets the number of one word to 1 and of all others to 0: the state in which this process is."""
        at = self._at[key]
        self.cells[at] = 1.0  # first, so that no reader finds this process in no state
        for position in range(len(self.series)):
            if position != at:
                self.cells[position] = 0.0


class Buckets(Metric):
    """A histogram's numbers: one for each bucket, one for what is above all bounds, and the sum."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float], **labels: Sequence[str]) -> None:
        self.bounds = tuple(bounds)
        self.width = len(self.bounds) + 2
        super().__init__(name, text, **labels)

    def read(self, cells: memoryview[float] | Sequence[float], series: int) -> tuple[list[float], float]:
        """The cumulative counts of a series, the last one of all observations, and their sum."""
        start = series * self.width
        *counts, total = cells[start : start + self.width]
        return list(accumulate(counts)), total

    def unlisted(self, cells: memoryview[float]) -> float:
        """How often a key was used that is on no list."""
        return float(sum(cells[-self.width : -1]))


class Histogram(Buckets):
    """A histogram without labels."""

    def observe(self, value: float) -> None:
        """Counts an observation."""
        cells = self.cells
        cells[bisect_left(self.bounds, value)] += 1.0
        cells[self.width - 1] += value


class HistogramBy(Buckets, Generic[K]):
    """A histogram with labels."""

    def at(self, key: K) -> Series:
        """The series of a key."""
        return self._series(key, self.bounds)

    def observe(self, key: K, value: float) -> None:
        """Counts an observation."""
        cells = self.cells[self._find(key)]
        cells[bisect_left(self.bounds, value)] += 1.0
        cells[-1] += value
