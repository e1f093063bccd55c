"""The numbers of an interval: rates, quantiles and states of all instances together, from two readings. Pure.

A counter grows from the start of its process on. So the difference is made for each instance by itself, before the
instances are added: the restart of one is then a count from zero, and never a negative rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from ..metric_kinds import Counter, CounterBy, Gauge, GaugeBy, Histogram, HistogramBy, Metric
from .doors import Reading
from .exposition import Series

_Counter: TypeAlias = Counter | CounterBy[Any]
_Gauge: TypeAlias = Gauge | GaugeBy[Any]
_Histogram: TypeAlias = Histogram | HistogramBy[Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of an interval."""

    seconds: float
    """How long the interval was. 0: there was no earlier reading, so there are no rates."""
    instances: Sequence[Reading]
    _growth: Mapping[Series, float]
    _rates: Mapping[Series, float]
    _states: Sequence[Reading]

    @classmethod
    def between(cls, before: Mapping[str, Reading], after: Mapping[str, Reading]) -> Self:
        """The numbers between two readings of the same doors. An instance without both gives states and no rates."""
        growth: dict[Series, float] = {}
        rates: dict[Series, float] = {}
        longest = 0.0
        for url, reading in after.items():
            earlier = before.get(url)
            if reading.failure is not None or earlier is None or earlier.failure is not None:
                continue
            seconds = reading.at - earlier.at
            if seconds <= 0:
                continue
            longest = max(longest, seconds)
            for series, value in reading.samples.items():
                grown = value - earlier.samples.get(series, 0.0)
                grown = value if grown < 0 else grown  # the process began anew
                growth[series] = growth.get(series, 0.0) + grown
                rates[series] = rates.get(series, 0.0) + grown / seconds
        states = [reading for reading in after.values() if reading.failure is None]
        return cls(longest, list(after.values()), growth, rates, states)

    def rate(self, counter: _Counter, **words: str) -> float:
        """How often a thing happened in a second. `words` are those of some labels: the series that have them count."""
        return sum(self._rates.get((counter.name, each), 0.0) for each in _series(counter, words))

    def rate_of(self, histogram: _Histogram, **words: str) -> float:
        """How many observations there were in a second."""
        return sum(self._rates.get((f"{histogram.name}_count", each), 0.0) for each in _series(histogram, words))

    def state(self, gauge: _Gauge, **words: str) -> float | None:
        """The value of a gauge now, over all instances as over all processes. None: no instance has it."""
        values = [
            reading.samples[gauge.name, each]
            for reading in self._states
            for each in _series(gauge, words)
            if (gauge.name, each) in reading.samples
        ]
        if not values:
            return None
        # Of several instances, none can tell whether it counted last. Each counted within the last minute.
        return sum(values) if gauge.together == "sum" else max(values)

    def mean(self, histogram: _Histogram, **words: str) -> float | None:
        """The mean of the observations of the interval. None: there were none."""
        observed = sum(self._growth.get((f"{histogram.name}_count", each), 0.0) for each in _series(histogram, words))
        total = sum(self._growth.get((f"{histogram.name}_sum", each), 0.0) for each in _series(histogram, words))
        return total / observed if observed else None

    def quantile(self, part: float, histogram: _Histogram, **words: str) -> float | None:
        """A quantile of the observations of the interval, as Prometheus estimates it.

        Within a bucket, observations count as evenly spread. None: there were none. Infinite: it is above all bounds.
        """
        counts: dict[float, float] = {}
        chosen = set(_series(histogram, words))
        for (name, series), grown in self._growth.items():
            if name == f"{histogram.name}_bucket" and series[:-1] in chosen:
                bound = float(series[-1])
                counts[bound] = counts.get(bound, 0.0) + grown
        bounds = sorted(counts)
        if not bounds or not counts[bounds[-1]]:
            return None
        rank, below, last = part * counts[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if counts[bound] >= rank:
                inside = counts[bound] - below
                return bound if math.isinf(bound) or not inside else last + (bound - last) * (rank - below) / inside
            below, last = counts[bound], bound
        return math.inf


def _series(metric: Metric, words: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """The series of a metric that have these words of some labels.

    Raises:
        ValueError: the metric has no such label, or the label no such word. So a renamed one is found at the first use.
    """
    names = list(metric.labels)
    wanted = {names.index(name): metric.labels[name].index(word) for name, word in words.items()}
    lists = list(metric.labels.values())
    return (each for each in metric.series if all(each[at] == lists[at][word] for at, word in wanted.items()))
