"""The view: the numbers of an interval as lines for people, and as members for programs. Pure.

Every word comes from the list of metrics in app/metrics.py, and not from an instance. So no instance can write to the
terminal, except by the URL that the operator gave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from .. import metrics
from ..metric_kinds import CounterBy, GaugeBy, Histogram, HistogramBy
from .numbers import Numbers

Style: TypeAlias = Literal["plain", "bold", "dim", "good", "warning", "bad"]


class Span(NamedTuple):
    """A text of one style."""

    text: str
    style: Style = "plain"


Line: TypeAlias = Sequence[Span]

_NAME, _RATE = 15, 11  # columns

_OUTCOMES: Mapping[str, CounterBy[Any]] = {
    "refreshes": metrics.REFRESHES,
    "verifications": metrics.VERIFICATIONS,
    "logins": metrics.LOGINS,
    "exchanges": metrics.EXCHANGES,
    "logouts": metrics.LOGOUTS,
    "sessions ended": metrics.SESSIONS_ENDED,
    "hashes": metrics.HASHES,
    "revocation by": metrics.ANSWERERS,
    "issuers asked": metrics.FETCHES,
}
"""The counters that are shown with a rate for each word of their one label."""

_BAD = {"reuse", "reuse_detected", "unavailable", "failed", "away", "address_refused", "5xx"}
_WARNING = {"limited", "refused", "full", "share", "late", "given_up", "lost"}
_GOOD = {"answers", "complete"}


def lines(numbers: Numbers, now: datetime) -> Iterator[Line]:
    """The view, a line at a time. Cut and coloured by the terminal."""
    processes = numbers.state(metrics.PROCESSES) or 0
    answering = sum(each.failure is None for each in numbers.instances)
    seen = f"{answering} of {_count(len(numbers.instances), 'instance')}, {_count(processes, 'process')}"
    yield [
        Span("keyturn top", "bold"),
        Span(f"  {now:%Y-%m-%d %H:%M:%S}Z  {seen}"),
        Span(f", over {numbers.seconds:.1f} s" if numbers.seconds else ", no rates yet", "dim"),
    ]
    for each in numbers.instances:
        yield [Span(f"  {each.url}  "), Span(each.failure or "answers", "bad" if each.failure else "good")]
    if not answering:
        return
    yield []
    for name, counter in _OUTCOMES.items():
        yield _outcomes(name, counter, numbers)
    yield _limits(numbers)
    yield []
    yield _sessions(numbers)
    yield _states("database", metrics.DATABASE, numbers, _connections(numbers))
    yield _states("redis", metrics.CACHE, numbers, _fence(numbers))
    yield _hashing(numbers)
    yield _batches(numbers)
    yield _outbox(numbers)
    yield _machine(numbers)
    yield []
    # Last, because there may be more of these than the terminal has room for.
    yield [Span(f"{'endpoint':<{_NAME}}{'requests/s':>{_RATE}}{'p50':>10}{'p99':>10}{'4xx/s':>9}{'5xx/s':>9}", "dim")]
    yield from _endpoints(numbers)


def members(numbers: Numbers, now: datetime) -> dict[str, Any]:
    """The view as JSON has it. A member without a value is null, and a duration is in seconds."""
    lag = metrics.REVOCATION_LAG
    return {
        "at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "seconds": round(numbers.seconds, 3),
        "instances": [{"url": each.url, "failure": each.failure} for each in numbers.instances],
        "per_second": {
            **{
                name.replace(" ", "_"): {word: round(rate, 3) for word, rate in _by_word(counter, numbers)}
                for name, counter in _OUTCOMES.items()
            },
            "limits_hit": {
                word: round(numbers.rate(metrics.LIMITS_HIT, limit=word), 3)
                for word in metrics.LIMITS_HIT.labels["limit"]
            },
        },
        "endpoints": {
            word: {
                "per_second": round(numbers.rate_of(metrics.DURATION, endpoint=word), 3),
                "p50": _plain(numbers.quantile(0.5, metrics.DURATION, endpoint=word)),
                "p99": _plain(numbers.quantile(0.99, metrics.DURATION, endpoint=word)),
                "4xx": round(numbers.rate_of(metrics.DURATION, endpoint=word, status="4xx"), 3),
                "5xx": round(numbers.rate_of(metrics.DURATION, endpoint=word, status="5xx"), 3),
            }
            for word in metrics.DURATION.labels["endpoint"]
        },
        "sessions_live": numbers.state(metrics.SESSIONS_LIVE),
        "database": _by_state(metrics.DATABASE, numbers),
        "redis": _by_state(metrics.CACHE, numbers),
        "fence_age": numbers.state(metrics.FENCE_AGE),
        "revocation_lag_p99": _plain(numbers.quantile(0.99, lag)),
        "hash_slots": numbers.state(metrics.HASH_SLOTS),
        "hash_slots_used": numbers.state(metrics.HASHES_RUNNING),
        "hashes_waiting": numbers.state(metrics.HASHES_WAITING),
        "outbox": _by_state(metrics.OUTBOX, numbers),
        "memory_bytes": numbers.state(metrics.MEMORY),
        "loop_lag_p99": _plain(numbers.quantile(0.99, metrics.LOOP_LAG)),
    }


def _by_word(counter: CounterBy[Any], numbers: Numbers) -> Iterator[tuple[str, float]]:
    [(label, words)] = counter.labels.items()
    return ((word, numbers.rate(counter, **{label: word})) for word in words)


def _by_state(gauge: GaugeBy[Any], numbers: Numbers) -> dict[str, float | None]:
    [(label, words)] = gauge.labels.items()
    return {word: numbers.state(gauge, **{label: word}) for word in words}


def _outcomes(name: str, counter: CounterBy[Any], numbers: Numbers) -> Line:
    spans = [Span(f"{name:<{_NAME}}"), Span(f"{_rate(numbers.rate(counter)):>{_RATE}}", "bold")]
    found = ((word, rate) for word, rate in _by_word(counter, numbers) if rate)
    return [*spans, *(Span(f"  {word} {_rate(rate)}", _style(word)) for word, rate in found)]


def _limits(numbers: Numbers) -> Line:
    rate = numbers.rate(metrics.LIMITS_HIT)
    spans = [Span(f"{'limits hit':<{_NAME}}"), Span(f"{_rate(rate):>{_RATE}}", "warning" if rate else "bold")]
    by_limit = ((word, numbers.rate(metrics.LIMITS_HIT, limit=word)) for word in metrics.LIMITS_HIT.labels["limit"])
    spans += [Span(f"  {word} {_rate(hit)}", "warning") for word, hit in by_limit if hit]
    if rate := numbers.rate(metrics.LIMITS_LOCAL):
        spans.append(Span(f"  without Redis {_rate(rate)}", "bad"))
    return spans


def _endpoints(numbers: Numbers) -> Iterator[Line]:
    for word in metrics.DURATION.labels["endpoint"]:
        rate = numbers.rate_of(metrics.DURATION, endpoint=word)
        if not rate:
            continue
        half, most = (_quantile(numbers, part, metrics.DURATION, endpoint=word) for part in (0.5, 0.99))
        bad = numbers.rate_of(metrics.DURATION, endpoint=word, status="4xx")
        worse = numbers.rate_of(metrics.DURATION, endpoint=word, status="5xx")
        yield [
            Span(f"{word:<{_NAME}}{_rate(rate):>{_RATE}}{half:>10}{most:>10}"),
            Span(f"{_rate(bad):>9}", "warning" if bad else "plain"),
            Span(f"{_rate(worse):>9}", "bad" if worse else "plain"),
        ]


def _sessions(numbers: Numbers) -> Line:
    live = numbers.state(metrics.SESSIONS_LIVE)
    return [Span(f"{'live sessions':<{_NAME}}"), Span("not counted yet" if live is None else f"{live:,.0f}", "bold")]


def _states(name: str, gauge: GaugeBy[Any], numbers: Numbers, rest: Iterable[Span]) -> Line:
    """The processes by what they see of a store, and more about it."""
    found = ((word, number) for word, number in _by_state(gauge, numbers).items() if number)
    spans = [Span(f"{word} in {number:.0f}  ", _style(word)) for word, number in found]
    return [Span(f"{name:<{_NAME}}"), *spans, *rest]


def _connections(numbers: Numbers) -> Iterator[Span]:
    for pool in metrics.CONNECTIONS.labels["pool"]:
        used = numbers.state(metrics.CONNECTIONS, pool=pool, use="used") or 0
        idle = numbers.state(metrics.CONNECTIONS, pool=pool, use="idle") or 0
        yield Span(f" {pool} {used:.0f}/{used + idle:.0f}", "dim")


def _fence(numbers: Numbers) -> Iterator[Span]:
    age = numbers.state(metrics.FENCE_AGE)
    yield Span(f" fence read {_time(age)} ago", "bad" if age is not None and age > _OLD else "dim")
    if (lag := _quantile(numbers, 0.99, metrics.REVOCATION_LAG)) != _NONE:
        yield Span(f", logout known everywhere within {lag} (p99)", "dim")
    if fenced := numbers.rate(metrics.FENCED):
        yield Span(f", fenced {_rate(fenced)}/s", "warning")
    if rebuilds := numbers.rate(metrics.REBUILDS):
        yield Span(f", rebuilds {_rate(rebuilds)}/s", "warning")


def _hashing(numbers: Numbers) -> Line:
    slots, used, waiting = (
        numbers.state(gauge) or 0 for gauge in (metrics.HASH_SLOTS, metrics.HASHES_RUNNING, metrics.HASHES_WAITING)
    )
    full: Style = "warning" if waiting else "plain"
    wait, took = (_quantile(numbers, 0.99, each) for each in (metrics.HASH_WAIT, metrics.HASH_DURATION))
    return [
        Span(f"{'hash slots':<{_NAME}}"),
        Span(f"{used:.0f} of {slots:.0f} used, {waiting:.0f} waiting", full),
        Span(f"  p99 of waiting {wait}, of hashing {took}", "dim"),
    ]


def _batches(numbers: Numbers) -> Line:
    spans = [Span(f"{'batches':<{_NAME}}")]
    for word in metrics.BATCH_SIZE.labels["batch"]:
        if (mean := numbers.mean(metrics.BATCH_SIZE, batch=word)) is not None:
            wait = _quantile(numbers, 0.99, metrics.BATCH_WAIT, batch=word)
            spans.append(Span(f"{word} {mean:.1f} in one, p99 of waiting {wait}  "))
    return spans if len(spans) > 1 else [*spans, Span("none", "dim")]


def _outbox(numbers: Numbers) -> Line:
    spans = [Span(f"{'outbox':<{_NAME}}")]
    for word, number in _by_state(metrics.OUTBOX, numbers).items():
        spans.append(Span(f"{word.replace('_', ' ')} {number or 0:.0f}  ", _style(word) if number else "plain"))
    return spans


def _machine(numbers: Numbers) -> Line:
    memory, lag = numbers.state(metrics.MEMORY), _quantile(numbers, 0.99, metrics.LOOP_LAG)
    used = "?" if memory is None else f"{memory / 1024 / 1024:,.0f} MiB"
    return [Span(f"{'processes':<{_NAME}}"), Span(f"memory {used}, event loop late by {lag} (p99)")]


_OLD = 1.0  # seconds: an older reading of the fence vouches for nothing


def _style(word: str) -> Style:
    if word in _BAD:
        return "bad"
    if word in _WARNING:
        return "warning"
    return "good" if word in _GOOD else "plain"


def _count(number: float, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:.0f} {noun}{'' if number == 1 else plural}"


def _rate(rate: float) -> str:
    """A rate: with a decimal below a hundred."""
    return f"{rate:,.0f}" if rate >= 100 or rate == 0 else f"{rate:.1f}" if rate >= 0.1 else f"{rate:.2g}"  # noqa: PLR2004  # as the line above says


def _quantile(numbers: Numbers, part: float, histogram: Histogram | HistogramBy[Any], **words: str) -> str:
    """A quantile as a duration, or that it is above the highest bound of the histogram."""
    found = numbers.quantile(part, histogram, **words)
    return f">{_time(histogram.bounds[-1])}" if found is not None and math.isinf(found) else _time(found)


_NONE = "-"


def _time(seconds: float | None) -> str:
    """A duration in the unit that suits it."""
    if seconds is None:
        return _NONE
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _plain(seconds: float | None) -> float | None:
    """A quantile as JSON has it, which knows no infinity: null, as there is no such number."""
    return None if seconds is None or math.isinf(seconds) else round(seconds, 6)
