"""Every knob of Keyturn: its type, unit, default and check, read once at start.

Sources, the first that names a setting wins: environment (``KEYTURN_…``), ``.env`` in the working folder, the
TOML file given with ``--config`` (or ``KEYTURN_CONFIG``), the default. A value may come from a file
instead: ``KEYTURN_SECRET_FILE=/run/…``. Durations are whole seconds outside, ``timedelta`` inside.

A value loses the ASCII blanks and line ends around it, whatever its source. Other characters that nobody sees are
refused, and so is an empty value where empty is not the default: a variable that some template left empty must not
turn a Postgres into a SQLite, or a master secret into one that nobody keeps.
"""

from __future__ import annotations

import io
import ipaddress
import os
import re
import stat
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import parse_qs, urlsplit

from dotenv.parser import parse_stream
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from .postgres_url import HIDDEN, PostgresURL

PREFIX = "KEYTURN_"

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

DEFAULT_ISSUER = "http://127.0.0.1:8000"
"""Of the embedded default, whatever HOST and PORT: tokens outlive a change of either."""

Algorithm = Literal["HS256", "ES256", "RS256", "EdDSA"]
"""How access tokens are signed (RFC 7518 section 3.1, RFC 8037 section 3.1)."""

MOST_ARGON2_MEMORY, MOST_ARGON2_PASSES, MOST_ARGON2_LANES = 1024 * 1024, 64, 16
"""Bounds of the settings (memory in KiB), and of a stored hash that is computed, so that none outlives its settings."""


class ConfigurationError(Exception):
    """The set-up can't work. The message is one clear line that names the setting and never its value."""


class WrongSettings(ConfigurationError):
    """The settings themselves are wrong or missing, before anything was opened."""


def _seconds(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12:  # noqa: PLR2004  # digits
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:  # what timedelta can hold
        return timedelta(seconds=value)
    raise ValueError("must be a whole number of seconds")


_BLANKS = " \t\r\n\v\f"


def _seen(text: str) -> str:
    """The text without the blanks around it.

    Raises:
        ValueError: there is another character that nobody sees, or that is none (bytes that are not UTF-8).
    """
    text = text.strip(_BLANKS)
    if not text.isprintable():
        raise ValueError("holds a character that can't be seen (a line end, NUL, a blank that is not ASCII, …)")
    return text


def _given(text: str) -> str:
    """As `_seen`, of what must not be empty."""
    if not (text := _seen(text)):
        raise ValueError("must not be empty")
    return text


def _url(value: object) -> object:
    if isinstance(value, str):
        try:
            parts = urlsplit(value)
            parts.port  # noqa: B018  # looked at because that is when it is checked
            # Not so for every parser: some would take what follows the first @ of a password for the host.
            stray = parts.netloc.count("@") > 1 or "@" in parts.path
        except ValueError:  # its own message repeats a part of the value, which may be of the password
            stray = True
        if HIDDEN.search(value):
            raise ValueError("holds an escaped character that can't be seen")
        if stray:
            raise ValueError("is not a URL (in a user or password, write @ : / # as %40 %3A %2F %23)")
    return value


def _database_url(value: object) -> object:
    if not isinstance(value, str) or value.startswith("sqlite+aiosqlite://"):
        return _url(value)
    if not re.match(r"(postgres|postgresql|postgresql\+asyncpg)://", value):
        raise ValueError("must begin with postgresql:// (or be unset for SQLite)")
    PostgresURL.parse(value)
    return value


def _root_path(value: object) -> object:
    if isinstance(value, str):
        value = value.removesuffix("/")
        if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*", value):
            raise ValueError("must be a path, as /keyturn")
        if f"{value}/".startswith("/auth/verify/"):
            raise ValueError("must not be verify's path or below it, where proxies append what clients ask for")
    return value


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]


