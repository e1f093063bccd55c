"""A whole body in and a whole answer out, in fewer steps than ASGI and uvicorn need.

Both steps reach into uvicorn's own objects. So they are taken only under the minor version that they were written for.
"""

from __future__ import annotations

from functools import cache

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from .. import log
from .answers import Fields

_WRITTEN_FOR = "0.54."


@cache
def usable(version: str = uvicorn.__version__) -> bool:
    """Whether the fast wire knows this version of uvicorn. Says so once in the log where it does not."""
    known = version.startswith(_WRITTEN_FOR)
    if not known:
        log.get_logger().warning("fast_wire_off", uvicorn=version, written_for=_WRITTEN_FOR + "*")
    return known


class FastWire:
    """The fast wire of one request."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def take_body(self) -> bytes | None:
        """The request's body, if it is whole by now, as ``receive`` would have given it."""
        cycle = self._cycle
        if cycle.more_body:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

    def respond(self, status: int, fields: Fields, body: bytes) -> bool:
        """Sends a whole answer at once, as two calls of ``send`` would, without their checks of our own field names.

        False, with nothing done, where the client is slow or gone.
        """
        cycle = self._cycle
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
