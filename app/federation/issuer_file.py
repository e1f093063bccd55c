"""The file of issuers (KEYTURN_FEDERATION_FILE): TOML, one table `[issuers.NAME]` for each. A process reads it once.

The members are those of `Issuer`, with `client_secret` and `webhook_secret`. A secret may stand in a file of its own
instead, named by `client_secret_file` or `webhook_secret_file`. No error repeats a value.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, InvalidRequest
from ..own_files import mode_if_ours
from ..printable import printable
from ..settings_values import given
from .issuer import Configured, IssuerSecrets, issuer_of, secrets_of
from .issuer_values import NAME

SETTING = "KEYTURN_FEDERATION_FILE"
"""The setting that names the file."""

_ANYTHING, _WRITING = 0o007, 0o002  # rights of strangers, as bits of a mode

_LINE = re.compile(r"\(at (line \d+), column \d+\)")


def read(path: Path) -> Mapping[str, Configured]:
    """The issuers of the file, by their names.

    Raises:
        ConfigurationError: the file can't be read, strangers may write it or read its secrets, or a member is wrong.
    """
    text = _text(path, SETTING)
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        line = _LINE.search(str(e))
        raise ConfigurationError(f"{SETTING}: is not valid TOML" + (f" ({line[1]})" if line else "")) from None
    issuers = found.pop("issuers", {})
    if found or not isinstance(issuers, dict):
        raise ConfigurationError(f"{SETTING}: has something else than tables [issuers.NAME]")
    configured = {name: _configured(name, members) for name, members in issuers.items()}
    has_secrets = any(members.keys() & IssuerSecrets.model_fields.keys() for members in issuers.values())
    # The writer of the file decides who signs in here. So no stranger may write it, even if it has no secrets.
    _check_closed(path, SETTING, _ANYTHING if has_secrets else _WRITING)
    owners: dict[str, str] = {}
    for name, each in configured.items():
        for iss in each.issuer.all_issuers:
            if owners.setdefault(iss, name) != name:
                raise ConfigurationError(f"{SETTING}: {owners[iss]} and {name} have an issuer in common")
    return configured


def _configured(name: str, members: Any) -> Configured:
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{SETTING}: a name must have 1 to 32 of a-z, 0-9 and -, and begin with a letter: [issuers.NAME]"
        )
    if not isinstance(members, dict):
        raise ConfigurationError(f"{SETTING}: {name} is no table: write [issuers.{name}]")
    secrets, rest = {}, dict(members)
    for secret in IssuerSecrets.model_fields:
        if secret in rest and f"{secret}_file" in rest:
            raise ConfigurationError(f"{SETTING}: {name}: {secret}: is set, and {secret}_file too; use one of them")
        if secret in rest:
            secrets[secret] = rest.pop(secret)
        elif f"{secret}_file" in rest:
            secrets[secret] = _secret(rest.pop(f"{secret}_file"), f"{SETTING}: {name}: {secret}_file")
    try:
        return Configured(name=name, issuer=issuer_of(rest), secrets=secrets_of(secrets), source="file")
    except InvalidRequest as e:
        raise ConfigurationError(f"{SETTING}: {name}: {e.description.removesuffix('.')}") from None


def _secret(path: object, called: str) -> str:
    """The secret in a file of its own."""
    if not isinstance(path, str):
        raise ConfigurationError(f"{called}: is not the path of a text file")
    text = _text(Path(path), called)
    _check_closed(Path(path), called, _ANYTHING)
    try:
        return given(text)
    except ValueError as e:
        raise ConfigurationError(f"{called}: its content {e}") from None


def _text(path: Path, called: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise ConfigurationError(f"{called}: {printable(str(path))} can't be read ({e.strerror})") from None
    except ValueError:  # not UTF-8, or a NUL in the path
        raise ConfigurationError(f"{called}: is not the path of a text file") from None


def _check_closed(path: Path, called: str, what: int) -> None:
    """Checks that no stranger has any of these rights in a file, as for the file of the master secret."""
    mode = mode_if_ours(path, f"{called}: ")
    if stat.S_ISREG(mode) and mode & what:
        raise ConfigurationError(f"{called}: is open to everyone; chmod 600 it")
