"""The fast wire to a client: it reads whole bodies and writes whole answers in few steps.

`FastRequest` reaches into uvicorn's own objects. So it is used only under the minor version that it was written for.
`Lingering` ends a connection so that the client can read the last answer.
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
    """Whether `FastRequest` was written for this version of uvicorn. If not, one line in the log says so."""
    known = version.startswith(_WRITTEN_FOR)
    if not known:
        log.get_logger().warning("fast_wire_off", uvicorn=version, written_for=_WRITTEN_FOR + "*")
    return known


class FastRequest(Request):
    """A request that uses uvicorn's own object (`wire`) instead of ASGI's `receive` and `send`."""

    __slots__ = ()

    wire: RequestResponseCycle | None

    def take_body(self) -> bytes | None:
        """The body as ``receive`` would return it. None if the body is not whole yet."""
        cycle = self.wire
        if cycle is None or cycle.more_body:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

    def respond(self, status: int, fields: Fields, body: bytes) -> bool:
        """Sends a whole answer in one write, where ASGI takes two calls of ``send``.

        Header fields are not checked, because all come from Keyturn. Returns False, with nothing done, if the client is
        slow or gone.
        """
        cycle = self.wire
        if cycle is None or cycle.response_started or cycle.disconnected or cycle.flow.write_paused:
            return False
        lines = [STATUS_LINE[status][:-2], *map(b": ".join, cycle.default_headers), *map(b": ".join, fields)]
        if not cycle.keep_alive:
            lines.append(b"connection: close")
        lines += (b"", b"" if cycle.scope["method"] == "HEAD" else body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        # The answer leaves in the next turn of the loop. At once, clients come back one by one, and batches stay small.
        cycle.transport.write(b"\r\n".join(lines))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True

    async def has_gone(self) -> bool:
        """Whether the client ended the connection.

        While a process stands still, a request and the end of its connection wait in the kernel. The event loop reads
        the request first, and the end in one of the next two turns.
        """
        for _ in range(2):
            await asyncio.sleep(0)
        return self.wire is not None and self.wire.disconnected


class Lingering:
    """A transport that joins writes, and that lets a client read a refusal before the connection ends.

    The head of an answer waits for the body that follows it. So both go out in one segment, by one system call. While
    the client is still sending, ``close`` ends only the direction to the client. Otherwise the kernel would answer the
    unread bytes with a reset, which may overtake the refusal (RFC 9112 section 9.6).
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
        # If the client reset the connection, the event loop closed the transport, maybe before it told the protocol.
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection, and lets a client that still sends read the answer first."""
        self._send_held()
        protocol = self._protocol
        unread = protocol.ignores_input or (protocol.cycle is not None and protocol.cycle.more_body)
        if self._closing or not unread or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._closing = True
            protocol.ignores_input = True
            protocol.flow.resume_reading()  # reads on, to discard the bytes and to notice when the client closes
            with suppress(OSError):  # if the client has just reset the connection
                self._transport.write_eof()
            protocol.loop.call_later(protocol.linger.total_seconds(), self._transport.close)
