"""The edge: what every HTTP request passes first and every answer last.

In front of the application, so that an endpoint sees only requests that are whole, bounded and well-formed, and so
that whatever happens behind it comes out as one answer in the one shape and one line in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from functools import lru_cache
from itertools import chain, count
from secrets import token_hex
from time import perf_counter
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import log
from .errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidRequest,
    Refusal,
    RequestTimeout,
    UnsupportedMediaType,
    refusal_of,
)

MAX_TARGET = 8192
"""Bytes of path and query. RFC 9112 section 3 asks for at least 8000 for the whole request line."""

MAX_DEPTH = 32
"""Levels of arrays and objects in a JSON body."""

MAX_MEMBERS = 1000
"""Members of an object, elements of an array, and arrays and objects altogether in a JSON body."""

MAX_DIGITS = 64
"""Characters of a number in a JSON body."""

_MAX_LOGGED_PATH = 256
_MAX_LOGGED_CLIENT = 64  # what a trusted proxy says of it may be anything

# A client's own id is kept, so that its log and ours meet; one that looks like a token is not let into ours.
_REQUEST_ID = re.compile(rb"(?!.*(?:ktr_|eyJ))[A-Za-z0-9._-]{1,64}")
# Unique, and no secret: a process's random part and a count.
_PROCESS = token_hex(10)
_requests = count(1)

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_JSON = re.compile(rb'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.IGNORECASE)
_FORM = re.compile(rb'application/x-www-form-urlencoded(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.IGNORECASE)
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")

# Each says what the message or the caller is. Two of them are two requests in one: RFC 9112 sections 3.2 and 6.3.
_SINGLE = frozenset(
    {b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"transfer-encoding"}
)
_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class UriTooLong(InvalidRequest):
    """The request target is longer than any of ours."""

    status = 414
    sentence = "The path and query are too long."


class _Gone(Exception):
    """The client left before its request was complete: there is nothing to do and no one to answer."""


Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, header fields and body, as ASGI wants them."""

