"""The addresses to which Keyturn may connect on its own. Pure: no I/O.

A host's name says nothing about where it leads. So each address is checked after it was resolved, and the connection
goes to that very address. A name that resolves to another one a moment later changes nothing (OWASP SSRF Prevention
Cheat Sheet).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_INNER = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # shared by the customers of a carrier, and by overlay networks (RFC 6598)
        "fc00::/7",
    )
)
"""Loopback and private networks. Link-local ones are not here: clouds give out credentials on 169.254.169.254."""

_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")


def is_allowed(text: str, *, private: bool) -> bool:
    """Whether Keyturn may connect to an address.

    Args:
        text: the address as the resolver gave it.
        private: whether the peer may have a private or loopback address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    address = _embedded(address)
    return _is_public(address) or (private and any(address in network for network in _INNER))


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address to which an IPv6 address leads by itself or through a translator. Else the address."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:  # RFC 4291 section 2.5.5.2
        return address.ipv4_mapped
    if address.sixtofour is not None:  # RFC 3056
        return address.sixtofour
    if address in _NAT64:  # RFC 6052 section 2.1
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public Internet, by the registries of special addresses (RFC 6890)."""
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
