"""Tracing by OpenTelemetry: a span for each request, and below it one for each transaction, statement and command.

Off by default, and then nothing of it is imported: `active` is None, and each place that could make a span looks at
this one name. ``pip install keyturn[tracing]`` brings the SDK, KEYTURN_TRACING=true turns it on, and the variables of
OpenTelemetry (``OTEL_…``) say all else. docs/tracing.md describes the spans.

Traces leave the machine, and many people read them. So no span has a path, a query, a header field, a body, an address,
the id of a user or session, the text of a statement or the message of an exception. A span has the route and words of
the code. The request id leads to the line in the log.

A batch serves several requests. Its span is a child of the first of them that is recorded, so that an idle machine
shows one tree for each request. The span links to all others, and each of these links to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING

from .errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span as Span  # noqa: PLC0414  # for those who hand one on
    from opentelemetry.trace import TracerProvider

_PROTOCOL = "http/protobuf"
_FLUSH = timedelta(seconds=2)
"""How long the end of a process waits for the last spans to be sent. A collector that is away must not hold it up."""
_LONGEST_FIELD = 512  # characters of traceparent, and of tracestate (W3C Trace Context section 3.3.1.1)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY"})
_CUT_OFF = "cut_off"  # the error of a request that got no whole answer

_above: ContextVar[Span | None] = ContextVar("_above", default=None)
"""The recorded span of the work in hand: the parent of the next one. None: nothing is recorded."""


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415  # only where tracing is on
        from opentelemetry.context import Context  # noqa: PLC0415  # as above
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415  # as above

        self._api = trace
        self._root = Context()
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("keyturn")

    # -- requests

    def request(self, method: str, traceparent: str, tracestate: str) -> Span:
        """Begins the span of a request, for all further work of this task and of the tasks that it starts.

        Args:
            method: the method of the request.
            traceparent: the field of that name (W3C Trace Context section 3.2). Junk counts as none.
            tracestate: the fields of that name, joined by commas (W3C Trace Context section 3.3).
        """
        known = method if method in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            "HTTP" if known == "_OTHER" else known,
            self._remote(traceparent, tracestate),
            self._api.SpanKind.SERVER,
            {"http.request.method": known},
        )
        _above.set(span if span.is_recording() else None)
        return span

    def _remote(self, traceparent: str, tracestate: str) -> Context:
        if not traceparent or len(traceparent) > _LONGEST_FIELD:
            return self._root
        carrier = {"traceparent": traceparent}
        if tracestate and len(tracestate) <= _LONGEST_FIELD:
            carrier["tracestate"] = tracestate
        return self._propagator.extract(carrier, self._root)

    def trace_id(self, span: Span) -> str:
        """The id of the span's trace, for the log."""
        return self._api.format_trace_id(span.get_span_context().trace_id)

    def answered(self, span: Span, method: str, route: str, status: int | None, words: Mapping[str, str]) -> None:
        """Ends the span of a request.

        Args:
            span: the span.
            method: the method of the request.
            route: the path of its endpoint, with the names of identifiers in braces; empty where there is none.
            status: the status of the answer. None: there was none.
            words: further attributes, of the code's own words.
        """
        if route and method in _METHODS:
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        span.set_attributes({**words})
        if status is None or status >= 500:  # noqa: PLR2004  # a 4xx is the client's error, and not of this span
            span.set_attribute("error.type", _CUT_OFF if status is None else str(status))
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    # -- the work for them

    def above(self) -> Span | None:
        """The recorded span of the work in hand, or None."""
        return _above.get()

    def part(self, name: str, attributes: Mapping[str, str]) -> Span | None:
        """Begins the span of a call to a database. None: the work in hand is not recorded. `end` ends it."""
        above = _above.get()
        if above is None:
            return None
        return self._tracer.start_span(name, self._below(above), self._api.SpanKind.CLIENT, {**attributes})

    def commands(self, names: Iterable[str]) -> Span | None:
        """Begins the span of commands that go to Redis together. Their keys and values are no part of it."""
        words = " ".join(dict.fromkeys(names)) or "INFO"
        return self.part(words, {"db.system.name": "redis", "db.operation.name": words})

    def end(self, span: Span, error: str | None = None) -> None:
        """Ends a span. `error` is one word: a class of errors or an SQLSTATE, and never a message."""
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    @contextmanager
    def transaction(self, system: str) -> Iterator[None]:
        """A span around a transaction, above those of its statements."""
        span = self.part("transaction", {"db.system.name": system})
        if span is None:
            yield
            return
        with self._holding(span):
            yield

    @contextmanager
    def batch(self, name: str, askers: Sequence[Span | None]) -> Iterator[None]:
        """A span around the run of a batch.

        Args:
            name: the name of the batch.
            askers: for each item, the recorded span of the request that waits for it.
        """
        recorded = [each for each in dict.fromkeys(askers) if each is not None and each.is_recording()]
        if not recorded:
            yield
            return
        first, *others = recorded
        links = [self._api.Link(each.get_span_context()) for each in recorded]
        size = {"keyturn.batch.size": len(askers)}
        span = self._tracer.start_span(
            f"batch {name}", self._below(first), self._api.SpanKind.INTERNAL, size, links=links
        )
        for each in others:
            each.add_link(span.get_span_context())
        with self._holding(span):
            yield

    def _below(self, span: Span) -> Context:
        return self._api.set_span_in_context(span, self._root)

    @contextmanager
    def _holding(self, span: Span) -> Iterator[None]:
        token = _above.set(span)
        error = None
        try:
            yield
        except BaseException as e:
            error = type(e).__name__
            raise
        finally:
            _above.reset(token)
            self.end(span, error)


active: Tracing | None = None
"""The tracing of this process. None: there is none."""


def require() -> None:
    """Checks that tracing can be turned on.

    Raises:
        ConfigurationError: the SDK is not installed, or the environment asks for another protocol.
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: PLC0415  # only where tracing is on
        import opentelemetry.sdk.trace  # noqa: PLC0415, F401  # as above
    except ImportError:
        raise ConfigurationError("KEYTURN_TRACING needs OpenTelemetry's SDK: pip install 'keyturn[tracing]'") from None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if os.environ.get(name, _PROTOCOL) != _PROTOCOL:
            raise ConfigurationError(f"{name} must be {_PROTOCOL}: Keyturn sends no other")


@asynccontextmanager
async def running(*, on: bool, release: str) -> AsyncIterator[None]:
    """Traces while the block runs, if `on`.

    Raises:
        ConfigurationError: as `require`.
    """
    global active  # noqa: PLW0603  # one tracing for one process
    if not on:
        yield
        return
    require()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # as above
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415  # as above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # as above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  # as above

    own = {"service.name": "keyturn", "service.version": release, "service.instance.id": str(uuid.uuid4())}
    resource = Resource.create(own).merge(OTELResourceDetector().detect())  # the operator's own names win
    # For each odd `tracestate`, the library would write a warning with the text of the client.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
    # No library gets this provider: a library's spans would have paths and messages.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    active = Tracing(provider)
    try:
        yield
    finally:
        active = None
        # A daemon: the exporter may wait for the collector for longer than a process may take to end.
        flush = threading.Thread(target=provider.shutdown, daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, _FLUSH.total_seconds())
