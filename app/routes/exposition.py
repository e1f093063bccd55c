"""The metrics as text: in the format of Prometheus, or in that of OpenMetrics.

The library writes both formats, and negotiates which. `metric_kinds` counts, and this file adds up the numbers of all
processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isnan, nan
from typing import cast

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from .. import metric_slots
from ..metric_kinds import Buckets, Gauges, Metric
from ..metric_slots import Part
from ..metrics import METRICS


def exposed(accept: str) -> tuple[str, bytes]:
    """Media type and text of all metrics, as the field `Accept` of a request prefers them."""
    encode, media_type = choose_encoder(accept)
    return media_type, encode(cast("CollectorRegistry", _Collector()))


class _Collector:
    """What the library needs of its own registry."""

    def collect(self) -> Iterator[Family]:
        """All metrics, how many processes run, and how many counts had a word that is on no list."""
        parts = metric_slots.parts()
        unlisted = 0.0
        for metric in METRICS:
            of_processes = parts[metric.name]
            unlisted += sum(metric.unlisted(part.cells) for part in of_processes)
            yield _family(metric, of_processes)
        for name, text, kind, suffix, value in (
            ("keyturn_processes", "Worker processes that run.", "gauge", "", metric_slots.running()),
            ("keyturn_metrics_unlisted", "Counts under a word that is on no list.", "counter", "_total", unlisted),
        ):
            single = Family(name, text, kind)
            single.add_sample(name + suffix, {}, value)
            yield single


def _family(metric: Metric, parts: Sequence[Part]) -> Family:
    family = Family(metric.name.removesuffix("_total"), metric.text, metric.kind)
    cells = _together(metric, parts)
    for position, words in enumerate(metric.series):
        labels = dict(zip(metric.labels, words, strict=True))
        if isinstance(metric, Buckets):
            _add_histogram(family, metric, labels, *metric.read(cells, position))
        elif not isnan(cells[position]):
            family.add_sample(metric.name, labels, cells[position])
    return family


def _together(metric: Metric, parts: Sequence[Part]) -> list[float]:
    """The numbers of all processes as one: counts of each that ever was, gauges of those that run."""
    if not isinstance(metric, Gauges):
        return [sum(column) for column in zip(*(part.cells for part in parts), strict=True)]
    columns = zip(*(part.cells for part in parts if part.runs), strict=True)
    known = ([value for value in column if not isnan(value)] for column in columns)
    return [(max(values) if metric.together == "max" else sum(values)) if values else nan for values in known]


def _add_histogram(
    family: Family, metric: Buckets, labels: dict[str, str], counts: Sequence[float], total: float
) -> None:
    """Adds the samples of one series. A series with several labels that has no observation yet is left out.

    Otherwise the durations of endpoints that nobody calls would be most of the text.
    """
    if len(labels) > 1 and not counts[-1]:
        return
    for bound, count in zip((*metric.bounds, inf), counts, strict=True):
        le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]  # the library has no types here
        family.add_sample(f"{metric.name}_bucket", labels | {"le": le}, count)
    family.add_sample(f"{metric.name}_count", labels, counts[-1])
    family.add_sample(f"{metric.name}_sum", labels, total)
