"""The URL of a Postgres, read as libpq reads it (its documentation, "Connection URIs"), and what its environment adds.

The driver reads less than libpq does, and silently ignores the rest. So Keyturn reads URL and variables itself, and
refuses by name each part that would have no effect.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qs, unquote

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ATTRIBUTES = ("primary", "read-write")
_FILES = {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL"}
_ONCE = {"sslmode", "options", "target_session_attrs", "prepared_statement_cache_size", *_FILES}
_OPTIONS = ", ".join(sorted({"host", "port", *_ONCE}))

_NOT_READ = ("PGSERVICE", "PGHOSTADDR", "PGREQUIREAUTH", "PGREQUIREPEER", "PGREQUIRESSL", "PGSSLCRLDIR")
"""libpq reads these variables; driver and Keyturn do not. Each says where, how or as which user to connect."""
_NOT_MET = ("PGCHANNELBINDING", "PGGSSENCMODE")
"""As above, where the value is ``require``."""

_READ = (
    *("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE", "PGOPTIONS", "PGTARGETSESSIONATTRS"),
    *("PGSSLMODE", *_FILES.values()),
)
"""The driver reads some of these itself, untrimmed. So invisible characters in them are refused and not trimmed."""

HIDDEN = re.compile("%(?:[01][0-9a-f]|7f)", re.IGNORECASE)
"""An escaped ASCII control character. Mostly an editor's line end; none belongs into a name or password."""

_PORT = 5432

