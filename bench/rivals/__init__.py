"""The rivals that Keyturn is measured against, each started as a server of its own.

| name | server | endpoints |
|---|---|---|
| `textbook` | the same API, built as the usual tutorials do (`textbook.py`) | POST /auth/refresh, login, logout, … |
| `fastapi` | an empty FastAPI route (`empty.py`) | POST /auth/refresh and GET / |
| `asgi` | an empty ASGI application (`empty.py`) | anything |
| `oidc` | node oidc-provider, rotating in PostgreSQL (`oidc/`) | POST /token |
"""

import asyncio
import hashlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.sentinel import Sentinel

HERE = Path(__file__).resolve().parent
POOL = 10  # Postgres connections of one process, the default of Keyturn
READY = 30.0  # seconds that a rival may take to start
IDLE, ABSOLUTE = timedelta(days=7), timedelta(days=30)

_T = TypeVar("_T")


class LeftOut(Exception):
    """The rival can't run on this machine. The message gives the reason."""


class Rival(ABC):
    """A rival server, with all that the load driver needs to follow chains of refresh tokens on it."""

    method = "POST"
    path = "/auth/refresh"
    database: str | None = None
    """The name of the rival's own database; None: the rival has no database."""

    def __init__(self, port: int, workers: int, postgres_url: str) -> None:
        self.port = port
        self.workers = workers
        self.url = f"http://127.0.0.1:{port}"
        self.pid = 0  # the parent process, whose children are measured too
        url = make_url(postgres_url).set(drivername="postgresql", database=self.database)
        self.database_url = url.render_as_string(hide_password=False)  # in the form of libpq

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The command line that starts the rival. Raises LeftOut."""

    async def create_tables(self) -> None:  # noqa: B027  # the empty applications have no tables
        """Makes the rival's tables in its new database."""

    def chains(self, n: int) -> list[str]:
        """Writes `n` new chains straight into the database, and returns the first refresh token of each."""
        return ["empty"] * n

    def check(self, acknowledged: int, connections: int) -> str | None:  # noqa: ARG002  # for `Rotating`
        """Compares the database with the number of refreshes acknowledged since the last `chains`.

        Returns the reason if they disagree, otherwise None. Each connection may have left one refresh under way, which
        the database has committed but the driver has not counted.
        """
        return None

    def body(self, token: str) -> tuple[str, str]:
        """The content type and the body of a request that presents the token (or `%s`, a template for the driver)."""
        return "application/json", json.dumps({"refresh_token": token}, separators=(",", ":"))


