"""The edge: what every HTTP request passes first and every answer last.

In front of the application, so that an endpoint sees only requests that are whole, bounded and well-formed, and so
that whatever happens behind it comes out as one answer in the one shape and one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import log
from ..errors import (
    ContentTooLarge,
    InvalidRequest,
    Refusal,
    RequestTimeout,
    UnsupportedMediaType,
    refusal_of,
)
from .access_line import access_line
from .answers import Answer, render
from .bodies import FORM, JSON, is_identity, is_of_type, parse_json
from .heads import VERIFY, asked_by_proxy, check_escaped, check_head

# A client's own id is kept, so that its log and ours meet; one that looks like a token is not let into ours.
_REQUEST_ID = re.compile(rb"(?!.*(?:ktr_|eyJ))[A-Za-z0-9._-]{1,64}")
# Unique, and no secret: a process's random part and a count.
_PROCESS = token_hex(10)
_requests = count(1)

_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class _Gone(Exception):
    """The client left before its request was complete: there is nothing to do and no one to answer."""


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
            asked = asked_by_proxy(scope) if scope["path"].startswith(VERIFY, len(scope.get("root_path", ""))) else None
            request = asked or scope
            if asked is None:
                # Read first, so that a connection can go on after a refusal that the framing has no part in.
                body = await self._read(scope, fields, receive)
                answer.request_is_read = True
                check_head(scope, fields, self._max_header)
                if body is not None:
                    self._check_content(scope, fields, body)
            else:
                body, answer.request_is_read = b"", _ends_by_now(scope, fields)
                check_head(asked, fields, self._max_header, at_verify=True)
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
                log.write_soon(access_line(scope, request_id, answer.status, perf_counter() - started))
            # It holds what holds it: `respond` the scope, a refusal the frames that it came through. What is free of
            # circles goes with its last reference, and is no work for the garbage collector.
            state.clear()

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
        if b"content-encoding" in fields and not is_identity(scope["headers"]):
            raise UnsupportedMediaType("Content-Encoding")
        media_type = fields.get(b"content-type", b"")
        if scope["path"].startswith(self._forms, len(scope.get("root_path", ""))):
            if not is_of_type(FORM, media_type, body):
                raise UnsupportedMediaType(
                    "Content-Type", description="The request body must be application/x-www-form-urlencoded, UTF-8."
                )
            check_escaped(body, "form")
        else:
            if media_type != b"application/json" and not is_of_type(JSON, media_type, body):
                raise UnsupportedMediaType("Content-Type")
            scope["state"]["json"] = parse_json(body)


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


def _replay(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()  # the next thing to come is the client's leaving
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
