"""/metrics: the numbers of all worker processes, in the text formats of Prometheus and OpenMetrics.

The library writes the formats, and `metric_kinds` counts. Each scrape adds up the numbers of all processes anew,
whichever process it reached.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from math import isnan
from typing import cast

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from .. import metric_slots
from ..errors import InvalidToken, NotFound, NoToken
from ..http.answers import Answer
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..metric_kinds import Buckets, Gauge, GaugeBy, Metric
from ..metric_slots import Part
from ..metrics import METRICS


async def metrics(keyturn: Keyturn, request: Request) -> Answer:
    """Get the metrics, in the text format of Prometheus, or in that of OpenMetrics where `Accept` names it.

    Served with the setting `METRICS_TOKEN`, which is the bearer token. With `METRICS_PORT`, that port serves it alone.
    """
    if keyturn.settings.metrics_port is not None or keyturn.settings.metrics_token is None:
        raise NotFound("no such path")
    return await metrics_on_own_port(keyturn, request)


async def metrics_on_own_port(keyturn: Keyturn, request: Request) -> Answer:
    """As `metrics`, on the port that serves nothing else. Without the setting, no token is asked for."""
    _check(keyturn.settings.metrics_bearer, request)
    keyturn.sampling.sample()
    keyturn.sampling.count_soon()
    encode, content_type = choose_encoder(request.fields.get(b"accept", b"").decode("latin-1"))
    body = encode(cast("CollectorRegistry", _Collector()))
    return 200, [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))], body


def _check(wanted: str | None, request: Request) -> None:
    """Checks the token of a scraper, in constant time.

    Raises:
        InvalidToken: there is none, or another one.
    """
    if wanted is None:
        return
    given = request.bearer()
    if given is None:
        raise NoToken("no token of a scraper")
    if not hmac.compare_digest(given.encode(), wanted.encode()):
        raise InvalidToken("not the token of a scraper")


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
    if not isinstance(metric, Gauge | GaugeBy):
        return [sum(column) for column in zip(*(part.cells for part in parts), strict=True)]
    columns = zip(*(part.cells for part in parts if part.runs), strict=True)
    known = ([value for value in column if not isnan(value)] for column in columns)
    return [(max(values) if metric.together == "max" else sum(values)) if values else float("nan") for values in known]


def _add_histogram(
    family: Family, metric: Buckets, labels: dict[str, str], counts: Sequence[float], total: float
) -> None:
    """Adds the samples of one series. A series with several labels that has no observation yet is left out.

    Otherwise the durations of endpoints that nobody calls would be most of the text.
    """
    if len(labels) > 1 and not counts[-1]:
        return
    for bound, count in zip((*metric.bounds, float("inf")), counts, strict=True):
        family.add_sample(f"{metric.name}_bucket", labels | {"le": floatToGoString(bound)}, count)
    family.add_sample(f"{metric.name}_count", labels, counts[-1])
    family.add_sample(f"{metric.name}_sum", labels, total)


ENDPOINTS = (
    Endpoint(
        "GET",
        "/metrics",
        metrics,
        tag="health",
        credentials="bearer",
        responses={
            200: {
                "description": "The metrics.",
                "content": {
                    "text/plain": {"schema": {"type": "string"}},
                    "application/openmetrics-text": {"schema": {"type": "string"}},
                },
            }
        },
        refusals=(InvalidToken, NotFound),
    ),
)
