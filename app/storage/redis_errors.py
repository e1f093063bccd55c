"""Why a command to Redis failed, in words for an operator. Redis's own words are left out: they may hold a secret."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

_COMMAND = re.compile(r"'([a-z|]+)' command")
_SAID = {
    "misconf": "can't persist, and refuses to write (MISCONF): look at its disk and its log",
    "noreplicas": "has too few replicas, and refuses to write (min-replicas-to-write)",
    "busy ": "is busy with a script",
    "denied ": "is in protected mode: give it a password",
    "max number of clients": "has as many clients as it takes (maxclients)",
    "index is out of range": "has no database of this number",
    "invalid db index": "has no database of this number",
    "select is not allowed": "is a cluster, which has only database 0 and is not supported",
    "moved ": "is a cluster, which is not supported",
    "cross": "is a cluster, which is not supported",
    "this instance has cluster support": "is a cluster, which is not supported",
    "unknown command": "does not know a command of Redis 6.2, or not under its name",
    "unknown redis command": "does not know a command of Redis 6.2, or not under its name",
}


def cause(error: BaseException, *, connected: bool, tls: bool) -> str:
    """The cause of an error, in words that follow the word "Redis".

    Args:
        error: the error that the driver raised.
        connected: whether the connection was complete, with its first commands, before the error.
        tls: whether the connection uses TLS.
    """
    if isinstance(error, RuntimeError | MemoryError):
        return "was not asked: this process has no thread or memory left"
    said = str(error).lower()
    for known, words in _SAID.items():
        if known in said:
            return words
    for kind, words in (
        (BusyLoadingError, "is loading its data"),
        (OutOfMemoryError, "is full (maxmemory): give it more memory"),
        (ReadOnlyError, "is a replica, which can't be written: name the master"),
        (MasterDownError, "is a replica that has lost its master: name the master"),
        (ClusterError, "is a cluster, which is not supported"),
    ):
        if isinstance(error, kind):
            return words
    if isinstance(error, NoPermissionError | AuthorizationError) or "acl failure" in said or "no permissions" in said:
        command = _COMMAND.search(said)
        return f"gives this user no right to {f'the command {command[1]}' if command else 'a key'} (NOPERM)"
    if isinstance(error, AuthenticationError):
        wrong = "wrongpass" in said or "invalid" in said
        return f"{'refuses user or password' if wrong else 'wants a password'}: look at REDIS_URL"
    return _refused(error) if isinstance(error, ResponseError) else _lost(error, connected=connected, tls=tls)


def _refused(error: ResponseError) -> str:
    # An error's first word is its code, in capitals.
    code = re.match(r"[A-Z]{3,20}\b", str(error))
    return f"refuses a command ({code[0] if code else 'ERR'})"


def _lost(error: BaseException, *, connected: bool, tls: bool) -> str:  # noqa: PLR0911  # one for each cause
    chain = list(_chain(error))
    for e in chain:
        if isinstance(e, ssl.SSLCertVerificationError):
            return f"has a certificate that is not accepted: {e.verify_message}"
    if isinstance(error, InvalidResponse):
        return "is no Redis: look at host and port"
    if any(isinstance(e, ssl.SSLError) for e in chain):
        return "does not speak TLS here: look at rediss:// and the port"
    for e in chain:
        if isinstance(e, OSError) and e.errno is not None and not isinstance(e, TimeoutError):
            known = e.errno > 0  # the numbers of the resolver are negative
            return f"can't be reached ({os.strerror(e.errno) if known else 'no such host'})"
    if any("timeout" in type(e).__name__.lower() for e in chain):
        plain = ", and no TLS: is it a plain port (redis://)?" if tls and not connected else ""
        return f"does not answer in time{plain}"
    if connected:
        return "closed the connection"
    other = "a plain port" if tls else "one that wants TLS (rediss://)"
    return f"closed the connection at once: {other}, or no Redis"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
