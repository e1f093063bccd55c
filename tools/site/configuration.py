"""The page of all settings, made from their types, defaults and descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from app.place import Place
from app.settings import Settings, accepts
from app.settings_clients import ClientSettings
from app.settings_limits import LimitSettings
from app.settings_passwords import PasswordSettings
from app.settings_sessions import SessionSettings
from app.settings_sources import PREFIX
from app.settings_watching import WatchingSettings
from app.settings_web import WebSettings

_TITLES: tuple[tuple[type[Place], str], ...] = (
    (Place, "Database"),
    (Settings, "Service"),
    (SessionSettings, "Tokens and sessions"),
    (WebSettings, "Browsers"),
    (ClientSettings, "Clients and their addresses"),
    (PasswordSettings, "New passwords"),
    (LimitSettings, "Limits of attempts"),
    (WatchingSettings, "Log, metrics and traces"),
)

_HEAD = """\
# Configuration

This page is made from the source. Each setting has a name, a meaning, a default and the values that it accepts.

## Where a setting comes from

The first of these that names a setting wins:

1. an option of the command line, such as `--port`
2. the environment: `KEYTURN_PORT=8000`
3. the file `.env` in the working folder, with lines of the same form
4. the TOML file that `--config FILE` or `KEYTURN_CONFIG` names: `port = 8000`
5. the default

In the TOML file a name is in lower case and has no prefix. `alembic` reads the same file.

Any value may come from a file of its own: `KEYTURN_SECRET_FILE=/run/secrets/keyturn` reads `KEYTURN_SECRET`.

Durations are whole seconds. A limit is a number and its seconds (`20/600`), or `off`.

An unknown name stops the start. An empty value does too, unless the table shows that the default is empty:
`KEYTURN_ROOT_PATH`, `KEYTURN_TRUSTED_PROXIES`, `KEYTURN_ALLOWED_ORIGINS`. Leave the variable out instead. Keyturn drops
ASCII blanks and line ends around a value. It refuses other characters that can't be seen.

With Postgres, these must be set: `KEYTURN_DATABASE_URL`, `KEYTURN_REDIS_URL`, `KEYTURN_SECRET`, `KEYTURN_ISSUER`. The
start names each one that is missing.
"""


def configuration() -> str:
    """The page, as Markdown."""
    return _HEAD + "".join(_section(title, dict(_settings_of(kind))) for kind, title in _TITLES)


def _settings_of(kind: type[Place]) -> Iterator[tuple[str, Any]]:
    for name, field in Settings.model_fields.items():
        if name in kind.__annotations__:
            yield name, field


def _section(title: str, settings: dict[str, Any]) -> str:
    lines = [f"\n## {title}\n\n", "| setting | meaning | default | values |\n", "|---|---|---|---|\n"]
    for name, field in settings.items():
        meaning = re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", field.description).replace("|", "\\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {meaning} | {_default(field.default)} | {accepts(name)} |\n")
    return "".join(lines)


def _default(value: object) -> str:
    if value is None or value == "":  # 0 and False are defaults to show
        return "" if value is None else "empty"
    if isinstance(value, timedelta):
        value = value // timedelta(seconds=1)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
