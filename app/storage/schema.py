"""The schema that the service needs: version, tables and rights, checked before the first request.

Keyturn changes no Postgres at its start. If something is missing, the start stops with one line that says what to do.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..command_name import called
from ..errors import ConfigurationError, TemporarilyUnavailable
from .database import Database
from .outages import message, not_let_in
from .rights import PUBLIC, RIGHTS

_PACKAGE = Path(__file__).parent.parent


def alembic_config() -> Config:
    """Alembic's configuration of this release's migrations, made without a file.

    An installed package has no alembic.ini, and its migrations lie inside it; those of a checkout lie beside it.
    """
    inside, beside = _PACKAGE / "migrations", _PACKAGE.parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(inside if inside.exists() else beside).replace("%", "%%"))
    return config


_OLDEST = 14
"""The oldest release of Postgres that Keyturn supports: its greeting says whether the server is a standby."""

_SERVER = text("""
SELECT current_setting('server_version_num')::int / 10000 AS version, current_setting('server_encoding') AS encoding,
  current_setting('transaction_read_only') AS read_only, current_schemas(false)::text AS schemas, current_user AS me,
  (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = here.fence) AS schema,
  other.name AS elsewhere, other.usable
FROM (SELECT to_regclass('cache_fence')) AS here(fence) LEFT JOIN LATERAL (
    SELECT n.nspname AS name, has_schema_privilege(n.oid, 'USAGE') AS usable
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = 'cache_fence' AND here.fence IS NULL ORDER BY n.nspname LIMIT 1) AS other ON true
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
    """Checks everything that the service needs of Postgres, before a request would fail.

    Raises:
        TemporarilyUnavailable: Postgres takes no writes.
        ConfigurationError: Postgres is too old, the encoding is wrong, the search path misses the tables, or this user
            lacks a right.
    """
    server = (await connection.execute(_SERVER)).one()
    if server.version < _OLDEST:
        raise ConfigurationError(f"this is PostgreSQL {server.version}; Keyturn needs {_OLDEST} or newer")
    if server.encoding != "UTF8":
        raise ConfigurationError(f"the database's encoding is {server.encoding}; make it with ENCODING 'UTF8'")
    if server.elsewhere and not server.usable:
        raise ConfigurationError(
            f"the database user {server.me} may not use the schema {server.elsewhere}, which has tables of Keyturn: "
            f"grant USAGE on that schema, or run {called()} db upgrade"
        )
    if server.elsewhere:
        raise ConfigurationError(
            f"the search path {server.schemas} has no tables of Keyturn and the schema {server.elsewhere} has: add "
            f"?options=-csearch_path={server.elsewhere} to KEYTURN_DATABASE_URL, or run {called()} db upgrade"
        )
    found = await connection.scalars(_MISSING, {"names": list(RIGHTS), "verbs": list(RIGHTS.values())})
    missing = found.all()
    if missing and f"the table {next(iter(RIGHTS))}" not in missing:  # without it nothing was migrated
        where = "" if server.schema in {None, PUBLIC} else f" --schema {shlex.quote(server.schema)}"
        raise ConfigurationError(
            f"the database user {server.me} lacks {', '.join(missing)}: as the owner of the tables, run the statements "
            f"that {called()} db rights {shlex.quote(server.me)}{where} prints"
        )
    if server.read_only == "on":
        raise TemporarilyUnavailable("the database is read-only (default_transaction_read_only, or no primary)")


async def check_schema(db: Database) -> None:
    """Compares the schema with this release's, and checks that Postgres allows everything that a request needs.

    A newer schema is fine: migrations add first and remove in a later release, so that two releases can share one.

    Raises:
        TemporarilyUnavailable: the database can't be reached, or takes no writes.
        ConfigurationError: the database refuses Keyturn, a right is missing, or the schema is behind.
    """
    scripts = ScriptDirectory.from_config(alembic_config())
    head = scripts.get_current_head()
    current = None
    try:
        async with db.look() as connection:
            if db.is_postgres:
                await _check_server(connection)
            if await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
                current = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    except (TemporarilyUnavailable, DBAPIError) as e:
        if line := not_let_in(e, db.where):
            raise ConfigurationError(line) from None
        cause = e.cause if isinstance(e, TemporarilyUnavailable) else message(e)
        raise TemporarilyUnavailable(
            cause if cause.startswith("the database") else f"the database can't be reached ({cause})"
        ) from None
    known = {script.revision for script in scripts.walk_revisions()}
    if current != head and (current is None or current in known):
        raise ConfigurationError(
            f"the schema is at {current or 'nothing'}, this release needs {head}: run {called()} db upgrade"
        )
