"""The client's address: the socket's, or what a trusted proxy says in one field (RFC 7239, or X-Forwarded-For).

Anybody can write these fields, and each proxy appends to what came. So the list is read from its right end:

1. The socket's address can't be forged. If no trusted proxy has it, it is the client's, and no field counts.
2. A trusted proxy wrote the last element: the address from which the request reached it. If a trusted proxy has that
   address too, it wrote the element before. The first address that no trusted proxy has is the client's.
3. An element that names no address (``unknown``, ``_hidden``, RFC 7239 section 6) ends the list. The client can't be
   told then, and the address of the proxy that wrote the element counts.

So a client never chooses its own address. One field counts, and the operator says which: a proxy that appends to the
one field passes the other on as the client wrote it.

A proxy that the operator forgot to name makes all clients one, and an attacker would use up the budgets of all. So the
log tells of the first field that a private address sent and that did not count. Strangers on the Internet can't cause
that line, and each process writes it once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from ..log import get_logger
from ..settings_clients import Network
from .request import Request

_X_FORWARDED_FOR = b"x-forwarded-for"

_MOST_HOPS = 32
"""Trusted proxies, one behind the other. A longer list is a loop or an attack."""
_MOST_COMMAS = 1024
"""Commas within one element of Forwarded, where a quoted string may hold them."""
_LONGEST_NODE = 128  # characters; the longest address with zone and port has half of them
_REMEMBERED = 4096
_LONGEST_REMEMBERED = 256  # bytes of a field: strangers must not fill the memory

# An address with or without a port, and with a zone (RFC 4007 section 11), which means something to one machine alone.
# An IPv6 address may stand without brackets, as in X-Forwarded-For, if no port follows. A port may be hidden too.
_NODE = re.compile(
    r"\[(?P<brackets>[0-9A-Fa-f:.]+)(?:%[^\]]*)?\](?::[\w.-]+)?"
    r"|(?P<four>[0-9.]+)(?::[\w.-]+)?"
    r"|(?P<six>[0-9A-Fa-f:.]+)(?:%.*)?",
    re.ASCII,
)
# RFC 7239 section 4, and two liberties that proxies take: a blank after a semicolon, and an address without quotation
# marks. Possessive, so that a wrong text is refused in one pass.
_VALUE = r'(?:"(?:[^"\\]|\\.)*+"|[^\s",;=\\]++)'
_PAIR = rf"[!#$%&'*+.^_`|~0-9A-Za-z-]++={_VALUE}"
_ELEMENT = re.compile(rf"{_PAIR}(?:;[ \t]*+{_PAIR})*+", re.ASCII)
_FOR = re.compile(rf"(?:^|;[ \t]*)for=({_VALUE})", re.ASCII | re.IGNORECASE)
_QUOTED_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"')
_QUOTED_PAIR = re.compile(r"\\(.)")

_log = get_logger()


class ClientAddresses:
    """Tells from which address a request comes.

    Args:
        proxies: the networks of the proxies that are trusted. None: the socket's address counts always.
        field: the name of the field that counts, as the setting has it.
    """

    def __init__(self, proxies: Iterable[Network] = (), field: str = "x-forwarded-for") -> None:
        self._proxies = tuple(proxies)
        self._field = field.encode()
        self._is_trusted = lru_cache(maxsize=_REMEMBERED)(self._trusts)
        self._said_before = lru_cache(maxsize=_REMEMBERED)(self._said)
        self._has_told = False

    def of(self, request: Request) -> str | None:
        """The address of the client of a request, whose `client` is the socket's address until now.

        An address has one spelling: an IPv4 address in the form of IPv6 is IPv4, and no address has a zone or port. A
        client without an IP address (of a Unix socket) is named as the server names it.
        """
        if request.client is None:
            return None
        known = plain(request.client)
        if self._field not in request.fields:
            return known
        if not self._is_trusted(known):
            self._tell_of(known)
            return known
        value = request.fields[self._field]
        if len(request.fields) != len(request.headers):  # RFC 9110 section 5.3: fields of one name are one list
            value = b",".join(each for name, each in request.headers if name == self._field)
        said = self._said_before if len(value) <= _LONGEST_REMEMBERED else self._said
        return said(known, value)

    def _said(self, proxy: str, value: bytes) -> str:
        """The address that a trusted proxy says, or the proxy's own if it says none."""
        known = proxy
        elements = _from_the_right if self._field == _X_FORWARDED_FOR else _forwarded_from_the_right
        for hops, node in enumerate(elements(value.decode("latin-1"))):
            address = address_in(node)
            if address is None or hops == _MOST_HOPS:
                break
            known = address
            if not self._is_trusted(known):
                break
        return known

    def _tell_of(self, address: str) -> None:
        """Tells the operator once of a sender with the field that may be a proxy of the operator's."""
        if not self._has_told and _is_private(address):
            self._has_told = True
            _log.warning("proxy_not_trusted", proxy=address, field=self._field.decode())

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)