_URL = re.compile(
    r"postgres(?:ql)?(?:\+asyncpg)?://"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<where>[^@/?#]*)(?:/(?P<database>[^@/?#]*))?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.%a-z]+)\](?::(?P<v6port>[^:]*))?|(?P<host>[^:\[\]]+)(?::(?P<port>[^:]*))?")


@dataclass(frozen=True, slots=True, repr=False)
class PostgresURL:
    """Where a Postgres is, and as which user to connect. If a field is None, the driver's default holds."""

    addresses: tuple[tuple[str | None, int], ...]
    """Host (or folder of a Unix socket) and port of each server, one of which is the primary."""
    user: str | None
    password: str | None
    database: str | None
    tls: Mapping[str, str]
    """``sslmode``, ``sslrootcert`` and so on, by libpq's names."""
    attribute: str | None
    """``read-write`` refuses also a primary whose ``default_transaction_read_only`` is on."""
    search_path: str | None
    prepared_statement_cache_size: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a URL.

        Raises:
            ValueError: the text is no such URL, or a part of it would have no effect. The message repeats no value.
        """
        found = _URL.fullmatch(text)
        if not found or re.search(r"[\0-\x20\x7f]", text[: text.find("?")] if "?" in text else text):
            raise ValueError("is not a URL (in a user or password, write @ : / # as %40 %3A %2F %23)")
        if HIDDEN.search(text):
            raise ValueError("holds an escaped character that can't be seen")
        options = parse_qs(found["query"] or "", keep_blank_values=True)
        if "ssl" in options:  # the driver's name for it
            options["sslmode"] = options.get("sslmode", []) + options.pop("ssl")
        hosts, ports = options.pop("host", []), options.pop("port", [])
        if not options.keys() <= _ONCE:
            raise ValueError(f"its options may be {_OPTIONS}")
        if any(len(values) > 1 for values in options.values()):
            raise ValueError("each of its options but host and port may be said once")
        said = {name: values[0] for name, values in options.items()}
        size = said.get("prepared_statement_cache_size")
        if size is not None and not re.fullmatch("[0-9]{1,6}", size):
            raise ValueError("prepared_statement_cache_size must be a whole number")
        for name, value in said.items():
            _check_tls(name, value)
        return cls(
            addresses=_addresses(",".join(hosts) or found["where"], ",".join(ports)),
            user=unquote(found["user"] or "") or None,
            password=unquote(found["password"] or "") or None,
            database=unquote(found["database"] or "") or None,
            tls={name: value for name, value in said.items() if name.startswith("ssl")},
            attribute=_attribute(said["target_session_attrs"]) if "target_session_attrs" in said else None,
            search_path=_search_path(said["options"]) if "options" in said else None,
            prepared_statement_cache_size=None if size is None else int(size),
        )

    def within(self, environ: Mapping[str, str]) -> Self:
        """This URL, completed by libpq's variables.

        Raises:
            ValueError: one of them is malformed, or would have no effect. The message names it and repeats no value.
        """
        for name in _READ:
            _check_seen(name, environ.get(name, ""))
        for name in (*_NOT_READ, *(name for name in _NOT_MET if environ.get(name) == "require")):
            if environ.get(name):
                raise ValueError(f"{name}: has no effect here; say it in KEYTURN_DATABASE_URL if you can, and unset it")
        found = self
        if self.addresses == ((None, _PORT),) and (environ.get("PGHOST") or environ.get("PGPORT")):
            with _naming("PGHOST, PGPORT"):
                found = replace(found, addresses=_addresses(environ.get("PGHOST", ""), environ.get("PGPORT", "")))
        if self.attribute is None and (value := environ.get("PGTARGETSESSIONATTRS")):
            with _naming("PGTARGETSESSIONATTRS"):
                found = replace(found, attribute=_attribute(value))
        if self.search_path is None and (value := environ.get("PGOPTIONS")):
            with _naming("PGOPTIONS"):
                found = replace(found, search_path=_search_path(value))
        for name, variable in {"sslmode": "PGSSLMODE", **_FILES}.items():
            if name not in self.tls and (value := environ.get(variable)):
                with _naming(variable):
                    _check_tls(name, value)
        if self.user is None and not environ.get("PGUSER"):
            _check_name()
        return found

    def __str__(self) -> str:
        """The URL as an operator may see it, without password and options."""
        where = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses if host
        )
        return f"postgresql://{self.user + '@' if self.user else ''}{where}/{self.database or ''}"

    __repr__ = __str__


def _check_name() -> None:
    try:
        getpass.getuser()  # the driver falls back on this name
    except (KeyError, OSError, ImportError):  # a user id without an entry in passwd
        raise ValueError("KEYTURN_DATABASE_URL: must name a user; this process's has no name") from None


def _check_seen(name: str, value: str) -> None:
    if not value.isprintable() or (value != value.strip() and name != "PGPASSWORD"):
        raise ValueError(f"{name}: has a blank at an end, or a character that can't be seen")


@contextmanager
def _naming(variable: str) -> Iterator[None]:
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{variable}: {e}") from None


def _addresses(hosts: str, ports: str) -> tuple[tuple[str | None, int], ...]:
    """``h1,h2`` with one port for all or one for each, or ``h1:p1,h2:p2``; ``/run/…`` is the folder of a socket."""
    shared = ports.split(",") if ports else []
    if not hosts:
        if len(shared) > 1:
            raise ValueError("has more ports than hosts")
        return ((None, _port(shared[0] if shared else "")),)
    named = [_address(unquote(host)) for host in hosts.split(",")]
    if len(shared) == 1:
        shared *= len(named)
    if shared and len(shared) != len(named):
        raise ValueError("must have one port, or one for each host")
    if shared and any(port for _, port in named):
        raise ValueError("must say each port once: beside its host, or as an option")
    ends = shared or [port for _, port in named]
    return tuple((host, _port(port)) for (host, _), port in zip(named, ends, strict=True))


def _address(text: str) -> tuple[str, str]:
    if text.startswith("/") or (text.count(":") > 1 and "[" not in text):  # a socket's folder, or a bare IPv6 address
        return text, ""
    found = _HOST.fullmatch(text)
    if not found:
        raise ValueError("must have a host, or several with commas between: host, host:port or [address]:port")
    return found["v6"] or found["host"], found["v6port"] or found["port"] or ""


def _port(text: str) -> int:
    if not text:
        return _PORT
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) <= 65535:  # noqa: PLR2004  # 16 bits
        raise ValueError("port must be a whole number from 1 to 65535")
    return int(text)


def _attribute(value: str) -> str:
    if value not in _ATTRIBUTES:
        raise ValueError(f"target_session_attrs must be {' or '.join(_ATTRIBUTES)}: Keyturn writes")
    return value


def _search_path(options: str) -> str:
    """The search path out of ``-c search_path=…`` (also ``-csearch_path=…``, ``--search_path=…``).

    Other settings are Keyturn's own, or belong to the role: ``ALTER ROLE … SET``.
    """
    # Postgres splits options at each blank that no backslash precedes (pg_split_opts).
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|[^\s\\])+", options)]
    found = re.fullmatch(r"(?:-c\n?|--)search[_-]path=([^\0-\x1f\\']+)", "\n".join(words))
    if not found:
        raise ValueError("options may be -c search_path=SCHEMA and nothing else (others: ALTER ROLE … SET)")
    return found[1]


def _check_tls(name: str, value: str) -> None:
    if name == "sslmode" and value not in _MODES:
        raise ValueError(f"sslmode must be {', '.join(_MODES[:-1])} or {_MODES[-1]}")
    if name in _FILES and not os.access(value, os.R_OK):
        raise ValueError(f"{name}: there is no such file, or it can't be read")
