"""The wire to a client: whole bodies in and whole answers out in few steps, and an end that the client gets to see.

The fast wire reaches into uvicorn's own objects. So it is used only under the minor version that it was written for.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from .. import log
from .answers import Fields
from .request import Request

if TYPE_CHECKING:
    from .protocol import KeyturnHttpProtocol

_WRITTEN_FOR = "0.54."


@cache
def usable(version: str = uvicorn.__version__) -> bool:
    """Whether the fast wire knows this version of uvicorn. Says so once in the log where it does not."""
    known = version.startswith(_WRITTEN_FOR)
    if not known:
        log.get_logger().warning("fast_wire_off", uvicorn=version, written_for=_WRITTEN_FOR + "*")
    return known


class FastRequest(Request):
    """A request whose `wire` is uvicorn's own object, by a shorter way than ASGI's `receive` and `send`."""

    __slots__ = ()

    wire: RequestResponseCycle | None

    def take_body(self) -> bytes | None:
        """The request's body, if it is whole by now, as ``receive`` would have given it."""
        cycle = self.wire
        if cycle is None or cycle.more_body:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

    def respond(self, status: int, fields: Fields, body: bytes) -> bool:
        """Sends a whole answer at once, as two calls of ``send`` would, without their checks of our own field names.

        False, with nothing done, where the client is slow or gone.
        """
        cycle = self.wire
        if cycle is None or cycle.response_started or cycle.disconnected or cycle.flow.write_paused:
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


class Lingering:
    """The transport, which joins writes and lets a client see the refusal before the end.

    The head of an answer waits for the body that comes just after it, so that both are one segment and one system call.
    While the client is still sending, ``close`` ends our side only. Otherwise the kernel would answer the unread bytes
    with a reset, which may overtake the refusal (RFC 9112 section 9.6).
    """

    def __init__(self, transport: asyncio.Transport, protocol: KeyturnHttpProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closing = False
        self._held = b""
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info

    def write(self, data: bytes) -> None:
        """Joins two writes of one turn of the event loop."""
        if self._held:
            self._held += data
            self._send_held()
        else:
            self._held = data
            self._protocol.loop.call_soon(self._send_held)

    def _send_held(self) -> None:
        held, self._held = self._held, b""
        # After a reset by the client the event loop has closed the transport, maybe before the protocol hears of it.
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection, and lets a client that still sends read the answer first."""
        self._send_held()
        protocol = self._protocol
        unread = protocol._deaf or (protocol.cycle is not None and protocol.cycle.more_body)  # noqa: SLF001
        if self._closing or not unread or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._closing = True
            protocol._deaf = True  # noqa: SLF001  # the two are one thing in two classes
            protocol.flow.resume_reading()  # to discard, and to notice the client's end
            with suppress(OSError):  # the client has just reset the connection
                self._transport.write_eof()
            protocol.loop.call_later(protocol.linger.total_seconds(), self._transport.close)