DIRECT = ClientAddresses()
"""No proxy is trusted."""


@lru_cache(maxsize=_REMEMBERED)
def _is_private(address: str) -> bool:
    """Whether an address is none of the public Internet: a private one (RFC 1918, RFC 4193), loopback, link-local."""
    try:
        return not ipaddress.ip_address(address).is_global
    except ValueError:
        return False


@lru_cache(maxsize=_REMEMBERED)
def plain(address: str) -> str:
    """The one spelling of the socket's address; a text that is no address as it is."""
    return address_in(address) or address


def address_in(node: str) -> str | None:
    """The address in an element, in its one spelling. None if there is none."""
    return _address_in(node) if len(node) <= _LONGEST_NODE else None


@lru_cache(maxsize=_REMEMBERED)
def _address_in(node: str) -> str | None:
    found = _NODE.fullmatch(node)
    if found is None:
        return None
    try:
        address = ipaddress.ip_address(found["brackets"] or found["four"] or found["six"])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or address)
    return str(address) if not found["brackets"] else None


def _from_the_right(value: str) -> Iterator[str]:
    """The elements of X-Forwarded-For, the last one first. Empty ones count for nothing (RFC 9110 section 5.6.1)."""
    end = len(value)
    while end >= 0:
        start = value.rfind(",", 0, end)
        if element := value[start + 1 : end].strip(" \t"):
            yield element.removeprefix('"').removesuffix('"')
        end = start


def _forwarded_from_the_right(value: str) -> Iterator[str]:
    """The `for` of each element of Forwarded, the last one first; an empty text for an element without one.

    A quoted string may hold commas, so an element may begin before the last comma. The shortest well-formed text at the
    end is the element that the proxy wrote. 1. The proxy's element is not longer: the proxy's own comma stands before
    it, and a quotation mark that the client left open stands before that. 2. Nor is it shorter: a part of a quoted
    string ends with a quotation mark. Its counterpart would have to follow a backslash, and no value begins with one.
    """
    end = len(value)
    while end >= 0:
        start = end
        for _ in range(_MOST_COMMAS):
            start = value.rfind(",", 0, start)
            element = value[start + 1 : end].strip(" \t")
            if not element or _ELEMENT.fullmatch(element) or start < 0:
                break
        if element:
            yield _node_of(element)
        end = start


def _node_of(element: str) -> str:
    """The one `for` of an element, without quotation. Empty if there is none, if there are several, or for junk."""
    if not _ELEMENT.fullmatch(element):
        return ""
    # A quoted string may hold a semicolon. So each is taken out before the pairs are told apart.
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f'"{len(strings) - 1}"'

    found = _FOR.findall(_QUOTED_STRING.sub(keep, element))
    if len(found) != 1:
        return ""
    if not found[0].startswith('"'):
        return str(found[0])
    return _QUOTED_PAIR.sub(r"\1", strings[int(found[0][1:-1])][1:-1])
