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
import math
import re
from datetime import timedelta
from functools import partial
from heapq import nsmallest
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .. import log
from ..errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    Refusal,
    RequestTimeout,
    SlowDown,
    TemporarilyUnavailable,
)
from . import open_files
from .fast_wire import Lingering, respond, take_body
from .heads import MAX_TARGET, UriTooLong

_MAX_FRAMING = 1024 * 1024  # a body within its limit, one byte a chunk, is less than half of this
_MAX_URL = 65_535  # bytes; httptools parses no longer one. Edge bounds all targets but those that a proxy appends to.

_WARNS_EVERY = timedelta(minutes=1)

# With one of these, a request goes straight to llhttp.
_USUAL = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ")
# The other methods that llhttp serves over HTTP, or judges by itself: CONNECT, and HTTP/2's PRI.
_KNOWN = frozenset(
    b"CONNECT PRI TRACE ACL BIND CHECKOUT COPY LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY "
    b"PROPFIND PROPPATCH PURGE QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE UNBIND UNLINK UNLOCK UNSUBSCRIBE".split()
)
_OPENING = re.compile(rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]*)")  # empty lines, then a token: RFC 9110 section 5.6.2
_MAX_METHOD = 64  # bytes; the longest that is registered has 17

# Without userinfo, which must not stand there: RFC 9110 section 4.2.4.
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+(/[^?]*)?(\?.*)?")
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class UnknownMethod(MethodNotAllowed):
    """A word that is no method of HTTP's grammar, or is longer than any, or is ``CONNECT``."""

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

    _full_since: ClassVar[float] = -math.inf  # seconds on the loop's clock: the last line in the log about it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = 0  # bytes since the current request began, without the read in which it did
        self._in_head = False
        self.url = b""
        self._opening = b""  # the beginning of a request whose method is not whole yet
        self._method = ""  # of the request whose head comes, where the parser is told another one
        self._declined = False  # the parser reads the body of a request that offered another protocol
        self._deaf = False  # what comes is not read any more: the request before it was the last
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
            self._make_room(most)

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
        if self._opening or not data.startswith(_USUAL):
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
                # Chunk extensions and trailer fields are in no body's length.
                self._refuse(ContentTooLarge("chunk framing"))
            if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
                self._await_head()

    def _bound_head(self) -> None:
        if len(self.url) > _MAX_URL:
            self._refuse(UriTooLong("request target"))
        elif self._received - len(self.url) > self.max_head:
            self._refuse(HeaderFieldsTooLarge("header block"))

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
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            raise UnknownMethod("CONNECT")
        if b"#" in self.url:
            raise InvalidRequest("a fragment in the request target")  # RFC 9112 section 3.2 has no place for one
        if not self.url.startswith(b"/"):
            self._take_origin_form()
        super().on_headers_complete()
        if self._method:
            self.scope["method"], self._method = self._method, ""
        self.scope["state"] |= {"take_body": partial(take_body, self.cycle), "respond": partial(respond, self.cycle)}
        # Trailer fields go to a list that no one reads: RFC 9110 section 6.5.1 forbids merging them.
        self.headers = []
        if self.scope["http_version"] != "1.1":
            if self.scope["http_version"] != "1.0":
                raise InvalidRequest("HTTP version")
            self.cycle.waiting_for_100_continue = False  # RFC 9110 section 10.1.1: HTTP/1.0 knows no 100

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

    def _with_known_method(self, data: bytes) -> bytes:
        """The bytes for the parser to read: the same, with ``POST`` for a method that llhttp does not know.

        RFC 9110 section 9.1 allows any token, and a proxy that asks about a request does so with its method. llhttp
        fails at a token that is not on its list. No method but CONNECT, which is on it, has a part in where a request
        ends (RFC 9112 section 6.3); so all that follows is read as it would be. Only what surely begins a request is
        looked at: in one read behind another request, such a method is refused.
        """
        cycle = self.cycle
        goes_on = self._in_head or (
            cycle is not None and (cycle.more_body or (self._declined and not cycle.response_complete))
        )
        if goes_on and not self._opening:
            return data
        data, self._opening = self._opening + data, b""
        opening = cast("re.Match[bytes]", _OPENING.match(data))
        start, end = opening.span(1)
        if start == end or end - start > _MAX_METHOD:
            return data
        if end == len(data):
            self._opening, self._in_head, self._received, self.url = data, True, 0, b""
            return b""
        if data[end] != ord(" ") or opening[1] in _KNOWN or data.startswith(_USUAL, start):
            return data
        self._method = opening[1].decode()
        return b"POST" + data[end:]

    def _take_origin_form(self) -> None:
        """Makes of a target in absolute form what it would be in origin form (RFC 9112 sections 3.2.1 and 3.2.2).

        Raises:
            InvalidRequest: it is in neither, nor OPTIONS' asterisk.
        """
        if absolute := _ABSOLUTE_FORM.fullmatch(self.url):
            self.url = (absolute[1] or b"/") + (absolute[2] or b"")
        elif self.url != b"*" or self.parser.get_method() != b"OPTIONS":
            raise InvalidRequest("request target")

    def _decline(self, rest: bytes) -> None:
        """Stays with HTTP/1.1 where another protocol was offered (RFC 9110 section 7.8 lets a server ignore that).

        llhttp stops at such a head and takes all that follows for the other protocol. So a second parser reads the
        body: it is told of the same framing and ends with it, since its head says that no request follows.
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
        """Refuses what the parser does not take, unless it is what follows a whole request that offered a protocol.

        After the answer, which was in HTTP/1.1, that is the next request. Before, the client may have begun to speak
        the protocol that it offered: it is not read, and the answer says that the connection ends.
        """
        if not self._declined or self.cycle.more_body:
            self._refuse(self._refusal_of(error))
        elif self.cycle.response_complete:
            self._declined = False
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(data)
        else:
            self._deaf = True
            self.cycle.keep_alive = False

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

    def _make_room(self, most: int) -> None:
        """Keeps the connections below the limit of open files, at which the kernel would reset every newcomer unasked.

        Those that wait for a request go first, a sixteenth of them at once: from the one whose time is up next. Where
        none does, the newcomer is refused; where too many are being refused, it is cut off.
        """
        others = [each for each in self.connections if each is not self and not each.transport.is_closing()]
        if len(others) < most:
            return
        KeyturnHttpProtocol._warn_full(self.loop.time(), most)
        waiting = [each for each in others if isinstance(each, KeyturnHttpProtocol) and each.waits_until < math.inf]
        for each in nsmallest(max(1, len(waiting) // 16), waiting, key=lambda each: each.waits_until):
            each.transport.close()
        if len(self.connections) > most + open_files.RESERVE // 4:
            self.transport.abort()
        elif not waiting:
            self._refuse(TemporarilyUnavailable("too many connections"))

    @classmethod
    def _warn_full(cls, now: float, most: int) -> None:
        if now - cls._full_since > _WARNS_EVERY.total_seconds():
            cls._full_since = now
            log.get_logger().warning("connections_full", limit=most, advice="raise the limit of open files (ulimit -n)")

    @property
    def waits_until(self) -> float:
        """When this connection will be closed because no request came; infinite while one is being served."""
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
            self._refuse(RequestTimeout("header fields"))
        else:
            self.transport.close()


class _BodyOf:
    """The callbacks of a parser that was given a message's head only for the framing."""

    def __init__(self, protocol: KeyturnHttpProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete
