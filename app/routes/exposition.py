"""The metrics as text: in the format of Prometheus, or in that of OpenMetrics.

The library writes both formats. `metric_kinds` counts, and this file adds up the numbers of all processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isnan, nan
from operator import attrgetter
from typing import cast

from prometheus_client import exposition as prometheus
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as open_metrics
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from .. import metric_slots
from ..metric_kinds import Buckets, Gauges, Metric
from ..metric_slots import Part
from ..metrics import METRICS


def exposed(accept: str) -> tuple[str, bytes]:
    """Media type and text of all metrics: OpenMetrics 1.0 if the field `Accept` of a request names it first."""
    registry = cast("CollectorRegistry", _Collector())
    if _prefers_open_metrics(accept):
        return open_metrics.CONTENT_TYPE_LATEST, open_metrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # the library has no types here
    return prometheus.CONTENT_TYPE_PLAIN_0_0_4, prometheus.generate_latest(registry)


def _prefers_open_metrics(accept: str) -> bool:
    """Whether OpenMetrics 1.0, or without a version, stands before plain text. Scrapers name the better one first.

    The library's own choice fails at a version that is no number, and repeats the client's words in the answer.
    """
    for each in accept.split(","):
        media_type, *parameters = (part.strip() for part in each.split(";"))
        if media_type == "text/plain":
            return False
        versions = [part for part in parameters if part.startswith("version=")]
        if media_type == "application/openmetrics-text" and versions in ([], ["version=1.0.0"]):
            return True
    return False


class _Collector:
    """The registry, as far as the library needs one: its method `collect` alone."""

    def collect(self) -> Iterator[Family]:
        """All metrics, and how many counts had a word that is on no list."""
        parts = metric_slots.parts()
        unlisted = 0.0
        for metric in METRICS:
            of_processes = parts[metric.name]
            unlisted += sum(metric.unlisted(part.cells) for part in of_processes)
            yield _family(metric, of_processes)
        name = "keyturn_metrics_unlisted"
        last = Family(name, "Counts under a word that is on no list.", "counter")
        last.add_sample(f"{name}_total", {}, unlisted)
        yield last


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
    """The numbers of all processes as one: counts of each that ever was, gauges as the metric says."""
    if not isinstance(metric, Gauges):
        return [sum(column) for column in zip(*(part.cells for part in parts), strict=True)]
    if metric.together == "newest":
        return list(max(parts, key=attrgetter("counted_at")).cells)
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
