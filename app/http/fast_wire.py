"""A whole body in and a whole answer out, in fewer steps than ASGI and uvicorn need."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from .protocol import KeyturnHttpProtocol


def take_body(cycle: RequestResponseCycle) -> bytes | None:
    """The request's body, if it is whole by now, as ``receive`` would have given it."""
    if cycle.more_body:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()
    return body


def respond(cycle: RequestResponseCycle, status: int, fields: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
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


class Lingering:
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
            with suppress(OSError):  # the client has just reset the connection
                self._transport.write_eof()
            protocol.loop.call_later(protocol.linger.total_seconds(), self._transport.close)
