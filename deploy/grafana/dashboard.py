"""Makes the dashboard of Grafana from the list of metrics.

`python -m deploy.grafana.dashboard > deploy/grafana/keyturn.json` writes it.

The queries take each name from `app.metrics`. So a metric that was renamed there has its new name here too, and a test
compares the file with this program.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from app import metrics
from app.metric_kinds import Metric

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HERE = 'job="keyturn", instance=~"$instance"'
_WIDE = 24


def of(metric: Metric, *more: str, suffix: str = "") -> str:
    """The series of a metric at the instances that are chosen, with further matchers."""
    return f"{metric.name}{suffix}{{{', '.join((_HERE, *more))}}}"


def rate(metric: Metric, by: str = "", *more: str) -> str:
    """Events a second, summed by a label or altogether."""
    return f"sum{f' by ({by})' if by else ''} (rate({of(metric, *more)}[$__rate_interval]))"


def quantile(q: float, metric: Metric, by: str = "", *more: str) -> str:
    """A quantile of a histogram, by a label or altogether."""
    labels = f"le, {by}" if by else "le"
    buckets = of(metric, *more, suffix="_bucket")
    return f"histogram_quantile({q}, sum by ({labels}) (rate({buckets}[$__rate_interval])))"


def number(metric: Metric, *more: str, how: str = "sum", by: str = "") -> str:
    """A gauge of all processes, by a label or altogether."""
    return f"{how}{f' by ({by})' if by else ''} ({of(metric, *more)})"


def lately(metric: Metric, by: str = "") -> str:
    """Events in ten minutes, by a label or altogether."""
    return f"sum{f' by ({by})' if by else ''} (increase({of(metric)}[10m]))"


def mean(metric: Metric, by: str) -> str:
    """The mean of a histogram, by a label."""
    parts = (f"sum by ({by}) (rate({of(metric, suffix=suffix)}[$__rate_interval]))" for suffix in ("_sum", "_count"))
    return " / ".join(parts)


_UNAVAILABLE = rate(metrics.REFRESHES, "", 'outcome="unavailable"')


@dataclass(frozen=True)
class Panel:
    """One panel: its title, what it helps to decide, and its queries with their legends."""

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "reqps"
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    steps: tuple[tuple[str, float | None], ...] = field(default=(("green", None),))
    mappings: tuple[tuple[str, str], ...] = ()


_OVERVIEW = (
    Panel(
        "Refreshes",
        "Tokens that refreshes gave out.",
        ((rate(metrics.REFRESHES), "all"),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        "Unavailable",
        "The share of refreshes answered 503; none, if nobody refreshes.",
        ((f"{_UNAVAILABLE} / clamp_min({rate(metrics.REFRESHES)}, 1e-9)", "share"),),
        unit="percentunit",
        kind="stat",
        width=4,
        height=4,
        steps=(("green", None), ("orange", 0.001), ("red", 0.01)),
    ),
    Panel(
        "Live sessions",
        "Counted once a minute at most; up to a million.",
        ((number(metrics.SESSIONS_LIVE, how="max"), "sessions"),),
        unit="short",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        "Database",
        "Processes that do not reach it.",
        ((number(metrics.DATABASE, 'state="away"'), "away"),),
        unit="short",
        kind="stat",
        width=4,
        height=4,
        steps=(("green", None), ("red", 1)),
        mappings=(("0", "answers"),),
    ),
    Panel(
        "Redis",
        "Processes that do not use it. The database answers in its place.",
        ((number(metrics.CACHE, 'state=~"away|not_complete"'), "not used"),),
        unit="short",
        kind="stat",
        width=4,
        height=4,
        steps=(("green", None), ("orange", 1)),
        mappings=(("0", "used, or none"),),
    ),
    Panel(
        "Worker processes",
        "Of all instances that are chosen.",
        ((number(metrics.PROCESSES), "processes"),),
        unit="short",
        kind="stat",
        width=4,
        height=4,
    ),
)
_TOKENS = (
    Panel(
        "Refreshes by outcome",
        "Reuse is theft, or a client that loses its newest token. Junk costs nothing. Unknown: was a backup restored?",
        ((rate(metrics.REFRESHES, "outcome"), "{{outcome}}"),),
    ),
    Panel("Verifications by outcome", "At /auth/verify.", ((rate(metrics.VERIFICATIONS, "outcome"), "{{outcome}}"),)),
    Panel(
        "Sign-ins, exchanges and logouts",
        "By outcome.",
        (
            (rate(metrics.LOGINS, "outcome"), "login {{outcome}}"),
            (rate(metrics.EXCHANGES, "outcome"), "exchange {{outcome}}"),
            (rate(metrics.LOGOUTS, "outcome"), "logout {{outcome}}"),
        ),
    ),
)
_SESSIONS = Panel(
    "Sessions ended",
    "By reason, in ten minutes. Those that run out by themselves are not counted.",
    ((lately(metrics.SESSIONS_ENDED, "reason"), "{{reason}}"),),
    unit="short",
    width=24,
)
_REQUESTS = (
    Panel(
        "Requests",
        "By what was asked for.",
        ((f"sum by (endpoint) (rate({of(metrics.DURATION, suffix='_count')}[$__rate_interval]))", "{{endpoint}}"),),
        stacked=True,
    ),
    Panel(
        "Duration, 99 of 100",
        "Good answers alone: from the end of the head to the answer.",
        ((quantile(0.99, metrics.DURATION, "endpoint", 'status="2xx"'), "{{endpoint}}"),),
        unit="s",
    ),
    Panel(
        "Refusals by outcome",
        "All endpoints. Failed is a defect: look into the log.",
        ((rate(metrics.REFUSALS, "outcome"), "{{outcome}}"),),
    ),
)
_ATTACKS = (
    Panel(
        "Limits met",
        "Requests answered 429.",
        (
            (rate(metrics.LIMITS_HIT, "surface, limit"), "{{surface}}: {{limit}}"),
            (rate(metrics.LIMITS_LOCAL), "asked without Redis"),
        ),
    ),
    Panel(
        "Password hashes",
        "Slots in use, and those that wait.",
        (
            (number(metrics.HASHES_RUNNING), "slots used"),
            (number(metrics.HASH_SLOTS), "slots"),
            (number(metrics.HASHES_WAITING), "waiting"),
        ),
        unit="short",
    ),
    Panel(
        "Password hashes by outcome",
        "Full, share and late were refused for lack of room.",
        (
            (rate(metrics.HASHES, "outcome"), "{{outcome}}"),
            (quantile(0.99, metrics.HASH_WAIT), "wait, 99 of 100 (s)"),
            (quantile(0.99, metrics.HASH_DURATION), "hash, 99 of 100 (s)"),
        ),
        unit="short",
    ),
)
_STORES = (
    Panel(
        "Batches: wait of the first item, 99 of 100",
        "It rises when the database is slow.",
        ((quantile(0.99, metrics.BATCH_WAIT, "batch"), "{{batch}}"),),
        unit="s",
    ),
    Panel(
        "Batches: items, mean",
        "It rises with the load.",
        ((mean(metrics.BATCH_SIZE, "batch"), "{{batch}}"),),
        unit="short",
    ),
    Panel(
        "Connections to the database",
        "By pool and use.",
        ((number(metrics.CONNECTIONS, by="pool, use"), "{{pool}}: {{use}}"),),
        unit="short",
        stacked=True,
    ),
    Panel(
        "Checks for revocation, by what answered",
        "Redis, where it is used; the database otherwise.",
        ((rate(metrics.ANSWERERS, "answerer"), "{{answerer}}"),),
        stacked=True,
    ),
    Panel(
        "Redis and the fence",
        "Events in ten minutes.",
        (
            (lately(metrics.REBUILDS, "outcome"), "rebuild {{outcome}}"),
            (lately(metrics.EPOCHS), "epochs read"),
            (lately(metrics.FENCED), "endings that fenced"),
        ),
        unit="short",
    ),
    Panel(
        "Revocation lag",
        "From the commit of an ending until all processes know, and the age of the oldest reading of the fence.",
        (
            (quantile(0.99, metrics.REVOCATION_LAG), "lag, 99 of 100"),
            (number(metrics.FENCE_AGE, how="max"), "age of a reading"),
        ),
        unit="s",
    ),
)
_FEDERATION = (
    Panel("Requests to issuers", "By outcome.", ((rate(metrics.FETCHES, "outcome"), "{{outcome}}"),)),
    Panel(
        "Requests to issuers, 99 of 100",
        "Refreshes do not wait for them.",
        ((quantile(0.99, metrics.FETCH_DURATION), "duration"),),
        unit="s",
    ),
    Panel(
        "Revocations at issuers",
        "Orders in the outbox, and attempts in ten minutes.",
        (
            (number(metrics.OUTBOX, how="max", by="state"), "{{state}}"),
            (lately(metrics.OUTBOX_ATTEMPTS, "outcome"), "attempts {{outcome}}"),
            (lately(metrics.UPSTREAM_LOGOUTS, "outcome"), "logouts from there {{outcome}}"),
        ),
        unit="short",
    ),
)
_PROCESSES = (
    Panel(
        "Event loop: lag, 99 of 100",
        "Above a tenth of a second: no CPU.",
        ((quantile(0.99, metrics.LOOP_LAG, "instance"), "{{instance}}"),),
        unit="s",
        width=12,
    ),
    Panel(
        "Memory",
        "Of all worker processes.",
        ((number(metrics.MEMORY, by="instance"), "{{instance}}"),),
        "bytes",
        width=12,
    ),
)
_ROWS = (
    ("Overview", _OVERVIEW),
    ("Tokens and sessions", (*_TOKENS, _SESSIONS)),
    ("Requests", _REQUESTS),
    ("Attacks and passwords", _ATTACKS),
    ("Database, Redis, revocation", _STORES),
    ("Federation", _FEDERATION),
    ("Processes", _PROCESSES),
)


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in _ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _at(0, top, _WIDE, 1),
        }
        top, left, height = top + 1, 0, 0
        for panel in panels:
            if left + panel.width > _WIDE:
                top, left = top + height, 0
            number += 1
            yield _panel(panel, number, _at(left, top, panel.width, panel.height))
            left, height = left + panel.width, panel.height
        top += height


def _at(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, number: int, where: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in panel.steps]},
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "index": 0}}} for value, text in panel.mappings
        ],
    }
    options: dict[str, Any]
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    else:
        defaults["custom"] = {
            "fillOpacity": 25 if panel.stacked else 5,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": where,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    return {
        "uid": "keyturn",
        "title": "Keyturn",
        "tags": ["keyturn"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Instance",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": f'label_values({metrics.PROCESSES.name}{{job="keyturn"}}, instance)',
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                },
            ]
        },
        "panels": list(_panels()),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