class Place(BaseModel):
    """Where the database is: all that a migration needs. Unknown names are refused; no error repeats a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)

    data_dir: Annotated[Path, Field(description="Folder of the embedded default: SQLite database, master secret.")] = (
        Path("keyturn-data")
    )
    database_url: Annotated[
        SecretStr | None,
        BeforeValidator(_database_url),
        Field(description="`postgresql://…` for production. Unset: SQLite in DATA_DIR."),
    ] = None

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, str):
            return _seen(value) if field.default == "" else _given(value)
        if value is None or (isinstance(value, bool) and field.annotation is not bool):  # TOML has types
            raise PydanticCustomError("type", "has no value, or one of another type")
        return value

    @field_validator("data_dir")
    @classmethod
    def _a_path(cls, path: Path) -> Path:
        if path.parts[:1] and path.parts[0].startswith("~"):
            raise ValueError("begins with ~, which only a shell knows: write the whole path")
        if "?" in str(path):
            raise ValueError("must not contain a ?, which begins the options of SQLite's URL")
        return path

    @property
    def postgres(self) -> PostgresURL | None:
        """Where the Postgres is; None where the database is SQLite."""
        url = self.database_url.get_secret_value() if self.database_url else "sqlite"
        return None if url.startswith("sqlite") else PostgresURL.parse(url)

    @property
    def sqlalchemy_url(self) -> str:
        """The URL of the SQLite database, with the driver that Keyturn uses, or of a Postgres as it was given."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'keyturn.db'}"
        return re.sub(r"^postgres\w*(\+\w+)?://", "postgresql+asyncpg://", self.database_url.get_secret_value())


