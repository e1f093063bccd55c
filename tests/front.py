"""A web server for tests with a browser: many hosts on one port, which notes the cookies that each request brings.

Chromium resolves every name below `.test` to 127.0.0.1 (tests/browser.py), so one port serves several sites.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cookies import is_device

Route = int | str
"""A port of 127.0.0.1 to which requests are passed on, or the HTML of a page."""

PAGE = "<!doctype html><title>page</title><p>page"
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Exchange:
    """One request as the browser sent it, and its answer."""

    method: str
    host: str
    path: str
    cookies: tuple[str, ...]
    """The names of the cookies that came, sorted, without those about the device."""
    device: tuple[str, ...]
    """The names of the cookies about the device that came, sorted."""
    fields: Mapping[str, str]
    """The header fields of the request, with names in small letters."""
    status: int
    answer: tuple[tuple[str, str], ...]
    """The header fields of the answer, in their order."""

    @property
    def set_cookies(self) -> tuple[str, ...]:
        """Name of each cookie that the answer sets (`+name`) or deletes (`-name`), without those of the device."""
        found = (
            value for name, value in self.answer if name == "set-cookie" and not is_device(value.partition("=")[0])
        )
        return tuple(("-" if "Max-Age=0" in value else "+") + value.partition("=")[0] for value in found)


class Held:
    """An answer that waits on its way to the browser."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._let_go = asyncio.Event()

    def release(self) -> None:
        self._let_go.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._let_go.wait()


class Front:
    """Serves `routes`: host and beginning of the path, then where to. The longest beginning counts."""

    port: int

    def __init__(self, routes: Mapping[str, Route], certificate: Path | None) -> None:
        self.routes = dict(routes)
        self.seen: list[Exchange] = []
        self._held: dict[str, Held] = {}
        self._connections: set[asyncio.Task[None]] = set()  # asyncio itself keeps no reference to them
        self._certificate = certificate

    @property
    def scheme(self) -> str:
        return "http" if self._certificate is None else "https"

    def origin(self, host: str) -> str:
        return f"{self.scheme}://{host}:{self.port}"

    def hold(self, path: str) -> Held:
        """Keep back the answer to the next request to this path."""
        self._held[path] = Held()
        return self._held[path]

    def to(self, path: str, *, host: str | None = None) -> list[Exchange]:
        """The exchanges of a path, in the order of their answers."""
        return [each for each in self.seen if each.path == path and host in {None, each.host}]

    async def start(self, port: int) -> None:
        context = None
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
        self.port = port
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, ssl=context, limit=_LIMIT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A browser opens connections in advance, and drops those that it does not need.
            with suppress(asyncio.IncompleteReadError, OSError):
                await self._exchange(reader, writer)
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, given = await _head(reader)
        method, target, _ = line.split(" ", 2)
        fields = dict(given)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        host, path = fields["host"].partition(":")[0], target.partition("?")[0]
        route = max((key for key in self.routes if f"{host}{path}".startswith(key)), key=len, default="")
        status, answer, content = await self._answer(self.routes.get(route, ""), line, given, body)
        if held := self._held.pop(path, None):
            await held.wait()
        cookies = sorted(re.findall(r"([^\s=;]+)=", fields.get("cookie", "")))
        tokens = tuple(name for name in cookies if not is_device(name))
        device = tuple(name for name in cookies if is_device(name))
        self.seen.append(Exchange(method, host, path, tokens, device, fields, int(status.split()[1]), tuple(answer)))
        writer.write(_written(status, [*answer, ("connection", "close")], content))
        await writer.drain()

    @staticmethod
    async def _answer(
        route: Route, line: str, given: list[tuple[str, str]], body: bytes
    ) -> tuple[str, list[tuple[str, str]], bytes]:
        if isinstance(route, str):
            page = route.encode()
            fields = [("content-type", "text/html; charset=utf-8"), ("content-length", str(len(page)))]
            return f"HTTP/1.1 {200 if page else 404} -", fields, page
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", route, limit=_LIMIT)
        except OSError:
            return "HTTP/1.1 502 -", [("content-length", "0")], b""
        try:
            kept = [(name, value) for name, value in given if name != "connection"]
            writer.write(_written(line, [*kept, ("connection", "close")], body))
            status, fields = await _head(reader)
            return status, [each for each in fields if each[0] != "connection"], await reader.read()
        finally:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    """The first line, and the header fields with names in small letters."""
    line, *rows = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    parts = (row.partition(":") for row in rows)
    return line, [(name.lower(), value.strip()) for name, _, value in parts]


def _written(line: str, fields: Iterable[tuple[str, str]], body: bytes) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{line}\r\n{head}\r\n".encode("latin-1") + body


def certificate(folder: Path, *hosts: str) -> Path:
    """Write a new certificate for these hosts, signed by itself, with its private key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
