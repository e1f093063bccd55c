"""Seeds sessions with genuine tokens into the database, and proves after a run that none was lost or ended."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types
from sqlalchemy import insert

from app.keyturn import Keyturn, opened, running
from app.settings import Settings
from app.storage.tables import Session, User, uuid7
from app.tokens.access_tokens import AccessTokens
from app.tokens.cookies import Cookies
from app.tokens.refresh_tokens import RefreshToken, issue
from bench.driver import Result
from bench.servers import Database

PASSWORD = "seven lamps under a quiet roof"
USERS = 1000
_CHUNK = 20_000

AHEAD = timedelta(seconds=60)
"""How far in the future the access tokens are issued.

If a token was issued before Redis was filled (plus a leeway), the service asks the database about it once. The service
starts after the seeding and fills Redis then. These tokens count as issued after that, so that only Redis is asked.
"""


def email(number: int) -> str:
    return f"user{number}@example.com"


def seed(
    settings: Settings,
    count: int,
    tokens: Path,
    *,
    database: Database | None = None,
    access: bool = False,
    cookies: bool = False,
) -> None:
    """Adds sessions to an empty or seeded database, and writes a line for each of them to `tokens`.

    The line is a refresh token. With `access` it is an access token, and with `cookies` both tokens in cookies, as a
    browser sends them.

    The sessions are as a login makes them: under the service's own keys, and of a thousand users. The hash of the
    users' password has its production cost. Without `database` (on SQLite) SQLAlchemy inserts the rows, otherwise
    PostgreSQL's COPY.
    """
    asyncio.run(_seed(settings, count, tokens, database, access=access, cookies=cookies))


async def _seed(
    settings: Settings, count: int, tokens: Path, database: Database | None, *, access: bool, cookies: bool
) -> None:
    async with opened(settings) as keyturn, running(keyturn):
        users = [uuid7() for _ in range(USERS)]
        signing = AccessTokens(keyturn.keys, settings)
        with tokens.open("w", encoding="ascii") as file:
            made = _sessions(keyturn, users, count)
            sink = _Copy(database) if database else _Insert(keyturn)
            async with sink:
                if count:
                    hashed = await keyturn.passwords.hash(PASSWORD.encode())
                    await sink.add(User, _users(users, hashed))
                while chunk := list(islice(made, _CHUNK)):
                    await sink.add(Session, [row for row, _ in chunk])
                    for row, token in chunk:
                        if cookies:
                            line = _cookies(keyturn.cookies, _access(signing, row), token)
                        else:
                            line = _access(signing, row) if access else token.text
                        file.write(line + "\n")


def _users(users: list[UUID], hashed: str) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    return [
        {
            "id": user,
            "email": email(number),
            "password_hash": hashed,
            "password_expires_at": None,
            "role": "user",
            "created_at": now,
            "disabled_at": None,
        }
        for number, user in enumerate(users)
    ]


def _sessions(keyturn: Keyturn, users: list[UUID], count: int) -> Iterator[tuple[dict[str, Any], RefreshToken]]:
    key, settings, client_id = keyturn.keys.signing_refresh, keyturn.settings, keyturn.settings.client_id
    now = datetime.now(UTC)
    idle, absolute = now + settings.refresh_token_lifetime, now + settings.session_lifetime
    for number in range(count):
        token = issue(key, uuid7())
        yield (
            {
                "id": token.session_id,
                "user_id": users[number % USERS],
                "role": "user",
                "client_id": client_id,
                "token_digest": token.digest,
                "key_number": key.number,
                "generation": 0,
                "created_at": now,
                "rotated_at": now,
                "idle_expires_at": idle,
                "absolute_expires_at": absolute,
                "ended_at": None,
                "end_reason": None,
            },
            token,
        )


def _access(signing: AccessTokens, row: dict[str, Any]) -> str:
    token, _ = signing.sign(
        subject=row["user_id"],
        session_id=row["id"],
        generation=0,
        role=row["role"],
        client_id=row["client_id"],
        issued_at=row["rotated_at"] + AHEAD,
        session_expires_at=row["absolute_expires_at"],
    )
    return token


def _cookies(cookies: Cookies, access: str, refresh: RefreshToken) -> str:
    fields = (
        cookies.set(name, refresh.session_id, text, timedelta(minutes=1), remembered=True)
        for name, text in ((cookies.access, access), (cookies.refresh, refresh.text))
    )
    return "; ".join(field.decode().partition(";")[0] for field in fields)


class _Insert:
    """Inserts rows into SQLite through SQLAlchemy, which knows how the tables store moments there."""

    def __init__(self, keyturn: Keyturn) -> None:
        self._db = keyturn.db

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def add(self, table: type[User | Session], rows: list[dict[str, Any]]) -> None:
        async with self._db.begin() as tx:
            await tx.execute(insert(table.__table__), rows)  # type: ignore[arg-type]  # declared as FromClause


class _Copy:
    """Copies rows into PostgreSQL with the triggers of the foreign keys off, millions of rows in a minute or two."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __aenter__(self) -> None:
        self._connection = await asyncpg.connect(
            self._database.url, server_settings={"session_replication_role": "replica"}
        )

    async def __aexit__(self, *_: object) -> None:
        await self._connection.execute("VACUUM (ANALYZE, FREEZE) sessions")
        await self._connection.execute("CHECKPOINT")
        await self._connection.close()

    async def add(self, table: type[User | Session], rows: list[dict[str, Any]]) -> None:
        columns = list(rows[0])
        await self._connection.copy_records_to_table(
            table.__tablename__, records=[tuple(row.values()) for row in rows], columns=columns
        )


@dataclass(frozen=True)
class Books:
    """The sums over the table of sessions: how often they were refreshed, and how many ended."""

    generations: int
    ended: int

    @classmethod
    def read(cls, where: Database | Path) -> "Books":
        """Reads the sums from a PostgreSQL database or from a file of SQLite."""
        query = "SELECT coalesce(sum(generation), 0) AS n, count(ended_at) AS ended FROM sessions"
        if isinstance(where, Database):
            generations, ended = where.row(query)
        else:
            with closing(sqlite3.connect(where)) as connection:
                generations, ended = connection.execute(query).fetchone()
        return cls(int(generations), int(ended))

    def fault(self, after: "Books", result: Result) -> str | None:
        """The reason why the run between two readings is void, or None.

        The run is void if the table does not hold what the service acknowledged, or if a session ended. If a connection
        broke before the answer, the service may have done the refresh or not: both are right.
        """
        done = after.generations - self.generations
        if not result.total <= done <= result.total + result.unanswered:
            return f"acknowledged {result.total} (and {result.unanswered} unanswered), the table says {done}"
        if after.ended != self.ended:
            return f"{after.ended - self.ended} sessions ended"
        return None
