"""The device behind a session, as the client's User-Agent field names it. Pure: no I/O, no clock.

Clients choose the field (RFC 9110 section 10.1.5), so a device is a hint for people and never a proof. The library's
patterns are bounded. So the slowest agent of 256 characters that a search through all of them found takes milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ua_parser import Parser, Result

Kind = Literal["desktop", "phone", "tablet", "program", "bot"]
"""The kind of a device. A program is a client that is no browser and does not tell its system."""

_DESKTOPS = {"Windows", "Mac OS X", "Linux", "Chrome OS", "Ubuntu", "Fedora", "Debian", "FreeBSD", "OpenBSD", "NetBSD"}
_LONGEST = 64  # characters of a name: the library repeats words of the client

_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a session, as far as its client says. An unknown member is None."""

    browser: str | None = None
    """The browser or program, with its main version."""
    system: str | None = None
    """The operating system, with its main version where the version means something."""
    kind: Kind | None = None


async def described_each(user_agents: Collection[str | None]) -> dict[str | None, Device]:
    """The devices of several user agents. A thread works them out, so that no other request waits for them."""
    return await asyncio.to_thread(lambda: {agent: described(agent) for agent in user_agents})


@lru_cache(maxsize=_REMEMBERED)
def described(user_agent: str | None) -> Device:
    """The device that a user agent names."""
    if not user_agent:
        return Device()
    from ua_parser import Domain  # noqa: PLC0415  # as in `_parser`

    found = _parser()(user_agent, Domain.ALL).complete()
    browser = _named(found.user_agent.family, found.user_agent.major) if found.user_agent else None
    system = _named(found.os.family, _version(found)) if found.os else None
    return Device(browser, system, _kind(user_agent, found))


@lru_cache(maxsize=1)
def _parser() -> Parser:
    # Loaded on first use: the patterns take a third of a second and 4 MB, and many processes never list a session.
    from ua_parser import Parser  # noqa: PLC0415
    from ua_parser.basic import Resolver  # noqa: PLC0415
    from ua_parser.loaders import load_lazy_builtins  # noqa: PLC0415

    return Parser(Resolver(load_lazy_builtins()))


def _named(family: str, version: str | None) -> str | None:
    name = f"{family} {version}" if version else family
    name = "".join(c for c in name if c.isprintable())[:_LONGEST].strip()
    return name or None


def _version(found: Result) -> str | None:
    """The version of the system. Browsers send a frozen one for macOS and Chrome OS, which would only mislead."""
    return None if found.os is None or found.os.family in {"Mac OS X", "Chrome OS"} else found.os.major


def _kind(user_agent: str, found: Result) -> Kind | None:
    system = found.os.family if found.os else None
    device = found.device.family if found.device else None
    match device, system:
        case "Spider", _:
            return "bot"
        case "iPad", _:
            return "tablet"
        case _, "Android" if user_agent.startswith("Mozilla/"):
            return "phone" if "Mobile" in user_agent else "tablet"  # as browsers of Android tell the two apart
        case _, "iOS" | "Windows Phone":
            return "phone"
        case _, None:
            return "program" if found.user_agent else None
    return "desktop" if system in _DESKTOPS else None
