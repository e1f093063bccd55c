"""HTTP/1.1 over TLS, as little of it as the stand-in needs, with the faults that tests ask for.

The server is written on asyncio's streams, because one port must serve gRPC too (by ALPN), and because a fault may cut,
stop or corrupt an answer at any byte.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

LARGEST = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request, read whole."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    fields: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for each, value in self.fields if each == name]

    def one(self, name: str, default: str = "") -> str:
        return next(iter(self.query.get(name, ())), default)

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode(), keep_blank_values=True).items()}

    @property
    def cookies(self) -> dict[str, str]:
        pairs = (pair.strip().partition("=") for value in self.all("cookie") for pair in value.split(";"))
        return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class Answer:
    """One answer. A body that is no bytes is sent as JSON."""

    status: int
    body: Any = b""
    fields: dict[str, str] = field(default_factory=dict)

    def raw(self) -> bytes:
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body, default=_moment).encode()
        kind = {} if isinstance(self.body, bytes) else {"content-type": "application/json"}
        fields = {**kind, "content-length": str(len(content)), **self.fields}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status} -\r\n{head}\r\n".encode("latin-1") + content


def _moment(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat().replace("+00:00", "Z")


@dataclass
class Fault:
    """A disturbance of the requests whose path begins with `path`.

    Kinds: `status` (that status), `slow` (the right answer after `seconds`), `hang` (no answer), `close` (the connection
    ends), `cut` (half of the answer), `drip` (one byte of the answer each `seconds`), `lost` (the request is served, then
    the connection ends), `redirect` (to `location`), `answer` (200, or `status`, and `body`), `large` (`size` bytes).
    """

    path: str
    kind: str
    times: int = 1 << 60
    """How many requests it meets before it is gone."""
    every: int = 1
    """It meets each request (1), each second one (2), and so on."""
    status: int = 503
    seconds: float = 30.0
    location: str = ""
    body: Any = b""
    size: int = 10 << 20
    met: int = 0

    def meets(self, path: str) -> bool:
        if not path.startswith(self.path) or self.times <= 0:
            return False
        self.met += 1
        if self.met % self.every:
            return False
        self.times -= 1
        return True


Serve = Callable[[Request], Awaitable[Answer]]


class Wire:
    """A listener of the stand-in: TLS (with a certificate), HTTP/1.1, faults, and a note of each request."""

    def __init__(self, serve: Serve, port: int, certificate: str | None, grpc_port: int | None) -> None:
        self._serve = serve
        self._port = port
        self._grpc_port = grpc_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.faults: list[Fault] = []
        self.seen: list[dict[str, Any]] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_alpn_protocols(["h2", "http/1.1"] if grpc_port else ["http/1.1"])
        self._is_plain = certificate is None
        if certificate is not None:
            self.context.load_cert_chain(certificate)

    async def listen(self) -> None:
        if self._server is None:
            tls = None if self._is_plain else self.context
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self._port, ssl=tls, limit=LARGEST, reuse_address=True
            )

    async def refuse(self) -> None:
        """Closes the port and all connections. Clients then see a refused connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in [*self._connections]:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._converse(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
                tls = writer.get_extra_info("ssl_object")
                if tls is not None and tls.selected_alpn_protocol() == "h2":
                    await self._pass_on(reader, writer)
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Moves the octets between a client of gRPC and the gRPC server of this process."""
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._grpc_port)

        async def move(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()

        moves = {asyncio.create_task(move(reader, inner_writer)), asyncio.create_task(move(inner_reader, writer))}
        try:
            await asyncio.wait(moves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in moves:
                each.cancel()
            await asyncio.gather(*moves, return_exceptions=True)
            inner_writer.close()
        raise ConnectionResetError

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request. Returns whether the connection goes on."""
        request = await _read(reader)
        fault = next((each for each in self.faults if each.meets(request.path)), None)
        noted: dict[str, Any] = {"method": request.method, "path": request.path, "at": time(), "status": 0}
        self.seen.append(noted)
        if fault is None:
            answer = await self._serve(request)
            noted["status"] = answer.status
            writer.write(answer.raw())
            await writer.drain()
            return "close" not in "".join(request.all("connection")).lower()
        noted["fault"] = fault.kind
        return await self._disturbed(fault, request, writer)

    async def _disturbed(self, fault: Fault, request: Request, writer: asyncio.StreamWriter) -> bool:
        match fault.kind:
            case "status":
                writer.write(Answer(fault.status, {"error": "fault", "message": "a fault of the stand-in"}).raw())
            case "redirect":
                writer.write(Answer(302, b"", {"location": fault.location}).raw())
            case "answer":
                body = fault.body.encode() if isinstance(fault.body, str) else fault.body
                writer.write(Answer(fault.status, body, {"content-type": "application/json"}).raw())
            case "large":
                writer.write(
                    f"HTTP/1.1 200 -\r\ncontent-type: application/json\r\ncontent-length: {fault.size}\r\n\r\n".encode()
                )
                for _ in range(fault.size // 65536):
                    writer.write(b" " * 65536)
                    await writer.drain()
                return False
            case "slow":
                await asyncio.sleep(fault.seconds)
                writer.write((await self._serve(request)).raw())
            case "hang":
                await asyncio.sleep(3600)
            case "close":
                return False
            case "lost":
                await self._serve(request)
                return False
            case "cut":
                raw = (await self._serve(request)).raw()
                writer.write(raw[: len(raw) // 2])
                await writer.drain()
                return False
            case "drip":
                for octet in (await self._serve(request)).raw():
                    writer.write(bytes([octet]))
                    await writer.drain()
                    await asyncio.sleep(fault.seconds)
            case _:
                raise AssertionError(fault.kind)
        await writer.drain()
        return True


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rows = head.split("\r\n")[:-2]
    method, target, _ = line.split(" ", 2)
    parts = (row.partition(":") for row in rows)
    fields = [(name.strip().lower(), value.strip()) for name, _, value in parts]
    length = next((int(value) for name, value in fields if name == "content-length"), 0)
    body = await reader.readexactly(min(length, LARGEST)) if length else b""
    url = urlsplit(target)
    return Request(method, url.path, parse_qs(url.query, keep_blank_values=True), fields, body)
