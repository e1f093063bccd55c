"""A stand-in of a collector: takes spans over HTTP as OTLP has it, and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any, Self

SERVER = 2  # of the enumeration SpanKind in OTLP
ERROR = 2  # of the enumeration StatusCode in OTLP


@dataclass(frozen=True)
class Span:
    """A span as the collector got it."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    """Empty: the span is the root of its trace."""
    links: frozenset[str]
    """The ids of the spans that it links to."""
    attributes: dict[str, object]
    status: int
    text: str
    """All of it as text, for a search."""


class Collector:
    """Listens on a port of its own while the block runs."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def resources(self) -> list[dict[str, object]]:
        """The attributes of the processes that sent spans."""
        return [_attributes(sent.resource.attributes) for body in [*self.bodies] for sent in _sent(body)]

    def spans(self) -> list[Span]:
        """All spans so far."""
        return [
            _span(span)
            for body in [*self.bodies]
            for sent in _sent(body)
            for scope in sent.scope_spans
            for span in scope.spans
        ]

    def spans_when(self, complete: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, as soon as they are complete: a process sends its spans after its answers."""
        give_up = monotonic() + 20
        while not complete(spans := self.spans()):
            assert monotonic() < give_up, [span.name for span in spans]
            sleep(0.05)
        return spans


def _sent(body: bytes) -> Any:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return ExportTraceServiceRequest.FromString(body).resource_spans


def _attributes(found: Any) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}


def _span(span: Any) -> Span:
    return Span(
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=frozenset(link.span_id.hex() for link in span.links),
        attributes=_attributes(span.attributes),
        status=span.status.code,
        text=str(span),
    )
