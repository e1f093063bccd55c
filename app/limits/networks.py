"""The network of an address: what one person or one guesser is likely to hold. Pure: no I/O."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_LONGEST = 64  # characters: a trusted proxy may name any text as the client's address


def network_of(address: str, ipv4: int = 24, ipv6: int = 56) -> str:
    """The network of a client's address, as ``192.0.2.0/24`` or ``2001:db8::/56``.

    An IPv4 address within IPv6 (RFC 4291 section 2.5.5.2) is the IPv4 address: one client must not count as two. A text
    that is no address gives ``unknown``. All such clients share one network, so nobody escapes a limit by junk.

    Args:
        address: the address, with or without a zone.
        ipv4: the bits that name the network of an IPv4 address.
        ipv6: the bits that name the network of an IPv6 address.
    """
    return _network_of(address, ipv4, ipv6) if len(address) <= _LONGEST else "unknown"


@lru_cache(maxsize=4096)
def _network_of(address: str, ipv4: int, ipv6: int) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if found.version == 6 and found.ipv4_mapped is not None:  # noqa: PLR2004  # the version of IP
        found = found.ipv4_mapped
    return str(ipaddress.ip_network((found, ipv4 if found.version == 4 else ipv6), strict=False))  # noqa: PLR2004  # as above
