"""All settings of Keyturn: type, unit, default and check of each. A process reads them once, at its start.

The first source that names a setting wins: environment (``KEYTURN_…``), ``.env`` in the working folder, the
TOML file given with ``--config`` (or ``KEYTURN_CONFIG``), the default. A value may come from a file instead:
``KEYTURN_SECRET_FILE=/run/…``. Durations are whole seconds outside, ``timedelta`` inside.

ASCII blanks and line ends around a value are dropped, whatever its source. Other invisible characters are refused. An
empty value is refused too, unless empty is the default: if a template leaves the URL of the database empty, Keyturn
must not start with SQLite instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)

from .own_files import make_data_dir
from .place import Place
from .settings_clients import ClientSettings
from .settings_faults import RULES, accepted, validated
from .settings_limits import LimitSettings
from .settings_passwords import PasswordSettings
from .settings_sessions import SessionSettings
from .settings_sources import sources
from .settings_values import Seconds, checked_root_path, checked_url, redis_rules, url
from .settings_watching import WatchingSettings

LEEWAY = timedelta(seconds=5)
"""Clock tolerance at ``exp`` and ``nbf`` (RFC 7519 section 4.1.4: "a few minutes" at most; a few seconds suffice
here, because every instance reads the database's clock)."""

DEFAULT_ISSUER = "http://127.0.0.1:8000"
"""The issuer of the embedded default. HOST and PORT are no part of it, so tokens stay valid when either changes."""

Algorithm = Literal["HS256", "ES256", "RS256", "EdDSA"]
"""The algorithms that sign access tokens (RFC 7518 section 3.1, RFC 8037 section 3.1)."""

FIRST_ALGORITHM: Algorithm = "HS256"
"""The algorithm of the first access key if the settings name none."""

MOST_ARGON2_MEMORY, MOST_ARGON2_PASSES, MOST_ARGON2_LANES = 1024 * 1024, 64, 16
"""Upper bounds (memory in KiB) of the settings and of stored hashes, so that each hash stays valid when they change."""


class Settings(WatchingSettings, PasswordSettings, ClientSettings, SessionSettings, LimitSettings):
    """All settings."""

    redis_url: Annotated[
        SecretStr | None,
        BeforeValidator(checked_url),
        Field(description="`redis://…` or `rediss://…`; `none`: the database answers always."),
    ] = None
    secret: Annotated[
        SecretStr | None,
        Field(description="The one master secret, at least 256 random bits as base64 or hex. Seals the keys at rest."),
    ] = None
    secret_previous: Annotated[
        SecretStr | None,
        Field(description="The master secret before, while the keys move to a new one. Opens keys and seals none."),
    ] = None
    federation_file: Annotated[
        Path | None,
        Field(description="TOML file of issuers whose tokens are exchanged: a table `[issuers.NAME]` for each."),
    ] = None

    # Names in tokens
    issuer: Annotated[
        str | None,
        BeforeValidator(checked_url),
        Field(description=f"`iss` of access tokens: the public URL. Required with Postgres; else `{DEFAULT_ISSUER}`."),
    ] = None
    audience: Annotated[
        str | None, Field(min_length=1, max_length=255, description="`aud` of access tokens. Unset: the issuer.")
    ] = None
    client_id: Annotated[
        str,
        Field(
            pattern=r"^[\x21-\x7e]{1,64}$",
            description="`client_id` of all sessions (RFC 9068); clients can't choose it.",
        ),
    ] = "first-party"
    signing_algorithm: Annotated[
        Algorithm | None,
        Field(
            description="Algorithm of the access keys that are made from now on. Unset: that of the newest key; the "
            f"first has `{FIRST_ALGORITHM}`."
        ),
    ] = None

    verify_without_database: Annotated[
        Seconds,
        Field(
            ge=timedelta(0),
            le=timedelta(seconds=900),
            description="Seconds for which a Redis that was complete answers alone when the database is away.",
        ),
    ] = timedelta(seconds=60)

    # Password hashes
    argon2_memory: Annotated[
        int, Field(ge=8, le=MOST_ARGON2_MEMORY, description="KiB of memory of one password hash (RFC 9106 section 4).")
    ] = 65536
    argon2_passes: Annotated[int, Field(ge=1, le=MOST_ARGON2_PASSES, description="Passes of one password hash.")] = 3
    argon2_lanes: Annotated[int, Field(ge=1, le=MOST_ARGON2_LANES, description="Lanes of one password hash.")] = 4
    hashing_slots: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="Password hashes at the same time, in each process, if they fit. Unset: cores - 1 in all, "
            "at least one in each.",
        ),
    ] = None
    hashing_queue: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Password hashes that may wait. Beyond: 503, or 429 to a network with its share.",
        ),
    ] = 32

    # Serving
    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on.")] = 8000
    workers: Annotated[int, Field(ge=1, le=64, description="Server processes.")] = 1
    root_path: Annotated[
        str,
        BeforeValidator(checked_root_path),
        Field(description="Path prefix of Keyturn at your proxy, as `/keyturn`, whether or not the proxy strips it."),
    ] = ""
    database_pool: Annotated[
        int, Field(ge=2, le=200, description="Postgres connections of one process, beside two that watch the fence.")
    ] = 10
    pgbouncer: Annotated[
        bool, Field(description="PgBouncer in transaction mode (or a pooler like it) stands before Postgres.")
    ] = False

    @property
    def production(self) -> bool:
        """Whether a Postgres is named. If so, a start makes no master secret, table or user by itself."""
        return self.postgres is not None

    @property
    def iss(self) -> str:
        """The ``iss`` claim."""
        return self.issuer or DEFAULT_ISSUER

    @property
    def address(self) -> str:
        """The URL of the service for clients: the issuer, or without one HOST and PORT (unless PORT is 0)."""
        return self.iss if self.issuer or not self.port else url(self.host, self.port) + self.root_path

    @property
    def aud(self) -> str:
        """The ``aud`` claim."""
        return self.audience or self.iss

    @property
    def redis(self) -> str | None:
        """Redis's URL, or None if the database answers always."""
        url = self.redis_url.get_secret_value() if self.redis_url else None
        return None if url == "none" else url

    @property
    def secret_path(self) -> Path:
        """The file in which the embedded default keeps the master secret that it made."""
        return self.data_dir / "secret"

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        issuer = self.issuer or "https://default"
        rules = (
            (
                self.redis is not None and urlsplit(self.redis).scheme not in {"redis", "rediss", "unix"},
                "KEYTURN_REDIS_URL must begin with redis:// or rediss:// (or be: none)",
            ),
            *redis_rules(self.redis or ""),
            (
                self.production and self.redis_url is None,
                "KEYTURN_REDIS_URL must be set with a Postgres KEYTURN_DATABASE_URL (KEYTURN_REDIS_URL=none: no Redis)",
            ),
            (
                self.production and self.issuer is None,
                "KEYTURN_ISSUER must be set with a Postgres KEYTURN_DATABASE_URL: the public URL of this service",
            ),
            (
                self.production and self.secret is None,
                "KEYTURN_SECRET (or KEYTURN_SECRET_FILE) must be set with a Postgres KEYTURN_DATABASE_URL",
            ),
            (
                not re.fullmatch(r"https?://[^\s?#@]+", issuer) or not urlsplit(issuer).hostname,
                "KEYTURN_ISSUER must be an http(s) URL without user, query and fragment (RFC 8414 section 2)",
            ),
            *self.web_rules(self.iss, self.retry_window),
            *self.session_rules(),
            *self.password_rules(),
            *self.watching_rules(self.port),
            (
                self.argon2_memory < 8 * self.argon2_lanes,
                "KEYTURN_ARGON2_MEMORY must be at least 8 KiB for each of KEYTURN_ARGON2_LANES (RFC 9106 section 3.1)",
            ),
        )
        if broken_rules := [rule for broken, rule in rules if broken]:
            raise ValueError(RULES.join(broken_rules))
        return self


def read(environ: Mapping[str, str] | None = None, *, config: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings; ``overrides`` (command-line options) win over everything.

    Raises:
        WrongSettings: something is unknown, malformed or missing.
    """
    values, faults = sources(os.environ if environ is None else environ, config, Settings.model_fields)
    values |= {name: value for name, value in overrides.items() if value is not None}
    return validated(Settings, values, faults)


def accepts(name: str) -> str:
    """The values that a setting accepts, in words; empty if only the setting's description tells them."""
    return accepted(Settings.model_fields[name])


def place_of_migrations() -> Place:
    """Reads where the database of a migration is, and makes the folder of the embedded default.

    No other setting is read, so the operator who migrates need not have the master secret.

    Raises:
        WrongSettings: as `read`.
        ConfigurationError: the folder can't be made or used.
    """
    values, faults = sources(os.environ, None, Settings.model_fields, only=Place.model_fields)
    place = validated(Place, values, faults)
    if place.database_url is None:
        make_data_dir(place.data_dir)
    return place
