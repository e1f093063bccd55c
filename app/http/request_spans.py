"""The span of a request, begun and ended by the edge where tracing is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Refusal
from .request import Request

if TYPE_CHECKING:
    from ..tracing import Span, Tracing

_PARENT, _STATE = b"traceparent", b"tracestate"


def begin(tracing: Tracing, request: Request) -> Span:
    """Begins the span, below the one that the client names. The line in the log gets the id of the trace.

    If traceparent stands twice, nobody can tell which one counts, so neither does (W3C Trace Context section 3.2).
    """
    parent = b"" if request.has_several(_PARENT) else request.fields.get(_PARENT, b"")
    state = b",".join(value for name, value in request.headers if name == _STATE) if parent else b""
    span = tracing.request(request.method, parent.decode("latin-1"), state.decode("latin-1"))
    request.note(trace_id=tracing.trace_id(span))
    return span


def end(tracing: Tracing, span: Span, request: Request, status: int | None) -> None:
    """Ends the span. The words of a refusal are those of the code: its cause and description stay in the log."""
    words = {"keyturn.request_id": request.id}
    refusal: Refusal | None = request.refusal
    if refusal is not None:
        words |= {"keyturn.error": refusal.error, "keyturn.outcome": refusal.outcome}
        if refusal.reason is not None:
            words["keyturn.reason"] = refusal.reason
    tracing.answered(span, request.method, request.route, status, words)
