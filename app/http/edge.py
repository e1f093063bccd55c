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

from .. import log
from ..errors import (
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

# A client's own id is kept, so that its log and ours meet; one that looks like a token is not let into ours.
_REQUEST_ID = re.compile(rb"(?!.*(?:ktr_|eyJ))[A-Za-z0-9._-]{1,64}")
# Unique, and no secret: a process's random part and a count.
_PROCESS = token_hex(10)
_requests = count(1)

# llhttp leaves the white space that may follow a value (RFC 9112 section 5.1).
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*[ \t]*")
# Parameters that a media type does not define are ignored (RFC 9110 section 8.3, RFC 8259 section 11). A charset is
# one, but who names another than UTF-8 writes other characters: only where the body is ASCII are they the same.
_PARAMETERS = rb"""
    (?: [ \t]*+ ; [ \t]*+
        (?: charset = ("?) (?: utf-?8 | (us-ascii | iso-8859-[0-9]{1,2} | windows-125[0-9]) ) \1 (?![^ \t;])
          | (?!charset=) [!#$%&'*+.^_`|~0-9A-Z-]++ = (?: [!#$%&'*+.^_`|~0-9A-Z-]++ | "(?:[^"\\]|\\.)*+" )
        )?
    )*+ [ \t]*+"""
_JSON = re.compile(rb"application/json" + _PARAMETERS, re.IGNORECASE | re.VERBOSE)
_FORM = re.compile(rb"application/x-www-form-urlencoded" + _PARAMETERS, re.IGNORECASE | re.VERBOSE)
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")

# Each says what the message or the caller is. Two of them are two requests in one: RFC 9112 sections 3.2 and 6.3.
_SINGLE = frozenset({b"authorization", b"content-length", b"content-type", b"host", b"transfer-encoding"})
_SINGLE_AT_VERIFY = _SINGLE - {b"content-type"}  # whose body is not looked at
# RFC 3986 sections 3.3 and 3.4; "%" is looked at by itself.
_IN_TARGETS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?%"
_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH", "DELETE"})

# The endpoint that proxies ask about their clients' requests: its name, what the proxy demands, what the client asked
# for. Without a demand that stands here there is no such path: a mistyped one must not let everyone through.
_VERIFY = "/auth/verify"
_ASKED = re.compile(rb"(/auth/verify)((?:;(?:role|scope)=[^/;]*)*)(/.*)?", re.DOTALL)


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
    ) -> None:
        self._app = app
        self._direct = direct
        self._max_body = max_body
        self._max_header = max_header
        self._body_timeout = body_timeout.total_seconds()
        self._forms = forms

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
        client = scope.get("client")
        log.bind(request_id, client[0] if client else None)
        answer = _Answer(send, request_id, state.get("respond"))
        try:
            asked = _asked(scope) if scope["path"].startswith(_VERIFY, len(scope.get("root_path", ""))) else None
            request = asked or scope
            if asked is None:
                # Read first, so that a connection can go on after a refusal that the framing has no part in.
                body = await self._read(scope, fields, receive)
                answer.request_is_read = True
                self._check(scope, fields)
                if body is not None:
                    self._check_content(scope, fields, body)
            else:
                body, answer.request_is_read = b"", _ends_by_now(scope, fields)
                self._check(asked, fields, at_verify=True)
            answering = self._direct(request)
            if answering is not None:
                await answer.whole(await answering)
            else:
                await self._app(request, receive if body is None else _replay(body, receive), answer)
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

    def _check(self, scope: Scope, fields: dict[bytes, bytes], *, at_verify: bool = False) -> None:
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
            _check_fields(headers)
        if len(fields) != len(headers):
            single = _SINGLE_AT_VERIFY if at_verify else _SINGLE
            names = [name for name, _ in headers if name in single]
            if len(names) != len(set(names)):
                raise InvalidRequest("a header field stands twice")
        if not _HOST.fullmatch(fields.get(b"host", b"\n" if scope["http_version"] == "1.1" else b"")):
            raise InvalidRequest("Host is missing or malformed")
        # RFC 9112 section 3.2. Browsers send some of them, so behind a proxy they come to the endpoint for proxies,
        # where they only tell what the client asked for.
        target = path + query
        if not at_verify and target.translate(None, _IN_TARGETS):
            raise InvalidRequest("a character that no request target has")
        if b"%" in target or not target.isascii():
            _check_escaped(path, "path")
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
        if coding is not None and (coding.strip(b" \t").lower() != b"chunked" or scope["http_version"] == "1.0"):
            raise InvalidRequest("Transfer-Encoding other than chunked, or in HTTP/1.0")
        if length is not None:
            digits = length if length.isdigit() else length.strip(b" \t")
            if not digits.isdigit():
                raise InvalidRequest("Content-Length is not a number")
            if digits[:1] == b"0":
                digits = digits.lstrip(b"0") or b"0"
            if len(digits) > 18 or int(digits) > self._max_body:  # noqa: PLR2004  # digits that can only be too many
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
        if not body or scope["method"] not in _WITH_CONTENT:
            return
        if b"content-encoding" in fields and not _is_identity(scope["headers"]):
            raise UnsupportedMediaType("Content-Encoding")
        media_type = fields.get(b"content-type", b"")
        if scope["path"].startswith(self._forms, len(scope.get("root_path", ""))):
            if not _is_of_type(_FORM, media_type, body):
                raise UnsupportedMediaType(
                    "Content-Type", description="The request body must be application/x-www-form-urlencoded, UTF-8."
                )
            _check_escaped(body, "form")
        else:
            if media_type != b"application/json" and not _is_of_type(_JSON, media_type, body):
                raise UnsupportedMediaType("Content-Type")
            scope["state"]["json"] = parse_json(body)


