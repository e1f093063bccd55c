"""The rights of the service's role in Postgres, and the statements that give them."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.dialects import postgresql

PUBLIC = "public"
"""The schema of the tables, unless the operator chose another."""

RIGHTS = {
    "alembic_version": "SELECT",
    "users": "SELECT, INSERT, UPDATE, DELETE",
    "sessions": "SELECT, INSERT, UPDATE, DELETE",
    "keys": "SELECT, INSERT, UPDATE",
    "cache_fence": "SELECT, UPDATE",
    "pulse": "SELECT, UPDATE",
    "events": "SELECT, INSERT, UPDATE",
    "policies": "SELECT, INSERT, UPDATE, DELETE",
    "issuers": "SELECT, INSERT, UPDATE, DELETE",
    "identities": "SELECT, INSERT, UPDATE, DELETE",
    "upstream_sessions": "SELECT, INSERT, UPDATE, DELETE",
    "taken_tokens": "SELECT, INSERT, UPDATE, DELETE",
}
"""The rights on each table that the service needs."""


def grants(role: str, schema: str = PUBLIC) -> Iterator[str]:
    """The statements that give a role all that the service needs, for the owner of the tables to run."""
    quoted = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]  # SQLAlchemy's constructor
    yield f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {quoted(role)};"
    for table, verbs in RIGHTS.items():
        yield f"GRANT {verbs} ON {quoted(schema)}.{quoted(table)} TO {quoted(role)};"
