"""The forms of settings' values: text, durations, URLs, paths, origins. Each message repeats no value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from pydantic import BeforeValidator

from .postgres_url import HIDDEN, PostgresURL

# The options that an operator may give in the URL of Redis: the pattern of each value, and its description. No others,
# because the driver reads any of its parameters from the URL, even those that Keyturn sets (see `redis_server`).
_REDIS_OPTIONS = {
    "db": ("[0-9]{1,5}", "a whole number"),
    "ssl_ca_certs": (".+", "a file"),
    "ssl_certfile": (".+", "a file"),
    "ssl_keyfile": (".+", "a file"),
    "ssl_cert_reqs": ("required|none", "required or none"),
    "ssl_check_hostname": ("true|false", "true or false"),
}


def whole_seconds(value: object) -> object:
    """A duration, from whole seconds.

    Raises:
        ValueError: it is something else, or more than a duration can hold.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12:  # noqa: PLR2004  # digits
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:  # what timedelta can hold
        return timedelta(seconds=value)
    raise ValueError("must be a whole number of seconds")


Seconds = Annotated[timedelta, BeforeValidator(whole_seconds)]
"""A duration that a setting gives in whole seconds."""

_BLANKS = " \t\r\n\v\f"


def seen(text: str) -> str:
    """The text without the blanks around it.

    Raises:
        ValueError: the text holds another invisible character, or bytes that are not UTF-8.
    """
    text = text.strip(_BLANKS)
    if not text.isprintable():
        raise ValueError("holds a character that can't be seen (a line end, NUL, a blank that is not ASCII, …)")
    return text


def given(text: str) -> str:
    """As `seen`, for text that must not be empty."""
    if not (text := seen(text)):
        raise ValueError("must not be empty")
    return text


def checked_url(value: object) -> object:
    """A URL as it was given.

    Raises:
        ValueError: it is no URL, or parsers of URLs would disagree on its host.
    """
    if isinstance(value, str):
        try:
            parts = urlsplit(value)
            parts.port  # noqa: B018  # the property checks it
            # Parsers differ here: some take the characters after the first @ of a password for the host.
            stray = parts.netloc.count("@") > 1 or "@" in parts.path
        except ValueError:  # its message may repeat a part of the password
            stray = True
        if HIDDEN.search(value):
            raise ValueError("holds an escaped character that can't be seen")
        if stray:
            raise ValueError("is not a URL (in a user or password, write @ : / # as %40 %3A %2F %23)")
    return value


def checked_database_url(value: object) -> object:
    """The URL of a Postgres or of a SQLite file, as it was given.

    Raises:
        ValueError: it is neither, or a part of it would have no effect.
    """
    if not isinstance(value, str) or value.startswith("sqlite+aiosqlite://"):
        return checked_url(value)
    if not re.match(r"(postgres|postgresql|postgresql\+asyncpg)://", value):
        raise ValueError("must begin with postgresql:// (or be unset for SQLite)")
    PostgresURL.parse(value)
    return value


def checked_root_path(value: object) -> object:
    """A path without the slash at its end.

    Raises:
        ValueError: it is no path, or it is the path of `verify` or below it, where proxies append clients' paths.
    """
    if isinstance(value, str):
        value = value.removesuffix("/")
        if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*", value):
            raise ValueError("must be a path, as /keyturn")
        if f"{value}/".startswith("/auth/verify/"):
            raise ValueError("must not be verify's path or below it, where proxies append what clients ask for")
    return value


_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)+(?![0-9]+$){_LABEL}")


def checked_domain(value: object) -> object:
    """A domain of at least two labels (RFC 1034 section 3.5).

    Raises:
        ValueError: it is none. Browsers refuse a cookie whose domain is an IP address or a top-level domain.
    """
    if isinstance(value, str) and not _DOMAIN.fullmatch(value):
        raise ValueError("must be a domain in lower case, as example.com")
    return value


