"""Errors of the database: which are an outage, which a contention, which a defect. SQLSTATEs are read only here.

PostgreSQL's documentation, appendix A, lists their classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import Contention, TemporarilyUnavailable
from ..printable import printable

READ_ONLY = "25006"
"""The SQLSTATE of a statement that writes, on a server that takes no writes."""

LOCK_NOT_AVAILABLE = "55P03"

_CONTENTION = "40"  # a serialisation failure or a deadlock

# Classes that say nothing about the request, which may succeed later: connection, read-only after a failover, password
# or database changed, resources, lock time-out, operator intervention, system.
_OUTAGES = ("08", READ_ONLY, "28", "3D", "53", "55", "57", "58")

# An operator removed something while Keyturn runs: a right, a table (during a restore), a schema. Postgres's message
# names it, and repeats no value. For resources (53) the message names the one that is short.
_NAMED = ("42501", "42P01", "3F", "53")

_NO_DATABASE = "3D000"
_NO_SCHEMA = "3F000"
_NO_RIGHT = "42501"
_NOT_AUTHORISED = "28"


@contextmanager
def outage() -> Iterator[None]:
    """Tells an outage from a defect: raises what `refusal_of` says in place of the error."""
    try:
        yield
    except Exception as e:
        if (refusal := refusal_of(e)) is None:
            raise
        raise refusal from e


def refusal_of(error: Exception) -> TemporarilyUnavailable | None:
    """The refusal for an error of the database. None for a defect, and for a refusal of our own.

    `Contention` for a serialisation failure or a deadlock. Another `TemporarilyUnavailable` where the database is away,
    full, locked or read-only.
    """
    cause: str | None = None
    match error:
        case PoolTimeout():
            return TemporarilyUnavailable("no database connection was free in time")
        case IntegrityError():
            return None
        case DBAPIError():
            state = sqlstate(error)
            name = getattr(error.orig, "sqlite_errorname", "")
            if state.startswith(_CONTENTION):
                return Contention(f"database: {state}")
            if state.startswith(_NAMED):
                cause = f"{state} {message(error)}"
            elif error.connection_invalidated or state.startswith(_OUTAGES) or (not state and name != "SQLITE_ERROR"):
                cause = state or name or type(error.orig).__name__
        case OSError() | TimeoutError() | MemoryError():
            cause = type(error).__name__
        case RuntimeError() if "start new thread" in str(error):
            cause = str(error)  # a name is looked up, and a file of SQLite's is opened, in a thread
    return None if cause is None else TemporarilyUnavailable(f"database: {cause}")


def sqlstate(error: BaseException | None) -> str:
    """The SQLSTATE of an error of the driver, or of one of SQLAlchemy's around it; empty where there is none."""
    found = getattr(getattr(error, "orig", None), "sqlstate", None) or getattr(error, "sqlstate", None)
    return str(found or "")


def message(error: DBAPIError) -> str:
    """Postgres's own words, without the class of the driver's error."""
    return str(error.orig).rpartition(">: ")[2]


def is_lost(error: Exception) -> bool:
    """Whether an error of the Postgres driver ends its connection: no answer, or the server is not the primary."""
    return sqlstate(error) in {"", READ_ONLY}


_UNUSABLE = {
    "SQLITE_CANTOPEN": "can't be opened: it must be a file that this user may write, in a folder that is there",
    "SQLITE_READONLY": "can't be written: this user must be allowed to write the file and its folder",
    "SQLITE_NOTADB": "is no SQLite database",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup",
}


def not_let_in(error: TemporarilyUnavailable | DBAPIError, where: str) -> str | None:
    """A line for the operator if Postgres refused Keyturn by its own rules, or a file of SQLite's is of no use.

    Args:
        error: what happened.
        where: the database in one line, without a password.

    Returns:
        The line. None if the database is away.
    """
    refused = error if isinstance(error, DBAPIError) else error.__cause__
    name = getattr(getattr(refused, "orig", None), "sqlite_errorname", "")
    for beginning, line in _UNUSABLE.items():
        if name.startswith(beginning):
            path = printable(where.partition("?")[0].partition(":///")[2])
            return f"the database file {path} {line} ({name})"
    state = sqlstate(refused)
    if state == _NO_DATABASE:
        return "there is no such database: make it, or correct KEYTURN_DATABASE_URL"
    if state == _NO_SCHEMA:
        return "the search path has no schema that the database user may use: make it, or grant USAGE on that schema"
    if state == _NO_RIGHT and isinstance(refused, DBAPIError):
        return f"the database does not let us in (SQLSTATE {state}: {message(refused)}): look at the user's rights"
    if state.startswith((_NOT_AUTHORISED, _NO_RIGHT)):
        return f"the database does not let us in (SQLSTATE {state}): look at user, password and rights"
    return None
