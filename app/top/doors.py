"""The metrics doors of the instances, asked over HTTP: each at the same time, each within a time limit.

A door may be slow, broken or another program. So its time, its bytes and its text are bounded.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Self
from urllib.parse import SplitResult, urlsplit

from .exposition import NotMetricsError, Samples, samples_in

_TIME_LIMIT = 2.0  # seconds for all together: connection, head and body. The system limits the look-up of a name
_MOST_BYTES = 8 * 1024 * 1024
_PART = 64 * 1024
_OK = 200


@dataclass(frozen=True, slots=True)
class Door:
    """One metrics door."""

    url: str
    """The URL without user, password, query and fragment, as the view shows it."""
    secure: bool
    host: str
    port: int | None
    path: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, token: str | None = None) -> Self:
        """The door at a URL. Without a path, the door is at `/metrics`.

        Raises:
            ValueError: it is no http or https URL of a host. The message repeats no part of it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("not a URL") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or not url.isprintable() or " " in url:
            raise ValueError("not an http or https URL")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("a URL of a door has no user, password, query or fragment")
        path = parts.path if parts.path.strip("/") else "/metrics"
        shown = SplitResult(parts.scheme, parts.netloc, path, "", "").geturl()
        return cls(shown, parts.scheme == "https", parts.hostname, port, path, token)

    def read(self) -> Reading:
        """Asks the door once. A failure is part of the answer, and never raised."""
        try:
            return Reading(self.url, monotonic(), self._samples())
        except _FAILURES as e:
            return Reading(self.url, monotonic(), failure=_in_words(e))

    def _samples(self) -> Samples:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        headers = {"Accept": "text/plain; version=0.0.4"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        body = bytearray()
        with closing(kind(self.host, self.port, timeout=_TIME_LIMIT)) as connection, _in_time(connection):
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()  # follows no redirect, so the token goes to this host alone
            if answer.status != _OK:
                raise NotMetricsError(_STATUSES.get(answer.status, f"answers {answer.status}"))
            while part := answer.read1(_PART):
                body += part
                if len(body) > _MOST_BYTES:
                    raise NotMetricsError("answers with more than 8 MiB")
            if answer.length:  # a number that was cut off would be a smaller number
                raise http.client.IncompleteRead(b"", answer.length)
        return samples_in(body.decode("utf-8", errors="replace"))


@contextmanager
def _in_time(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Connects, and cuts the connection off when its time is over. A socket's own limit begins anew with each byte.

    Raises:
        TimeoutError: the time was over before the block ended.
    """
    end = monotonic() + _TIME_LIMIT
    connection.connect()
    its_socket, over = connection.sock, threading.Event()

    def cut() -> None:
        over.set()
        with suppress(OSError):  # closed in the same moment
            socket.socket.shutdown(its_socket, socket.SHUT_RDWR)  # not TLS's, which another thread reads from

    timer = threading.Timer(max(0.0, end - monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError


_STATUSES = {
    401: "answers 401: --token-file names the token of KEYTURN_METRICS_TOKEN",
    404: "answers 404: neither KEYTURN_METRICS_PORT nor KEYTURN_METRICS_TOKEN opens it",
}
_FAILURES = (OSError, UnicodeError, http.client.HTTPException, NotMetricsError)


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer of one door."""

    url: str
    at: float
    """Seconds of the monotonic clock, when the answer was there."""
    samples: Samples = field(default_factory=dict)
    failure: str | None = None
    """Why there are no samples, in words. None: there are."""


@contextmanager
def asking(doors: Sequence[Door]) -> Iterator[Asking]:
    """Keeps a thread for each door while the block runs."""
    with ThreadPoolExecutor(len(doors)) as threads:
        yield Asking(doors, threads)


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks all doors at the same time, so that one that is away delays the others by its time limit at most."""

    doors: Sequence[Door]
    _threads: ThreadPoolExecutor

    def now(self) -> Mapping[str, Reading]:
        """The answers of all doors, by their URLs."""
        return {reading.url: reading for reading in self._threads.map(Door.read, self.doors)}


def _in_words(failure: Exception) -> str:
    if isinstance(failure, NotMetricsError):
        return str(failure)
    if isinstance(failure, TimeoutError):
        return "no answer within 2 s"
    if isinstance(failure, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(failure, OSError):
        return (failure.strerror or type(failure).__name__).lower()
    return "no HTTP answer"
