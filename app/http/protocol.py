"""HTTP/1.1 on the wire: the limits and refusals that uvicorn lacks.

uvicorn reads header fields without a limit, and waits for them without end. If llhttp refuses a request, uvicorn writes
an answer of its own, even into the middle of another answer. Give ``uvicorn.Config(http=KeyturnHttpProtocol)`` instead
of ``"httptools"``, and put `edge.Edge` in front of the application. The edge renders the refusals of this file.

Written for uvicorn 0.54, which pyproject.toml bounds. Parser callbacks are only extended (each calls its original), and
``data_received`` is the original's feed with other ``except`` clauses. The attributes that are used are as old as
uvicorn 0.15: ``parser``, ``cycle``, ``scope``, ``headers``, ``url``, ``transport``, ``flow``.
tests/test_connections.py and tests/test_framing.py fail if one of them changes its meaning.
"""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidRequest,
    RateLimit,
    Refusal,
    RequestTimeout,
    SlowDown,
)
from . import connections, fast_wire, open_files, opening
from .fast_wire import FastRequest, Lingering
from .heads import MAX_TARGET, UriTooLong
from .opening import UnknownMethod
from .request import KEY, Request

_MAX_FRAMING = 1024 * 1024  # a body within its limit, one byte a chunk, is less than half of this
# Bytes: httptools parses no longer one. Edge has a lower limit, except where a proxy appends to the path.
_MAX_URL = 65_535

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class KeyturnHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Subclass it to set others."""

    max_head: ClassVar[int] = 64 * 1024
    """Bytes of unfinished header fields, give or take one read; Edge measures finished ones."""

    head_timeout: ClassVar[timedelta] = timedelta(seconds=10)
    """From the connection's start, or the first byte after an answer, to the end of the header fields."""

    max_pipelined: ClassVar[int] = 32
    """Requests that may wait for the answers to earlier ones. One small read may hold thousands of requests."""

    write_timeout: ClassVar[timedelta] = timedelta(seconds=30)
    """How long a client may leave an answer unread if the answer fills the buffers."""

    linger: ClassVar[timedelta] = timedelta(seconds=1)
    """How long a connection stays open after a refusal if the client still sends, so that it can read the refusal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = 0  # bytes since the current request began, without the read in which it did
        self._in_head = False
        self.url = b""
        self._opening = b""  # the beginning of a request whose method is not whole yet
        self._method = ""  # the real method of the request being read, if the parser was given POST
        self._declined = False  # the parser reads the body of a request that offered another protocol
        self.ignores_input = False  # the last request of the connection has been read
        self._refusal: Refusal | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Starts the clock of the first request's head."""
        super().connection_made(transport)
        # Here and by the request's cycle only `write`, `close`, `abort`, `is_closing` and `get_extra_info` are called.
        self.transport = cast("asyncio.Transport", Lingering(transport, self))
        self._await_head()
        if len(self.connections) > (most := open_files.for_clients(open_files.limit())):
            connections.make_room(self, most)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        self._head_arrived()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read. The answer under way waits for the client, for `write_timeout` at most."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout.total_seconds(), self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read: stops the clock."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and enforces the limits."""
        if self.ignores_input:
            # A client that reads no answer may send without end. `Lingering.close` reads on when the last one is out.
            if not self.transport.is_closing():
                self.flow.pause_reading()
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        if self._opening or not data.startswith(opening.USUAL):
            data = self._with_known_method(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._stop(data, error)
        else:
            if self._in_head:
                self._bound_head()
            elif self._received > _MAX_FRAMING and self.reads_body:
                # Chunk extensions and trailer fields do not count in the length of a body.
                self.refuse(ContentTooLarge("chunk framing"))
            if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
                self._await_head()

    def _bound_head(self) -> None:
        if len(self.url) > _MAX_URL:
            self.refuse(UriTooLong("request target"))
        elif self._received - len(self.url) > self.max_head:
            self.refuse(HeaderFieldsTooLarge("header block"))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = True
        self._received = 0

    def on_headers_complete(self) -> None:
        """The head is whole: stops the clock, and starts the request unless Keyturn refuses it here."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_arrived()
        if len(self.pipeline) >= self.max_pipelined and self._refusal is None:
            raise SlowDown("pipelined requests", limit=RateLimit("pipeline", self.max_pipelined + 1))
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            raise UnknownMethod("CONNECT")
        if b"#" in self.url:
            raise InvalidRequest("a fragment in the request target")  # RFC 9112 section 3.2 has no place for one
        if not self.url.startswith(b"/"):
            self.url = opening.origin_form(self.url, self.parser.get_method())
        fast = fast_wire.usable()
        # uvicorn has its own members in the ASGI scope. Keyturn adds this one.
        request = cast("dict[str, Any]", self.scope)[KEY] = (FastRequest if fast else Request)(self._refusal)
        super().on_headers_complete()
        if self._method:
            self.scope["method"], self._method = self._method, ""
        if fast:
            request.wire = self.cycle
        # Trailer fields go to a list that no code reads: RFC 9110 section 6.5.1 forbids merging them.
        self.headers = []
        if self.scope["http_version"] != "1.1":
            if self.scope["http_version"] != "1.0":
                raise InvalidRequest("HTTP version")
            self.cycle.waiting_for_100_continue = False  # RFC 9110 section 10.1.1: HTTP/1.0 knows no 100

    def on_response_complete(self) -> None:
        """An answer is out. If the next head has begun meanwhile, its clock starts now."""
        super().on_response_complete()
        if self._in_head and self._head_timer is None:
            self._await_head()

    def _should_upgrade(self) -> bool:
        return False  # no WebSockets; the original logs two lines a request about it

    @property
    def reads_body(self) -> bool:
        """Whether a request is being read whose body is not complete."""
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete

    def _with_known_method(self, data: bytes) -> bytes:
        """The bytes for the parser, with ``POST`` in the place of a method that llhttp does not know.

        Only bytes that surely begin a request are changed. If the request begins in the middle of a read, llhttp
        refuses the method.
        """
        cycle = self.cycle
        goes_on = self._in_head or (
            cycle is not None and (cycle.more_body or (self._declined and not cycle.response_complete))
        )
        if goes_on and not self._opening:
            return data
        data, self._opening = self._opening + data, b""
        method, known = opening.with_known_method(data)
        if known is None:
            self._opening, self._in_head, self._received, self.url = data, True, 0, b""
            return b""
        if method:
            self._method = method
        return known

    def _decline(self, rest: bytes) -> None:
        """Stays with HTTP/1.1 if a client offers another protocol. RFC 9110 section 7.8 lets a server ignore the offer.

        After such a head, llhttp takes all further bytes for the other protocol. So a second parser reads the body. Its
        head is made up: it has the same framing, and says that no request follows.
        """
        self._declined = self.cycle.more_body = True
        self.parser = httptools.HttpRequestParser(_BodyOf(self))
        framing = [b"%s: %s\r\n" % field for field in self.scope["headers"] if field[0] in _FRAMING]
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n" + b"".join(framing) + b"\r\n")
            self.parser.feed_data(rest)
        except httptools.HttpParserError as error:
            self._stop(rest, error)

    def _stop(self, data: bytes, error: httptools.HttpParserError) -> None:
        """Refuses bytes that the parser rejects, unless they follow a whole request that offered another protocol.

        Then there are two cases:

        1. The answer, which is in HTTP/1.1, is out. So the bytes are the client's next request.
        2. The answer is not out yet. So the bytes may be of the protocol that the client offered. They are ignored, and
           the answer says that the connection ends.
        """
        if not self._declined or self.cycle.more_body:
            self.refuse(self._refusal_of(error))
        elif self.cycle.response_complete:
            self._declined = False
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(data)
        else:
            self.ignores_input = True
            self.cycle.keep_alive = False

    def _refusal_of(self, error: httptools.HttpParserError) -> Refusal:
        """The refusal for an error of the parser, or of a callback above. No refusal repeats bytes of the client."""
        match error.__context__:
            case Refusal() as refusal:
                return refusal
            case httptools.HttpParserInvalidURLError() if len(self.url) > MAX_TARGET:
                return UriTooLong("request target")
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return UnknownMethod("not a method of HTTP")
        return InvalidRequest(f"malformed HTTP: {error}")

    def refuse(self, refusal: Refusal) -> None:
        """Refuses the request that is being read, after the answers to those before it, and closes.

        1. If the body is at fault, the request has uvicorn's object (`cycle`), from which the edge reads the body. The
           cycle is woken, so that the edge finds the refusal.
        2. If the head is at fault, no cycle exists. A minimal request takes the place of the refused one. So uvicorn's
           pipeline keeps the order, and the edge writes the answer and the line in the log.
        """
        self.ignores_input = True
        self._head_arrived()
        if self.transport.is_closing():
            return
        if self.reads_body:
            Request.of(cast("dict[str, Any]", self.cycle.scope)).malformed = refusal
            self.cycle.keep_alive = False
            self.cycle.message_event.set()
        else:
            self._refusal = refusal
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            self.scope["method"] = self.scope["path"] = ""  # the log shows neither, because neither is known

    @property
    def waits_until(self) -> float:
        """When this connection will be closed if no request comes (event loop's clock). Infinite while it serves."""
        timer = self._head_timer or self.timeout_keep_alive_task
        idle = self.cycle is None or self.cycle.response_complete
        return timer.when() if idle and timer is not None else math.inf

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout.total_seconds(), self._head_overdue)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._in_head:
            self.refuse(RequestTimeout("header fields"))
        else:
            self.transport.close()


class _BodyOf:
    """The callbacks of a parser that reads only a body: the head that it was given is made up."""

    def __init__(self, protocol: KeyturnHttpProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete
