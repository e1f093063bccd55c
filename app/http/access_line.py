"""The line in the log for each request."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from urllib.parse import unquote

from starlette.types import Scope

from .. import log
from .request import Request

_MAX_LOGGED_PATH = 256


def _loggable(path: str) -> str:
    """A path or method for the log: cut, and without tokens, even if they were percent-encoded several times."""
    shown = plain = log.redact_tokens(path)[:_MAX_LOGGED_PATH]
    while "%" in plain and (further := unquote(plain)) != plain:
        plain = further
    redacted = log.redact_tokens(plain)
    return shown if redacted == plain else redacted


def write(asgi_scope: Scope, request: Request, status: int | None, seconds: float) -> None:
    """Writes the line for a request. Each request pays for it, so this takes a tenth of structlog's time.

    If a proxy asks about its client's request, the line has the path of the proxy's request.

    Args:
        asgi_scope: the scope as it came.
        request: the request with its notes.
        status: the status of the answer, or None if no answer was sent.
        seconds: the duration of the request.
    """
    if log.least > logging.INFO:
        return
    path: str = asgi_scope["path"]
    line_start = _line_start if len(path) <= _MAX_LOGGED_PATH else _line_start.__wrapped__  # the cache stays small
    line = (
        f"{line_start(asgi_scope['method'], path)}"
        f'{"null" if status is None else status}, "duration_ms": {seconds * 1000:.3f}, '
        f'"client": {_quoted_client(request.client) if request.client else "null"}'
    )
    session_id, refusal = request.session_id, request.refusal
    if refusal is not None:
        session_id = refusal.session_id or session_id
        line += f', "error": "{refusal.error}", "cause": {_quoted_cause(refusal.cause)}'
        if refusal.reason is not None:
            line += f', "reason": "{refusal.reason}"'
        if refusal.user_id is not None:
            line += f', "user_id": "{refusal.user_id}"'
    if session_id is not None:
        line += f', "session_id": "{session_id}"'
    if request.notes:
        line += f", {json.dumps(log.redact(request.notes))[1:-1]}"
    log.write_soon(f'{line}, "request_id": "{request.id}", "event": "request"')


@lru_cache(maxsize=1024)
def _line_start(method: str, path: str) -> str:
    return f'{{"method": {log.quote(_loggable(method))}, "path": {log.quote(_loggable(path))}, "status": '


@lru_cache(maxsize=1024)
def _quoted_cause(cause: str) -> str:
    return log.quote(log.redact(cause))


@lru_cache(maxsize=1024)
def _quoted_client(address: str) -> str:
    return log.quote(log.shown_client(address))
