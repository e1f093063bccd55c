"""The servers of a run, as in production: PostgreSQL with fsync, Valkey, `keyturn serve`; and what CPU they took."""

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it has none

from app.settings import Settings, read
from app.storage.migrating import migrate
from bench.programs import compiled
from tests.sentinel import Sentinel, processes
from tests.servers import Postgres, Redis, free_port
from tests.service import Service

T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """One database of the run's PostgreSQL."""

    postgres: Postgres
    name: str
    port: int | None = None  # of whoever stands in front of it

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port or self.postgres.port}/{self.name}"

    def via(self, port: int) -> "Database":
        """The same database, reached through another port."""
        return Database(self.postgres, self.name, port)

    def use(self, act: Callable[[Any], Awaitable[T]], **settings: str) -> T:
        """What `act` gives on a connection with these server settings."""

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
    """Where the run takes place, and how long it is."""

    quick: bool
    rounds: int
    seconds: float
    warm: float
    small: int  # sessions in the table, wherever its size is not the question
    sessions: int  # in the large table
    refreshes: int  # of the memory row
    postgres: Postgres
    redis: Redis
    folder: Path  # for tokens
    logs: Path  # in memory: what the service logs must not compete with the database for the disk
    secret: Path  # the file of the master secret
    stack: ExitStack
    names: dict[str, int] = field(default_factory=dict)

    def database(self, name: str, *, migrated: bool = True) -> Database:
        """A fresh database, empty or at the newest schema."""
        template = Database(self.postgres, "template_keyturn")
        if not self.names.get("database"):
            asyncio.run(self.postgres.create_database(template.name))
            migrate(self.settings(template))
        database = Database(self.postgres, f"{name}_{self._next('database')}")
        asyncio.run(self.postgres.create_database(database.name, template=template.name if migrated else "template0"))
        return database

    def redis_url(self) -> str:
        """A logical database of Valkey that no other service of this run has."""
        return self.redis.url(self._next("redis"))

    def settings(self, database: Database, redis_url: str = "none") -> Settings:
        """As the service reads them, for what is seeded in its place."""
        return read(self.environment(database.url, redis_url))

    def environment(self, database_url: str, redis_url: str) -> dict[str, str]:
        return {
            "KEYTURN_DATABASE_URL": database_url,
            "KEYTURN_REDIS_URL": redis_url,
            "KEYTURN_SECRET_FILE": str(self.secret),
            "KEYTURN_ISSUER": "https://auth.example.com",
        }

    def serve(self, environment: Mapping[str, str], workers: int = 1) -> Service:
        """`keyturn serve`."""
        more = {"KEYTURN_WORKERS": str(workers)}
        return self.stack.enter_context(Service.start({**environment, **more}, logs=self.logs))

    @contextmanager
    def part(self) -> "Iterator[Stage]":
        """For one scenario: what it starts ends with it, and what it writes goes."""
        with (
            TemporaryDirectory(dir=self.folder) as folder,
            TemporaryDirectory(dir=self.logs) as logs,
            ExitStack() as stack,
        ):
            yield replace(self, folder=Path(folder), logs=Path(logs), stack=stack)

    def checkpoint(self) -> None:
        """So that no run pays for the pages that another changed."""
        Database(self.postgres, "postgres").execute("CHECKPOINT")

    def delayed(self, database: Database, milliseconds: float) -> Database:
        """The same database, each round trip to which takes that much longer."""
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
    """Starts PostgreSQL and Valkey, which end with the stack."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    postgres = Postgres.start(
        durable=True,
        settings={
            "shared_buffers": f"{min(memory // 4, 4096)}MB",
            "max_wal_size": "8GB",  # no checkpoint within a run, for whoever it would have hit
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
    """A process and all that came from it."""
    found, table = {pid}, processes()
    while fresh := {child for child, parent, _ in table if parent in found} - found:
        found |= fresh
    return found


def machine_seconds() -> tuple[float, float]:
    """CPU that the whole machine spent, and that it had to spend, since it was started."""
    words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    ticks = [int(word) for word in words]  # user nice system idle iowait irq softirq steal
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_second, sum(ticks) / per_second


def cpu_seconds(pid: int) -> float:
    """CPU of a process and all that came from it, with those that have ended."""
    ticks = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it ended this moment, and its parent has its time
            continue
        ticks += sum(int(word) for word in fields[11:15])  # utime, stime, and of the children that were waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Iterable[int]) -> float:
    """Resident memory."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
