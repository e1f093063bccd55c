"""Every knob of Keyturn: its type, unit, default and check, read once at start.

Sources, the first that names a setting wins: environment (``KEYTURN_…``), ``.env`` in the working folder, the
TOML file given with ``--config`` (or ``KEYTURN_CONFIG``), the default. A value may come from a file
instead: ``KEYTURN_SECRET_FILE=/run/…``. Durations are whole seconds outside, ``timedelta`` inside.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import parse_qs, urlsplit

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

PREFIX = "KEYTURN_"

_DATABASE_OPTIONS = {"host", "port", "ssl", "sslmode", "prepared_statement_cache_size"}

# What an operator may say of the connection to Redis: a pattern, and its words. The driver would take any parameter of
# its own from the URL, in the place of Keyturn's too (see `revocations`), and know a TypeError for others.
_REDIS_OPTIONS = {
    "db": ("[0-9]{1,5}", "a whole number"),
    "ssl_ca_certs": (".+", "a file"),
    "ssl_certfile": (".+", "a file"),
    "ssl_keyfile": (".+", "a file"),
    "ssl_cert_reqs": ("required|none", "required or none"),
    "ssl_check_hostname": ("true|false", "true or false"),
}

LONGEST_ACCESS_TOKEN = timedelta(hours=1)
"""No setting makes a longer access token, and none is accepted. Revocations are remembered for this long whatever
the setting says, so that instances with different settings (a rolling change) can't forget each other's."""

LEEWAY = timedelta(seconds=5)
"""Clock tolerance at ``exp`` and ``nbf`` (RFC 7519 section 4.1.4: "a few minutes" at most; a few seconds suffice
here, because every instance reads the database's clock)."""

SECRET_BYTES = 32

MOST_ARGON2_MEMORY, MOST_ARGON2_PASSES, MOST_ARGON2_LANES = 1024 * 1024, 64, 16
"""Bounds of the settings (memory in KiB), and of a stored hash that is computed, so that none outlives its settings."""


class ConfigurationError(Exception):
    """The set-up can't work. The message is one clear line that names the setting and never its value."""


def _seconds(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12:  # noqa: PLR2004  # digits
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:  # what timedelta can hold
        return timedelta(seconds=value)
    raise ValueError("must be a whole number of seconds")


def _none(value: object) -> object:
    return None if value == "" else value


def _url(value: object) -> object:
    if isinstance(value, str):
        try:
            parts = urlsplit(value)
            parts.port  # noqa: B018  # looked at because that is when it is checked
            # Not so for every parser: some would take what follows the first @ of a password for the host.
            stray = parts.netloc.count("@") > 1 or "@" in parts.path
        except ValueError:  # its own message repeats a part of the value, which may be of the password
            stray = True
        if stray:
            raise ValueError("is not a URL (in a user or password, write @ : / # as %40 %3A %2F %23)")
    return _none(value)


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]


class Place(BaseModel):
    """Where the database is: all that a migration needs. Unknown names are refused; no error repeats a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)

    data_dir: Annotated[Path, Field(description="Folder of the embedded default: SQLite database, master secret.")] = (
        Path("keyturn-data")
    )
    database_url: Annotated[
        SecretStr | None,
        BeforeValidator(_url),
        Field(description="`postgresql://…` for production. Unset: SQLite in DATA_DIR."),
    ] = None

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL with the driver that Keyturn uses, and that driver's name for libpq's ``sslmode``."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'keyturn.db'}"
        url = re.sub(r"^(postgres(ql)?)(\+\w+)?://", "postgresql+asyncpg://", self.database_url.get_secret_value())
        return re.sub(r"([?&])sslmode=", r"\1ssl=", url)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        url = self.database_url.get_secret_value() if self.database_url else "postgresql://"
        if not re.match(r"(postgres|postgresql|postgresql\+asyncpg|sqlite\+aiosqlite)://", url):
            raise ValueError("DATABASE_URL must begin with postgresql:// (or be unset for SQLite)")
        options = parse_qs(urlsplit(url).query)  # the driver knows a TypeError or a traceback for others
        if not options.keys() <= _DATABASE_OPTIONS:
            raise ValueError(f"DATABASE_URL: its options may be {', '.join(sorted(_DATABASE_OPTIONS))}")
        for name in ("port", "prepared_statement_cache_size"):
            if not all(value.isascii() and value.isdigit() for value in options.get(name, ())):
                raise ValueError(f"DATABASE_URL: {name} must be a whole number")
        return self


class Settings(Place):
    """All settings."""

    redis_url: Annotated[
        SecretStr | None,
        BeforeValidator(_url),
        Field(description="`redis://…` or `rediss://…`; `none`: the database answers always."),
    ] = None
    secret: Annotated[
        SecretStr | None,
        BeforeValidator(_none),
        Field(description="The one master secret, at least 256 random bits as base64 or hex. Seals the keys at rest."),
    ] = None

    # Names in tokens
    issuer: Annotated[
        str | None,
        BeforeValidator(_url),
        Field(description="`iss` of access tokens: the public URL. Required with Postgres; else from HOST, PORT."),
    ] = None
    audience: Annotated[
        str | None, Field(min_length=1, max_length=255, description="`aud` of access tokens. Unset: the issuer.")
    ] = None
    client_id: Annotated[
        str,
        Field(pattern=r"^[\x21-\x7e]{1,64}$", description="`client_id` of sessions that name no client (RFC 9068)."),
    ] = "first-party"
    signing_algorithm: Annotated[
        Literal["HS256", "ES256", "EdDSA"], Field(description="Algorithm of the access keys that are made from now on.")
    ] = "HS256"

    # Lifetimes
    access_token_lifetime: Annotated[
        Seconds,
        Field(ge=timedelta(seconds=30), le=LONGEST_ACCESS_TOKEN, description="Seconds an access token lives."),
    ] = timedelta(seconds=900)
    refresh_token_lifetime: Annotated[
        Seconds,
        Field(ge=timedelta(seconds=60), le=timedelta(days=366), description="Seconds a session may lie idle."),
    ] = timedelta(days=7)
    session_lifetime: Annotated[
        Seconds,
        Field(ge=timedelta(seconds=60), le=timedelta(days=3660), description="Seconds a session lives at most."),
    ] = timedelta(days=30)
    retry_window: Annotated[
        Seconds,
        Field(
            ge=timedelta(0),
            le=timedelta(seconds=300),
            description="Seconds after a rotation in which the same refresh token gets the same answer again, until "
            "its successor is used. At most a third of ACCESS_TOKEN_LIFETIME; 0: strict single use.",
        ),
    ] = timedelta(seconds=60)
    verify_without_database: Annotated[
        Seconds,
        Field(
            ge=timedelta(0),
            le=timedelta(seconds=900),
            description="Seconds for which a Redis that was complete answers alone when the database is away.",
        ),
    ] = timedelta(seconds=60)

    # Sign-in
    registration: Annotated[bool, Field(description="Whether anyone may register.")] = False
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
            description="Password hashes at the same time, in each process, if they fit. Unset: cores - 1 in all.",
        ),
    ] = None
    hashing_queue: Annotated[
        int, Field(ge=0, le=10_000, description="Password hashes that may wait; beyond: 503 with Retry-After.")
    ] = 32

    # Serving
    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on.")] = 8000
    workers: Annotated[int, Field(ge=1, le=64, description="Server processes.")] = 1
    root_path: Annotated[
        str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="Path prefix that a proxy strips, as `/keyturn`.")
    ] = ""
    trusted_proxies: Annotated[
        str, Field(description="Addresses or networks, comma-separated, whose X-Forwarded-For counts (log only).")
    ] = ""
    database_pool: Annotated[
        int, Field(ge=2, le=200, description="Postgres connections of one process, beside two that watch the fence.")
    ] = 10
    pgbouncer: Annotated[
        bool, Field(description="PgBouncer in transaction mode (or a pooler like it) stands before Postgres.")
    ] = False
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")] = (
        "info"
    )

    @property
    def production(self) -> bool:
        """Whether a Postgres is named: then nothing is invented silently."""
        return self.database_url is not None and not self.database_url.get_secret_value().startswith("sqlite")

    @property
    def iss(self) -> str:
        """The ``iss`` claim."""
        return self.issuer or f"http://{self.host}:{self.port}"

    @property
    def aud(self) -> str:
        """The ``aud`` claim."""
        return self.audience or self.iss

    @property
    def redis(self) -> str | None:
        """Redis's URL, or None where the database answers always."""
        url = self.redis_url.get_secret_value() if self.redis_url else None
        return None if url == "none" else url

    @property
    def secret_path(self) -> Path:
        """Where the embedded default keeps the master secret that it made."""
        return self.data_dir / "secret"

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        issuer = self.issuer or "https://default"
        rules = (
            (
                self.redis is not None and urlsplit(self.redis).scheme not in {"redis", "rediss", "unix"},
                "REDIS_URL must begin with redis:// or rediss:// (or be: none)",
            ),
            *_redis_rules(self.redis or ""),
            (
                self.production and self.redis_url is None,
                "REDIS_URL must be set with a Postgres DATABASE_URL (REDIS_URL=none: no Redis)",
            ),
            (
                self.production and self.issuer is None,
                "ISSUER must be set with a Postgres DATABASE_URL: the public URL of this service",
            ),
            (
                self.production and self.secret is None,
                "SECRET (or SECRET_FILE) must be set with a Postgres DATABASE_URL",
            ),
            (
                not re.fullmatch(r"https?://[^\s?#@]+", issuer) or not urlsplit(issuer).hostname,
                "ISSUER must be an http(s) URL without user, query and fragment (RFC 8414 section 2)",
            ),
            (
                self.retry_window * 3 > self.access_token_lifetime,
                "RETRY_WINDOW must be at most a third of ACCESS_TOKEN_LIFETIME",
            ),
            (
                self.refresh_token_lifetime < self.access_token_lifetime,
                "REFRESH_TOKEN_LIFETIME must not be below ACCESS_TOKEN_LIFETIME",
            ),
            (
                self.session_lifetime < self.refresh_token_lifetime,
                "SESSION_LIFETIME must not be below REFRESH_TOKEN_LIFETIME",
            ),
            (
                self.argon2_memory < 8 * self.argon2_lanes,
                "ARGON2_MEMORY must be at least 8 KiB for each of ARGON2_LANES (RFC 9106 section 3.1)",
            ),
        )
        if broken_rules := [rule for broken, rule in rules if broken]:
            raise ValueError(f"; {PREFIX}".join(broken_rules))
        for proxy in filter(None, self.trusted_proxies.split(",")):
            try:
                ipaddress.ip_network(proxy.strip(), strict=False)
            except ValueError:
                raise ValueError("TRUSTED_PROXIES must be addresses or networks, comma-separated") from None
        return self


def _redis_rules(url: str) -> Iterator[tuple[bool, str]]:
    parts = urlsplit(url)
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.scheme in {"redis", "rediss"} and parts.path not in {"", "/"}:
        options.setdefault("db", []).append(parts.path[1:])
    allowed = {name: o for name, o in _REDIS_OPTIONS.items() if parts.scheme == "rediss" or name == "db"}
    yield (
        not options.keys() <= allowed.keys(),
        f"REDIS_URL: its options may be {', '.join(_REDIS_OPTIONS)} (ssl_… only with rediss://)",
    )
    for name, (pattern, words) in allowed.items():
        values = options.get(name)
        # Of two the driver would take one, and for a database that is no number it would take 0.
        bad = values is not None and (len(values) > 1 or not re.fullmatch(pattern, values[0]))
        yield bad, f"REDIS_URL: {name} must be {words}, and said once"


def read(environ: Mapping[str, str] | None = None, *, config: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings; ``overrides`` (command-line options) win over everything.

    Raises:
        ConfigurationError: something is unknown, malformed or missing.
    """
    values = _sources(os.environ if environ is None else environ, config)
    values |= {name: value for name, value in overrides.items() if value is not None}
    return _validated(Settings, values)


_P = TypeVar("_P", bound=Place)


def _validated(model: type[_P], values: dict[str, Any]) -> _P:
    try:
        return model.model_validate(values)
    except ValidationError as e:
        errors = e.errors(include_input=False, include_context=False, include_url=False)
        raise ConfigurationError("; ".join(_in_words(error) for error in errors)) from None


def _in_words(error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return PREFIX + text
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        text = "there is no such setting"
    elif error["type"] == "string_too_short":
        text = "must not be empty"
    elif error["type"] != "value_error" and (accepted := accepts(name)):
        text = f"must be {accepted}"
    return f"{PREFIX}{name.upper()}: {text}"


def accepts(name: str) -> str:
    """What a setting's value may be, in words; empty where only its description can say it."""
    field = Settings.model_fields[name]
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        return " or ".join(map(str, get_args(field.annotation)))
    # Each bound is a metadatum of its own, with the one attribute.
    least, most = (next((getattr(m, b) for m in field.metadata if hasattr(m, b)), None) for b in ("ge", "le"))
    if isinstance(least, timedelta) and isinstance(most, timedelta):
        second = timedelta(seconds=1)
        return f"{least // second} to {most // second} seconds"
    return f"{least} to {most}" if most is not None else ""


def _sources(environ: Mapping[str, str], config: Path | None, only: Collection[str] | None = None) -> dict[str, Any]:
    """What the sources say, of all settings or of some; files that are named for others are not opened."""
    values: dict[str, Any] = {}
    try:
        dotenv = dotenv_values(".env", interpolate=False)  # a password may hold a "${"
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(".env: can't be read as UTF-8 text") from None
    named = environ.get(f"{PREFIX}CONFIG") or dotenv.get(f"{PREFIX}CONFIG")
    if config := config or (Path(named) if named else None):
        try:
            values.update(_from_files(tomllib.loads(config.read_text(encoding="utf-8")), only))
        except OSError as e:
            raise ConfigurationError(f"--config: can't be read ({e.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise ConfigurationError("--config: is not valid TOML") from None
    for source in (dotenv, environ):
        found = {name.removeprefix(PREFIX).lower(): v for name, v in source.items() if name.startswith(PREFIX)}
        found.pop("config", None)
        values.update(_from_files(found, only))
    return values


def _from_files(values: dict[str, Any], only: Collection[str] | None) -> dict[str, Any]:
    """Replaces each ``x_file`` by ``x`` with the file's content: a secret need not stand in the environment."""
    if only is not None:
        values = {name: value for name, value in values.items() if name.removesuffix("_file") in only}
    for name in [n for n in values if n.endswith("_file")]:
        target = name.removesuffix("_file")
        if target in values:
            raise ConfigurationError(f"{PREFIX}{name.upper()}: {PREFIX}{target.upper()} is set too; use one of them")
        try:
            path = Path(values.pop(name))
            mode = mode_if_ours(path, f"{PREFIX}{name.upper()}: ")
            if target == "secret" and mode & 0o007:
                raise ConfigurationError(f"{PREFIX}SECRET_FILE: is open to everyone; chmod 600 it")
            values[target] = path.read_text(encoding="utf-8").strip()
        except OSError as e:
            raise ConfigurationError(f"{PREFIX}{name.upper()}: can't be read ({e.strerror})") from None
        except (TypeError, ValueError):  # not a path (TOML has numbers), or not UTF-8
            raise ConfigurationError(f"{PREFIX}{name.upper()}: is not the path of a text file") from None
    return values


_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_SAMPLES = {"secret", "changeme", "change-me", "password", "keyturn", "example", "default", "insecure", "sample"}


def master_secret(text: str) -> bytes:
    """The master secret's bytes from its base64, base64url or hex text.

    Raises:
        ConfigurationError: it is shorter than 256 bits, repeats itself, or is a sample (attacks.md, "Secrets").
    """
    decoded = _decode(text)
    if decoded is None or len(decoded) < SECRET_BYTES:
        raise ConfigurationError(
            f"{PREFIX}SECRET: must be at least 256 random bits as base64 or hex; make one with: openssl rand -base64 32"
        )
    # 32 random bytes hold fewer than 16 distinct ones about once in 10**13, and no two steps of a count are random.
    repetitive = len(set(decoded)) < SECRET_BYTES // 2 or len({(b - a) % 256 for a, b in pairwise(decoded)}) == 1
    if repetitive or _typed(text.strip(), decoded) or any(word in text.lower() for word in _SAMPLES):
        raise ConfigurationError(f"{PREFIX}SECRET: is not random; make one with: openssl rand -base64 32")
    # One fixed size for the key derivation, whatever was given.
    return hashlib.sha256(b"keyturn master secret\0" + decoded).digest()


def _typed(text: str, decoded: bytes) -> bool:
    """Whether it is a passphrase: encoded to look like key material, or typed in letters that pass for base64.

    32 random bytes are readable text once in 10**10, their base64 has one case only once in 10**9 and fewer than 20
    different characters once in 10**8.
    """
    try:
        if "".join(decoded.decode().split()).isprintable():
            return True
    except UnicodeDecodeError:
        pass
    return not _HEX.fullmatch(text) and (text in {text.lower(), text.upper()} or len(set(text)) < 20)  # noqa: PLR2004


def _decode(text: str) -> bytes | None:
    text = text.strip()
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[A-Za-z0-9+/_-]+={0,2}", text):
        try:
            return base64.b64decode(
                text.replace("-", "+").replace("_", "/").rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
            )
        except ValueError:
            return None
    return None


def database_url_of_migrations() -> str:
    """The database's URL for `alembic`, which needs no other setting; makes the folder of the embedded default.

    Raises:
        ConfigurationError: it can't work. Nothing else is looked at: who migrates need not hold the master secret.
    """
    place = _validated(Place, _sources(os.environ, None, only=Place.model_fields.keys()))
    if place.database_url is None:
        make_data_dir(place)
    return place.sqlalchemy_url


def make_data_dir(settings: Place) -> None:
    """Makes the folder of the embedded default, for its owner alone.

    Raises:
        ConfigurationError: it can't be made, others may enter it, or it is another user's.
    """
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mode_if_ours(settings.data_dir, f"{PREFIX}DATA_DIR: ") & 0o077 and os.name == "posix":
            raise ConfigurationError(f"{PREFIX}DATA_DIR: is open to others; chmod 700 it")
    except OSError as e:
        raise ConfigurationError(f"{PREFIX}DATA_DIR: can't be made ({e.strerror})") from None


def mode_if_ours(path: Path, name: str) -> int:
    """The mode of a file or folder, unless we are root and it is another user's.

    Its mode keeps nobody out who owns it, and root alone is let into what is another's in spite of the mode.

    Raises:
        ConfigurationError: it is another user's. The line begins with `name`.
        OSError: there is none.
    """
    found = path.stat()
    if os.name == "posix" and os.geteuid() == 0 != found.st_uid:
        raise ConfigurationError(f"{name}belongs to another user; run as that user, or chown it to root")
    return found.st_mode
