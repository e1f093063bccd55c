"""The sources of settings: environment, ``.env``, a TOML file, and files that hold one value (``…_FILE``)."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dotenv.parser import parse_stream

from .errors import ConfigurationError
from .own_files import mode_if_ours
from .printable import printable
from .settings_values import given

PREFIX = "KEYTURN_"
"""The beginning of every variable. The names in a TOML file have no prefix."""

LONGEST_NAME = 80
"""How many characters of a name that an operator wrote a message repeats."""

_PATHS = frozenset({"federation_file", "password_list_file", "password_range_ca_file"})
"""Settings whose own names end as those of files that hold one value. Their values are paths."""


class Sources(NamedTuple):
    """The values that the sources name, and the faults of the sources."""

    values: dict[str, Any]
    """By the name of the setting."""
    faults: list[str]
    """A line for each source that can't be read, and for each name that no setting can have."""


def sources(
    environ: Mapping[str, str], config: Path | None, names: Collection[str], only: Collection[str] | None = None
) -> Sources:
    """The values that the sources have, of all settings or of some. Files named for other settings are not opened.

    A fault does not end the reading, so that an operator reads of all faults at once.

    Args:
        environ: the environment's variables.
        config: the TOML file of the command line.
        names: the names of all settings.
        only: the names of the settings to read; None for all.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    dotenv: dict[str, str | None] = {}
    with _noting(faults):
        dotenv = _dotenv()
    named = [source[f"{PREFIX}CONFIG"] for source in (environ, dotenv) if f"{PREFIX}CONFIG" in source]
    with _noting(faults):
        if config := config or (_path(named[0], f"{PREFIX}CONFIG") if named else None):
            values.update(_from_files(_toml(config, names, faults), only, faults))
    for source in (dotenv, environ):
        found: dict[str, Any] = {}
        for name in filter(_OURS.match, source):
            with _noting(faults):
                found[_setting(name)] = source[name]
        if source is environ:
            found = _without_service_links(found)
        found.pop("config", None)
        values.update(_from_files(found, only, faults))
    return Sources(values, faults)


@contextmanager
def _noting(faults: list[str]) -> Iterator[None]:
    """Adds a fault to those that were found, and lets the reading go on after it."""
    try:
        yield
    except ConfigurationError as e:
        faults.append(str(e))


def _dotenv() -> dict[str, str | None]:
    try:
        text = Path(".env").read_text(encoding="utf-8-sig")
        if "\0" in text:  # UTF-16, as some editors write it
            raise ValueError  # noqa: TRY301  # handled as any text that is not UTF-8
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ConfigurationError(".env: can't be read as UTF-8 text") from None
    found: dict[str, str | None] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error and PREFIX in binding.original.string.upper():
            raise ConfigurationError(f".env: line {binding.original.line} is not NAME=VALUE")
        if binding.key is not None:
            found[binding.key] = binding.value  # not expanded: a password may hold a "${"
    return found


def _toml(config: Path, names: Collection[str], faults: list[str]) -> dict[str, Any]:
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise ConfigurationError(f"--config: {printable(str(config))} can't be read ({e.strerror})") from None
    except ValueError:  # TOML's error, or not UTF-8
        raise ConfigurationError(f"--config: {printable(str(config))} is not valid TOML") from None
    wrong = set()
    for name in found:
        if name != (plain := name.lower().removeprefix(PREFIX.lower())) and plain.removesuffix("_file") in names:
            faults.append(f"--config: write {plain} and not {name}")
            wrong.add(name)
    return {name: value for name, value in found.items() if name not in wrong}


# A variable counts as a setting if its name begins with KEYTURN_, in upper or lower case and after any sign.
_OURS = re.compile(r"\W*keyturn[\W_]", re.IGNORECASE)


def _setting(name: str) -> str:
    if not re.fullmatch(f"{PREFIX}[A-Z0-9_]*", name):
        named = printable(name, LONGEST_NAME)
        raise ConfigurationError(f"{named}: is no name of a setting; they look like {PREFIX}PORT")
    return name.removeprefix(PREFIX).lower()


# Kubernetes gives every container such variables for each Service of its namespace (its documentation of Services,
# "Discovering services: environment variables"). A Service that is called `keyturn` makes a KEYTURN_PORT.
_SERVICE_LINK = re.compile(
    r"(?:\w+_)?service_(?:host|port(?:_\w+)?)|(?:\w+_)?port_[0-9]+_(?:tcp|udp|sctp)(?:_(?:proto|port|addr))?"
)
_PORT_LINK = re.compile(r"(?:\w+_)?port")
_PORT_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://\S+")


def _without_service_links(values: dict[str, Any]) -> dict[str, Any]:
    links = {
        name
        for name, value in values.items()
        if _SERVICE_LINK.fullmatch(name) or (_PORT_LINK.fullmatch(name) and _PORT_LINK_VALUE.fullmatch(value))
    }
    if links:
        names = [f"{PREFIX}{name.upper()}" for name in sorted(links)]
        sys.stderr.write(f"keyturn: ignored, as Kubernetes makes them for a Service: {', '.join(names)}\n")
        for name in names:  # so that no second reading and no worker process repeats the line
            os.environ.pop(name, None)
    return {name: value for name, value in values.items() if name not in links}


def _path(value: object, name: str) -> Path:
    try:
        return Path(given(value if isinstance(value, str) else ""))
    except ValueError as e:
        raise ConfigurationError(f"{name}: {e}") from None


def _from_files(values: dict[str, Any], only: Collection[str] | None, faults: list[str]) -> dict[str, Any]:
    """Replaces each ``x_file`` by ``x`` and the file's content, so that no secret need stand in the environment."""
    if only is not None:
        values = {name: value for name, value in values.items() if name.removesuffix("_file") in only}
    for name in [n for n in values if n.endswith("_file") and n not in _PATHS]:
        target, path = name.removesuffix("_file"), values.pop(name)
        called = printable(f"{PREFIX}{name.upper()}", LONGEST_NAME)
        with _noting(faults):
            if target in values:
                raise ConfigurationError(f"{called}: {called.removesuffix('_FILE')} is set too; use one of them")
            values[target] = _content(path, target, called)
    return values


def _content(value: object, target: str, called: str) -> str:
    """The content of the file that a setting names."""
    path = _path(value, called)
    try:
        mode = mode_if_ours(path, f"{called}: ")
        if target in {"secret", "secret_previous"} and stat.S_ISREG(mode) and mode & 0o007:
            raise ConfigurationError(f"{called}: is open to everyone; chmod 600 it")
        content = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise ConfigurationError(f"{called}: can't be read ({e.strerror})") from None
    except ValueError:
        raise ConfigurationError(f"{called}: is not the path of a text file") from None
    try:
        return given(content)
    except ValueError as e:
        raise ConfigurationError(f"{called}: its content {e}") from None
