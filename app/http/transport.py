"""The transport of a connection, with two habits of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol import KeyturnHttpProtocol


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
