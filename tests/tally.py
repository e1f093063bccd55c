"""A tally: what the metrics of this process counted since a moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.metric_kinds import Buckets, Gauges, Metric
from app.metrics import METRICS


class Tally:
    """Counts from its making on. The metrics of a process of tests go on from test to test."""

    def __init__(self) -> None:
        self._before = {metric.name: _numbers(metric) for metric in METRICS if not isinstance(metric, Gauges)}
        self._unlisted = _unlisted()

    def of(self, metric: Metric) -> dict[Any, int]:
        """The words of a counter that was counted, or of a histogram that observed something, and how often."""
        return {key: n for key, n in (_numbers(metric) - self._before[metric.name]).items() if n}

    def exactly(self, metric: Metric, counts: Mapping[Any, int] | int = 0, **words: int) -> None:
        """Asserts that a metric counted these and nothing else.

        Args:
            metric: a counter or a histogram.
            counts: the number of one without labels; those of one with several, by the words of a series.
            words: those of one with one label, by its words.
        """
        of_no_label = {(): counts} if isinstance(counts, int) and not metric.labels else {}
        wanted = words | (of_no_label if isinstance(counts, int) else dict(counts))
        found, wanted = self.of(metric), {key: n for key, n in wanted.items() if n}
        assert found == wanted, (metric.name, found, wanted)
        assert _unlisted() == self._unlisted, "a word is on no list"


def _numbers(metric: Metric) -> Counter[Any]:
    keys = [words[0] if len(words) == 1 else words for words in metric.series]
    if isinstance(metric, Buckets):
        values = [metric.read(metric.cells, position)[0][-1] for position in range(len(keys))]
    else:
        values = list(metric.cells[: len(keys)])
    return Counter({key: int(value) for key, value in zip(keys, values, strict=True)})


def _unlisted() -> float:
    return sum(metric.unlisted(metric.cells) for metric in METRICS if not isinstance(metric, Gauges))