def on_loopback(host: str) -> bool:
    """Whether a host is this machine: a loopback address, or a name that is reserved for it (RFC 6761 section 6.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def within(host: str, domain: str) -> bool:
    """Whether a host is the domain or below it (RFC 6265 section 5.1.3)."""
    return host == domain or host.endswith(f".{domain}")


_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::([1-9][0-9]{0,4}))?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def origins_in(text: str) -> tuple[str, ...]:
    """The origins of a comma-separated list."""
    return tuple(filter(None, (each.strip(_BLANKS) for each in text.split(","))))


def checked_origins(value: object) -> object:
    """A comma-separated list of origins, as it was given.

    Raises:
        ValueError: one of them is not an origin as browsers write it, or could be read by others on the way.
    """
    if isinstance(value, str) and not all(map(_is_origin, origins_in(value))):
        raise ValueError(
            "must be exact origins, comma-separated, as browsers write them: https://app.example.com, in lower case, "
            "with a port only if it is not the default one, without path and *; http only for loopback"
        )
    return value


def _is_origin(text: str) -> bool:
    """Whether a browser may send this text in the Origin field (RFC 6454 section 6.2), safe from those on the way."""
    parts = _ORIGIN.fullmatch(text)
    if parts is None:
        return False
    scheme, host, port = parts.groups()
    if port is not None and (int(port) > 65535 or port == _DEFAULT_PORTS[scheme]):  # noqa: PLR2004  # the last port
        return False
    return _is_host(host) and (scheme == "https" or on_loopback(host.strip("[]")))


def _is_host(host: str) -> bool:
    """Whether a browser leaves this host as it is. A host whose last label is a number is an IPv4 address to it."""
    try:
        if host.startswith("["):
            return ipaddress.IPv6Address(host[1:-1]).compressed == host[1:-1]
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def redis_rules(url: str) -> Iterator[tuple[bool, str]]:
    """For each rule on the options of Redis's URL: whether it is broken, and its message."""
    parts = urlsplit(url)
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.scheme in {"redis", "rediss"} and parts.path not in {"", "/"}:
        options.setdefault("db", []).append(parts.path[1:])
    allowed = {name: o for name, o in _REDIS_OPTIONS.items() if parts.scheme == "rediss" or name == "db"}
    yield (
        not options.keys() <= allowed.keys(),
        f"KEYTURN_REDIS_URL: its options may be {', '.join(_REDIS_OPTIONS)} (ssl_… only with rediss://)",
    )
    for name, (pattern, words) in allowed.items():
        values = options.get(name)
        # The driver would take one of two values without a word, and 0 for a database that is no number.
        bad = values is not None and (len(values) > 1 or not re.fullmatch(pattern, values[0]))
        yield bad, f"KEYTURN_REDIS_URL: {name} must be {words}, and said once"


MOST_SCOPES = 256
"""Characters of all scopes of a session together: its access token has to fit into a cookie."""

# Possessive, because clients send such texts too. Without it, a quantifier inside another tries a wrong text for ever.
_SCOPES = re.compile(r"(?:[\x21\x23-\x5b\x5d-\x7e]++ ?+)*+")


def scopes_in(text: str) -> frozenset[str]:
    """The scopes that a text names (RFC 6749 section 3.3), separated by blanks.

    Raises:
        ValueError: a character is none of a scope's, or the text is longer than `MOST_SCOPES`.
    """
    if len(text) > MOST_SCOPES or not _SCOPES.fullmatch(text):
        raise ValueError(f"must be scopes of printable ASCII, separated by blanks, {MOST_SCOPES} characters at most")
    return frozenset(text.split())


def checked_scopes(value: object) -> object:
    """A list of scopes, each once and in their order."""
    return " ".join(sorted(scopes_in(value))) if isinstance(value, str) else value


_RATE = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,4})")


def rate_in(text: str) -> tuple[int, timedelta] | None:
    """The number and the duration of a rate, as ``20/600``: 20 in 600 seconds. None for ``off``.

    Raises:
        ValueError: the text is neither.
    """
    if text == "off":
        return None
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError("must be 1 to 999999, a slash and 1 to 99999 seconds, as 20/600; or off")
    return int(found[1]), timedelta(seconds=int(found[2]))


def checked_rate(longest: timedelta) -> Callable[[object], object]:
    """The check of a rate that gives one more at least every `longest`."""

    def checked(value: object) -> object:
        if isinstance(value, str) and (rate := rate_in(value)) and rate[1] / rate[0] > longest:
            seconds = longest // timedelta(seconds=1)
            raise ValueError(f"must give one back every {seconds} seconds at least, as 10/{10 * seconds}; or off")
        return value

    return checked


def url(host: str, port: int) -> str:
    """The URL at which a client on this machine reaches the service."""
    return f"http://{written('127.0.0.1' if host in {'0.0.0.0', '::'} else host)}:{port}"  # noqa: S104  # the operator's choice


def written(host: str) -> str:
    """A host as it is written in a URL: IPv6 in brackets (RFC 3986 section 3.2.2), its zone encoded (RFC 6874)."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host
