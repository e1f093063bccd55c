"""Where Keyturn listens: HOST and PORT as sockets."""

from __future__ import annotations

import errno
import socket

from ..errors import ConfigurationError
from ..settings_values import written

# `::` stands for all addresses of the machine. Each family gets a socket of its own: on a shared one, an IPv4 client
# would have an IPv6 address that TRUSTED_PROXIES does not know.
_ALL = {"::": ("::", "0.0.0.0")}  # noqa: S104  # the operator's choice

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int, *, options: tuple[str, str] = ("--host", "--port")) -> list[socket.socket]:
    """A socket for each address that HOST stands for, bound and not yet listening. Port 0 is one free port for all.

    Args:
        host: HOST.
        port: PORT.
        options: what an operator gives both by.

    Raises:
        ConfigurationError: HOST is no address of this machine, or PORT is taken.
    """
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for name in _ALL.get(host, (host,)):
            for family, kind, protocol, _, address in socket.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                where = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
                try:
                    sockets.append(_bound(family, kind, protocol, where))
                except OSError as e:
                    if e.errno not in _NOT_HERE:
                        raise
                    failed = e  # without IPv6, a machine's own name may still stand for an IPv6 address
        if not sockets:
            raise failed or OSError(errno.EADDRNOTAVAIL, "no address")
    except (OSError, UnicodeError) as e:
        for each in sockets:
            each.close()
        number = e.errno if isinstance(e, OSError) else None
        other = options[number in {errno.EADDRINUSE, errno.EACCES}]
        why = e.strerror if isinstance(e, OSError) else "not a host name"
        raise ConfigurationError(f"can't listen on {written(host)}:{port} ({why}); choose another {other}") from None
    return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[str | int, ...]) -> socket.socket:
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    found.set_inheritable(True)  # for worker processes
    return found
