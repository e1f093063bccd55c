"""Requests that Keyturn sends out: to issuers, and to a service that knows breached passwords.

Their URLs come from configuration, and never from a token or a client. Each request is bounded in time and in size,
follows no redirect, and takes no proxy from the environment. Its address is checked after it was resolved. Every
failure is an outage of the peer, and says nothing about a token or a password.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx2

from ..errors import TemporarilyUnavailable
from .addresses import is_allowed

LIMIT = timedelta(seconds=4)
"""How long one request may take altogether: name, connection, certificate and the last byte of the answer."""

MOST_BYTES = 512 * 1024
"""Bytes of an answer's body. The largest key set that is taken has 100 keys of some 2 KiB."""

_threads = ThreadPoolExecutor(16, thread_name_prefix="outgoing")
"""The threads that look up names and read files for requests. A resolver may hold one for half a minute. The threads of
the event loop look up the database's name, and must not wait for a peer's.
"""

_MOST_ADDRESSES = 3
_REDIRECTS = range(300, 400)
_PORTS = 1 << 16

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Finds the addresses of a host's name."""


class Peer(NamedTuple):
    """The other side of a request, as its operator here has configured it."""

    called: str
    """Its name in the words of an outage, as "issuer acme"."""
    private_addresses: bool = False
    """Whether it may have a private or loopback address."""
    ca_file: str | None = None
    """The file of the authorities that count for it. None: the usual ones."""


class AddressRefused(TemporarilyUnavailable):
    """A host of a peer has an address that the peer may not have."""


async def resolved(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the machine's resolver orders them (RFC 6724)."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_threads, look_up)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Sending:
    """Sends requests. Each has a connection of its own, so no connection serves two peers."""

    def __init__(self, resolve: Resolve = resolved) -> None:
        """Opens nothing yet."""
        self._resolve = resolve
        self._contexts: dict[str | None, tuple[object, ssl.SSLContext]] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        to: Peer,
        within: timedelta = LIMIT,
    ) -> tuple[int, bytes]:
        """Status and body of the answer.

        Args:
            method: the method.
            url: an https URL of the peer's.
            headers: the header fields beside `Host`.
            body: the content. Empty: none.
            to: the peer, which decides about the addresses and authorities that count.
            within: how long it may take altogether.

        Raises:
            AddressRefused: a host has an address that the peer may not have.
            TemporarilyUnavailable: the peer is away or slow, or its answer is a redirect or too large.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "keyturn", **headers}
        try:
            async with asyncio.timeout(within.total_seconds()):
                target = _target(url, to)
                addresses = await self._addresses(target, to)
                status, raw = await self._answer(method, target, addresses, headers, body, to, within)
        except TimeoutError:
            cause = f"{to.called}: no answer in time"
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as e:
            cause = f"{to.called}: {_plain(e)}"
        else:
            if status in _REDIRECTS:
                raise TemporarilyUnavailable(f"{to.called}: its answer is a redirect")
            return status, raw
        raise TemporarilyUnavailable(cause)  # outside of the handler: an error of the library may hold the request

    async def _addresses(self, target: httpx2.URL, to: Peer) -> Sequence[str]:
        """The checked addresses of a host. One that is not allowed refuses them all: nobody needs such a name."""
        host = target.raw_host.decode()
        try:
            found = await self._resolve(host, target.port or 443)
        except (OSError, UnicodeError):
            found = ()
        if not found:
            raise TemporarilyUnavailable(f"{to.called}: the name of its host has no address")
        if not all(is_allowed(address, private=to.private_addresses) for address in found):
            raise AddressRefused(f"{to.called}: its host has an address that it may not have")
        return found[:_MOST_ADDRESSES]

    async def _answer(
        self,
        method: str,
        target: httpx2.URL,
        addresses: Sequence[str],
        headers: Mapping[str, str],
        body: bytes,
        to: Peer,
        within: timedelta,
    ) -> tuple[int, bytes]:
        """Status and body, from the first address that takes a connection. No request is sent twice."""
        context = await asyncio.get_running_loop().run_in_executor(_threads, self._context, to)
        transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False)
        # The URL has the checked address in the place of the name. The name stays where it counts: in `Host`, and for
        # TLS, which asks for the name (SNI) and compares it with the certificate (RFC 9525).
        headers = {"Host": target.netloc.decode(), "Connection": "close", **headers}
        extensions = {"sni_hostname": target.raw_host.decode()}
        # A dead address leaves time for the next one.
        timeout = httpx2.Timeout(within.total_seconds(), connect=within.total_seconds() / len(addresses))
        async with httpx2.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=timeout
        ) as client:
            for address in addresses:
                url = target.copy_with(host=address)
                request = client.build_request(
                    method, url, headers=headers, content=body or None, extensions=extensions
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    if address == addresses[-1]:
                        raise
                    continue
                try:
                    return response.status_code, await _body(response, to)
                finally:
                    await response.aclose()
        raise TemporarilyUnavailable(f"{to.called}: its host has no address")

    def _context(self, to: Peer) -> ssl.SSLContext:
        """The authorities that count for a peer. A file of its own is read again where it has changed.

        Raises:
            TemporarilyUnavailable: the file can't be read, or holds no certificates.
        """
        name = to.ca_file
        try:
            stamp = None if name is None else _stamp(Path(name))
            held = self._contexts.get(name)
            if held is None or held[0] != stamp:
                made = ssl.create_default_context(cafile=name) if name is not None else httpx2.create_ssl_context()
                held = self._contexts[name] = stamp, made
        except OSError:  # an `ssl.SSLError` too
            raise TemporarilyUnavailable(f"{to.called}: its ca_file can't be read") from None
        return held[1]


def _stamp(path: Path) -> tuple[int, int, int]:
    """The state of a file: another one means that its content may differ.

    Raises:
        OSError: there is no file, or it is a pipe, device or folder, whose reading might never end.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError("not a regular file")
    return state.st_mtime_ns, state.st_size, state.st_ino


def _target(url: str, to: Peer) -> httpx2.URL:
    """The URL, parsed once, so that what is checked and what is used can't differ.

    Raises:
        TemporarilyUnavailable: the URL is none of https, or it names a user.
    """
    try:
        target = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError):
        target = httpx2.URL()
    if target.scheme != "https" or not target.raw_host or target.userinfo or not 0 < (target.port or 443) < _PORTS:
        raise TemporarilyUnavailable(f"{to.called}: one of its URLs is not https")
    return target.copy_with(fragment=None)


async def _body(response: httpx2.Response, to: Peer) -> bytes:
    """The body as it was sent, `MOST_BYTES` at most. A compressed one is refused: a few bytes may become gigabytes."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise TemporarilyUnavailable(f"{to.called}: its answer is compressed")
    received = bytearray()
    async for part in response.aiter_raw():
        received += part
        if len(received) > MOST_BYTES:
            raise TemporarilyUnavailable(f"{to.called}: its answer is too large")
    return bytes(received)


def _plain(error: Exception) -> str:
    """A failure in words without addresses, URLs and header fields."""
    match error:
        case httpx2.TimeoutException():
            return "no answer in time"
        case httpx2.ConnectError() if _is_of_certificate(error):
            return "its certificate is not valid"
        case httpx2.ConnectError():
            return "no connection"
        case _:
            return f"its answer broke off ({type(error).__name__})"


def _is_of_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
