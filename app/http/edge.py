"""The edge: every HTTP request passes it first, and every answer passes it last.

The edge stands in front of the application. So an endpoint sees only requests that are whole, bounded and well-formed.
Each request gets one answer and one line in the log, even if the application fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import log, tracing
from ..errors import ContentTooLarge, InvalidRequest, Refusal, RequestTimeout, refusal_of
from . import access_line, counting, request_spans
from .answers import Answer, Fields, render
from .bodies import OF_STANDARDS, check_form, is_form, parse_form, read_json
from .client_addresses import DIRECT, ClientAddresses
from .heads import VERIFY, asked_by_proxy, check_escaped, check_head
from .origins import NONE, Origins
from .request import KEY, Request

_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_MAX_LENGTH_DIGITS = 18

_NO_STORE = (b"cache-control", b"no-store")


class _Gone(Exception):
    """The client left before its request was complete: there is nothing to do and no one to answer."""


class Edge:
    """ASGI middleware: limits, strict bodies, request id, the one error shape, one line in the log for each request.

    Args:
        app: the application. The edge does not cancel a request whose client leaves.
        fast: returns the answer to a request, or None if the application has to answer.
        origins: the origins of pages that may call the application.
        clients: tells the address from which a request comes.
        max_body: bytes of a body.
        max_header: bytes of request line and header fields.
        body_timeout: from the end of the header fields to the end of the body.
        quiet: the paths without spans, whose good answers have no line in the log. A refusal of one has its line.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        fast: Callable[[Request], Awaitable[Answer] | None] = lambda _: None,
        origins: Origins = NONE,
        clients: ClientAddresses = DIRECT,
        max_body: int = 64 * 1024,
        max_header: int = 64 * 1024,
        body_timeout: timedelta = timedelta(seconds=10),
        quiet: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._fast = fast
        self._origins = origins
        self._clients = clients
        self._max_body = max_body
        self._max_header = max_header
        self._body_timeout = body_timeout.total_seconds()
        self._quiet = quiet

    async def __call__(self, asgi_scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request. Never raises."""
        if asgi_scope["type"] == "http":
            await self._http(asgi_scope, receive, send)
        elif asgi_scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(asgi_scope, receive, send)

    # One request from top to bottom, and in one function, because each request would pay for another call.
    async def _http(self, asgi_scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901, PLR0912
        started = perf_counter()
        request: Request = asgi_scope.get(KEY) or Request.of(asgi_scope)
        request.read_head(asgi_scope)
        request.origins = self._origins
        request.client = self._clients.of(request)
        log.request_in_hand.set((request.id, request.client))
        outgoing = _Outgoing(send, request)
        tracer = tracing.active
        span = None if tracer is None or request.path in self._quiet else request_spans.begin(tracer, request)
        try:
            asked = asked_by_proxy(asgi_scope) if request.path.startswith(VERIFY) else None
            if asked is None:
                # The body is read before the head is checked. So a refusal of the head need not close the connection.
                body = await self._read(request, asgi_scope, receive)
                outgoing.request_is_read = True
                check_head(request, asgi_scope, self._max_header)
                if body and request.method in _WITH_CONTENT:
                    self._read_content(request, body)
            else:
                body, outgoing.request_is_read = b"", _ends_by_now(request)
                request.read_target(asked)
                check_head(request, asked, self._max_header, at_verify=True)
            if request.method == "OPTIONS" and (permission := self._origins.preflight(request)):
                await outgoing.whole(permission)
                return
            answering = self._fast(request)
            if answering is None:
                await self._app(asked or asgi_scope, receive if body is None else _replay(body, receive), outgoing)
                outgoing.check_begun()
            else:
                answer = await answering
                if not outgoing.at_once(answer):
                    await outgoing.whole(answer)
        except Refusal as refusal:
            request.refusal = refusal
            await outgoing.whole(render(refusal))
        except _Gone:
            request.note(cause="the client left")
        except Exception as e:  # noqa: BLE001  # the server that would get the exception has no answer of this form
            log.get_logger().error("exception", exc_info=True)
            request.refusal = refusal_of(e)
            await outgoing.whole(render(request.refusal))
        finally:
            seconds = perf_counter() - started
            counting.count(request, outgoing.status, seconds)
            if tracer is not None and span is not None:
                request_spans.end(tracer, span, request, outgoing.status)
            if request.path not in self._quiet or outgoing.status != HTTPStatus.OK:
                access_line.write(asgi_scope, request, outgoing.status, seconds)
            # Break the reference cycles, so that the request is freed at once and not by the garbage collector. One is
            # request → wire → scope → request, the other refusal → traceback → frame → request.
            request.wire = request.refusal = request.malformed = None

    def _body_is_announced(self, request: Request, asgi_scope: Scope) -> bool:
        """Whether a body comes, by its framing (RFC 9112 section 6.3).

        Raises:
            Refusal: 400, 413, or the refusal of the protocol.
        """
        if request.malformed is not None:
            raise request.malformed
        length = request.fields.get(b"content-length")
        coding = request.fields.get(b"transfer-encoding")
        # llhttp frames by the last coding alone. If another coding stands before it, or in HTTP/1.0, two parsers may
        # disagree about the end of the request (RFC 9112 section 6.1).
        if coding is not None and (coding.strip(b" \t").lower() != b"chunked" or asgi_scope["http_version"] == "1.0"):
            raise InvalidRequest("Transfer-Encoding other than chunked, or in HTTP/1.0")
        if length is not None:
            digits = length if length.isdigit() else length.strip(b" \t")
            if not digits.isdigit():
                raise InvalidRequest("Content-Length is not a number")
            if digits[:1] == b"0":
                digits = digits.lstrip(b"0") or b"0"
            if len(digits) > _MAX_LENGTH_DIGITS or int(digits) > self._max_body:
                raise ContentTooLarge("Content-Length")
        return length is not None or coding is not None

    async def _read(self, request: Request, asgi_scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None if none is announced.

        Raises:
            Refusal: 400, 408 or 413.
            _Gone: the client left.
        """
        if not self._body_is_announced(request, asgi_scope):
            return None
        if request.wire is not None and (whole := request.take_body()) is not None:
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
                    if request.malformed is not None:
                        raise request.malformed
                    body += message.get("body", b"")
                    if len(body) > self._max_body:
                        raise ContentTooLarge("body")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RequestTimeout("body") from None

    def _read_content(self, request: Request, body: bytes) -> None:
        """Checks media type and form of a body, and reads its JSON or its fields.

        Raises:
            Refusal: 400 or 415.
        """
        if request.path.startswith(OF_STANDARDS):
            request.raw = body
            if is_form(request.path):
                check_form(request.fields, request.headers, body)
                check_escaped(body, "form")
                request.json = parse_form(body)
                return
        request.json = read_json(request.fields, request.headers, body)


class _Outgoing:
    """The answer to one request: the header fields that every answer has, and the status with which it began."""

    __slots__ = ("_request", "_send", "request_is_read", "status")

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self._request = request
        self.status: int | None = None
        self.request_is_read = False

    def _marked(self, fields: Fields) -> list[tuple[bytes, bytes]]:
        request = self._request
        marked = [*fields, *request.origins.fields(request), (b"x-request-id", request.id.encode())]
        for name, _ in fields:
            if name == b"cache-control":
                break
        else:
            marked.append(_NO_STORE)
        if not self.request_is_read:  # the next bytes are of this request, not of a new one: RFC 9112 section 9.3
            marked.append((b"connection", b"close"))
        return marked

    async def __call__(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._marked(message.get("headers", ()))}
        await self._send(message)

    def at_once(self, answer: Answer) -> bool:
        """Sends a whole answer by `Request.respond`. Returns False, with nothing sent, if that is not possible."""
        request = self._request
        if request.wire is None or not self.request_is_read or self.status is not None:
            return False
        status, fields, body = answer
        if not request.respond(status, self._marked(fields), body):
            return False
        self.status = status
        return True

    async def whole(self, answer: Answer) -> None:
        """Sends a whole answer by `at_once`, or else by ASGI's `send`.

        If another answer has begun, sends nothing. The other stays cut off, so that no client takes it for whole.
        """
        if self.status is not None or self.at_once(answer):
            return
        status, fields, body = answer
        await self({"type": "http.response.start", "status": status, "headers": fields})
        await self({"type": "http.response.body", "body": body})

    def check_begun(self) -> None:
        """Raises RuntimeError if the application gave no answer."""
        if self.status is None:
            raise RuntimeError("the application gave no answer")


def _ends_by_now(request: Request) -> bool:
    """Whether the whole request has arrived, if its body is not read. Does not wait for the client.

    Raises:
        Refusal: the refusal of the protocol.
    """
    if request.malformed is not None:
        raise request.malformed
    if b"transfer-encoding" in request.fields:
        return False
    if b"content-length" not in request.fields:
        return True
    return request.take_body() is not None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body, which the edge has read, once more."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()  # the next message says that the client left
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