class Settings(Place):
    """All settings."""

    redis_url: Annotated[
        SecretStr | None,
        BeforeValidator(_url),
        Field(description="`redis://…` or `rediss://…`; `none`: the database answers always."),
    ] = None
    secret: Annotated[
        SecretStr | None,
        Field(description="The one master secret, at least 256 random bits as base64 or hex. Seals the keys at rest."),
    ] = None

    # Names in tokens
    issuer: Annotated[
        str | None,
        BeforeValidator(_url),
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
        Algorithm, Field(description="Algorithm of the access keys that are made from now on.")
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
            description="Password hashes at the same time, in each process, if they fit. Unset: cores - 1 in all, "
            "at least one in each.",
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
        str,
        BeforeValidator(_root_path),
        Field(description="Path prefix of Keyturn at your proxy, as `/keyturn`, whether or not the proxy strips it."),
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
        return self.issuer or DEFAULT_ISSUER

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
                ipaddress.ip_network(proxy.strip())  # as strictly as uvicorn reads it
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
        WrongSettings: something is unknown, malformed or missing.
    """
    try:
        values = _sources(os.environ if environ is None else environ, config)
        values |= {name: value for name, value in overrides.items() if value is not None}
        return _validated(Settings, values)
    except ConfigurationError as e:
        raise WrongSettings(str(e)) from None


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
    dotenv = _dotenv()
    named = [source[f"{PREFIX}CONFIG"] for source in (environ, dotenv) if f"{PREFIX}CONFIG" in source]
    if config := config or (_path(named[0], f"{PREFIX}CONFIG") if named else None):
        values.update(_from_files(_toml(config), only))
    for source in (dotenv, environ):
        found = {_setting(name): value for name, value in source.items() if _OURS.match(name)}
        if source is environ:
            found = _without_service_links(found)
        found.pop("config", None)
        values.update(_from_files(found, only))
    return values


def _shown(path: Path) -> str:
    """A path in one line of ASCII, whatever its name holds."""
    return ascii(str(path))[1:-1]


def _dotenv() -> dict[str, str | None]:
    try:
        text = Path(".env").read_text(encoding="utf-8-sig")
        if "\0" in text:  # UTF-16, as some editors write it
            raise ValueError  # noqa: TRY301  # as what is not UTF-8
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ConfigurationError(".env: can't be read as UTF-8 text") from None
    found: dict[str, str | None] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error and PREFIX in binding.original.string.upper():
            raise ConfigurationError(f".env: line {binding.original.line} is not NAME=VALUE")
        if binding.key is not None:
            found[binding.key] = binding.value  # as it stands: a password may hold a "${"
    return found


def _toml(config: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise ConfigurationError(f"--config: {_shown(config)} can't be read ({e.strerror})") from None
    except ValueError:  # TOML's error, or not UTF-8
        raise ConfigurationError(f"--config: {_shown(config)} is not valid TOML") from None
    for name in found:
        if name != (plain := name.lower().removeprefix(PREFIX.lower())) and plain.removesuffix("_file") in _names():
            raise ConfigurationError(f"--config: write {plain} and not {name}")
    return found


def _names() -> Collection[str]:
    return Settings.model_fields.keys()


# Names of other programs may contain ours; those that begin with it, in any case and behind any sign, are ours.
_OURS = re.compile(r"\W*keyturn[\W_]", re.IGNORECASE)


def _setting(name: str) -> str:
    if not re.fullmatch(f"{PREFIX}[A-Z0-9_]*", name):
        raise ConfigurationError(f"{ascii(name)[1:-1]}: is no name of a setting; they look like {PREFIX}PORT")
    return name.removeprefix(PREFIX).lower()


# Kubernetes gives every container such variables for each Service of its namespace, whatever that is called (Service
# documentation, "Discovering services: environment variables"). A Service `keyturn` makes a KEYTURN_PORT.
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
        for name in names:  # neither a second reading nor a worker process says it again
            os.environ.pop(name, None)
    return {name: value for name, value in values.items() if name not in links}


def _path(value: object, name: str) -> Path:
    try:
        return Path(_given(value if isinstance(value, str) else ""))
    except ValueError as e:
        raise ConfigurationError(f"{name}: {e}") from None


def _from_files(values: dict[str, Any], only: Collection[str] | None) -> dict[str, Any]:
    """Replaces each ``x_file`` by ``x`` with the file's content: a secret need not stand in the environment."""
    if only is not None:
        values = {name: value for name, value in values.items() if name.removesuffix("_file") in only}
    for name in [n for n in values if n.endswith("_file")]:
        target, called = name.removesuffix("_file"), f"{PREFIX}{name.upper()}"
        if target in values:
            raise ConfigurationError(f"{called}: {PREFIX}{target.upper()} is set too; use one of them")
        path = _path(values.pop(name), called)
        try:
            mode = mode_if_ours(path, f"{called}: ")
            if target == "secret" and stat.S_ISREG(mode) and mode & 0o007:
                raise ConfigurationError(f"{called}: is open to everyone; chmod 600 it")
            content = path.read_text(encoding="utf-8-sig")
        except OSError as e:
            raise ConfigurationError(f"{called}: can't be read ({e.strerror})") from None
        except ValueError:
            raise ConfigurationError(f"{called}: is not the path of a text file") from None
        try:
            values[target] = _given(content)
        except ValueError as e:
            raise ConfigurationError(f"{called}: its content {e}") from None
    return values


def place_of_migrations() -> Place:
    """Where a migration's database is, which needs no other setting; makes the folder of the embedded default.

    Raises:
        WrongSettings: as `read`. Nothing else is looked at: who migrates need not hold the master secret.
        ConfigurationError: the folder can't be made or used.
    """
    try:
        place = _validated(Place, _sources(os.environ, None, only=Place.model_fields.keys()))
    except ConfigurationError as e:
        raise WrongSettings(str(e)) from None
    if place.database_url is None:
        make_data_dir(place)
    return place


def make_data_dir(settings: Place) -> None:
    """Makes the folder of the embedded default, for its owner alone.

    Raises:
        ConfigurationError: it can't be made, others may enter it, or it is another user's.
    """
    name = f"{PREFIX}DATA_DIR: {_shown(settings.data_dir.absolute())}"
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mode_if_ours(settings.data_dir, f"{name} ") & 0o077 and os.name == "posix":
            raise ConfigurationError(f"{name} is open to others; chmod 700 it")
    except OSError as e:
        raise ConfigurationError(f"{name} can't be made ({e.strerror})") from None


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