def _is_identity(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether Content-Encoding names no coding: a list, in one field or several, maybe with empty elements."""
    codings = b",".join(value for name, value in headers if name == b"content-encoding").lower().split(b",")
    return {coding.strip(b" \t") for coding in codings} <= {b"", b"identity"}


def _is_of_type(wanted: re.Pattern[bytes], media_type: bytes, body: bytes) -> bool:
    given = wanted.fullmatch(media_type)
    return given is not None and (given[2] is None or body.isascii())


def _asked(scope: Scope) -> Scope | None:
    """The request that a proxy makes about its client's, without what is the client's; None where it is another one.

    Proxies append the path and the query that they were asked for (Envoy) and announce a body that they keep (nginx).
    None of it is looked at. A demand stands where no client can write: in the query of the path itself, or before
    what is appended, as a parameter of the path's last segment (RFC 3986 section 3.3): ``/auth/verify;role=admin``.
    """
    parts = _ASKED.fullmatch(scope.get("raw_path") or b"", len(scope.get("root_path", "")))
    if parts is None:
        return None
    path, demands, below = parts.groups()
    if not demands and below is None:
        return scope
    queries = [demands[1:].replace(b";", b"&")] if demands else []
    if below is None and scope["query_string"]:
        queries.append(scope["query_string"])
    root_path: str = scope.get("root_path", "")
    return {
        **scope,
        "path": root_path + path.decode(),
        "raw_path": root_path.encode() + path,
        "query_string": b"&".join(queries),
    }


def _ends_by_now(scope: Scope, fields: dict[bytes, bytes]) -> bool:
    """Whether nothing of a request whose body is of no interest is still to come. Waits for nothing.

    Raises:
        Refusal: what the protocol found.
    """
    if malformed := scope["state"].get("malformed"):
        raise malformed
    if b"transfer-encoding" in fields:
        return False
    if b"content-length" not in fields:
        return True
    take_body: Callable[[], bytes | None] | None = scope["state"].get("take_body")
    return take_body is not None and take_body() is not None


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


def _check_fields(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """RFC 9110 section 5.5: bytes that are not ASCII are opaque. Only what is read here need be text.

    A media type is compared as bytes, where a body is read at all.
    """
    for name, value in headers:
        if name in _SINGLE_AT_VERIFY:
            _check_text(value, "header field")


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
    """The path, or the method: cut, without tokens, however often they were percent-encoded."""
    shown = plain = log.redact_tokens(path)[:_MAX_LOGGED_PATH]
    while "%" in plain and (further := unquote(plain)) != plain:
        plain = further
    redacted = log.redact_tokens(plain)
    return shown if redacted == plain else redacted


def _access_line(scope: Scope, request_id: str, status: int | None, seconds: float) -> str:
    """The line as structlog would write it, at a tenth of the cost: this is on every request's way."""
    state, client, path = scope["state"], scope.get("client"), scope["path"]
    line_start = _line_start if len(path) <= _MAX_LOGGED_PATH else _line_start.__wrapped__  # the cache stays small
    line = (
        f"{line_start(scope['method'], path)}"
        f'{"null" if status is None else status}, "duration_ms": {seconds * 1000:.3f}, '
        f'"client": {_quoted_client(client[0]) if client else "null"}'
    )
    session_id = state.get("session_id")
    refusal: Refusal | None = state.get("refusal")
    if refusal is not None:
        session_id = refusal.session_id or session_id
        line += f', "error": "{refusal.error}", "cause": {_quoted_cause(refusal.cause)}'
        if refusal.reason is not None:
            line += f', "reason": "{refusal.reason}"'
        if refusal.user_id is not None:
            line += f', "user_id": "{refusal.user_id}"'
    if session_id is not None:
        line += f', "session_id": "{session_id}"'
    if more := state["log"]:
        line += f", {json.dumps(log.redact(more))[1:-1]}"
    return (
        f'{line}, "request_id": "{request_id}", "event": "request", "level": "info", "timestamp": "{log.timestamp()}"}}'
    )


@lru_cache(maxsize=1024)
def _line_start(method: str, path: str) -> str:
    return f'{{"method": {log.quote(_loggable(method))}, "path": {log.quote(_loggable(path))}, "status": '


@lru_cache(maxsize=1024)
def _quoted_cause(cause: str) -> str:
    return log.quote(log.redact(cause))


@lru_cache(maxsize=1024)
def _quoted_client(address: str) -> str:
    return log.quote(log.shown_client(address))
