"""The servers of a run, as in production (PostgreSQL with fsync, Valkey, `keyturn serve`), and their CPU time."""

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types

from app.settings import Settings, read
from app.storage.migrating import migrate
from bench.programs import compiled
from tests.sentinel import Sentinel, processes
from tests.servers import Postgres, Redis, free_port
from tests.service import Service

T = TypeVar("T")

ISSUER = "https://auth.example.com"

PACE = {"KEYTURN_LIMIT_SESSION": "999999/60", "KEYTURN_LIMIT_JUNK": "999999/60"}
"""Limits that count as those of a product do, and that no load reaches: each session refreshes as fast as it can."""


@dataclass(frozen=True)
class Database:
    """One database of the run's PostgreSQL."""

    postgres: Postgres
    name: str
    port: int | None = None  # of the proxy in front of PostgreSQL; None: there is no proxy

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port or self.postgres.port}/{self.name}"

    def via(self, port: int) -> "Database":
        """The same database, reached through another port."""
        return Database(self.postgres, self.name, port)

    def use(self, act: Callable[[Any], Awaitable[T]], **settings: str) -> T:
        """Runs `act` on a connection with these server settings (and no proxy between), and returns its result."""

        async def run() -> T:
            dsn = f"postgresql://postgres@127.0.0.1:{self.postgres.port}/{self.name}"
            connection = await asyncpg.connect(dsn, server_settings={"jit": "off", **settings})
            try:
                return await act(connection)
            finally:
                await connection.close()

        return asyncio.run(run())

    def row(self, query: str) -> Any:
        return self.use(lambda connection: connection.fetchrow(query))

    def execute(self, *statements: str) -> None:
        async def act(connection: Any) -> None:
            for statement in statements:
                await connection.execute(statement)

        self.use(act)


@dataclass
class Stage:
    """The servers, folders and durations of a run."""

    quick: bool
    rounds: int
    seconds: float
    warm: float
    small: int  # sessions in the table of most scenarios
    sessions: int  # sessions in the large table
    refreshes: int  # of the scenario `endurance`
    postgres: Postgres
    redis: Redis
    folder: Path  # for tokens
    logs: Path  # in memory, so that the logs do not compete with PostgreSQL for the disk
    secret: Path  # the file of the master secret
    stack: ExitStack
    names: dict[str, int] = field(default_factory=dict)

    def database(self, name: str, *, migrated: bool = True) -> Database:
        """Creates a database, empty or at the newest schema."""
        template = Database(self.postgres, "template_keyturn")
        if not self.names.get("database"):
            asyncio.run(self.postgres.create_database(template.name))
            migrate(self.settings(template))
        database = Database(self.postgres, f"{name}_{self._next('database')}")
        asyncio.run(self.postgres.create_database(database.name, template=template.name if migrated else "template0"))
        return database

    def redis_url(self) -> str:
        """The URL of a logical database of Valkey that no other service of this run uses."""
        return self.redis.url(self._next("redis"))

    def settings(self, database: Database, redis_url: str = "none") -> Settings:
        """The settings as the service reads them, for the code that seeds its database."""
        return read(self.environment(database.url, redis_url))

    def environment(self, database_url: str, redis_url: str) -> dict[str, str]:
        return {
            "KEYTURN_DATABASE_URL": database_url,
            "KEYTURN_REDIS_URL": redis_url,
            "KEYTURN_SECRET_FILE": str(self.secret),
            "KEYTURN_ISSUER": ISSUER,
            **PACE,
        }

    def serve(self, environment: Mapping[str, str], workers: int = 1) -> Service:
        """Starts `keyturn serve`, which ends with the stage."""
        more = {"KEYTURN_WORKERS": str(workers)}
        return self.stack.enter_context(Service.start({**environment, **more}, logs=self.logs))

    @contextmanager
    def part(self) -> "Iterator[Stage]":
        """A stage for one scenario. At the end of the block, its services end and its files are removed."""
        with (
            TemporaryDirectory(dir=self.folder) as folder,
            TemporaryDirectory(dir=self.logs) as logs,
            ExitStack() as stack,
        ):
            yield replace(self, folder=Path(folder), logs=Path(logs), stack=stack)

    def checkpoint(self) -> None:
        """Writes all changed pages to disk, so that no run pays for the pages that another run changed."""
        Database(self.postgres, "postgres").execute("CHECKPOINT")

    def delayed(self, database: Database, milliseconds: float) -> Database:
        """The same database through a proxy that adds these milliseconds to each round trip."""
        port = free_port()
        proxy = self.stack.enter_context(closing(Sentinel()))
        proxy.run([compiled("delay"), str(port), str(self.postgres.port), str(round(milliseconds * 1000))])
        if proxy.wait(10, lambda: "listening" in proxy.log.read_text(encoding="utf-8")) is not None:
            raise RuntimeError(f"the delay proxy did not start: {proxy.log.read_text(encoding='utf-8')}")
        return database.via(port)

    def _next(self, what: str) -> int:
        self.names[what] = self.names.get(what, 0) + 1
        return self.names[what]


def stage(stack: ExitStack, **options: Any) -> Stage:
    """Starts PostgreSQL and Valkey, which end with `stack`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    postgres = Postgres.start(
        durable=True,
        settings={
            "shared_buffers": f"{min(memory // 4, 4096)}MB",
            "max_wal_size": "8GB",  # so that no checkpoint falls into one run and disturbs it alone
            "checkpoint_timeout": "1h",
            "max_connections": "400",
        },
    )
    stack.enter_context(postgres)
    redis = Redis.start(settings=["--databases", "64"])
    stack.enter_context(redis)
    shm = Path("/dev/shm")
    folder = stack.enter_context(TemporaryDirectory(prefix="keyturn-bench-"))
    logs = stack.enter_context(TemporaryDirectory(prefix="keyturn-bench-", dir=shm if shm.is_dir() else None))
    secret = Path(folder) / "secret"
    secret.touch(mode=0o600)
    secret.write_text(base64.b64encode(os.urandom(32)).decode(), encoding="ascii")
    here: dict[str, Any] = {
        "postgres": postgres,
        "redis": redis,
        "folder": Path(folder),
        "logs": Path(logs),
        "secret": secret,
    }
    return Stage(stack=stack, **here, **options)


def family(pid: int) -> set[int]:
    """The ids of a process and of its descendants."""
    found, table = {pid}, processes()
    while fresh := {child for child, parent, _ in table if parent in found} - found:
        found |= fresh
    return found


def machine_seconds() -> tuple[float, float]:
    """Seconds of CPU time since the machine started: those that were used, and all that the cores offered."""
    words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    ticks = [int(word) for word in words]  # user nice system idle iowait irq softirq steal
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_second, sum(ticks) / per_second


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time of a process and its descendants, including the ended ones that were waited for."""
    ticks = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # the process has just ended, and its time is counted for its parent
            continue
        ticks += sum(int(word) for word in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Iterable[int]) -> float:
    """Resident memory of these processes in MiB."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
