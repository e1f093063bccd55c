"""The settings about clients: which proxies stand before Keyturn, and how they name the client's address."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .place import Place

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""The IPv4 addresses in the form of IPv6 addresses (RFC 4291 section 2.5.5.2), as a socket for both has them."""


def networks_in(text: str) -> tuple[Network, ...]:
    """The networks of a comma-separated list of addresses and networks. A mapped IPv4 network counts as IPv4.

    Raises:
        ValueError: one of them is neither, has bits beyond its length, or is every address there is.
    """
    networks: list[Network] = []
    for each in filter(None, map(str.strip, text.split(","))):
        network: Network = ipaddress.ip_network(each)
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            mapped = int(network.network_address) & 0xFFFFFFFF
            network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
        if not network.prefixlen:
            raise ValueError("every address")
        networks.append(network)
    return tuple(networks)


def checked_networks(value: object) -> object:
    """A comma-separated list of addresses and networks, as it was given.

    Raises:
        ValueError: as `networks_in`. If every address were trusted, each client could name any address as its own.
    """
    if isinstance(value, str):
        try:
            networks_in(value)
        except ValueError:
            raise ValueError("must be addresses or networks, comma-separated, and not every address") from None
    return value


class ClientSettings(Place):
    """The settings about clients."""

    trusted_proxies: Annotated[
        str,
        BeforeValidator(checked_networks),
        Field(
            description="Addresses or networks of your proxies, comma-separated. From these alone PROXY_FIELD counts: "
            "for limits, log and events."
        ),
    ] = ""
    proxy_field: Annotated[
        Literal["x-forwarded-for", "forwarded"],
        Field(
            description="Header field in which your proxies name the client's address. `forwarded`: RFC 7239. The "
            "other field never counts, because most proxies pass it on as the client wrote it."
        ),
    ] = "x-forwarded-for"
