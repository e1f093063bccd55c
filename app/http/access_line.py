"""The line in the log for each request."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from starlette.types import Scope

from .. import log
from ..errors import Refusal, SlowDown
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

    The line of a refusal names the session, its user and its client, as far as a genuine token or the database names
    them. Other lines name the session alone, because whoever asks can look up the rest.

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
        session_id, user_id, client_id = _about(request, refusal)
        line += f', "error": "{refusal.error}", "cause": {_quoted_cause(refusal.cause)}'
        if refusal.reason is not None:
            line += f', "reason": "{refusal.reason}"'
        if isinstance(refusal, SlowDown) and refusal.limit is not None:
            line += f', "limit": "{refusal.limit.name}"'
        if user_id is not None:
            line += f', "user_id": "{user_id}"'
        if client_id is not None:
            line += f', "client_id": {log.quote(client_id)}'
    if session_id is not None:
        line += f', "session_id": "{session_id}"'
    if request.notes:
        line += f", {json.dumps(log.redact(request.notes))[1:-1]}"
    log.info_soon(f'{line}, "request_id": "{request.id}", "event": "request"')


def _about(request: Request, refusal: Refusal) -> tuple[Any, Any, str | None]:
    """The session of a refused request, and its user and client, as far as the refusal or the request names them.

    The request's own user and client count only for the request's own session: the refusal may be about another one.
    """
    session_id, user_id, client_id = refusal.session_id, refusal.user_id, refusal.client_id
    if session_id is not None and str(session_id) != str(request.session_id):
        return session_id, user_id, client_id
    return request.session_id, user_id or request.user_id, client_id or request.client_id


@lru_cache(maxsize=1024)
def _line_start(method: str, path: str) -> str:
    return f'{{"method": {log.quote(_loggable(method))}, "path": {log.quote(_loggable(path))}, "status": '


@lru_cache(maxsize=1024)
def _quoted_cause(cause: str) -> str:
    return log.quote(log.redact(cause))


@lru_cache(maxsize=1024)
def _quoted_client(address: str) -> str:
    return log.quote(log.shown_client(address))