class Rotating(Rival):
    """A rival that rotates in PostgreSQL. Tokens of earlier calls of `chains` stay, but only the last ones count."""

    settle = 2.0
    """Seconds that requests may still be under way after the driver has ended."""

    def __init__(self, port: int, workers: int, postgres_url: str) -> None:
        super().__init__(port, workers, postgres_url)
        self._chains: list[Any] = []  # the id that all rows of a chain share, for each chain

    def chains(self, n: int) -> list[str]:
        tokens = [secrets.token_urlsafe(32) for _ in range(n)]
        self._chains = _run(self._seed(tokens))
        return tokens

    def check(self, acknowledged: int, connections: int) -> str | None:
        deadline = time.monotonic() + self.settle
        while (why := self._disagreement(acknowledged, connections)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return why

    def _disagreement(self, acknowledged: int, connections: int) -> str | None:
        live, rotations = _run(self._count())
        if live != len(self._chains):
            return f"{len(self._chains)} chains have {live} live tokens: some were cut or forked"
        if not acknowledged <= rotations <= acknowledged + connections:
            return f"{rotations} rotations in the database, {acknowledged} acknowledged on {connections} connections"
        return None

    async def _count(self) -> tuple[int, int]:
        """Counts the live tokens and the rotations of the last chains."""
        async with self.connection() as connection:
            live, rotations = await connection.fetchrow(self._counting, self._chains)
            return live, rotations

    _counting: str

    @abstractmethod
    async def _seed(self, tokens: list[str]) -> list[Any]:
        """Makes a chain for each token, and returns the id that all rows of a chain share, for each chain."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection to the rival's database, closed after the block."""
        connection = await asyncpg.connect(self.database_url)
        try:
            yield connection
        finally:
            await connection.close()


class Empty(Rival):
    """An empty application (`empty.py`)."""

    application: str

    def command(self) -> Sequence[str | Path]:
        return _uvicorn(self.application, self)


class EmptyFastAPI(Empty):
    application = "bench.rivals.empty:fastapi"


class EmptyASGI(Empty):
    application = "bench.rivals.empty:asgi"


class Textbook(Rotating):
    """The API of the usual tutorials (`textbook.py`)."""

    database = "rival_textbook"

    def command(self) -> Sequence[str | Path]:
        return _uvicorn("bench.rivals.textbook:app", self)

    async def create_tables(self) -> None:
        from bench.rivals.textbook import Base  # noqa: PLC0415  # the module hashes a password when it is imported

        engine = create_async_engine(make_url(self.database_url).set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await engine.dispose()

    async def _seed(self, tokens: list[str]) -> list[Any]:
        # Each chain has a user of its own. With one common user, the chains would wait for each other, because each
        # insert locks the user's row for its foreign key.
        users = [(uuid4(), f"{secrets.token_hex(8)}@example.com", "!") for _ in tokens]
        sessions = [uuid4() for _ in tokens]
        now = datetime.now(UTC)
        rows = [
            (uuid4(), hashlib.sha256(token.encode()).digest(), user[0], session, now + ABSOLUTE, now + IDLE)
            for token, user, session in zip(tokens, users, sessions, strict=True)
        ]
        columns = ["id", "token_hash", "user_id", "session_id", "session_expires_at", "expires_at"]
        async with self.connection() as connection:
            await connection.copy_records_to_table("users", records=users, columns=["id", "email", "password_hash"])
            await connection.copy_records_to_table("refresh_tokens", records=rows, columns=columns)
        return sessions

    _counting = """
        SELECT count(*) FILTER (WHERE used_at IS NULL AND revoked_at IS NULL), count(used_at)
        FROM refresh_tokens WHERE session_id = ANY($1)"""


class Oidc(Rotating):
    """node oidc-provider (`oidc/server.js`), which npm installs into a folder of the user's cache."""

    database = "rival_oidc"
    path = "/token"

    def command(self) -> Sequence[str | Path]:
        node, npm = shutil.which("node"), shutil.which("npm")
        if not node or not npm:
            raise LeftOut("oidc-provider is left out: node and npm are not both there")
        return [node, _installed(npm) / "server.js"]

    async def create_tables(self) -> None:
        async with self.connection() as connection:
            await connection.execute((HERE / "oidc" / "schema.sql").read_text())

    def body(self, token: str) -> tuple[str, str]:
        # No escape is needed, because these tokens have only characters that a form holds as they are.
        form = f"grant_type=refresh_token&client_id=bench&refresh_token={token}"
        return "application/x-www-form-urlencoded", form

    async def _seed(self, tokens: list[str]) -> list[Any]:
        # The rows are those that the models `Grant` and `RefreshToken` save after an exchange of a code.
        now = datetime.now(UTC)
        iat, resource = int(now.timestamp()), "https://api.example.com"
        grants, rows = [secrets.token_urlsafe(32) for _ in tokens], []

        def add(kind: str, key: str, grant: str, lifetime: timedelta, **members: Any) -> None:
            common = {"kind": kind, "jti": key, "clientId": "bench", "accountId": grant, "iat": iat}
            model = common | {"exp": iat + int(lifetime.total_seconds())} | members
            rows.append((key, kind, json.dumps(model), members.get("grantId"), now + lifetime))

        for token, grant in zip(tokens, grants, strict=True):
            add("Grant", grant, grant, ABSOLUTE, resources={resource: "read"})
            about = {"grantId": grant, "gty": "authorization_code", "scope": "read", "resource": resource}
            add("RefreshToken", token, grant, IDLE, **about, iiat=iat, authTime=iat, expiresWithSession=False)
        columns = ["id", "type", "payload", "grant_id", "expires_at"]
        async with self.connection() as connection:
            await connection.copy_records_to_table("oidc_payloads", records=rows, columns=columns)
        return grants

    _counting = """
        SELECT count(*) FILTER (WHERE consumed_at IS NULL), count(consumed_at)
        FROM oidc_payloads WHERE grant_id = ANY($1) AND type = 'RefreshToken'"""


RIVALS: dict[str, type[Rival]] = {"textbook": Textbook, "fastapi": EmptyFastAPI, "asgi": EmptyASGI, "oidc": Oidc}


@contextmanager
def start(
    name: str, *, port: int, postgres_url: str, redis_url: str, workers: int = 1, background: int = 20_000
) -> Iterator[Rival]:
    """Starts a rival with a new database on that PostgreSQL, and waits until the rival answers.

    Ends the rival and drops its database after the block. The database gets `background` chains before PostgreSQL plans
    the rival's first query. For a nearly empty table, PostgreSQL would choose plans that read the whole table, and keep
    them for a while. If there are several workers, the others may need a second more than the first one.

    Raises:
        LeftOut: the rival can't run here (`oidc` without node, npm or a way to install).
        RuntimeError: the rival did not start; the message holds its log.
    """
    rival = RIVALS[name](port, workers, postgres_url)
    command = rival.command()
    environment = {
        **{variable: os.environ[variable] for variable in ("PATH", "HOME") if variable in os.environ},
        "PYTHONPATH": str(HERE.parent.parent),
        "NODE_ENV": "production",
        "DATABASE_URL": rival.database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": secrets.token_hex(32),
        "PORT": str(port),
        "POOL_SIZE": str(POOL),
        "WORKERS": str(workers),
    }
    with _new_database(rival, postgres_url, background), closing(Sentinel()) as sentinel:
        rival.pid = sentinel.run(command, environment=environment)
        try:
            ended = sentinel.wait(READY, lambda: _answers(port)) is not None
        except TimeoutError:
            ended = True
        if ended:
            raise RuntimeError(f"{name} did not start:\n{sentinel.log.read_text(errors='replace')}")
        yield rival


@contextmanager
def _new_database(rival: Rival, postgres_url: str, background: int) -> Iterator[None]:
    if rival.database is None:
        yield
        return
    server = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    drop = f'DROP DATABASE IF EXISTS "{rival.database}" WITH (FORCE)'
    _run(_execute(server, drop, f'CREATE DATABASE "{rival.database}"'))
    try:
        _run(rival.create_tables())
        rival.chains(background)
        _run(_execute(rival.database_url, "VACUUM ANALYZE"))
        yield
    finally:
        _run(_execute(server, drop))


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine on an event loop of its own, so that the caller may be on a loop or not."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/")
        return connection.getresponse().status > 0
    return False


def _uvicorn(application: str, rival: Rival) -> list[str | Path]:
    """The command line of uvicorn with Keyturn's event loop and parser, and without an access log."""
    options = ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--no-server-header"]
    where = ["--port", str(rival.port), "--workers", str(rival.workers), "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", application, *options, *where]


def _installed(npm: str) -> Path:
    """The folder of oidc-provider, which is installed if it does not exist yet. Raises LeftOut."""
    sources = sorted((HERE / "oidc").iterdir())
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keyturn"
    folder = cache / f"oidc-{digest}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        building = shutil.copytree(HERE / "oidc", Path(temporary) / "oidc")
        try:
            install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(install, cwd=building, check=True, capture_output=True, text=True, timeout=120)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or str(error)
            raise LeftOut(f"oidc-provider is left out, npm could not install it: {said[-500:]}") from None
        with suppress(OSError):  # another process has installed the same folder meanwhile
            building.rename(folder)
    return folder
