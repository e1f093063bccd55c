"""What must be there before the first request: folder, schema, rights, an administrator.

The embedded default makes all of it. With a Postgres nothing is invented: what is missing stops the start with one
line that says what to do. (The working keys are random rows that every first start makes, under a lock.)
"""

from __future__ import annotations

import secrets
import shutil
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import SERVICE
from ..errors import Conflict, TemporarilyUnavailable
from ..settings import ConfigurationError, Place, Settings, make_data_dir
from ..users.users import Users
from .database import Database, message, outage
from .tables import User

_PACKAGE = Path(__file__).parent.parent
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
        if getattr(getattr(e.__cause__, "orig", None), "sqlstate", "") == "25006":
            raise TemporarilyUnavailable(
                "the database is read-only: a standby, or default_transaction_read_only is on"
            ) from None
        why = e.orig if isinstance(e, DBAPIError) else getattr(e.__cause__, "orig", None) or e.cause
        if isinstance(e, TemporarilyUnavailable) and place.sqlalchemy_url.startswith("postgresql"):
            raise TemporarilyUnavailable(f"the database is away, or a table stayed locked ({why})") from None
        raise ConfigurationError(f"the database can't be brought to this release's schema ({why})") from None


def not_let_in(error: TemporarilyUnavailable | DBAPIError) -> str | None:
    """What to say where the database refused us by its own rules, and not because it is away."""
    refused = error if isinstance(error, DBAPIError) else error.__cause__
    state: str = getattr(getattr(refused, "orig", None), "sqlstate", None) or getattr(refused, "sqlstate", None) or ""
    if state == "3D000":
        return "there is no such database: make it, or correct DATABASE_URL"
    if state == "3F000":
        return "there is no schema in the search path that this user may use: make it, or grant USAGE"
    if state == "42501" and isinstance(refused, DBAPIError):
        return f"the database does not let us in (SQLSTATE {state}: {message(refused)}): look at the user's rights"
    if state.startswith(("28", "42501")):
        return f"the database does not let us in (SQLSTATE {state}): look at user, password and rights"
    return None


_OLDEST = 14
"""Of Postgres: from this release on a server says in its greeting whether it is a standby."""

_RIGHTS = {
    "alembic_version": "SELECT",
    "users": "SELECT, INSERT, UPDATE",
    "sessions": "SELECT, INSERT, UPDATE, DELETE",
    "keys": "SELECT, INSERT, UPDATE",
    "cache_fence": "SELECT, UPDATE",
    "pulse": "SELECT, UPDATE",
    "events": "SELECT, INSERT",
}
"""On each table. The README has them as GRANT statements."""

_SERVER = text("""
SELECT current_setting('server_version_num')::int / 10000 AS version, current_setting('server_encoding') AS encoding,
  current_setting('transaction_read_only') AS read_only, current_schemas(false)::text AS schemas, current_user AS me,
  (SELECT min(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = 'cache_fence' AND to_regclass('cache_fence') IS NULL) AS elsewhere
""")

_MISSING = text("""
SELECT CASE WHEN c.oid IS NULL THEN 'the table ' || t.name WHEN row_security_active(c.oid)
    THEN 'a view of all rows of ' || t.name || ' (row-level security)' ELSE v.verb || ' on ' || t.name END AS missing
FROM unnest(CAST(:names AS text[]), CAST(:verbs AS text[])) WITH ORDINALITY AS t(name, verbs, nth)
  LEFT JOIN pg_class c ON c.oid = to_regclass(t.name)
  CROSS JOIN LATERAL unnest(string_to_array(t.verbs, ', ')) WITH ORDINALITY AS v(verb, mth)
WHERE CASE WHEN c.oid IS NULL OR row_security_active(c.oid) THEN v.mth = 1
  ELSE NOT has_table_privilege(c.oid, v.verb) END
ORDER BY t.nth, v.mth
""")


async def _check_server(connection: AsyncConnection) -> None:
    """Asks Postgres for all that the service will need of it, before a request finds out.

    Raises:
        TemporarilyUnavailable: it takes no writes.
        ConfigurationError: it is too old, has another encoding, or this user lacks a right.
    """
    server = (await connection.execute(_SERVER)).one()
    if server.version < _OLDEST:
        raise ConfigurationError(f"this is PostgreSQL {server.version}; Keyturn needs {_OLDEST} or newer")
    if server.encoding != "UTF8":
        raise ConfigurationError(f"the database's encoding is {server.encoding}; make it with ENCODING 'UTF8'")
    if server.elsewhere:
        raise ConfigurationError(
            f"the search path {server.schemas} has no tables of Keyturn and the schema {server.elsewhere} has: add "
            f"?options=-csearch_path={server.elsewhere} to DATABASE_URL and grant USAGE on that schema to {server.me}, "
            f"or run {called()} migrate"
        )
    found = await connection.scalars(_MISSING, {"names": list(_RIGHTS), "verbs": list(_RIGHTS.values())})
    missing = found.all()
    if missing and f"the table {next(iter(_RIGHTS))}" not in missing:  # else nothing was migrated
        raise ConfigurationError(
            f"the database user {server.me} lacks {', '.join(missing)}: see GRANT in the README, Production"
        )
    if server.read_only == "on":
        raise TemporarilyUnavailable("the database is read-only (default_transaction_read_only, or no primary)")


async def check_schema(db: Database) -> None:
    """Compares the schema with this release's, and looks whether Postgres lets us do what a request needs.

    A schema that is ahead is fine: migrations expand before they contract, so that two releases can share one.

    Raises:
        TemporarilyUnavailable: the database can't be reached, or takes no writes.
        ConfigurationError: it does not let us in, a right is missing, or its schema is behind.
    """
    scripts = ScriptDirectory.from_config(_alembic())
    head = scripts.get_current_head()
    current = None
    try:
        async with db.look() as connection:
            if db.is_postgres:
                await _check_server(connection)
            if await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
                current = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    except (TemporarilyUnavailable, DBAPIError) as e:
        if line := not_let_in(e):
            raise ConfigurationError(line) from None
        cause = e.cause if isinstance(e, TemporarilyUnavailable) else message(e)
        raise TemporarilyUnavailable(
            cause if cause.startswith("the database") else f"the database can't be reached ({cause})"
        ) from None
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
        await users.create(ADMINISTRATOR, password, "admin", initial=True, by=SERVICE)
    except Conflict:  # another first start at the same moment was faster, and tells the password
        return None
    return password


def prepare(settings: Settings) -> None:
    """Makes what the embedded default needs before a process can open it. Blocks.

    Raises:
        ConfigurationError: the folder can't be made or used.
    """
    from ..tokens.master_secret import make_secret  # noqa: PLC0415  # it stands above this file

    if settings.production:
        return
    if settings.database_url is None:
        make_data_dir(settings)
        make_secret(settings)
    migrate(settings)
