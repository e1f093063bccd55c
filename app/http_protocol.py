"""HTTP/1.1 on the wire: the limits and refusals that uvicorn leaves open.

uvicorn reads header fields without a bound, waits for them without end, and answers what llhttp refuses in its own
words, even into the middle of an answer that is under way. ``uvicorn.Config(http=KeyturnHttpProtocol)`` instead of
``"httptools"``; it expects ``app.edge.Edge`` in front of the application, which renders what is refused here.

Written against uvicorn 0.54, which is pinned: parser callbacks are only extended (each calls its original), and
``data_received`` is the original's feed with other ``except`` clauses. The attributes that are used (``parser``,
``cycle``, ``scope``, ``headers``, ``url``, ``transport``, ``flow``) have been there since uvicorn 0.15;
tests/test_edge.py fails if one of them changes its meaning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .edge import MAX_TARGET, UriTooLong
from .errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    Refusal,
    RequestTimeout,
    SlowDown,
)

_MAX_FRAMING = 1024 * 1024  # a body within its limit, one byte a chunk, is less than half of this
_MAX_URL = 65_535  # bytes; httptools parses no longer one. Edge bounds all targets but those that a proxy appends to.


class UnknownMethod(MethodNotAllowed):
    """A method that no endpoint has: not one of HTTP's, or ``CONNECT``."""

    def headers(self) -> dict[str, str]:
        """Header fields of the answer, with Allow (RFC 9110 section 15.5.6)."""
        return super().headers() | {"allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}


class KeyturnHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Subclass it to set others."""

    max_head: ClassVar[int] = 64 * 1024
    """Bytes of unfinished header fields, give or take one read; Edge measures finished ones."""

    head_timeout: ClassVar[timedelta] = timedelta(seconds=10)
    """From the connection's start, or the first byte after an answer, to the end of the header fields."""

    max_pipelined: ClassVar[int] = 32
    """Requests that may wait for the answers before theirs; one small read may hold thousands."""

    write_timeout: ClassVar[timedelta] = timedelta(seconds=30)
    """How long a client may leave an answer unread that fills the buffers."""

    linger: ClassVar[timedelta] = timedelta(seconds=1)
    """How long a client may go on sending what will not be read, so that it gets to see the refusal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = 0  # bytes since the current request began, without the read in which it did
        self._in_head = False
        self._deaf = False  # what comes is not read any more: the request before it was the last
        self._refusal: Refusal | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Starts the clock of the first request's head."""
        super().connection_made(transport)
        # Here and by the request's cycle only `write`, `close`, `abort`, `is_closing` and `get_extra_info` are called.
        self.transport = cast("asyncio.Transport", _Lingering(transport, self))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        self._head_arrived()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read: what is under way waits for it, but not without end."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout.total_seconds(), self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and keeps the bounds."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True
        except httptools.HttpParserError as error:
            self._refuse(self._refusal_of(error))
        else:
            if self._in_head:
                if len(self.url) > _MAX_URL:
                    self._refuse(UriTooLong("request target"))
                elif self._received - len(self.url) > self.max_head:
                    self._refuse(HeaderFieldsTooLarge("header block"))
            elif self._received > _MAX_FRAMING and self.reads_body:
                # Chunk extensions and trailer fields are in no body's length.
                self._refuse(ContentTooLarge("chunk framing"))
            if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
                self._await_head()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = True
        self._received = 0
        if self._refusal is not None:
            self.scope["state"]["malformed"] = self._refusal

    def on_headers_complete(self) -> None:
        """The head is whole: stops the clock and starts the request, unless it is one that we don't serve."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_arrived()
        if len(self.pipeline) >= self.max_pipelined and self._refusal is None:
            raise SlowDown("pipelined requests")
        upgrade = self.parser.should_upgrade()
        if upgrade and self.parser.get_method() == b"CONNECT":
            raise UnknownMethod("CONNECT")
        super().on_headers_complete()
        self.scope["state"] |= {"take_body": partial(_take_body, self.cycle), "respond": partial(_respond, self.cycle)}
        # Trailer fields go to a list that no one reads: RFC 9110 section 6.5.1 forbids merging them.
        self.headers = []
        if self.scope["http_version"] not in {"1.1", "1.0"}:
            raise InvalidRequest("HTTP version")
        if upgrade:
            # An upgrade is ignored, as RFC 9110 section 7.8 allows. But llhttp stops at one without reading the
            # body, whose bytes would then be taken for the next request; so this one is the last.
            self.cycle.keep_alive = False
            if any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.scope["headers"]):
                raise InvalidRequest("upgrade with a body")

    def on_response_complete(self) -> None:
        """An answer is out; the next head may have begun while it was under way."""
        super().on_response_complete()
        if self._in_head and self._head_timer is None:
            self._await_head()

    def _should_upgrade(self) -> bool:
        return False  # no WebSockets; the original logs two lines a request about it

    @property
    def reads_body(self) -> bool:
        """Whether a request is open whose end has not come."""
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete

    def _refusal_of(self, error: httptools.HttpParserError) -> Refusal:
        """The refusal for what the parser, or one of the callbacks above, said. None of it repeats what came in."""
        match error.__context__:
            case Refusal() as refusal:
                return refusal
            case httptools.HttpParserInvalidURLError() if len(self.url) > MAX_TARGET:
                return UriTooLong("request target")
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return UnknownMethod("not a method of HTTP")
        return InvalidRequest(f"malformed HTTP: {error}")

    def _refuse(self, refusal: Refusal) -> None:
        """Refuses the request that is being read, after the answers to those before it, and closes.

        Where the body is at fault, its cycle exists and Edge is reading from it (or will, when its turn comes): it is
        woken to find the refusal. Where the head is, no cycle exists; a minimal request takes its place, so that
        uvicorn's pipeline keeps the order and Edge gives the answer and the line in the log.
        """
        self._deaf = True
        self._head_arrived()
        if self.transport.is_closing():
            return
        if self.reads_body:
            self.cycle.scope["state"]["malformed"] = refusal
            self.cycle.keep_alive = False
            self.cycle.message_event.set()
        else:
            self._refusal = refusal
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            self.scope["method"] = self.scope["path"] = ""  # what the line in the log says: nothing is known of it

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout.total_seconds(), self._head_overdue)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(RequestTimeout("header fields"))
        else:
            self.transport.close()


def _take_body(cycle: RequestResponseCycle) -> bytes | None:
    """The request's body, if it is whole by now, as ``receive`` would have given it."""
    if cycle.more_body:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()
    return body


def _respond(cycle: RequestResponseCycle, status: int, fields: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Sends a whole answer at once, as two calls of ``send`` would, without their checks of our own field names.

    False, with nothing done, where there is more to see to: a client that is slow or gone.
    """
    if cycle.response_started or cycle.disconnected or cycle.flow.write_paused:
        return False
    lines = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *fields):
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
    if cycle.scope["method"] != "HEAD":
        lines.append(body)
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(b"".join(lines))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


class _Lingering:
    """The transport, with two habits of its own.

    A head waits for the body that comes just after it: one segment, one system call. And ``close`` while the client is
    still sending first ends our side only: otherwise the kernel would answer the unread bytes with a reset that may
    overtake the refusal (RFC 9112 section 9.6).
    """

    def __init__(self, transport: asyncio.Transport, protocol: KeyturnHttpProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closing = False
        self._held = b""
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info

    def write(self, data: bytes) -> None:
        """Two writes of one turn of the loop are one segment and one system call."""
        if self._held:
            self._transport.write(self._held + data)
            self._held = b""
        else:
            self._held = data
            self._protocol.loop.call_soon(self._send_held)

    def _send_held(self) -> None:
        if self._held:
            self._transport.write(self._held)
            self._held = b""

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        self._send_held()
        protocol = self._protocol
        unread = protocol._deaf or (protocol.cycle is not None and protocol.cycle.more_body)  # noqa: SLF001
        if self._closing or not unread or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._closing = True
            protocol._deaf = True  # noqa: SLF001  # the two are one thing in two classes
            protocol.flow.resume_reading()  # to discard, and to notice the client's end
            self._transport.write_eof()
            protocol.loop.call_later(protocol.linger.total_seconds(), self._transport.close)