_NO_SNIFFING, _NO_STORE = (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")


class _Answer:
    """The answer to one request: what every answer carries, and whether and with what it began."""

    __slots__ = ("_request_id", "_respond", "_send", "request_is_read", "status")

    def __init__(self, send: Send, request_id: str, respond: Callable[..., bool] | None) -> None:
        self._send = send
        self._request_id = request_id.encode()
        self._respond = respond
        self.status: int | None = None
        self.request_is_read = False

    def _marked(self, fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        marked = [*fields, _NO_SNIFFING, (b"x-request-id", self._request_id)]
        for name, _ in marked:
            if name == b"cache-control":
                break
        else:
            marked.append(_NO_STORE)
        if not self.request_is_read:  # what is still to come is no request: RFC 9112 section 9.3
            marked.append((b"connection", b"close"))
        return marked

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._marked(message.get("headers", ()))}
        await self._send(message)

    async def whole(self, answer: Answer) -> None:
        """Sends an answer that is whole, unless one has begun: that stays cut off, so that no one takes it as whole."""
        if self.status is not None:
            return
        status, fields, body = answer
        if self._respond is not None and self.request_is_read and self._respond(status, self._marked(fields), body):
            self.status = status
            return
        await self({"type": "http.response.start", "status": status, "headers": fields})
        await self({"type": "http.response.body", "body": body})

    def check_given(self) -> None:
        if self.status is None:
            raise RuntimeError("the application gave no answer")


class Edge:
    """ASGI middleware: limits, strict bodies, request id, the one error shape, one access line.

    It leaves in ``scope["state"]``: ``request_id``; ``json``, the parsed JSON body; ``log``, a dict whose members an
    endpoint may add to the access line, which also tells the ``session_id`` that one leaves there. It reads there:
    ``refusal``, what an exception handler has rendered itself (for the line); and what the HTTP protocol may leave:
    ``malformed``, a refusal to render; ``take_body``, which gives the body if it is whole by now; ``respond``, which
    sends a whole answer at once. Without the last two, `receive` and `send` do their work at twice the cost.

    Args:
        app: the application. It is never cancelled when a client leaves.
        direct: gives the answer of a request that needs no application; None for one that does.
        max_body: bytes of a body.
        max_header: bytes of request line and header fields.
        body_timeout: from the end of the header fields to the end of the body.
        forms: path prefixes under which bodies are forms instead of JSON.
        ignored: path prefixes under which a body is someone else's, bounded like any and not looked at.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        direct: Callable[[Scope], Awaitable[Answer] | None] = lambda _: None,
        max_body: int = 64 * 1024,
        max_header: int = 64 * 1024,
        body_timeout: timedelta = timedelta(seconds=10),
        forms: tuple[str, ...] = ("/oauth/",),
        ignored: tuple[str, ...] = ("/auth/verify",),
    ) -> None:
        self._app = app
        self._direct = direct
        self._max_body = max_body
        self._max_header = max_header
        self._body_timeout = body_timeout.total_seconds()
        self._forms = forms
        self._ignored = ignored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request. Never raises."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        fields: dict[bytes, bytes] = dict(scope["headers"])
        given = fields.get(b"x-request-id")
        request_id = given.decode() if given and _REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_requests):012x}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["log"] = {}
        log.bind(request_id)
        answer = _Answer(send, request_id, state.get("respond"))
        try:
            # Read first, so that a connection can go on after a refusal that the framing has no part in.
            body = await self._read(scope, fields, receive)
            answer.request_is_read = True
            self._check(scope, fields)
            if body is not None:
                self._check_content(scope, fields, body)
            answering = self._direct(scope)
            if answering is not None:
                await answer.whole(await answering)
            else:
                await self._app(scope, receive if body is None else _replay(body, receive), answer)
                answer.check_given()
        except Refusal as refusal:
            state["refusal"] = refusal
            await answer.whole(render(refusal))
        except _Gone:
            state["log"]["cause"] = "the client left"
        except Exception as e:  # noqa: BLE001  # nothing gets out: this is the last one who can give an answer
            log.get_logger().error("exception", exc_info=True)
            state["refusal"] = refusal_of(e)
            await answer.whole(render(state["refusal"]))
        finally:
            if log.enabled(logging.INFO):
                log.write_soon(_access_line(scope, request_id, answer.status, perf_counter() - started))
            # It holds what holds it: `respond` the scope, a refusal the frames that it came through. What is free of
            # circles goes with its last reference, and is no work for the garbage collector.
            state.clear()

    def _check(self, scope: Scope, fields: dict[bytes, bytes]) -> None:
        """Checks target and header fields.

        Raises:
            Refusal: 400, 414 or 431.
        """
        path: bytes = scope.get("raw_path") or b""
        query: bytes = scope["query_string"]
        if len(path) + len(query) > MAX_TARGET:
            raise UriTooLong("request target")
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        block = b"".join(chain.from_iterable(headers))
        if len(path) + len(query) + len(block) + 4 * len(headers) > self._max_header:
            raise HeaderFieldsTooLarge("header block")
        if not block.isascii():
            _check_text(block, "header field")
        if len(fields) != len(headers):
            names = [name for name, _ in headers if name in _SINGLE]
            if len(names) != len(set(names)):
                raise InvalidRequest("a header field stands twice")
        if not _HOST.fullmatch(fields.get(b"host", b"\n" if scope["http_version"] == "1.1" else b"")):
            raise InvalidRequest("Host is missing or malformed")
        if b"%" in path or not path.isascii():
            _check_escaped(path, "path")
        if b"%" in query or not query.isascii():
            _check_escaped(query, "query")

    def _body_is_announced(self, scope: Scope, fields: dict[bytes, bytes]) -> bool:
        """Whether a body comes, by its framing (RFC 9112 section 6.3).

        Raises:
            Refusal: 400, 413, or what the protocol found.
        """
        if malformed := scope["state"].get("malformed"):
            raise malformed
        length = fields.get(b"content-length")
        coding = fields.get(b"transfer-encoding")
        # llhttp frames by the last coding alone. Another one before it, or one in HTTP/1.0, is where two parsers
        # disagree (RFC 9112 section 6.1).
        if coding is not None and (coding.lower() != b"chunked" or scope["http_version"] == "1.0"):
            raise InvalidRequest("Transfer-Encoding other than chunked, or in HTTP/1.0")
        if length is not None:
            if not length.isdigit():
                raise InvalidRequest("Content-Length is not a number")
            if len(length) > 18 or int(length) > self._max_body:  # noqa: PLR2004  # digits that can only be too many
                raise ContentTooLarge("Content-Length")
        return length is not None or coding is not None

    async def _read(self, scope: Scope, fields: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None where none is announced.

        Raises:
            Refusal: 400, 408 or 413.
            _Gone: the client left.
        """
        if not self._body_is_announced(scope, fields):
            return None
        take_body: Callable[[], bytes | None] | None = scope["state"].get("take_body")
        if take_body is not None and (whole := take_body()) is not None:
            if len(whole) > self._max_body:
                raise ContentTooLarge("body")
            return whole
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    if malformed := scope["state"].get("malformed"):
                        raise malformed
                    body += message.get("body", b"")
                    if len(body) > self._max_body:
                        raise ContentTooLarge("body")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RequestTimeout("body") from None

    def _check_content(self, scope: Scope, fields: dict[bytes, bytes], body: bytes) -> None:
        """Checks media type and form of a body, and leaves the parsed JSON in the scope.

        Raises:
            Refusal: 400 or 415.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not body or scope["method"] not in _WITH_CONTENT or path.startswith(self._ignored):
            return
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaType("Content-Encoding")
        media_type = fields.get(b"content-type", b"")
        if path.startswith(self._forms):
            if not _FORM.fullmatch(media_type):
                raise UnsupportedMediaType(
                    "Content-Type", description="The request body must be application/x-www-form-urlencoded, UTF-8."
                )
            _check_escaped(body, "form")
        else:
            if not _JSON.fullmatch(media_type):
                raise UnsupportedMediaType("Content-Type")
            scope["state"]["json"] = parse_json(body)


def render(refusal: Refusal) -> Answer:
    """A refusal as it goes out."""
    fields, body = _rendered(tuple(refusal.body().items()), tuple(refusal.headers().items()))
    return refusal.status, list(fields), body


@lru_cache(maxsize=1024)  # nothing in it comes from the request, so there are a few dozen
def _rendered(
    members: tuple[tuple[str, str], ...], more: tuple[tuple[str, str], ...]
) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
    body = json.dumps(dict(members), separators=(",", ":")).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), *more]
    return tuple((name.encode(), value.encode("latin-1")) for name, value in fields), body


def parse_json(body: bytes) -> object:
    """The value of a JSON text (RFC 8259), strictly: what two parsers could read differently is refused.

    UTF-8 without byte order mark, no duplicate names, no lone surrogates, no NaN or infinity, ``MAX_DEPTH``,
    ``MAX_MEMBERS``, ``MAX_DIGITS``.

    Raises:
        InvalidRequest: it is anything else.
    """
    if plain := _PLAIN_OBJECT.fullmatch(body):
        return {plain[1].decode(): plain[2].decode()}
    _check_structure(body)
    try:
        value: object = _DECODER.decode(body.decode())
        if b"\\ud" in body or b"\\uD" in body:
            # UTF-8 has no form for surrogates, so only an escape makes one (RFC 8259 section 8.2).
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError:  # UnicodeError and JSONDecodeError, which holds the text: not passed on, not even as a context
        pass
    else:
        return value
    raise _bad_json("not JSON in UTF-8")


# One member whose value is a string without escapes, as most bodies are: the parser could only say the same.
_PLAIN_OBJECT = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*"([a-z_]+)"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z0-9_.-]*)"[ \t\r\n]*\}[ \t\r\n]*'
)


def _bad_json(cause: str) -> InvalidRequest:
    return InvalidRequest(
        f"JSON: {cause}",
        description=f"The body must be JSON in UTF-8, without duplicate names, at most {MAX_DEPTH} levels deep.",
    )


# No quantifier gives back what it took, and an unclosed string runs to the end: one pass over any input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def _check_structure(body: bytes) -> None:
    """Refuses what is too deep or has too many parts, before the parser, which recurses, sees it.

    Where text is JSON, strings are where the parser sees them; where it stops being JSON, the parser stops.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH and body.count(b",") < MAX_MEMBERS:
        return
    structure = _STRING.sub(b"", body)
    if structure.count(b",") >= MAX_MEMBERS or structure.count(b"{") + structure.count(b"[") > MAX_MEMBERS:
        raise _bad_json("too many members")
    depth = 0
    for bracket in _BRACKET.findall(structure):
        depth += 1 if bracket in b"{[" else -1
        if depth > MAX_DEPTH:
            raise _bad_json("too deep")
        if depth < 0:
            return


def _object(members: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(members)
    if len(value) != len(members):
        raise _bad_json("a name stands twice")
    return value


def _number(of: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if len(text) > MAX_DIGITS:
            raise _bad_json("a number is too long")
        value = of(text)
        if not math.isfinite(value):
            raise _bad_json("a number is too large")
        return value

    return number


def _constant(_name: str) -> object:
    raise _bad_json("NaN or infinity")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_number(int), parse_float=_number(float), parse_constant=_constant
)


def _check_text(text: bytes, where: str) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{where} is not UTF-8") from None


def _check_escaped(text: bytes, where: str) -> None:
    """Checks percent-encoded text: every escape whole, and UTF-8 without NUL behind it."""
    if _STRAY_PERCENT.search(text):
        raise InvalidRequest(f"{where} has a broken escape")
    raw = unquote_to_bytes(text)
    if b"\0" in raw:
        raise InvalidRequest(f"{where} has a NUL")
    _check_text(raw, where)


def _replay(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()  # the next thing to come is the client's leaving
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _loggable(path: str) -> str:
    """The path, cut, without tokens, however often they were percent-encoded."""
    shown = plain = log.redact_tokens(path)[:_MAX_LOGGED_PATH]
    while "%" in plain and (further := unquote(plain)) != plain:
        plain = further
    redacted = log.redact_tokens(plain)
    return shown if redacted == plain else redacted


def _access_line(scope: Scope, request_id: str, status: int | None, seconds: float) -> str:
    """The line as structlog would write it, at a tenth of the cost: this is on every request's way."""
    state, client = scope["state"], scope.get("client")
    line = (
        f"{_line_start(scope['method'], scope['path'])}"
        f'{"null" if status is None else status}, "duration_ms": {seconds * 1000:.3f}, '
        f'"client": {_quoted_client(client[0]) if client else "null"}'
    )
    refusal: Refusal | None = state.get("refusal")
    if refusal is not None:
        line += f', "error": "{refusal.error}", "cause": {_quoted_cause(refusal.cause)}'
        if refusal.reason is not None:
            line += f', "reason": "{refusal.reason}"'
    if "session_id" in state:
        line += f', "session_id": "{state["session_id"]}"'
    if more := state["log"]:
        line += f", {json.dumps(log.redact(more))[1:-1]}"
    return (
        f'{line}, "request_id": "{request_id}", "event": "request", "level": "info", "timestamp": "{log.timestamp()}"}}'
    )


@lru_cache(maxsize=1024)
def _line_start(method: str, path: str) -> str:
    return f'{{"method": {log.quote(method)}, "path": {log.quote(_loggable(path))}, "status": '


@lru_cache(maxsize=1024)
def _quoted_cause(cause: str) -> str:
    return log.quote(log.redact(cause))


@lru_cache(maxsize=1024)
def _quoted_client(address: str) -> str:
    return log.quote(log.redact_tokens(address)[:_MAX_LOGGED_CLIENT])
