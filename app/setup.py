"""What must be there before the first request: folder, master secret, schema, keys, an administrator.

The embedded default makes all of it. With a Postgres nothing is invented: what is missing stops the start with one
line that says what to do. (The working keys are random rows that every first start makes, under a lock.)
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from .db import Database, outage
from .errors import Conflict, TemporarilyUnavailable
from .models import User
from .settings import SECRET_BYTES, ConfigurationError, Place, Settings, make_data_dir, master_secret, mode_if_ours
from .users import Users

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent
ADMINISTRATOR = "admin@localhost"


def called() -> str:
    """How whoever called this process calls the command again."""
    found = shutil.which("keyturn")
    if Path(sys.argv[0]).name == "keyturn":
        return "keyturn" if found else sys.argv[0]
    if Path(sys.prefix).resolve() == (_CHECKOUT / ".venv").resolve() and (_CHECKOUT / "dev.py").exists():
        return "python3 dev.py keyturn"
    return "keyturn" if found else f"python -m {_PACKAGE.name}"


def master_secret_of(settings: Settings) -> bytes:
    """The master secret, from the settings or from the embedded default's own file.

    Raises:
        ConfigurationError: there is none, it is weak, or its file is another user's or open to others.
    """
    if settings.secret is not None:
        return master_secret(settings.secret.get_secret_value())
    path = settings.secret_path
    try:
        if mode_if_ours(path, f"the master secret in {path} ") & 0o077 and os.name == "posix":
            raise ConfigurationError(f"the master secret in {path} is open to others; chmod 600 it")
        return master_secret(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        serve = "" if settings.database_url else f", or run {called()} serve once"
        raise ConfigurationError(f"there is no master secret: set KEYTURN_SECRET{serve}") from None
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"the master secret in {path} can't be read") from None


def make_secret(settings: Settings) -> bool:
    """Makes the embedded default's master secret where there is none; True if it did.

    Raises:
        ConfigurationError: it can't be written.
    """
    path = settings.secret_path
    if settings.secret is not None or path.exists():
        return False
    # Written aside and linked: whoever starts at the same time sees the whole file or none.
    aside = path.with_name(f"secret.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(base64.b64encode(os.urandom(SECRET_BYTES)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError as e:
        raise ConfigurationError(f"the master secret in {path} can't be written ({e.strerror})") from None
    finally:
        aside.unlink(missing_ok=True)
    return True


def _alembic() -> Config:
    # Without alembic.ini, which an installed package does not have; its migrations lie inside and not beside it.
    inside, beside = _PACKAGE / "migrations", _CHECKOUT / "migrations"
    config = Config()
    config.set_main_option("script_location", str(inside if inside.exists() else beside).replace("%", "%%"))
    return config


def migrate(place: Place) -> None:
    """Brings a database to this release's schema. Blocks; not for the event loop.

    Raises:
        ConfigurationError: it can't be written, is no database, does not let us in, or another migration goes on.
        TemporarilyUnavailable: it can't be reached.
    """
    config = _alembic()
    config.attributes["url"] = place.sqlalchemy_url
    try:
        with outage():
            command.upgrade(config, "head")
    except (TemporarilyUnavailable, DBAPIError) as e:
        if line := not_let_in(e):
            raise ConfigurationError(line) from None
        why = e.orig if isinstance(e, DBAPIError) else getattr(e.__cause__, "orig", None) or e.cause
        if isinstance(e, TemporarilyUnavailable) and place.sqlalchemy_url.startswith("postgresql"):
            raise TemporarilyUnavailable(f"the database is away, or a table stayed locked ({why})") from None
        raise ConfigurationError(f"the database can't be brought to this release's schema ({why})") from None


def not_let_in(error: TemporarilyUnavailable | DBAPIError) -> str | None:
    """What to say where the database refused us by its own rules, and not because it is away."""
    refused = error if isinstance(error, DBAPIError) else error.__cause__
    state: str = getattr(getattr(refused, "orig", None), "sqlstate", None) or ""
    if state == "3D000":
        return "there is no such database: make it, or correct DATABASE_URL"
    if state.startswith(("28", "42501")):
        return f"the database does not let us in (SQLSTATE {state}): look at user, password and rights"
    return None


async def check_schema(db: Database) -> None:
    """Compares the schema with this release's.

    A schema that is ahead is fine: migrations expand before they contract, so that two releases can share one.

    Raises:
        TemporarilyUnavailable: the database can't be reached.
        ConfigurationError: it does not let us in, or its schema is behind.
    """
    scripts = ScriptDirectory.from_config(_alembic())
    head = scripts.get_current_head()
    try:
        async with db.look() as connection:
            current = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    except (TemporarilyUnavailable, DBAPIError) as e:
        # Only a table that is missing says that nothing was migrated; a wrong password or name says something else.
        if line := not_let_in(e):
            raise ConfigurationError(line) from None
        if isinstance(e, TemporarilyUnavailable):
            raise TemporarilyUnavailable(f"the database can't be reached ({e.cause})") from None
        current = None
    known = {script.revision for script in scripts.walk_revisions()}
    if current != head and (current is None or current in known):
        raise ConfigurationError(
            f"the schema is at {current or 'nothing'}, this release needs {head}: run {called()} migrate"
        )


async def first_administrator(db: Database, users: Users) -> str | None:
    """Makes the first administrator of an embedded default without users; the initial password, told only here."""
    async with db.look() as connection:
        if await connection.scalar(select(func.count()).select_from(User)):
            return None
    password = secrets.token_urlsafe(15)
    try:
        await users.create(ADMINISTRATOR, password, "admin", initial=True)
    except Conflict:  # another first start at the same moment was faster, and tells the password
        return None
    return password


def prepare(settings: Settings) -> None:
    """Makes what the embedded default needs before a process can open it. Blocks.

    Raises:
        ConfigurationError: the folder can't be made or used.
    """
    if settings.production:
        return
    if settings.database_url is None:
        make_data_dir(settings)
        make_secret(settings)
    migrate(settings)
